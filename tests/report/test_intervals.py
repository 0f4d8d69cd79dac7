"""Intervals cover what they say they cover, measured by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from trb_mlx.report.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
    t_interval,
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
    ours = plain = 0
    for _ in range(TRIALS):
        values = scores(generator, (0.3, 3.0), 30)
        ours += covers(bootstrap_mean(values), 0.3 / 3.3)
        means = generator.choice(values, (1000, 30)).mean(-1)
        low, high = np.quantile(means, [0.025, 0.975])
        plain += bool(low <= 0.3 / 3.3 <= high)
    assert ours > plain
    assert ours / TRIALS >= 0.89


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
