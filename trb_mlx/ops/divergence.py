"""Reverse KL from the student to the teacher, on a support or over the whole vocabulary.

The backward passes are our own (docs/math.md derives them): mlx-lm's KL helper has the other
argument order and, on Metal, no gradient for the argument that matters here.

Axis letters: N response tokens, V vocabulary, K support.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from trb_mlx.ops.numerics import sum_last

SUPPORT_MODES = ("tail", "renormalized", "truncated")
Terms = tuple[mx.array, mx.array, mx.array]


def reverse_kl_on_support(
    logits: mx.array,
    support: mx.array,
    teacher_logprobs: mx.array,
    teacher_rest: mx.array,
    mode: str = "tail",
) -> mx.array:
    """KL(π_S ‖ π_T) per prefix, restricted to the student's top-k support.

    Modes (p student, q teacher, S the support):
      * `tail`: KL of the K + 1 buckets {S, rest}. Coarsening never increases KL, so this is a
        lower bound of the full divergence; it cannot see differences inside the rest.
      * `renormalized`: KL of both sides renormalised on S. Blind to mass moved out of S, and
        identically 0 at K = 1 (arXiv 2604.13016).
      * `truncated`: Σ_S p log(p/q) without the rest. Made small, even negative, by emptying S.

    Args:
        logits: the student's `[N, V]`, unnormalised; the only differentiable argument.
        support: int `[N, K]`, distinct ids.
        teacher_logprobs: `[N, K]`, of the whole vocabulary's normaliser.
        teacher_rest: `[N]`, log of the teacher's mass outside the support.
        mode: one of `SUPPORT_MODES`.

    Returns:
        `[N]` in nats.
    """
    if mode not in SUPPORT_MODES:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(SUPPORT_MODES)}")
    return _SUPPORT_LOSSES[mode](logits, support, teacher_logprobs, teacher_rest)[0]


def _support_loss(terms: Callable[..., Terms]) -> Any:
    """A custom function of (logits, support, teacher_logprobs, teacher_rest) → (loss, gradient).

    `terms` gives, from the student's and the teacher's log-probs on the support and the rest,
    the loss `[N]` and its gradient: dL/dz_v itself inside the support `[N, K]`, and the factor c
    `[N]` of dL/dz_v = c·p_v outside it.
    """

    @mx.custom_function
    def loss(
        logits: mx.array, support: mx.array, teacher_logprobs: mx.array, teacher_rest: mx.array
    ) -> tuple[mx.array, mx.array]:
        mass, scale, total = _unnormalized(logits)
        inside = mx.take_along_axis(logits, support, axis=-1).astype(mx.float32) - total
        rest = sum_last(mx.put_along_axis(mass, support, mx.array(0.0), axis=-1))
        rest = mx.log(rest * scale.squeeze(-1))  # its underflow is below all rounding of the loss
        value, on_support, factor = terms(inside, rest, teacher_logprobs, teacher_rest)
        outside = mass * (factor[..., None] * scale)
        return value, mx.put_along_axis(outside, support, on_support, axis=-1)

    loss.vjp(scaled_gradient)
    return loss


def scaled_gradient(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    """The backward of every loss here: its second output, scaled, for the first argument alone.

    Loss and gradient are formed together, since both need the same exponentials of `[N, V]`.
    """
    logits, *others = primals
    grad = outputs[1] * cotangents[0][..., None]
    return grad.astype(logits.dtype), *(mx.zeros_like(other) for other in others)


def _unnormalized(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """mass `[N, V]`, scale and total `[N, 1]` with p = mass·scale and log p = logits − total.

    On a CPU an exponential costs as much as twenty other passes over the vocabulary, so the loss,
    its normaliser and its gradient share this one.
    """
    logits = logits.astype(mx.float32)
    peak = logits.max(-1, keepdims=True)
    mass = mx.exp(logits - peak)
    size = sum_last(mass, keepdims=True)
    return mass, 1.0 / size, peak + mx.log(size)


def _weighted(logprobs: mx.array, values: mx.array) -> mx.array:
    """exp(logprobs)·values, 0 where the probability is 0 even if the value is infinite."""
    return mx.where(logprobs == -mx.inf, 0.0, mx.exp(logprobs) * values)


def _tail_terms(
    inside: mx.array, rest: mx.array, teacher: mx.array, teacher_rest: mx.array
) -> Terms:
    ratio, rest_ratio = inside - teacher, rest - teacher_rest
    rest_ratio = mx.where(rest == -mx.inf, 0.0, rest_ratio)
    loss = _weighted(inside, ratio).sum(-1) + _weighted(rest, rest_ratio)
    return loss, _weighted(inside, ratio - loss[..., None]), rest_ratio - loss


def _renormalized_terms(
    inside: mx.array, rest: mx.array, teacher: mx.array, teacher_rest: mx.array
) -> Terms:
    student = inside - mx.logsumexp(inside, axis=-1, keepdims=True)
    ratio = student - (teacher - mx.logsumexp(teacher, axis=-1, keepdims=True))
    loss = _weighted(student, ratio).sum(-1)
    return loss, _weighted(student, ratio - loss[..., None]), mx.zeros_like(loss)


def _truncated_terms(
    inside: mx.array, rest: mx.array, teacher: mx.array, teacher_rest: mx.array
) -> Terms:
    ratio = inside - teacher
    loss = _weighted(inside, ratio).sum(-1)
    pull = _weighted(inside, ratio + 1.0).sum(-1)
    return loss, _weighted(inside, ratio + 1.0 - pull[..., None]), -pull


_SUPPORT_LOSSES = {
    "tail": _support_loss(_tail_terms),
    "renormalized": _support_loss(_renormalized_terms),
    "truncated": _support_loss(_truncated_terms),
}


def reverse_kl(logits: mx.array, teacher_logprobs: mx.array) -> mx.array:
    """KL(π_S ‖ π_T) per prefix over the whole vocabulary.

    Args:
        logits: the student's `[N, V]`, unnormalised; the only differentiable argument.
        teacher_logprobs: `[N, V]`, normalised.

    Returns:
        `[N]` in nats. The gradient is p·(log p − log q − KL).
    """
    return _exact_loss(logits, teacher_logprobs)[0]


def _exact_terms(logits: mx.array, teacher_logprobs: mx.array) -> tuple[mx.array, mx.array]:
    # On long rows the arrays [N, V] that are read twice are the memory of the loss: the mass,
    # the terms and the gradient. Everything else is written over.
    mass, scale, total = _unnormalized(logits)
    terms = mx.where(mass == 0.0, 0.0, mass * ((logits - teacher_logprobs) - total))
    value = sum_last(terms, keepdims=True) * scale
    return value.squeeze(-1), (terms - mass * value) * scale


_exact_loss: Any = mx.custom_function(_exact_terms)
_exact_loss.vjp(scaled_gradient)
