"""Losses and their gradients on the device, against differences in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding
from trb_mlx.models.precision import bound
from trb_mlx.ops.distribution import log_rest, softmax
from trb_mlx.ops.divergence import (
    SUPPORT_MODES,
    reverse_kl,
    reverse_kl_on_support,
)
from trb_mlx.ops.fused_head import Arrays, fused_head_loss
from trb_mlx.ops.jensen_shannon import forward_kl, generalized_jsd
from trb_mlx.ops.numerics import log_softmax

ROWS, VOCAB, SUPPORT, WIDTH = 4, 48, 8, 12
BETA = 0.3
# Over the whole vocabulary: (logits, the teacher's log-probs, both [n, V]) → [n].
WHOLE: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "exact": reverse_kl,
    "forward_kl": forward_kl,
    "jsd": lambda logits, teacher: generalized_jsd(logits, teacher, BETA),
}
FORMS = (*SUPPORT_MODES, *WHOLE)

OfHidden = Callable[[mx.array], mx.array]  # hidden states [N, D] → losses [N]


def gradients() -> Sequence[Finding]:
    """Every form of the loss: its value and its whole gradient by the logits."""
    logits, arrays, teacher = _example()
    values, slopes = [], []
    for form in FORMS:

        def total(z: mx.array, form: str = form) -> tuple[mx.array, mx.array]:
            loss = token_loss(form, z, arrays)
            return loss.sum(), loss

        (_, loss), grad = mx.value_and_grad(total)(mx.array(logits))
        support = np.asarray(arrays["support"])
        expected, slope = _differences(form, logits.astype(np.float64), teacher, support)
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
            _value_and_grad(_fused(form, head, arrays), hidden),
            _value_and_grad(_plain(form, head, arrays), hidden),
        )
        for form in FORMS
    ]
    values, slopes = ([reference.gap(one[k], other[k]) for one, other in pairs] for k in (0, 1))
    return (
        Finding("loss differs by", max(values), bound(1e-5, 1e-2)),
        Finding("gradient by", max(slopes), bound(2e-5, 1e-2)),
    )


def token_loss(form: str, logits: mx.array, arrays: Arrays) -> mx.array:
    """One form of the loss `[n]` of logits `[n, V]` and what is known of the tokens."""
    if form in WHOLE:
        return WHOLE[form](logits, arrays["teacher"])
    teacher = arrays["inside"], arrays["rest"]
    return reverse_kl_on_support(logits, arrays["support"], *teacher, form)


def _plain(form: str, head: mx.array, arrays: Arrays) -> OfHidden:
    return lambda hidden: token_loss(form, hidden @ head, arrays)


def _fused(form: str, head: mx.array, arrays: Arrays) -> OfHidden:
    def measured(logits: mx.array, known: Arrays) -> tuple[mx.array, Arrays]:
        return token_loss(form, logits, known), {}

    chunk = 3  # the last chunk is a short one
    return lambda hidden: fused_head_loss(hidden, arrays, lambda x: x @ head, measured, chunk)[0]


def _example() -> tuple[np.ndarray, Arrays, np.ndarray]:
    """Logits `[N, V]`, what the losses know of their teacher, and its log-probs in float64."""
    rng = np.random.default_rng(1)
    logits = (2.0 * rng.normal(size=(ROWS, VOCAB))).astype(np.float32)
    other = (logits + rng.normal(size=logits.shape)).astype(np.float32)
    support = mx.array(np.argsort(-logits, axis=-1)[:, :SUPPORT].astype(np.int32))
    teacher = softmax(mx.array(other))
    arrays = {
        "support": support,
        "inside": mx.take_along_axis(teacher.logprobs, support, axis=-1),
        "rest": log_rest(teacher, support),
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
    form: str, logits: np.ndarray, teacher: np.ndarray, support: np.ndarray, step: float = 1e-5
) -> tuple[np.ndarray, np.ndarray]:
    """The loss `[N]` and its central differences `[N, V]`, in float64."""
    slope = np.empty_like(logits)
    for place in range(logits.shape[-1]):
        move = step * (np.arange(logits.shape[-1]) == place)
        ahead, behind = (_loss(form, logits + s * move, teacher, support) for s in (1, -1))
        slope[:, place] = (ahead - behind) / (2 * step)
    return _loss(form, logits, teacher, support), slope


def _loss(form: str, logits: np.ndarray, teacher: np.ndarray, support: np.ndarray) -> np.ndarray:
    """The definitions of docs/math.md in float64, `[N]`."""
    student = reference.normalize(logits)
    if form in WHOLE:
        return _whole_loss(form, student, teacher)
    inside, other = (np.take_along_axis(x, support, axis=-1) for x in (student, teacher))
    if form == "renormalized":
        inside, other = reference.normalize(inside), reference.normalize(other)
    value = (np.exp(inside) * (inside - other)).sum(-1)
    if form != "tail":
        return value
    rest, other_rest = (1.0 - np.exp(x).sum(-1) for x in (inside, other))
    return value + rest * np.log(rest / other_rest)


def _whole_loss(form: str, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    if form == "exact":
        return reference.kl(student, teacher)
    if form == "forward_kl":
        return reference.kl(teacher, student)
    mixed = np.logaddexp(np.log(BETA) + teacher, np.log1p(-BETA) + student)
    return BETA * reference.kl(teacher, mixed) + (1 - BETA) * reference.kl(student, mixed)
