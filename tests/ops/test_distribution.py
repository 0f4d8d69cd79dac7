"""A softmax computed once: what is drawn, recorded and blended from it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops.reference import language_model_row, normalize, support_logprobs

from trb_mlx.ops.distribution import entropy_of, log_rest, softmax, top_k

INF = float("inf")


@pytest.mark.parametrize("vocab", [2, 127, 1000, 49_152, 151_669, 151_936])
def test_it_is_the_softmax_of_float64(vocab: int) -> None:
    logits = language_model_row(np.random.default_rng(vocab), vocab)[0].astype(np.float32)
    exact, rows = normalize(logits), softmax(mx.array(logits)[None])
    np.testing.assert_allclose(np.asarray(rows.logprobs)[0, :vocab], exact, atol=3e-5)
    np.testing.assert_allclose(np.asarray(rows.probs)[0, :vocab], np.exp(exact), rtol=5e-5)
    assert (np.asarray(rows.logprobs)[0, vocab:] == -INF).all()
    assert (np.asarray(rows.masses)[0, vocab:] == 0).all()
    assert rows.masses.max().item() == 1.0
    entropy = -(np.exp(exact) * exact).sum()
    assert entropy_of(rows).item() == pytest.approx(entropy, rel=1e-4, abs=1e-5)
    ids = mx.array([vocab - 1])
    assert rows.at(ids).item() == pytest.approx(exact[-1], abs=3e-5)


def test_impossible_ids_and_rows_of_nothing() -> None:
    rows = softmax(mx.array([[0.0, -INF, 0.0], [-INF] * 3]))
    assert rows.probs.tolist() == [[0.5, 0.0, 0.5], [0.0] * 3]
    assert entropy_of(rows).tolist() == pytest.approx([np.log(2), 0.0])


@pytest.mark.parametrize("vocab", [3, 16, 200, 2049, 49_152, 151_669])
@pytest.mark.parametrize("count", [1, 2, 16])
def test_the_likeliest_are_those_of_a_full_sort(vocab: int, count: int) -> None:
    rng = np.random.default_rng(vocab + count)
    values = rng.normal(size=(2, 3, vocab)).astype(np.float32)
    values[0, 0, : min(vocab, 40)] += 10  # all in one block
    values[1, :, rng.random(vocab) < 0.5] = -INF
    actual = np.asarray(top_k(mx.array(values), count))
    expected = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    assert actual.shape == (2, 3, min(count, vocab))
    at = [np.sort(np.take_along_axis(values, ids, -1)) for ids in (actual, expected)]
    np.testing.assert_array_equal(*at)
    assert all(len(set(ids)) == len(ids) for ids in actual.reshape(-1, actual.shape[-1]).tolist())


def test_every_id_is_one_of_the_row_even_where_few_are_possible() -> None:
    values = np.full((1, 3000), -INF, np.float32)
    values[0, [5, 2999]] = 1.0
    actual = np.asarray(top_k(mx.array(values), 16))[0]
    assert {5, 2999} <= set(actual.tolist())
    assert len(set(actual.tolist())) == 16
    assert (actual < 3000).all()


def test_the_rest_is_that_of_all_logits_also_where_float32_has_no_probability() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3000)).astype(np.float32)
    sharp = np.where(np.arange(3000) < 16, logits, logits - np.array([[0], [5], [60], [120]]))
    sharp, support = sharp.astype(np.float32), np.tile(np.arange(16), (4, 1))
    actual = log_rest(softmax(mx.array(sharp)), mx.array(support))
    _, expected = support_logprobs(sharp, support)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-5, atol=2e-6)
    assert actual[3].item() < -100
    alone = mx.array([[0.0, -INF, -1e5]])
    assert np.isfinite(log_rest(softmax(alone), mx.array([[0]])).item())
