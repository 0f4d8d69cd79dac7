"""A local model of KL(β) that is exact in three regimes.

Where a little student mass δ sits on entries with one ratio R, KL(β) = δ·φ(βR) with
φ(z) = z·e^z − e^z + 1. It is quadratic near z = 0, exponential for z ≫ 0 (the teacher raises
unlikely tokens) and saturates for z ≪ 0 (the teacher rules tokens out). One trial gives KL and
its logarithmic slope dlogKL/dlogβ = z²e^z/φ(z), hence z, hence where the model meets a target.
"""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

POINTS = 160
SMALLEST, LARGEST = 1e-3, 600.0
MOST_NEGATIVE = 60.0


@functools.cache
def _tables() -> tuple[np.ndarray, ...]:
    """Float32 tables over log|z| for both signs: log slope and log φ, in float64 first."""
    tables: list[np.ndarray] = []
    for sign, largest in ((1.0, LARGEST), (-1.0, MOST_NEGATIVE)):
        size = np.geomspace(SMALLEST, largest, POINTS)
        z = sign * size
        log_phi = _log_phi(z)
        log_slope = 2 * np.log(size) + z - log_phi
        tables += [np.log(size), log_slope, log_phi]
    return tuple(table.astype(np.float32) for table in tables)


def _log_phi(z: np.ndarray) -> np.ndarray:
    """log φ(z), by its series near 0 and without overflow for large z."""
    series = 2 * np.log(np.abs(z)) + np.log(0.5 + z / 3 + z * z / 8)
    moderate = np.clip(z, -100.0, 30.0)
    with np.errstate(divide="ignore"):
        plain = np.log(moderate * np.exp(moderate) - np.expm1(moderate))
        large = z + np.log(np.maximum(z - 1.0, 1e-9))
    return np.where(np.abs(z) < 1e-2, series, np.where(z > 30.0, large, plain))


def log_weight_ratio(kl: mx.array, spread: mx.array, target: mx.array) -> mx.array:
    """log(β*/β) with KL(β*) = target, by the model through KL(β) and its slope.

    Args:
        kl: KL at β, `[...]`.
        spread: β·dKL/dβ there, `[...]`.
        target: the KL wanted, `[...]`.

    Returns:
        `[...]`; +inf where a saturating model never reaches the target.
    """
    up, up_slope, up_phi, down, down_slope, down_phi = (mx.array(table) for table in _tables())
    log_slope, change = mx.log(spread / kl), mx.log(target / kl)
    size = _interpolate(log_slope, up_slope, up)
    ratio_up = _interpolate(_interpolate(size, up, up_phi) + change, up_phi, up) - size
    # Slopes of negative z fall with |z|: search them negated.
    size = _interpolate(-log_slope, -down_slope, down)
    goal = _interpolate(size, down, down_phi) + change
    ratio_down = mx.where(goal < down_phi[-1], _interpolate(goal, down_phi, down) - size, mx.inf)
    return mx.where(log_slope > np.log(2.0).item(), ratio_up, ratio_down)


def _interpolate(x: mx.array, xs: mx.array, ys: mx.array) -> mx.array:
    """Piecewise linear through increasing xs `[P]`, continued straight at both ends."""
    index = mx.clip((x[..., None] >= xs).sum(-1) - 1, 0, POINTS - 2)
    left, right = xs[index], xs[index + 1]
    return ys[index] + (ys[index + 1] - ys[index]) * (x - left) / (right - left)
