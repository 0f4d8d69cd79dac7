"""Placeholder."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.numerics import kl_divergence, log_softmax


def blend_logprobs(student_logprobs: mx.array, teacher_logprobs: mx.array, weight: mx.array):
    """Blend."""
    w = weight[..., None]
    mixed = mx.where(student_logprobs == -mx.inf, -mx.inf, (1 - w) * student_logprobs + w * teacher_logprobs)
    return mx.where(w == 0, student_logprobs, log_softmax(mixed))


def solve_blend_weight(student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array):
    """Bisect."""
    lo = mx.zeros(student_logprobs.shape[:-1])
    hi = mx.ones(student_logprobs.shape[:-1])
    ok = kl_divergence(blend_logprobs(student_logprobs, teacher_logprobs, hi), student_logprobs) <= budget
    for _ in range(14):
        mid = (lo + hi) / 2
        f = kl_divergence(blend_logprobs(student_logprobs, teacher_logprobs, mid), student_logprobs) <= budget
        lo, hi = mx.where(f, mid, lo), mx.where(f, hi, mid)
    return mx.where(ok, 1.0, lo)
