"""What each response token is trained towards: the teacher, Veto's bridge, or a label.

Axis letters: N response tokens, V vocabulary.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.config import LossConfig, TargetConfig
from trb_mlx.ops.bridge import bridge_logprobs
from trb_mlx.ops.divergence import reverse_kl, reverse_kl_on_support
from trb_mlx.ops.fused_head import Arrays
from trb_mlx.ops.jensen_shannon import forward_kl, generalized_jsd
from trb_mlx.ops.numerics import log_softmax
from trb_mlx.ops.routing import NO_LABEL, toward_labels
from trb_mlx.ops.schedules import linear_decay
from trb_mlx.rollout.packing import Packed
from trb_mlx.types import Rollout


def is_exact(loss: LossConfig) -> bool:
    """Whether the loss compares whole distributions, and not a support alone."""
    return loss.mode == "exact"


def target_loss(
    loss: LossConfig, target: TargetConfig, logits: mx.array, arrays: Arrays
) -> mx.array:
    """The loss `[N]` of response tokens.

    Args:
        loss: which divergence.
        target: what from.
        logits: `[N, V]`, the student's.
        arrays: `teacher_logprobs` `[N, V]` where the mode is exact, else `support`,
            `teacher_support` and `teacher_rest`; and whatever `target_arrays` gives.
    """
    if is_exact(loss):
        target_logprobs = arrays["teacher_logprobs"]
        if target.kind == "veto":
            student_logprobs = log_softmax(mx.stop_gradient(logits))
            target_logprobs = bridge_logprobs(student_logprobs, target_logprobs, arrays["power"])
        if loss.divergence == "jsd":
            losses = generalized_jsd(logits, target_logprobs, loss.beta)
        else:
            divergence = forward_kl if loss.divergence == "forward_kl" else reverse_kl
            losses = divergence(logits, target_logprobs)
    else:
        losses = _on_support(logits, arrays, loss.mode)
    return toward_labels(losses, logits, arrays["labels"]) if _has_labels(target) else losses


def reverse_kl_measure(
    loss: LossConfig, target: TargetConfig, logits: mx.array, arrays: Arrays
) -> mx.array | None:
    """KL(π_S‖π_T) `[N]` as a measure, or None where the loss is just that.

    On a support it is the KL of the K + 1 buckets, a lower bound. Arguments as in `target_loss`.
    """
    plain = loss.divergence == "reverse_kl" and target.kind == "teacher" and not _has_labels(target)
    if plain and loss.mode in ("tail", "exact"):
        return None
    if is_exact(loss):
        return reverse_kl(logits, arrays["teacher_logprobs"])
    return _on_support(logits, arrays, "tail")


def _on_support(logits: mx.array, arrays: Arrays, mode: str) -> mx.array:
    teacher = arrays["teacher_support"], arrays["teacher_rest"]
    return reverse_kl_on_support(logits, arrays["support"], *teacher, mode)


def target_arrays(target: TargetConfig, rollout: Rollout, packed: Packed) -> Arrays:
    """What `target_loss` needs to know of each token beside both models' distributions.

    Everything that changes with the step is an array, so that a compiled loss is traced once.
    """
    arrays: Arrays = {}
    if target.kind == "veto":
        power = linear_decay(rollout.step, target.power, target.warmup_steps)
        arrays["power"] = mx.full(packed.positions.shape, power, dtype=mx.float32)
    if _has_labels(target):
        arrays["labels"] = packed.flat(_labels(target, rollout))
    return arrays


def is_supervised(target: TargetConfig, step: int) -> bool:
    """Whether the teacher draws the rollouts of a step and its tokens are the labels."""
    return step < target.sft_steps


def _has_labels(target: TargetConfig) -> bool:
    return target.sft_steps > 0 or target.corrections == "top_token"


def _labels(target: TargetConfig, rollout: Rollout) -> np.ndarray:
    """int32 `[B, T]`, `NO_LABEL` where the divergence stands."""
    records = rollout.records
    assert records is not None
    if is_supervised(target, rollout.step):
        return rollout.tokens
    if target.corrections == "top_token":
        return np.where(records.corrected, records.teacher_top, NO_LABEL).astype(np.int32)
    return np.full_like(rollout.tokens, NO_LABEL)
