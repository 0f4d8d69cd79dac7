"""From forward to reverse KL by one coefficient (GKD, arXiv 2306.13649).

The backward passes are our own, as in `trb_mlx.ops.divergence`; docs/math.md derives them.
Axis letters: N response tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from trb_mlx.ops.divergence import reverse_kl, scaled_gradient
from trb_mlx.ops.numerics import kl_divergence, log_softmax


def generalized_jsd(
    logits: mx.array, teacher_logprobs: mx.array, coefficient: float = 0.5
) -> mx.array:
    """β·KL(π_T‖M) + (1−β)·KL(π_S‖M) per prefix, M = β·π_T + (1−β)·π_S.

    β = 1/2 is the Jensen-Shannon divergence, at most log 2. The ends are taken as GKD's
    implementations take them: forward KL at β = 0 and reverse KL at β = 1. These are the
    limits of the value divided by β and by 1 − β, so near the ends, not at them, the value and
    its gradient are small.

    Args:
        logits: the student's `[N, V]`, unnormalised; the only differentiable argument.
        teacher_logprobs: `[N, V]`, normalised.
        coefficient: β in [0, 1].

    Returns:
        `[N]` in nats. Between the ends the gradient is (1−β)·p·(log(p/m) − KL(p‖m)).
    """
    if coefficient == 0.0:
        return forward_kl(logits, teacher_logprobs)
    if coefficient == 1.0:
        return reverse_kl(logits, teacher_logprobs)
    return _mixture_loss(logits, teacher_logprobs, mx.array(coefficient, dtype=mx.float32))[0]


def forward_kl(logits: mx.array, teacher_logprobs: mx.array) -> mx.array:
    """KL(π_T ‖ π_S) per prefix over the whole vocabulary.

    Args:
        logits: the student's `[N, V]`, unnormalised; the only differentiable argument.
        teacher_logprobs: `[N, V]`, normalised.

    Returns:
        `[N]` in nats. The gradient is p − q.
    """
    return _forward_loss(logits, teacher_logprobs)[0]


def _forward_terms(logits: mx.array, teacher_logprobs: mx.array) -> tuple[mx.array, mx.array]:
    student = log_softmax(logits)
    return kl_divergence(teacher_logprobs, student), mx.exp(student) - mx.exp(teacher_logprobs)


def _mixture_terms(
    logits: mx.array, teacher_logprobs: mx.array, coefficient: mx.array
) -> tuple[mx.array, mx.array]:
    student, own = log_softmax(logits), 1.0 - coefficient
    mixture = mx.logaddexp(mx.log(coefficient) + teacher_logprobs, mx.log(own) + student)
    from_student = kl_divergence(student, mixture)
    value = coefficient * kl_divergence(teacher_logprobs, mixture) + own * from_student
    gap = mx.where(student == -mx.inf, 0.0, student - mixture)
    return value, own * mx.exp(student) * (gap - from_student[..., None])


_forward_loss: Any = mx.custom_function(_forward_terms)
_forward_loss.vjp(scaled_gradient)
_mixture_loss: Any = mx.custom_function(_mixture_terms)
_mixture_loss.vjp(scaled_gradient)
