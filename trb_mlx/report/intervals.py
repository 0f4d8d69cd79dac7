"""Confidence intervals: over problems by the bootstrap, over seeds by Student's t."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4000
# Resamples held at once, times problems: bounds the memory of a large set.
BATCH_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, which are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def bootstrap_mean(values: np.ndarray, level: float = LEVEL) -> Interval:
    """The mean over problems, with a BCa bootstrap interval (Efron 1987) over problems.

    BCa, because on skewed scores of few problems it covers more than the percentile interval
    (`tests/report/test_intervals.py` measures both); the same values give the same interval.

    Args:
        values: float `[P]`, one score a problem.
        level: the nominal coverage.
    """
    values = np.asarray(values, np.float64)
    return bootstrap_ratio(values, np.ones_like(values), level)


def bootstrap_ratio(totals: np.ndarray, counts: np.ndarray, level: float = LEVEL) -> Interval:
    """Σ totals / Σ counts, such as a mean over all tokens, with a BCa interval over problems.

    Args:
        totals: float `[P]`, each problem's sum.
        counts: float `[P]`, how many terms it has.
        level: the nominal coverage.

    Returns:
        No interval for fewer than two problems; a point where all problems are alike.
    """
    totals, counts = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    value = float(totals.sum() / counts.sum())
    if len(totals) < 2 or not np.isfinite(totals).all():
        return Interval(value)
    if np.ptp(totals / counts) == 0.0:
        return Interval(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # then BCa is nan, see below
        found = stats.bootstrap(
            (totals, counts),
            lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH_ENTRIES // len(totals)),
            confidence_level=level,
            rng=np.random.default_rng(0),
        )
    low, high = (float(end) for end in found.confidence_interval)
    if np.isfinite([low, high]).all():
        return Interval(value, low, high)
    ends = np.quantile(found.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(ends[0]), float(ends[1]))


def bootstrap_share(values: np.ndarray, level: float = LEVEL) -> Interval:
    """`bootstrap_mean` of scores in [0, 1], with an honest end where all are 0, or all are 1.

    P equal scores tell a bootstrap nothing. But were the chance of another score above
    1 − (α/2)^(1/P), then P equal ones would come about with a probability below α/2: that
    bounds the mean (Clopper and Pearson 1934).
    """
    values = np.asarray(values, np.float64)
    found = bootstrap_mean(values, level)
    margin = 1.0 - ((1.0 - level) / 2) ** (1.0 / len(values))
    if (values == 0.0).all():
        return Interval(0.0, 0.0, margin)
    if (values == 1.0).all():
        return Interval(1.0, 1.0 - margin, 1.0)
    return found


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean over seeds with Student's t interval; none for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)
