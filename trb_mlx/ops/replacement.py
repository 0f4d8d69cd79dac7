"""Speculative knowledge distillation's behavior policy, in closed form (arXiv 2410.11325)."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.distribution import Distribution, softmax, top_k
from trb_mlx.ops.numerics import sum_last


def keep_or_replace(
    student: Distribution, teacher: Distribution, count: int, teacher_temperature: float
) -> tuple[mx.array, mx.array]:
    """The law of: draw from the student, keep what is in the teacher's top-K, else ask the teacher.

        μ(v) = π_S(v)·1[v ∈ top-K of π_T] + ρ·π_T^{1/τ}(v)/Z,   ρ = Σ_{v ∉ top-K} π_S(v)

    The replacement is a fresh draw from the teacher's whole distribution at temperature τ, so
    it may fall outside the top-K, even on the token that was refused. No temperature changes
    which K tokens are the likeliest. Tokens tied with the K-th all count as inside, tokens that
    the teacher rules out never do.

    Args:
        student: `[..., V]`.
        teacher: `[..., V]`.
        count: K ≥ 1; above V it means V.
        teacher_temperature: τ > 0, on top of any temperature that the rows have already.

    Returns:
        float32 `[..., V]`, μ; float32 `[...]`, ρ, the mass that is replaced.
    """
    likeliest = mx.take_along_axis(teacher.logprobs, top_k(teacher.logprobs, count), axis=-1)
    least = likeliest.min(axis=-1, keepdims=True)
    inside = (teacher.logprobs >= least) & (teacher.logprobs > -mx.inf)
    kept = student.probs * inside
    replaced = sum_last(student.probs - kept)
    fresh = teacher
    if teacher_temperature != 1.0:
        fresh = softmax(teacher.logprobs, teacher_temperature)
    return kept + replaced[..., None] * fresh.probs, replaced
