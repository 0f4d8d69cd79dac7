"""Statistics of the diagnostics: how well a score tells right from wrong, and paired gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trb_mlx.evaluation.intervals import Interval

Z95 = 1.959964  # the normal distribution's 97.5% point


def auroc(scores: Sequence[float], right: Sequence[float]) -> Interval | None:
    """Area under the ROC curve of a score for telling right (1) from wrong (0) rollouts.

    The probability that a right rollout scores above a wrong one, ties counting half, with
    Newcombe's score interval, which stays honest at 0 and 1. None where all rollouts are right,
    or all wrong.
    """
    values, labels = np.asarray(scores, float), np.asarray(right, float) > 0.5
    above, below = values[labels], values[~labels]
    if not above.size or not below.size:
        return None
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    area = float(wins.mean())
    # All θ with |area − θ| ≤ z·√V(θ) (Newcombe, Statistics in Medicine 25, 2006, method 5).
    theta = np.linspace(0.0, 1.0, 10_001)
    spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
    factor = 1 + ((above.size + below.size) / 2 - 1) * spread
    variance = theta * (1 - theta) * factor / (above.size * below.size)
    inside = theta[np.abs(area - theta) <= Z95 * np.sqrt(variance)]
    return Interval(area, min(area, *inside[:1]), max(area, *inside[-1:]))


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean with its normal 95% interval (of no width for a single value)."""
    count, mean = len(values), float(np.mean(values))
    variance = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    half = Z95 * float(np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def paired_gain(after: Sequence[float], before: Sequence[float]) -> Interval:
    """The mean of `after` − `before`, prompt by prompt, with its 95% interval."""
    return mean_interval([b - a for a, b in zip(before, after, strict=True)])


def wilson(share: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% score interval of a share of `count` independent trials, as (low, high)."""
    weight = Z95**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * np.sqrt(share * (1 - share) / count + weight / (4 * count))
    return middle - half, middle + half
