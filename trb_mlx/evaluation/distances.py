"""How far two models are apart on given rollouts: divergences, overlap and entropies."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from trb_mlx.evaluation.evaluator import before_head
from trb_mlx.models.pair import Pair
from trb_mlx.ops.distribution import top_k
from trb_mlx.ops.fused_head import chunk_tokens
from trb_mlx.ops.numerics import entropy, kl_divergence, log_softmax
from trb_mlx.rollout.kv_cache import second_stream
from trb_mlx.rollout.packing import Packed, pack_rollout
from trb_mlx.types import Rollout

NAMES = ("reverse_kl", "forward_kl", "topk_overlap", "student_entropy", "teacher_entropy")


def distribution_sums(
    pair: Pair, rollout: Rollout, rows_at_once: int, support: int
) -> dict[str, np.ndarray]:
    """Sums over each rollout's response tokens, at temperature 1 and over the whole vocabulary.

    `reverse_kl` is KL(π_S‖π_T) and `forward_kl` KL(π_T‖π_S), in nats; `topk_overlap` the share
    of ids that both models' K likeliest have in common; the entropies are in nats.

    Args:
        pair: both models.
        rollout: finished rollouts, of the student as a rule.
        rows_at_once: rows that a pass takes.
        support: K.

    Returns:
        float64 `[B]` for each of `NAMES`; divide by `rollout.lengths` for means.
    """
    sums = {name: np.zeros(len(rollout.jobs)) for name in NAMES}
    for packed in pack_rollout(rollout, rows_at_once):
        row = packed.rows[np.nonzero(packed.mask)[0]]  # of each response token, in order
        for chosen, student, teacher in _logits(pair, packed):
            found = _statistics(student, teacher, support)
            mx.eval(found)
            for name, values in found.items():
                np.add.at(sums[name], row[chosen], np.asarray(values, np.float64))
    return sums


def _statistics(student: mx.array, teacher: mx.array, support: int) -> dict[str, mx.array]:
    """Every statistic `[N]` of logits `[N, V]`."""
    ours, theirs = top_k(student, support), top_k(teacher, support)
    shared = (ours[:, :, None] == theirs[:, None, :]).sum(axis=(-1, -2))
    student, teacher = log_softmax(student), log_softmax(teacher)
    return {
        "reverse_kl": kl_divergence(student, teacher),
        "forward_kl": kl_divergence(teacher, student),
        "topk_overlap": shared / ours.shape[-1],
        "student_entropy": entropy(student),
        "teacher_entropy": entropy(teacher),
    }


def _logits(pair: Pair, packed: Packed) -> Iterator[tuple[slice, mx.array, mx.array]]:
    """Both models' logits `[n, V]` of the response tokens, a chunk of them at a time."""
    chunk = chunk_tokens(pair.student.merge.size, models=2)
    student, student_logits = before_head(pair.student, packed)
    with mx.stream(second_stream()):
        teacher, teacher_logits = before_head(pair.teacher, packed)
    mx.eval(student, teacher)  # the bodies are done before any logits stand beside them
    for start in range(0, packed.count, chunk):
        rows = slice(start, min(start + chunk, packed.count))
        yield rows, student_logits(student[rows]), teacher_logits(teacher[rows])
