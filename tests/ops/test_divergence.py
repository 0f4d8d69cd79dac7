"""Reverse KL on a support: theorems, and gradients against float64 finite differences."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.reference import support_logprobs

from trb_mlx.ops.divergence import (
    SUPPORT_MODES,
    reverse_kl,
    reverse_kl_on_support,
)


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def loss64(mode: str, logits: np.ndarray, teacher: np.ndarray, support: np.ndarray) -> float:
    """The definitions of docs/math.md, one row, in float64; `teacher` holds log-probs [V]."""
    student = log_softmax64(logits)
    if mode == "exact":
        return float((np.exp(student) * (student - teacher)).sum())
    inside, other = student[support], teacher[support]
    if mode == "renormalized":
        inside = inside - np.log(np.exp(inside).sum())
        other = other - np.log(np.exp(other).sum())
    value = (np.exp(inside) * (inside - other)).sum()
    if mode == "tail":
        outside = np.setdiff1d(np.arange(len(logits)), support)
        if len(outside):
            rest, other_rest = (np.exp(x[outside]).sum() for x in (student, teacher))
            value += rest * (np.log(rest) - np.log(other_rest))
    return float(value)


def example(rows: int, vocab: int, k: int, seed: int, sharp: float = 3.0):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, vocab)) * sharp).astype(np.float32)
    teacher_logits = (logits + rng.normal(size=logits.shape) * 1.5).astype(np.float32)
    support = np.argsort(-logits, axis=-1)[:, :k].astype(np.int32)
    return logits, teacher_logits, support


def loss(mode: str, logits: mx.array, teacher_logits: np.ndarray, support: np.ndarray) -> mx.array:
    if mode == "exact":
        teacher = mx.array(teacher_logits)
        return reverse_kl(logits, teacher - mx.logsumexp(teacher, -1, keepdims=True))
    inside, rest = support_logprobs(teacher_logits, support)
    return reverse_kl_on_support(logits, mx.array(support), inside, rest, mode)


@pytest.mark.parametrize("mode", [*SUPPORT_MODES, "exact"])
@pytest.mark.parametrize(("vocab", "k"), [(12, 4), (12, 1), (5, 5), (3000, 16)])
def test_value_and_gradient_against_float64(mode: str, vocab: int, k: int) -> None:
    logits, teacher_logits, support = example(3, vocab, k, seed=vocab + k)
    teacher = log_softmax64(teacher_logits)
    actual = np.asarray(loss(mode, mx.array(logits), teacher_logits, support))
    grad = np.asarray(
        mx.grad(lambda z: loss(mode, z, teacher_logits, support).sum())(mx.array(logits))
    )
    rng = np.random.default_rng(0)
    for row in range(3):
        args = (teacher[row], support[row])
        assert actual[row] == pytest.approx(loss64(mode, logits[row], *args), abs=2e-5)
        # Directional differences test every coordinate at once; single ones test the support.
        for direction in (rng.normal(size=vocab), np.eye(vocab)[support[row, 0]]):
            ahead, behind = (
                loss64(mode, logits[row].astype(np.float64) + sign * 1e-6 * direction, *args)
                for sign in (1, -1)
            )
            expected = (ahead - behind) / 2e-6
            assert float(grad[row] @ direction) == pytest.approx(expected, rel=1e-3, abs=3e-5)


def test_coarsening_never_increases_kl() -> None:
    logits, teacher_logits, _ = example(64, 200, 1, seed=5)
    full = np.asarray(loss("exact", mx.array(logits), teacher_logits, np.zeros((64, 1), np.int32)))
    previous = np.zeros(64)
    order = np.argsort(-logits, axis=-1).astype(np.int32)
    for k in (1, 4, 16, 64, 200):
        tail = np.asarray(loss("tail", mx.array(logits), teacher_logits, order[:, :k]))
        assert (tail >= previous - 1e-5).all()  # a finer partition sees no less
        assert (tail <= full + 1e-5).all()
        previous = tail
    np.testing.assert_allclose(previous, full, atol=2e-5)


def test_known_failures_of_the_other_modes() -> None:
    """What `tail` sees and they do not (docs/math.md)."""
    logits, teacher_logits, support = example(8, 50, 1, seed=6)
    renormalized = loss("renormalized", mx.array(logits), teacher_logits, support)
    assert np.abs(np.asarray(renormalized)).max() < 1e-6  # identically 0 at k = 1
    emptied = logits.copy()
    np.put_along_axis(emptied, support, -10.0, axis=-1)  # all mass moved out of the support
    truncated = np.asarray(loss("truncated", mx.array(emptied), teacher_logits, support))
    tail = np.asarray(loss("tail", mx.array(emptied), teacher_logits, support))
    assert (truncated < 1e-3).all()
    assert (tail > truncated + 1e-3).all()
    assert tail.mean() > 0.3


@pytest.mark.parametrize("mode", [*SUPPORT_MODES, "exact"])
def test_identical_models_give_zero_and_no_pull(mode: str) -> None:
    logits, _, support = example(4, 40, 8, seed=7)
    value = loss(mode, mx.array(logits), logits, support)
    grad = mx.grad(lambda z: loss(mode, z, logits, support).sum())(mx.array(logits))
    bound = 1e-5
    if mode == "truncated":  # its gradient does not vanish at equality: a known failure
        assert np.abs(np.asarray(grad)).max() > bound
    else:
        assert np.abs(np.asarray(grad)).max() < bound
    assert np.abs(np.asarray(value)).max() < bound


def test_masked_and_confident_rows_stay_finite() -> None:
    logits = np.full((2, 2048), -mx.inf, np.float32)
    logits[0, :3] = [80.0, 0.0, -60.0]  # one token holds everything
    logits[1, :3] = [1.0, 0.5, 0.0]  # most of the vocabulary is masked
    support = np.array([[0, 1], [0, 1]], np.int32)
    teacher_logits = np.where(np.isinf(logits), logits, logits * 0.5).astype(np.float32)
    for mode in ("tail", "renormalized", "truncated"):
        value = np.asarray(loss(mode, mx.array(logits), teacher_logits, support))
        grad = mx.grad(lambda z: loss(mode, z, teacher_logits, support).sum())(mx.array(logits))  # noqa: B023
        assert np.isfinite(value).all()
        assert np.isfinite(np.asarray(grad)).all()


def test_an_unknown_mode_is_refused() -> None:
    logits, teacher_logits, support = example(1, 5, 2, seed=1)
    with pytest.raises(ValueError, match="tail, renormalized, truncated"):
        loss("top", mx.array(logits), teacher_logits, support)
