"""Veto's target: a bridge between the teacher and the student as it is (arXiv 2601.07155)."""

from __future__ import annotations

import mlx.core as mx

from trb_mlx.ops.numerics import log_softmax


def bridge_logprobs(
    student_logprobs: mx.array, teacher_logprobs: mx.array, power: mx.array | float
) -> mx.array:
    """log Q of the target Q ∝ π_T · π_S^b, through which no gradient flows.

    It is the maximiser of E_Q[log π_T + b·log π_S] + H(Q): the student vetoes what the teacher
    likes and it finds unlikely. With Q held, KL(π_S‖Q) pulls like KL(π_S‖π_T) + b·H(π_S)
    (docs/math.md).

    Args:
        student_logprobs: `[..., V]`, normalised; −inf where the student has no mass.
        teacher_logprobs: `[..., V]`, normalised.
        power: b ≥ 0, a scalar or `[...]`.

    Returns:
        float32 `[..., V]`, normalised; at b = 0 the teacher's own array, bit for bit.
    """
    student, teacher = (x.astype(mx.float32) for x in (student_logprobs, teacher_logprobs))
    exponent = mx.broadcast_to(mx.array(power, dtype=mx.float32), student.shape[:-1])[..., None]
    # The power of an impossible token is −inf for b > 0; 0·(−inf) would be nan for b = 0.
    pull = mx.where(student == -mx.inf, -mx.inf, exponent * student)
    bridge = mx.where(exponent == 0.0, teacher, log_softmax(teacher + pull))
    return mx.stop_gradient(bridge)
