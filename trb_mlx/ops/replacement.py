"""Speculative knowledge distillation's behavior policy, in closed form (arXiv 2410.11325)."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.numerics import log_softmax, sum_last


def keep_or_replace(
    student_logprobs: mx.array, teacher_logprobs: mx.array, top_k: int, teacher_temperature: float
) -> tuple[mx.array, mx.array]:
    """The law of: draw from the student, keep what is in the teacher's top-K, else ask the teacher.

        μ(v) = π_S(v)·1[v ∈ top-K of π_T] + ρ·π_T^{1/τ}(v)/Z,   ρ = Σ_{v ∉ top-K} π_S(v)

    The replacement is a fresh draw from the teacher's whole distribution at temperature τ, so
    it may fall outside the top-K, even on the token that was refused. No temperature changes
    which K tokens are the likeliest. Tokens tied with the K-th all count as inside, tokens that
    the teacher rules out never do.

    Args:
        student_logprobs: `[..., V]`, normalised.
        teacher_logprobs: `[..., V]`, normalised; −inf where the teacher has no mass.
        top_k: K ≥ 1; above V it means V.
        teacher_temperature: τ > 0, on top of any temperature that the log-probs have already.

    Returns:
        float32 `[..., V]`, log μ, normalised; float32 `[...]`, ρ, the mass that is replaced.
    """
    student, teacher = (x.astype(mx.float32) for x in (student_logprobs, teacher_logprobs))
    least = mx.topk(teacher, min(top_k, teacher.shape[-1]), axis=-1).min(axis=-1, keepdims=True)
    inside = (teacher >= least) & (teacher > -mx.inf)
    replaced = sum_last(mx.where(inside, 0.0, mx.exp(student)))
    kept = mx.where(inside, student, -mx.inf)
    fresh = teacher if teacher_temperature == 1.0 else log_softmax(teacher / teacher_temperature)
    return mx.logaddexp(kept, mx.log(replaced)[..., None] + fresh), replaced
