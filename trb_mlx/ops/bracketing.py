"""The scalar side of the trust region: brackets of many rows at once, on the host in float64.

KL(β) is searched as √KL, which is near-linear in β where KL is quadratic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TINY = 1e-37


class Points(NamedTuple):
    """What is known at one weight of each row, all `[R]`.

    Attributes:
        weight: β.
        excess: √KL(β) less the root of what is aimed at.
        level: A(β).
        slope: A'(β).
    """

    weight: np.ndarray
    excess: np.ndarray
    level: np.ndarray
    slope: np.ndarray

    def take(self, rows: np.ndarray) -> Points:
        """Some rows."""
        return Points(*(values[rows] for values in self))

    def tangent(self, weight: np.ndarray) -> np.ndarray:
        """A(weight) from below, for A is convex."""
        return self.level + self.slope * (weight - self.weight)


class Bracket(NamedTuple):
    """Two weights between which √KL meets the aim, the newest first, and the one before them."""

    new: Points
    other: Points
    before: Points

    def take(self, rows: np.ndarray) -> Bracket:
        """Some rows."""
        return Bracket(*(points.take(rows) for points in self))

    def bound(self, weight: np.ndarray) -> np.ndarray:
        """The better of both ends' tangents of A."""
        return np.maximum(self.new.tangent(weight), self.other.tangent(weight))

    def closer(self, point: Points) -> Bracket:
        """With a trial between the ends in place of the end on its side."""
        same = np.sign(point.excess) == np.sign(self.new.excess)
        other, before = (
            Points(*(np.where(same, a, b) for a, b in zip(one, two, strict=True)))
            for one, two in ((self.other, self.new), (self.new, self.other))
        )
        return Bracket(point, other, before)

    def lower(self) -> np.ndarray:
        """The end that is feasible."""
        return np.minimum(self.new.weight, self.other.weight)

    def guess(self) -> np.ndarray:
        """Chandrupatla's next weight: inverse quadratic interpolation where it is safe, else half.

        Chandrupatla 1997, as in Scherer, Computational Physics, and scipy.optimize.elementwise.
        """
        (a, fa, *_), (b, fb, *_), (c, fc, *_) = self
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            place, height = (a - b) / (c - b), (fa - fb) / (fc - fb)
            safe = (height**2 < place) & ((1 - height) ** 2 < 1 - place)
            inverse = fa / (fb - fa) * fc / (fb - fc)
            inverse += (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        share = np.where(safe, inverse, 0.5)
        return a + np.clip(share, 1e-4, 1 - 1e-4) * (b - a)


def first_weight(
    low: np.ndarray,
    high: np.ndarray,
    aim: np.ndarray,
    low_spread: np.ndarray,
    high_spread: np.ndarray,
) -> np.ndarray:
    """β at √KL = aim by a monotone cubic through √KL at β = 0 and 1, all `[R]`.

    Args:
        low: √KL at β → 0.
        high: √KL at β = 1.
        aim: √KL wanted, between them.
        low_spread: Var[r] under the student, so that d√KL/dβ = √(Var/2) at 0.
        high_spread: Var[r] under the teacher, so that d√KL/dβ = Var/(2√KL) at 1.
    """
    height = np.maximum(high - low, TINY)
    low_slope = np.minimum(np.sqrt(2.0 / np.maximum(low_spread, TINY)), 3.0 / height)
    high_slope = np.minimum(2.0 * high / np.maximum(high_spread, TINY), 3.0 / height)
    t = np.clip((aim - low) / height, 0.0, 1.0)
    rise = low_slope * t * (1 - t) ** 2 - high_slope * t * t * (1 - t)
    return np.clip(t * t * (3.0 - 2.0 * t) + height * rise, 1e-12, 1 - 1e-4)
