"""Quantities that change with the step: the budget and the learning rate. Steps count from 0."""

from __future__ import annotations

import math


def annealed_budget(step: int, budget: float, warmup_steps: int) -> float:
    """ε_k = ε_0 · (1 − k/K) for k < K, then exactly 0 (arXiv 2605.31159).

    Args:
        step: k, counted from 0.
        budget: ε_0 in nats.
        warmup_steps: the horizon K; 0 means no warm-up.
    """
    if step >= warmup_steps:
        return 0.0
    return budget * (1.0 - step / warmup_steps)


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """A half-cosine rise to `peak` over `warmup_steps`, then constant.

    The first step is already above zero, and step `warmup_steps - 1` reaches the peak.
    """
    if step + 1 >= warmup_steps:
        return peak
    return peak * 0.5 * (1.0 - math.cos(math.pi * (step + 1) / warmup_steps))
