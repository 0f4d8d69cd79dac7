"""Draws: the law is the row's, tails included, and nothing but the key decides them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trb_mlx.ops import sampling
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.sampling import nucleus, row_uniforms

INDEX = st.integers(0, 2**40)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), INDEX, INDEX, INDEX, st.integers(1, 40))
def test_uniforms_are_keyed_and_prefix_free(
    seed: int, step: int, prompt: int, rollout: int, length: int
) -> None:
    uniforms = row_uniforms(seed, step, prompt, rollout, length)
    assert uniforms.shape == (length, 2)
    assert uniforms.dtype == np.float32
    assert (uniforms >= 0).all()
    assert (uniforms < 1).all()
    longer = row_uniforms(seed, step, prompt, rollout, length + 7)
    np.testing.assert_array_equal(longer[:length], uniforms)
    others = [
        row_uniforms(seed ^ 1, step, prompt, rollout, length),
        row_uniforms(seed, step + 1, prompt, rollout, length),
        row_uniforms(seed, step, prompt + 1, rollout, length),
        row_uniforms(seed, step, prompt, rollout + 1, length),
    ]
    assert all((other[0] != uniforms[0]).any() for other in others)


def test_uniforms_are_uniform() -> None:
    uniforms = np.concatenate([row_uniforms(3, 1, p, 0, 200) for p in range(200)]).astype(
        np.float64
    )
    for column in uniforms.T:
        counts, _ = np.histogram(column, bins=50, range=(0, 1))
        assert ((counts - 800) ** 2 / 800).sum() < 95  # 0.9999 quantile at 49 degrees of freedom


def inverse_cdf(logits: mx.array, uniforms: mx.array) -> mx.array:
    """`sampling.draw` from each row of a softmax; of a row of nothing some id below V."""
    return mx.minimum(sampling.draw(softmax(logits).masses, uniforms), logits.shape[-1] - 1)


def draw(logprobs: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` draws from one row."""
    uniforms = mx.array(row_uniforms(seed, 0, 0, 0, count))
    tokens = []
    for start in range(0, count, 256):
        part = uniforms[start : start + 256]
        rows = mx.broadcast_to(mx.array(logprobs), (part.shape[0], len(logprobs)))
        tokens.append(np.asarray(inverse_cdf(rows, part)))
    return np.concatenate(tokens)


@pytest.mark.parametrize("vocab", [2, 3, 17, 500])
def test_the_empirical_law_is_the_rows(vocab: int) -> None:
    logits = np.random.default_rng(vocab).normal(size=vocab).astype(np.float32)
    logprobs = np.asarray(log_softmax(mx.array(logits)))
    count = 20_000
    counts = np.bincount(draw(logprobs, count), minlength=vocab)
    expected = np.exp(logprobs) * count
    pooled = expected >= 5
    chi = ((counts - expected)[pooled] ** 2 / expected[pooled]).sum()
    assert chi < pooled.sum() + 5 * np.sqrt(2 * pooled.sum()) + 5


def exact_entry(probabilities: np.ndarray, uniform: np.ndarray) -> int:
    """The inverse of the cumulative distribution in float64."""
    u = float(uniform[0]) + float(uniform[1]) * 2.0**-24
    cumulative = np.cumsum(probabilities)
    return int((cumulative <= u * cumulative[-1]).sum())


def test_long_tails_are_resolved() -> None:
    """A plain float32 cumulative sum cannot tell entries of 1e-8 apart next to a mass of one."""
    vocab = 151_936
    logprobs = np.full(vocab, np.log(1e-3 / (vocab - 1)), np.float32)
    logprobs[0] = np.log(0.999)
    probabilities = np.exp(logprobs.astype(np.float64))
    rng = np.random.default_rng(0)
    targets = 0.999 + 1e-3 * rng.random(300)  # all in the tail
    highs = np.floor(targets * 2**24) / 2**24
    uniforms = np.stack([highs, rng.random(300)], axis=-1).astype(np.float32)
    rows = mx.broadcast_to(mx.array(logprobs), (300, vocab))
    actual = np.asarray(inverse_cdf(rows, mx.array(uniforms)))
    expected = [exact_entry(probabilities, u) for u in uniforms]
    # A shift by one part in 2^24 of the whole mass is 9 entries of this tail.
    assert np.abs(actual - np.array(expected)).max() < 30
    assert len(set(actual.tolist())) > 295  # and no grid of 2^-24 is left to see


def test_impossible_entries_are_never_drawn() -> None:
    logprobs = np.full(1000, -np.inf, np.float32)
    logprobs[[3, 500, 998]] = np.log([0.5, 0.25, 0.25])
    ends = mx.array(np.array([[0, 0], [0, 0.99], [1 - 2**-24, 1 - 2**-24]], np.float32))
    rows = mx.broadcast_to(mx.array(logprobs), (3, 1000))
    assert np.asarray(inverse_cdf(rows, ends)).tolist() == [3, 3, 998]
    assert set(draw(logprobs, 3000).tolist()) == {3, 500, 998}


@pytest.mark.parametrize("vocab", [2, 5, 1000])
def test_a_row_of_nothing_gives_an_id_in_range(vocab: int) -> None:
    actual = inverse_cdf(mx.full((3, vocab), -np.inf), mx.array([[0.0, 0.0], [0.5, 0], [0.99, 0]]))
    assert all(0 <= token < vocab for token in actual.tolist())


def test_a_draw_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(1)
    logprobs = mx.array(rng.normal(size=(6, 3000)).astype(np.float32))
    uniforms = mx.array(np.stack([row_uniforms(0, 0, p, 0, 1)[0] for p in range(6)]))
    together = np.asarray(inverse_cdf(logprobs, uniforms))
    alone = [inverse_cdf(logprobs[i : i + 1], uniforms[i : i + 1]).item() for i in range(6)]
    backwards = np.asarray(inverse_cdf(logprobs[::-1], uniforms[::-1]))[::-1]
    assert together.tolist() == alone == backwards.tolist()


# Top-p


def reference_nucleus(probabilities: np.ndarray, top_p: float) -> set[int]:
    order = np.argsort(-probabilities)
    return set(order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p) + 1)].tolist())


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(top_p: float) -> None:
    logits = np.random.default_rng(0).normal(0, 3, size=(20, 500))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    logprobs = mx.array(np.log(probabilities).astype(np.float32))
    kept = np.asarray(nucleus(logprobs, top_p))
    for row in range(20):
        actual = set(np.flatnonzero(np.isfinite(kept[row])).tolist())
        assert actual == reference_nucleus(probabilities[row], top_p)
        index = sorted(actual)
        np.testing.assert_array_equal(kept[row, index], np.asarray(logprobs)[row, index])


def test_all_of_the_mass_changes_nothing_and_ties_stay_together() -> None:
    logprobs = mx.log(mx.array([[0.4, 0.2, 0.2, 0.2, 0.0]]))
    assert nucleus(logprobs, 1.0) is logprobs
    assert np.isfinite(np.asarray(nucleus(logprobs, 0.5))).tolist() == [[True] * 4 + [False]]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("sharpness", [0.0, 0.5, 3.0])
def test_a_nucleus_of_many_tokens_needs_no_sort_of_all(top_p: float, sharpness: float) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 3000)) * sharpness
    rows[1, 5:] = -np.inf  # of few tokens, and holes
    rows[2] = np.round(rows[2])  # ties
    with np.errstate(divide="ignore"):
        logprobs = (rows - np.log(np.exp(rows).sum(-1, keepdims=True))).astype(np.float32)
    kept = np.isfinite(np.asarray(nucleus(mx.array(logprobs), top_p)))
    for row, own in zip(kept, logprobs.astype(np.float64), strict=True):
        before = np.array([np.exp(own[own > value]).sum() for value in own])
        inside, near = before < top_p, np.abs(before - top_p) < 1e-5
        assert (row == inside)[~near & np.isfinite(own)].all()
        assert not row[~np.isfinite(own)].any()
