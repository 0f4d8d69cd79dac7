"""Veto's bridge: its definition, its ends, and where it pulls the student."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.ops.bridge import bridge_logprobs
from trb_mlx.ops.divergence import reverse_kl
from trb_mlx.ops.numerics import log_softmax


def example(rows: int, vocab: int, seed: int) -> tuple[mx.array, mx.array]:
    """The student's logits and the teacher's log-probs `[rows, V]`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, rows, vocab)).astype(np.float32) * 2
    return mx.array(logits[0]), log_softmax(mx.array(logits[1]))


@pytest.mark.parametrize("power", [0.2, 0.8, 1.5])
def test_definition_in_float64(power: float) -> None:
    logits, teacher = example(4, 300, seed=1)
    student = log_softmax(logits)
    weights = np.exp(
        np.asarray(teacher).astype(np.float64) + power * np.asarray(student).astype(np.float64)
    )
    expected = weights / weights.sum(-1, keepdims=True)
    actual = np.exp(np.asarray(bridge_logprobs(student, teacher, power)).astype(np.float64))
    np.testing.assert_allclose(actual, expected, atol=1e-6, rtol=1e-4)


def test_no_power_gives_the_teacher_bit_for_bit() -> None:
    logits, teacher = example(3, 50, seed=2)
    actual = bridge_logprobs(log_softmax(logits), teacher, mx.array(0.0))
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(teacher))
    pull, plain = (
        mx.grad(lambda z, q=target: reverse_kl(z, q).sum())(logits) for target in (actual, teacher)
    )
    np.testing.assert_array_equal(np.asarray(pull), np.asarray(plain))


def test_masked_tokens_stay_masked_and_finite() -> None:
    logits = mx.array([[1.0, 0.0, -mx.inf]])
    teacher = mx.log(mx.array([[0.3, 0.7, 0.0]]))
    for power in (0.0, 0.5):
        actual = np.asarray(bridge_logprobs(log_softmax(logits), teacher, power))
        assert actual[0, 2] == -np.inf
        assert np.exp(actual[0, :2]).sum() == pytest.approx(1.0)


def test_the_bridge_is_the_stationary_point_of_its_own_loss() -> None:
    """With Q held, the pull of KL(π_S‖Q) is zero at π_S = Q, and nowhere else near."""
    logits, teacher = example(5, 40, seed=3)
    held = bridge_logprobs(log_softmax(logits), teacher, 0.4)

    def pull(z: mx.array) -> np.ndarray:
        return np.asarray(mx.grad(lambda x: reverse_kl(x, held).sum())(z))

    assert np.abs(pull(held)).max() < 1e-6
    assert np.abs(pull(logits)).max() > 1e-2


def test_the_pull_is_that_of_reverse_kl_plus_entropy() -> None:
    """∇KL(π_S‖Q) = ∇[KL(π_S‖π_T) + b·H(π_S)]: Veto pays for decisiveness."""
    logits, teacher = example(5, 40, seed=4)
    power = 0.6

    def veto(z: mx.array) -> mx.array:
        return reverse_kl(z, bridge_logprobs(log_softmax(z), teacher, power)).sum()

    def penalised(z: mx.array) -> mx.array:
        student = z - mx.logsumexp(z, axis=-1, keepdims=True)
        return (mx.exp(student) * ((1 - power) * student - teacher)).sum()

    actual, expected = (np.asarray(mx.grad(loss)(logits)) for loss in (veto, penalised))
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    # Followed to its end it reaches the teacher sharpened to π_T^{1/(1−b)}.
    sharpened = log_softmax(teacher / (1 - power))
    assert np.abs(np.asarray(mx.grad(veto)(sharpened))).max() < 1e-6
