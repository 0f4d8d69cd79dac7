"""What each response token is trained towards: the teacher, Veto's bridge, or a label.

Axis letters: N response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

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

Pull = Callable[[mx.array, Arrays], mx.array]  # (logits [N, V], arrays [N, …]) → loss [N]


def is_whole(loss: LossConfig) -> bool:
    """Whether the loss compares whole distributions, and not a support alone."""
    return loss.mode == "exact"


def make_pull(loss: LossConfig, target: TargetConfig) -> Pull:
    """The loss of response tokens, from the student's logits and what is known of each token.

    The arrays hold `teacher` `[N, V]`, log-probs, where the mode is exact, else `support`,
    `teacher_support` and `teacher_rest`; and whatever `target_arrays` gives.
    """
    matched = _over_vocabulary(loss, target) if is_whole(loss) else _on_support(loss.mode)
    if not _has_labels(target):
        return matched

    def pull(logits: mx.array, arrays: Arrays) -> mx.array:
        return toward_labels(matched(logits, arrays), logits, arrays["labels"])

    return pull


def make_reverse_kl(loss: LossConfig, target: TargetConfig) -> Pull | None:
    """KL(π_S‖π_T) as a measure, or None where the loss is just that.

    On a support it is the KL of the K + 1 buckets, a lower bound.
    """
    plain = loss.divergence == "reverse_kl" and target.kind == "teacher" and not _has_labels(target)
    if plain and loss.mode in ("tail", "exact"):
        return None
    if is_whole(loss):
        return lambda logits, arrays: reverse_kl(logits, arrays["teacher"])
    return _on_support("tail")


def target_arrays(target: TargetConfig, rollout: Rollout, packed: Packed) -> Arrays:
    """What the pull needs to know of each token beside both models' distributions.

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


def _on_support(mode: str) -> Pull:
    def pull(logits: mx.array, arrays: Arrays) -> mx.array:
        teacher = arrays["teacher_support"], arrays["teacher_rest"]
        return reverse_kl_on_support(logits, arrays["support"], *teacher, mode)

    return pull


def _over_vocabulary(loss: LossConfig, target: TargetConfig) -> Pull:
    divergence = _divergence(loss)

    def pull(logits: mx.array, arrays: Arrays) -> mx.array:
        goal = arrays["teacher"]
        if target.kind == "veto":
            student = log_softmax(mx.stop_gradient(logits))
            goal = bridge_logprobs(student, goal, arrays["power"])
        return divergence(logits, goal)

    return pull


def _divergence(loss: LossConfig) -> Callable[[mx.array, mx.array], mx.array]:
    if loss.divergence == "jsd":
        return lambda logits, goal: generalized_jsd(logits, goal, loss.beta)
    return forward_kl if loss.divergence == "forward_kl" else reverse_kl
