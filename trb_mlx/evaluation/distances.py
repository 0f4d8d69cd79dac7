"""How far two models are apart on given rollouts: divergences, overlap and entropies.

All are at temperature 1 and over the whole vocabulary; divergences and entropies are in nats.
"""

from __future__ import annotations

from itertools import chain, zip_longest

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair
from trb_mlx.ops.distribution import top_k
from trb_mlx.ops.numerics import entropy, kl_divergence, log_softmax
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.rollout.logits import logit_chunks
from trb_mlx.types import Rollout

NAMES = ("reverse_kl", "forward_kl", "topk_overlap", "student_entropy", "teacher_entropy")


def mean_reverse_kl(pair: Pair, rollout: Rollout, rows_at_once: int, group: Group = ALONE) -> float:
    """KL(π_S‖π_T), the mean over the response tokens of the given rollouts.

    The passes go round the ranks of the group; their sums are added in one order.
    """
    sums: list[list[float]] = []  # of each pass
    turns = group.rank, group.size
    scorers = pair.student, pair.teacher
    for chunk in logit_chunks(scorers, rollout, rows_at_once, turns=turns):
        student, teacher = chunk.logits
        divergence = kl_divergence(log_softmax(student), log_softmax(teacher))
        sums += [[] for _ in range(chunk.batch + 1 - len(sums))]
        sums[-1].append(float(np.asarray(divergence).sum(dtype=np.float64)))
    total = 0.0
    for turn in zip_longest(*group.gather("the reverse KL", sums), fillvalue=[]):
        for value in chain.from_iterable(turn):
            total += value
    return total / int(rollout.lengths.sum())


def distance_sums(
    pair: Pair, rollout: Rollout, rows_at_once: int, support: int
) -> dict[str, np.ndarray]:
    """Sums over each rollout's response tokens.

    `reverse_kl` is KL(π_S‖π_T) and `forward_kl` KL(π_T‖π_S); `topk_overlap` is the share of ids
    that both models' K likeliest have in common.

    Args:
        pair: both models.
        rollout: finished rollouts, of the student as a rule.
        rows_at_once: rows that a pass takes.
        support: K.

    Returns:
        float64 `[B]` for each of `NAMES`; divide by `rollout.lengths` for means.
    """
    sums = {name: np.zeros(len(rollout.jobs)) for name in NAMES}
    for chunk in logit_chunks((pair.student, pair.teacher), rollout, rows_at_once):
        student, teacher = chunk.logits
        distances = _distances(student, teacher, support)
        mx.eval(distances)
        for name, values in distances.items():
            np.add.at(sums[name], chunk.rows, np.asarray(values, np.float64))
    return sums


def _distances(student: mx.array, teacher: mx.array, support: int) -> dict[str, mx.array]:
    """Each of `NAMES` as `[N]`, of logits `[N, V]`."""
    student_top, teacher_top = top_k(student, support), top_k(teacher, support)
    shared = (student_top[:, :, None] == teacher_top[:, None, :]).sum(axis=(-1, -2))
    student, teacher = log_softmax(student), log_softmax(teacher)
    return {
        "reverse_kl": kl_divergence(student, teacher),
        "forward_kl": kl_divergence(teacher, student),
        "topk_overlap": shared / student_top.shape[-1],
        "student_entropy": entropy(student),
        "teacher_entropy": entropy(teacher),
    }
