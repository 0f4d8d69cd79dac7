"""The trust-region behavior policy: the closest policy to the teacher near the student.

    μ* = argmin_μ KL(μ ‖ π_T)  subject to  KL(μ ‖ π_S) ≤ ε          (arXiv 2605.31159)

Its solution is the geometric blend μ_β ∝ π_S^(1−β)·π_T^β with the largest feasible β in [0, 1].
"""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.blend_search import SUPPORT_FLOOR, TEACHER_FLOOR, search_weight
from trb_mlx.ops.numerics import log_softmax


def solve_blend_weight(
    student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array | float
) -> mx.array:
    """The largest β in [0, 1] with KL(μ_β ‖ π_S) ≤ budget, for every row at once.

    No host sync; works inside mx.compile. Measured on the rows of tests/ops (docs/math.md has
    the table), KL(μ_β ‖ π_S) in float64 stays below 1.001·budget and, where the budget binds,
    above 0.99·budget.

    Args:
        student_logprobs: `[..., V]`, normalised; −inf where the student has no mass.
        teacher_logprobs: `[..., V]`, normalised; −inf where the teacher has none.
        budget: ε in nats, a scalar or `[...]`, one a row.

    Returns:
        float32 `[...]`: exactly 0 where ε ≤ 0, or where the teacher's holes make every positive
        weight infeasible; exactly 1 where the teacher, restricted to the student's support
        and renormalised, is feasible.
    """
    shape = student_logprobs.shape[:-1]
    limit = mx.broadcast_to(mx.array(budget, dtype=mx.float32), shape).reshape(-1)
    vocab = student_logprobs.shape[-1]
    rows = [
        array.astype(mx.float32).reshape(-1, vocab)
        for array in (student_logprobs, teacher_logprobs)
    ]
    weight = search_weight(rows[0], rows[1], limit)
    return mx.where(limit > 0.0, weight, 0.0).reshape(shape)


def blend_logprobs(
    student_logprobs: mx.array, teacher_logprobs: mx.array, weight: mx.array | float
) -> mx.array:
    """log μ_β, μ_β ∝ π_S^(1−β)·π_T^β.

    Args:
        student_logprobs: `[..., V]`, normalised.
        teacher_logprobs: `[..., V]`, normalised.
        weight: β, a scalar or `[...]`.

    Returns:
        float32 `[..., V]`, normalised. At β = 0 the student's own array, bit for bit; at β = 1
        the teacher restricted to the student's support (entries the student gives less than
        e^−345, beyond float32's reach, count as outside, and teacher log-probs of −10^4 and
        less as none).
    """
    student = student_logprobs.astype(mx.float32)
    beta = mx.broadcast_to(mx.array(weight, dtype=mx.float32), student.shape[:-1])[..., None]
    outside = (student < SUPPORT_FLOOR) | (teacher_logprobs <= TEACHER_FLOOR)
    own = mx.where(outside, 0.0, student)
    other = mx.where(outside, 0.0, teacher_logprobs.astype(mx.float32))
    mixed = mx.where(outside, -mx.inf, own + beta * (other - own))
    return mx.where(beta == 0.0, student, log_softmax(mixed))
