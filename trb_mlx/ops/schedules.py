"""Quantities that change with the step: budgets, temperature, learning rate. Steps count from 0."""

from __future__ import annotations

import math


def linear_decay(step: int, start: float, horizon: int) -> float:
    """x_k = x_0 · (1 − k/K) for k < K, then exactly 0.

    TRB's budget ε_k (arXiv 2605.31159) and the power b of Veto's bridge fall like this.

    Args:
        step: k, counted from 0.
        start: x_0.
        horizon: K; 0 means that x is 0 from the first step on.
    """
    if step >= horizon:
        return 0.0
    return start * (1.0 - step / horizon)


def rising_temperature(step: int, start: float, warmup_steps: int) -> float:
    """τ_k = τ_0 + (1 − τ_0)·k/K for k < K, then exactly 1.

    Args:
        step: k, counted from 0.
        start: τ_0.
        warmup_steps: the horizon K; 0 means no warm-up.
    """
    if step >= warmup_steps:
        return 1.0
    return start + (1.0 - start) * step / warmup_steps


def growing_horizon(step: int, start: int, limit: int, steps: int) -> int:
    """h_k = h_0 + (H − h_0)·k/K tokens, rounded, for k < K, then H: a growing horizon.

    As in arXiv 2605.31490. Where H is below h_0, as a short context may make it, h_k is H.

    Args:
        step: k, counted from 0.
        start: h_0.
        limit: the full length limit H.
        steps: K.
    """
    if step >= steps:
        return limit
    return min(limit, start + round((limit - start) * step / steps))


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """A half-cosine rise to `peak` over `warmup_steps`, then constant.

    The first step is already above zero, and step `warmup_steps - 1` reaches the peak.
    """
    if step + 1 >= warmup_steps:
        return peak
    return peak * 0.5 * (1.0 - math.cos(math.pi * (step + 1) / warmup_steps))
