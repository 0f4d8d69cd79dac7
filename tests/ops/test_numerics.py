"""Reductions over long rows, against float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.reference import kl, language_model_row, normalize

from trb_mlx.ops.numerics import (
    entropy,
    kl_divergence,
    log_softmax,
    logsumexp,
    sum_last,
    total_variation,
)

SIZES = [2, 1000, 1024, 1025, 49_152, 128_256, 151_669, 151_936]
INF = float("inf")


@pytest.mark.parametrize("vocab", SIZES)
def test_long_rows_stay_accurate(vocab: int) -> None:
    logits = language_model_row(np.random.default_rng(vocab), vocab)[0].astype(np.float32)
    exact = normalize(logits)
    total = np.log(np.exp(logits.astype(np.float64)).sum())
    assert logsumexp(mx.array(logits)).item() == pytest.approx(total, abs=2e-5)
    actual = np.asarray(log_softmax(mx.array(logits)))
    np.testing.assert_allclose(actual, exact, atol=3e-5)
    expected = -(np.exp(exact) * exact).sum()
    assert entropy(mx.array(actual)).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    ones = mx.full((3, vocab), 0.1)
    np.testing.assert_allclose(np.asarray(sum_last(ones)), vocab * 0.1, rtol=2e-5)


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("vocab", [50, 151_936])
def test_kl_is_accurate_also_where_it_is_tiny(noise: float, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = language_model_row(rng, vocab)[0]
    moved = logits + noise * rng.normal(size=vocab)
    rows = [normalize(x).astype(np.float32) for x in (logits, moved)]
    exact = kl(normalize(rows[0]), normalize(rows[1]))
    actual = kl_divergence(mx.array(rows[0]), mx.array(rows[1])).item()
    assert actual == pytest.approx(exact, rel=2e-3)


def test_kl_and_variation_at_the_edges() -> None:
    def row(*probabilities: float) -> mx.array:
        with np.errstate(divide="ignore"):
            return mx.array(np.log(np.array(probabilities)).astype(np.float32))

    half = row(0.5, 0.5, 0.0)
    assert kl_divergence(half, half).item() == 0.0
    assert kl_divergence(row(1.0, 0.0, 0.0), half).item() == pytest.approx(np.log(2))
    assert kl_divergence(half, row(1.0, 0.0, 0.0)).item() == INF
    far = mx.array([0.0, -500.0])
    assert kl_divergence(far[::-1], far).item() == pytest.approx(500.0)
    other = row(0.0, 0.0, 1.0)
    assert total_variation(mx.exp(half), mx.exp(other)).item() == pytest.approx(1.0)
    assert entropy(half).item() == pytest.approx(np.log(2))


def test_rows_of_nothing_and_half_precision() -> None:
    empty = mx.full((2, 3000), -INF)
    assert (np.asarray(logsumexp(empty)) == -INF).all()
    assert (np.asarray(log_softmax(empty)) == -INF).all()
    logits = mx.array(language_model_row(np.random.default_rng(0), 3000)[0].astype(np.float32))
    halves = logits.astype(mx.bfloat16)
    assert log_softmax(halves).dtype == mx.float32
    assert kl_divergence(log_softmax(logits).astype(mx.bfloat16), halves).dtype == mx.float32
    np.testing.assert_allclose(
        np.asarray(log_softmax(halves)), normalize(np.asarray(halves.astype(mx.float32))), atol=3e-5
    )


def test_gradients_against_float64() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=2000).astype(np.float32)
    direction = rng.normal(size=2000)
    grad = np.asarray(mx.grad(lambda z: logsumexp(z))(mx.array(logits)))
    np.testing.assert_allclose(grad, np.exp(normalize(logits)), rtol=1e-4)
    grad = np.asarray(mx.grad(lambda z: entropy(log_softmax(z)))(mx.array(logits)))

    def entropy64(z: np.ndarray) -> float:
        return float(-(np.exp(normalize(z)) * normalize(z)).sum())

    wide = logits.astype(np.float64)
    change = (entropy64(wide + 1e-6 * direction) - entropy64(wide - 1e-6 * direction)) / 2e-6
    assert grad @ direction == pytest.approx(change, rel=1e-3)
