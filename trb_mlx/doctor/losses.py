"""Losses and their gradients on the device, against differences in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding
from trb_mlx.doctor.precision import bound
from trb_mlx.ops.divergence import (
    SUPPORT_MODES,
    reverse_kl,
    reverse_kl_on_support,
    support_logprobs,
)
from trb_mlx.ops.fused_head import Arrays, fused_head_loss
from trb_mlx.ops.numerics import log_softmax

ROWS, VOCAB, SUPPORT, WIDTH = 4, 48, 8, 12
EXACT = "exact"
MODES = (*SUPPORT_MODES, EXACT)

OfHidden = Callable[[mx.array], mx.array]  # hidden states [N, D] → losses [N]


def gradients() -> Sequence[Finding]:
    """Every form of the loss: its value and its whole gradient by the logits."""
    logits, arrays, teacher = _example()
    values, slopes = [], []
    for mode in MODES:

        def total(z: mx.array, mode: str = mode) -> tuple[mx.array, mx.array]:
            loss = token_loss(mode, z, arrays)
            return loss.sum(), loss

        (_, loss), grad = mx.value_and_grad(total)(mx.array(logits))
        support = np.asarray(arrays["support"])
        expected, slope = _differences(mode, logits.astype(np.float64), teacher, support)
        values.append(reference.gap(loss, expected))
        slopes.append(reference.gap(grad, slope))
    return (
        Finding("loss differs by", max(values), 1e-5),
        Finding("gradient by", max(slopes), 2e-5),
    )


def fused_head() -> Sequence[Finding]:
    """The loss chunk by chunk through the head equals the loss of all logits at once."""
    rng = np.random.default_rng(2)
    _, arrays, _ = _example()
    head, hidden = (
        mx.array(rng.normal(size=shape).astype(np.float32))
        for shape in ((WIDTH, VOCAB), (ROWS, WIDTH))
    )
    pairs = [
        (
            _value_and_grad(_fused(mode, head, arrays), hidden),
            _value_and_grad(_plain(mode, head, arrays), hidden),
        )
        for mode in MODES
    ]
    values, slopes = ([reference.gap(one[k], other[k]) for one, other in pairs] for k in (0, 1))
    return (
        Finding("loss differs by", max(values), bound(1e-5, 1e-2)),
        Finding("gradient by", max(slopes), bound(2e-5, 1e-2)),
    )


def token_loss(mode: str, logits: mx.array, arrays: Arrays) -> mx.array:
    """One form of the loss `[n]` of logits `[n, V]` and what is known of the tokens."""
    if mode == EXACT:
        return reverse_kl(logits, arrays["teacher"])
    teacher = arrays["inside"], arrays["rest"]
    return reverse_kl_on_support(logits, arrays["support"], *teacher, mode)


def _plain(mode: str, head: mx.array, arrays: Arrays) -> OfHidden:
    return lambda hidden: token_loss(mode, hidden @ head, arrays)


def _fused(mode: str, head: mx.array, arrays: Arrays) -> OfHidden:
    def measured(logits: mx.array, known: Arrays) -> tuple[mx.array, Arrays]:
        return token_loss(mode, logits, known), {}

    chunk = 3  # the last chunk is a short one
    return lambda hidden: fused_head_loss(hidden, arrays, lambda x: x @ head, measured, chunk)[0]


def _example() -> tuple[np.ndarray, Arrays, np.ndarray]:
    """Logits `[N, V]`, what the losses know of their teacher, and its log-probs in float64."""
    rng = np.random.default_rng(1)
    logits = (2.0 * rng.normal(size=(ROWS, VOCAB))).astype(np.float32)
    other = (logits + rng.normal(size=logits.shape)).astype(np.float32)
    support = mx.array(np.argsort(-logits, axis=-1)[:, :SUPPORT].astype(np.int32))
    inside, rest = support_logprobs(mx.array(other), support)
    arrays = {
        "support": support,
        "inside": inside,
        "rest": rest,
        "teacher": log_softmax(mx.array(other)),
    }
    return logits, arrays, reference.normalize(other)


def _value_and_grad(loss: OfHidden, hidden: mx.array) -> tuple[np.ndarray, np.ndarray]:
    def weighted(x: mx.array) -> tuple[mx.array, mx.array]:
        values = loss(x)
        return (values * mx.arange(1, ROWS + 1)).sum(), values

    (_, values), grad = mx.value_and_grad(weighted)(hidden)
    return np.asarray(values), np.asarray(grad)


def _differences(
    mode: str, logits: np.ndarray, teacher: np.ndarray, support: np.ndarray, step: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """The loss `[N]` and its central differences `[N, V]`, in float64."""
    slope = np.empty_like(logits)
    for place in range(logits.shape[-1]):
        move = step * (np.arange(logits.shape[-1]) == place)
        ahead, behind = (_loss(mode, logits + s * move, teacher, support) for s in (1, -1))
        slope[:, place] = (ahead - behind) / (2 * step)
    return _loss(mode, logits, teacher, support), slope


def _loss(mode: str, logits: np.ndarray, teacher: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The definitions of docs/math.md in float64, `[N]`."""
    student = reference.normalize(logits)
    if mode == EXACT:
        return (np.exp(student) * (student - teacher)).sum(-1)
    inside, other = (np.take_along_axis(x, support, axis=-1) for x in (student, teacher))
    if mode == "renormalized":
        inside, other = reference.normalize(inside), reference.normalize(other)
    value = (np.exp(inside) * (inside - other)).sum(-1)
    if mode != "tail":
        return value
    rest, other_rest = (1.0 - np.exp(x).sum(-1) for x in (inside, other))
    return value + rest * np.log(rest / other_rest)
