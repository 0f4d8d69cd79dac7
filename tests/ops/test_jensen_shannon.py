"""GKD's divergences: value and gradient against float64, ends, bounds, symmetry."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.ops.divergence import reverse_kl
from trb_mlx.ops.jensen_shannon import forward_kl, generalized_jsd
from trb_mlx.ops.numerics import log_softmax


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def loss64(logits: np.ndarray, teacher: np.ndarray, coefficient: float) -> float:
    """The definition, one row, in float64; `teacher` holds log-probs `[V]`."""
    student = log_softmax64(logits)
    p, q = np.exp(student), np.exp(teacher)
    if coefficient == 0.0:
        return float((q * (teacher - student)).sum())
    if coefficient == 1.0:
        return float((p * (student - teacher)).sum())
    mixture = np.log(coefficient * q + (1 - coefficient) * p)
    to_teacher, to_student = (q * (teacher - mixture)).sum(), (p * (student - mixture)).sum()
    return float(coefficient * to_teacher + (1 - coefficient) * to_student)


def example(rows: int, vocab: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, vocab)) * 2).astype(np.float32)
    return logits, (logits + 1.5 * rng.normal(size=logits.shape)).astype(np.float32)


@pytest.mark.parametrize("coefficient", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("vocab", [5, 3000])
def test_value_and_gradient_against_float64(coefficient: float, vocab: int) -> None:
    logits, teacher_logits = example(3, vocab, seed=vocab)
    teacher, target = log_softmax64(teacher_logits), log_softmax(mx.array(teacher_logits))

    def loss(z: mx.array) -> mx.array:
        return generalized_jsd(z, target, coefficient)

    actual = np.asarray(loss(mx.array(logits)))
    grad = np.asarray(mx.grad(lambda z: loss(z).sum())(mx.array(logits)))
    rng = np.random.default_rng(0)
    for row in range(3):
        assert actual[row] == pytest.approx(
            loss64(logits[row], teacher[row], coefficient), rel=1e-4
        )
        # Directional differences test every coordinate at once; single ones the likeliest.
        for direction in (rng.normal(size=vocab), np.eye(vocab)[logits[row].argmax()]):
            ahead, behind = (
                loss64(logits[row] + sign * 1e-6 * direction, teacher[row], coefficient)
                for sign in (1, -1)
            )
            expected = (ahead - behind) / 2e-6
            assert float(grad[row] @ direction) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_ends_are_forward_and_reverse_kl() -> None:
    logits, teacher_logits = (mx.array(x) for x in example(4, 60, seed=1))
    teacher = log_softmax(teacher_logits)
    for end, plain in ((0.0, forward_kl), (1.0, reverse_kl)):
        actual, expected = generalized_jsd(logits, teacher, end), plain(logits, teacher)
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))


def test_near_the_ends_the_divergence_scales_as_its_coefficient() -> None:
    logits, teacher_logits = (mx.array(x) for x in example(4, 60, seed=2))
    teacher, small = log_softmax(teacher_logits), 1e-3
    for near, plain in ((small, forward_kl), (1 - small, reverse_kl)):
        actual = np.asarray(generalized_jsd(logits, teacher, near)) / small
        np.testing.assert_allclose(actual, np.asarray(plain(logits, teacher)), rtol=0.05)


def test_symmetric_and_bounded_in_the_middle() -> None:
    logits, teacher_logits = (mx.array(x * 20) for x in example(16, 60, seed=3))
    one = np.asarray(generalized_jsd(logits, log_softmax(teacher_logits)))
    other = np.asarray(generalized_jsd(teacher_logits, log_softmax(logits)))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one <= np.log(2) + 1e-5).all()  # rounding of logits in the hundreds
    assert one.max() > 0.5


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_equal_models_masks_and_certainty(coefficient: float) -> None:
    logits = np.array([[80.0, 0.0, -60.0, -np.inf], [1.0, 0.5, 0.0, -np.inf]], np.float32)
    for teacher_logits in (logits, logits * np.float32(0.5)):
        target = log_softmax(mx.array(teacher_logits))
        value = np.asarray(generalized_jsd(mx.array(logits), target, coefficient))
        grad = np.asarray(
            mx.grad(lambda z, q=target: generalized_jsd(z, q, coefficient).sum())(mx.array(logits))
        )
        assert np.isfinite(value).all()
        assert np.isfinite(grad).all()
        if teacher_logits is logits:
            assert np.abs(value).max() < 1e-6
            assert np.abs(grad).max() < 1e-6
        else:
            assert value[1] > 1e-3
