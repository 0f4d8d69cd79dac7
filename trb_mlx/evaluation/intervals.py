"""Confidence intervals: over problems by the bootstrap, over seeds by Student's t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

LEVEL = 0.95
RESAMPLES = 4000
ALIKE = 1e-9  # values whose range is a smaller part of them differ by rounding alone
# Resamples drawn at once, times problems: bounds the memory of a large set.
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
    (`tests/evaluation/test_intervals.py` measures both); the same values give the same interval.

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

    table = np.stack([totals, counts], axis=-1)
    ends = _bca(table, (len(table),), lambda sums: sums[..., 0] / sums[..., 1], level)
    return Interval(value, *ends)


def bootstrap_gap(totals: np.ndarray, counts: np.ndarray, level: float = LEVEL) -> Interval:
    """How far runs are from their references: the mean over seeds of the difference of ratios.

    A seed's difference is Σ totals/Σ counts of its run, less that of its reference: of the same
    estimand as a mean over seeds of differences of means over tokens. Problems are the units,
    resampled with all that any seed and both methods have of them; those that only one seed had
    are resampled among themselves, so that every seed keeps its share.

    Args:
        totals: float `[S, 2, P]`, each problem's sum in the run and in its reference at each
            seed; 0 where the seed did not have the problem.
        counts: float `[S, 2, P]`, how many terms each has.
        level: the nominal coverage.

    Returns:
        A BCa interval, and none where a seed has fewer than two problems.
    """
    first = (counts[:, 0] > 0).argmax(axis=0)
    order = np.argsort(first, kind="stable")
    table = np.concatenate([totals, counts], axis=1).astype(np.float64)[..., order]
    seeds = len(table)

    def gap(sums: np.ndarray) -> np.ndarray:
        run, reference, run_count, reference_count = np.moveaxis(
            sums.reshape(*sums.shape[:-1], seeds, 4), -1, 0
        )
        return np.asarray((run / run_count - reference / reference_count).mean(axis=-1))

    rows = table.reshape(4 * seeds, -1).T
    value = float(gap(rows.sum(axis=0)))
    sizes = tuple(int(size) for size in np.bincount(first) if size)
    if min(sizes) < 2 or not np.isfinite(rows).all():
        return Interval(value)
    return Interval(value, *_bca(rows, sizes, gap, level))


def _bca(
    table: np.ndarray,
    sizes: tuple[int, ...],
    statistic: Callable[[np.ndarray], np.ndarray],
    level: float,
) -> tuple[float, float]:
    """The ends of a BCa interval (Efron 1987); of a percentile interval where BCa has none.

    Args:
        table: float `[P, C]`, what each problem adds to C sums.
        sizes: of the strata that problems are resampled in; the table has one below the other.
        statistic: of sums `[..., C]`, as `[...]`.
        level: the nominal coverage.
    """
    resampled = np.concatenate(
        [statistic(part.astype(np.float64) @ table) for part in _resamples(sizes, RESAMPLES)]
    )
    sums = table.sum(axis=0)
    value = statistic(sums)
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    # Each problem's pull on the value: what it was without the problem, by strata.
    pulls = np.split(statistic(sums - table), np.cumsum(sizes)[:-1])
    pulls = [(len(part) - 1) / len(part) * (part.mean() - part) for part in pulls]
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = sum((part**3).sum() for part in pulls)
        bend = skew / (6 * sum((part**2).sum() for part in pulls) ** 1.5)
        shifts = special.ndtri(below) + special.ndtri([(1 - level) / 2, (1 + level) / 2])
        shares = special.ndtr(special.ndtri(below) + shifts / (1 - bend * shifts))
    if not np.isfinite(shares).all():  # all resamples are alike
        shares = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = (float(end) for end in np.quantile(resampled, shares))
    return low, high


@lru_cache(maxsize=4)
def _resamples(sizes: tuple[int, ...], count: int) -> list[np.ndarray]:
    """How often each resample has each problem, uint16 `[count, P]`, in parts of some resamples.

    All metrics of a comparison share them; the same sizes give the same ones.
    """
    generator = np.random.default_rng(0)
    at_once = max(1, BATCH_ENTRIES // sum(sizes))
    parts = []
    for start in range(0, count, at_once):
        height = min(at_once, count - start)
        strata = []
        for size in sizes:
            places = generator.integers(0, size, (height, size))
            places += size * np.arange(height)[:, None]
            times = np.bincount(places.ravel(), minlength=size * height)
            strata.append(times.reshape(height, size).astype(np.uint16))
        parts.append(np.concatenate(strata, axis=1))
    return parts


def bootstrap_share(values: np.ndarray, level: float = LEVEL) -> Interval:
    """`bootstrap_mean` of scores in [0, 1], with an honest end where all are 0, or all are 1.

    P equal scores tell a bootstrap nothing. But were the chance of another score above
    1 − (α/2)^(1/P), then P equal ones would come about with a probability below α/2: that
    bounds the mean (Clopper and Pearson 1934).
    """
    values = np.asarray(values, np.float64)
    margin = unseen_share(len(values), level)
    if (values == 0.0).all():
        return Interval(0.0, 0.0, margin)
    if (values == 1.0).all():
        return Interval(1.0, 1.0 - margin, 1.0)
    return bootstrap_mean(values, level)


def bootstrap_share_gap(totals: np.ndarray, counts: np.ndarray, level: float = LEVEL) -> Interval:
    """`bootstrap_gap` of scores in [0, 1], with honest ends where methods rarely differ.

    Where no problem speaks for the one method, or for neither, resampling never shows one that
    does. As in `bootstrap_share`, P problems bound how often there is one, and its difference
    is 1 at most: the interval reaches that much further to the side which was not seen.
    """
    interval = bootstrap_gap(totals, counts, level)
    if interval.low is None or interval.high is None:
        return interval
    scores = totals / np.maximum(counts, 1.0)
    gaps = scores[:, 0] - scores[:, 1]
    margin = unseen_share(gaps.shape[-1], level)
    low = interval.low if (gaps < 0.0).any() else interval.low - margin
    high = interval.high if (gaps > 0.0).any() else interval.high + margin
    return Interval(interval.value, low, high)


def unseen_share(count: int, level: float = LEVEL) -> float:
    """The largest chance of what none of `count` draws showed: at more, that were below α/2."""
    return float(1.0 - ((1.0 - level) / 2) ** (1.0 / count))


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean over seeds with Student's t interval.

    None for a single seed, nor where seeds are alike but for rounding: a spread that equal
    values do not show is unknown, not zero.
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) <= ALIKE * np.abs(values).max():
        return Interval(mean)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)
