"""Float64 on the host: what the device's results are compared with."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

# The chance that a right machine fails a chi-square: with fixed seeds, on all machines or none
# but for rounding.
LEVEL = 1e-4
# A cell of a chi-square holds at least so many expected counts.
CELL = 10.0


def normalize(logits: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def blend(student: np.ndarray, teacher: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """log μ_β `[R, V]` of normalised rows `[R, V]` with finite entries, at weights `[R]`."""
    return normalize(student + weight[:, None] * (teacher - student))


def kl(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(P ‖ Q) `[R]` of normalised rows of finite log-probs."""
    gap = own - other
    return (np.exp(other) * (gap * np.exp(gap) - np.expm1(gap))).sum(-1)


def blend_weight(student: np.ndarray, teacher: np.ndarray, budget: float) -> np.ndarray:
    """The largest β in [0, 1] with KL(μ_β ‖ π_S) ≤ budget, `[R]`, by bisection."""
    low, high = np.zeros(len(student)), np.ones(len(student))
    for _ in range(50):
        middle = 0.5 * (low + high)
        fits = kl(blend(student, teacher, middle), student) <= budget
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(kl(teacher, student) <= budget, 1.0, low)


def chi_square_p(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The probability of a chi-square at least as large; rare outcomes share one cell.

    An outcome of probability 0 that was seen gives 0.
    """
    if counts[probabilities == 0.0].any():
        return 0.0
    expected = probabilities * counts.sum()
    common = expected >= CELL
    cells = [np.append(x[common], x[~common].sum()) for x in (counts, expected)]
    seen, hoped = (cell[cells[1] >= 1.0] for cell in cells)
    return float(chi2.sf(((seen - hoped) ** 2 / hoped).sum(), len(seen) - 1))


def gap(measured: object, expected: object) -> float:
    """The largest difference of two arrays, relative to the largest expected value or 1."""
    one, other = (np.asarray(x, dtype=np.float64) for x in (measured, expected))
    return float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))
