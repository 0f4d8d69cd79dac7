"""Records of rollouts that the teacher drew."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.rollout.packing import Packed, pack_rollout
from trb_mlx.rollout.recording import student_records, teacher_records, tempered
from trb_mlx.types import Records, Rollout


def score_teacher_rollout(pair: Pair, rollout: Rollout, support: int, rows_at_once: int) -> None:
    """Fill in all records of rollouts whose behavior policy is the teacher itself.

    Args:
        pair: both models.
        rollout: drawn by the teacher, unrecorded.
        support: K, the student's likeliest tokens that are recorded.
        rows_at_once: rows a batched pass of both models without a cache.
    """
    rows, length = rollout.tokens.shape
    support = min(support, pair.student.merge.size)
    rollout.records = Records.empty(rows, length, support)
    for packed in pack_rollout(rollout, rows_at_once):
        found = _both_records(pair, rollout, packed, support)
        mx.eval(found)
        for name, values in found.items():
            kept = getattr(rollout.records, name)
            block = kept[packed.rows]
            block[packed.mask] = np.asarray(values)
            kept[packed.rows] = block


def _both_records(
    pair: Pair, rollout: Rollout, packed: Packed, support: int
) -> dict[str, mx.array]:
    logits, teacher_logits = (
        packed.pick(scorer.logits(packed.ids)) for scorer in (pair.student, pair.teacher)
    )
    tokens = packed.flat(rollout.tokens)
    ours, theirs = (tempered(x, rollout.temperature) for x in (logits, teacher_logits))
    found = student_records(logits, ours, tokens, support)
    found |= teacher_records(teacher_logits, theirs, tokens, found["support"])
    return found | {
        "weight": mx.ones(tokens.shape),
        "kl_behavior": kl_divergence(theirs, ours),
        "total_variation": total_variation(theirs, ours),
    }
