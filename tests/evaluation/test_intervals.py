"""Intervals cover what they say they cover, measured by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trb_mlx.evaluation import intervals
from trb_mlx.evaluation.intervals import (
    Interval,
    bootstrap_gap,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
    bootstrap_share_gap,
    t_interval,
    unseen_share,
)

TRIALS = 300
# Three standard errors of a coverage of 0.95 that is measured over TRIALS trials.
NOISE = 3 * (0.95 * 0.05 / TRIALS) ** 0.5


def scores(generator: np.random.Generator, beta: tuple[float, float], problems: int) -> np.ndarray:
    """c/n of problems whose chances are beta-distributed, at n = 8."""
    return generator.binomial(8, generator.beta(*beta, size=problems)) / 8


def covers(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("beta", [(2.0, 2.0), (6.0, 1.0)])
@pytest.mark.parametrize("problems", [40, 120])
def test_the_bootstrap_covers_at_its_nominal_level(
    beta: tuple[float, float], problems: int
) -> None:
    generator = np.random.default_rng(7)
    truth = beta[0] / sum(beta)
    hits = [covers(bootstrap_mean(scores(generator, beta, problems)), truth) for _ in range(TRIALS)]
    # A bootstrap is short of its level by O(1/problems); 0.02 allows for that at 40 problems.
    assert abs(np.mean(hits) - 0.95) <= NOISE + (0.02 if problems < 100 else 0.0)


def test_bca_covers_more_than_percentiles_where_scores_are_skewed() -> None:
    """The reason for BCa: hard sets of few problems (AIME), most of them never solved."""
    generator = np.random.default_rng(3)
    bca = plain = 0
    for _ in range(TRIALS):
        values = scores(generator, (0.3, 3.0), 30)
        bca += covers(bootstrap_mean(values), 0.3 / 3.3)
        means = generator.choice(values, (1000, 30)).mean(-1)
        low, high = np.quantile(means, [0.025, 0.975])
        plain += bool(low <= 0.3 / 3.3 <= high)
    assert bca > plain
    assert bca / TRIALS >= 0.89


def test_a_ratio_is_of_sums_and_its_interval_resamples_problems() -> None:
    generator = np.random.default_rng(5)
    hits = []
    for _ in range(TRIALS):
        lengths = generator.integers(5, 50, size=60).astype(float)
        totals = lengths * (0.2 + 0.01 * lengths + generator.normal(0, 0.1, size=60))
        hits.append(covers(bootstrap_ratio(totals, lengths), _ratio_truth()))
    assert abs(np.mean(hits) - 0.95) <= NOISE + 0.02
    assert bootstrap_ratio(np.array([1.0, 9.0]), np.array([1.0, 3.0])).value == 2.5


def _ratio_truth() -> float:
    lengths = np.arange(5, 50)
    return float((lengths * (0.2 + 0.01 * lengths)).sum() / lengths.sum())


def made_up_sums(generator: np.random.Generator, fresh: bool) -> tuple[np.ndarray, np.ndarray]:
    """Totals and counts `[3, 2, P]` of runs that are 0.1 a token above their references."""
    seeds, own = 3, 30
    size = own * seeds if fresh else own
    counts = generator.integers(5, 50, size=(seeds, 2, size)).astype(float)
    hard = generator.normal(0.0, 0.5, size=size)
    gap = 0.1 + generator.normal(0.0, 0.3, size=size)  # of a problem, alike at every seed
    rates = 1.0 + hard + generator.normal(0.0, 0.1, size=counts.shape)
    rates[:, 0] += gap
    if fresh:
        counts *= (np.arange(size) // own == np.arange(seeds)[:, None])[:, None]
    return rates * counts, counts


@pytest.mark.parametrize("fresh", [True, False])
def test_a_gap_of_ratios_is_covered(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh problems at every seed, or the same ones at all."""
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    generator = np.random.default_rng(11)
    hits = []
    for _ in range(TRIALS):
        totals, counts = made_up_sums(generator, fresh)
        found = bootstrap_gap(totals, counts)
        ratios = totals.sum(-1) / counts.sum(-1)
        assert found.value == pytest.approx((ratios[:, 0] - ratios[:, 1]).mean())
        hits.append(covers(found, 0.1))
    assert abs(np.mean(hits) - 0.95) <= NOISE + 0.02


@pytest.mark.parametrize("sizes", [(60,), (25, 40)])
def test_bca_is_scipys(sizes: tuple[int, ...]) -> None:
    """Of a mean, and of the sum of two independent samples' means (problems of two seeds)."""
    generator = np.random.default_rng(4)
    samples = [generator.exponential(size=size) for size in sizes]
    scores = np.zeros((len(sizes), 2, sum(sizes)))
    counts = np.zeros_like(scores)
    start = 0
    for seed, sample in enumerate(samples):
        own = slice(start, start := start + len(sample))
        scores[seed, 0, own], counts[seed, :, own] = sample, 1.0
    found = bootstrap_gap(scores, counts)
    expected = stats.bootstrap(
        samples,
        lambda *parts, axis: np.mean([part.mean(axis=axis) for part in parts], axis=0),
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.low is not None
    assert abs(found.low - expected.low) < 0.1 * (expected.high - expected.low)


def test_methods_that_rarely_differ_are_not_told_apart() -> None:
    """Four problems of 1,000 for one method: a fair coin does that at one time in eight."""
    scores = np.zeros((1, 2, 1000))
    ones = np.ones_like(scores)
    alike = bootstrap_share_gap(scores, ones)
    assert (alike.low, alike.high) == (-unseen_share(1000), unseen_share(1000))
    scores[0, 0, :4] = 1.0
    plain, found = bootstrap_gap(scores, ones), bootstrap_share_gap(scores, ones)
    assert plain.low is not None
    assert plain.low > 0  # resampling never shows a problem that speaks against it
    assert covers(found, 0.0)
    scores[0, 0, :20] = 1.0
    decided = bootstrap_share_gap(scores, ones)
    assert decided.low is not None
    assert decided.low > 0


def test_rare_differences_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    generator = np.random.default_rng(12)
    guarded = plain = 0
    for _ in range(TRIALS):
        scores = np.zeros((1, 2, 200))
        scores[0, 0] = generator.random(200) < 0.01
        scores[0, 1] = generator.random(200) < 0.005
        ones = np.ones_like(scores)
        guarded += covers(bootstrap_share_gap(scores, ones), 0.005)
        plain += covers(bootstrap_gap(scores, ones), 0.005)
    assert guarded / TRIALS >= 0.95 - NOISE
    assert plain / TRIALS < 0.9


def test_the_same_scores_give_the_same_interval() -> None:
    values = scores(np.random.default_rng(0), (2.0, 2.0), 50)
    assert bootstrap_mean(values) == bootstrap_mean(values.copy())


@pytest.mark.parametrize(("score", "truth"), [(0.0, 0.1), (1.0, 0.9)])
def test_problems_that_are_all_alike_still_have_an_end(score: float, truth: float) -> None:
    found = bootstrap_share(np.full(30, score))
    assert found.value == score
    assert covers(found, truth)
    exact = stats.binomtest(int(30 * score), 30).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_too_little_gives_no_interval() -> None:
    assert bootstrap_mean(np.array([0.5])) == Interval(0.5)
    assert t_interval([0.5]) == Interval(0.5)
    assert t_interval([0.1 + 0.2, 0.3]).low is None  # alike but for rounding
    one = np.ones((2, 2, 2))
    one[0, :, 1] = one[1, :, 0] = 0.0
    assert bootstrap_gap(one, one) == Interval(0.0)  # one problem at each seed
    assert Interval(0.5).half_width is None
    assert bootstrap_mean(np.array([1.0, np.inf])).low is None


def test_t_is_students() -> None:
    values = [0.1, 0.4, 0.3]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    generator = np.random.default_rng(1)
    hits = [covers(t_interval(list(generator.normal(2.0, 1.0, 5))), 2.0) for _ in range(TRIALS)]
    assert abs(np.mean(hits) - 0.95) <= NOISE
