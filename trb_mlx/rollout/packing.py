"""Finished rollouts as right-padded rows with the positions that predict response tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from trb_mlx.types import Rollout

# With buckets, sizes are rounded up to four classes an octave, never finer than these steps.
LENGTH_STEP = 32
COUNT_STEP = 256


@dataclass(frozen=True)
class Packed:
    """Some rows of a rollout, ready for one pass of a model without a cache.

    Attributes:
        rows: int `[b]`, their indices in the rollout.
        mask: bool `[b, T]`, True at response tokens.
        ids: int `[b', L]`, prompt and response, right-padded (b' and L may be rounded up).
        positions: int `[N]`, the flat place in `[b'·L]` of each position that predicts a
            response token, in the order of `mask`; places beyond `count` are padding.
        count: the response tokens among the N.
        teacher: the same rows and tokens behind the teacher's prompts, where those are others.
    """

    rows: np.ndarray
    mask: np.ndarray
    ids: mx.array
    positions: mx.array
    count: int
    teacher: Packed | None = None

    def read_by(self, teacher: bool) -> Packed:
        """These rows as the teacher, or the student, reads them."""
        return self.teacher if teacher and self.teacher is not None else self

    def pick(self, values: mx.array) -> mx.array:
        """The rows `[N, …]` of `[b', L, …]` that predict response tokens."""
        return values.reshape(-1, values.shape[-1])[self.positions]

    def flat(self, values: np.ndarray) -> mx.array:
        """`[B, T, …]` of the whole rollout as `[N, …]`, zeros at padding."""
        row, position = np.nonzero(self.mask)
        chosen = values[self.rows[row], position]
        padding = self.positions.size - self.count
        return mx.array(np.pad(chosen, [(0, padding)] + [(0, 0)] * (chosen.ndim - 1)))


def pack_rollout(
    rollout: Rollout,
    rows_at_once: int,
    tokens_at_once: int | None = None,
    buckets: bool = False,
    readers: Sequence[bool] = (False,),
    chosen: np.ndarray | None = None,
) -> Iterator[Packed]:
    """All rows of a rollout in groups of similar length, the longest first.

    Args:
        rollout: finished rollouts.
        rows_at_once: the most rows of a group.
        tokens_at_once: the most positions b·L of a group for any reader (a longer row goes alone).
        buckets: round L and N up to `size_class`es and rows to what fits of that L, so that a
            compiled function sees few shapes: L decides b, and N has a few classes for each.
        readers: for each model that is going to read the rows, whether it is the teacher.
        chosen: leave out all other rows.
    """
    # The last token predicts nothing, so no model needs to read it.
    totals = np.max([_starts(rollout, teacher) for teacher in readers], axis=0) + rollout.lengths
    order = np.argsort(-totals, kind="stable")
    if chosen is not None:
        order = order[np.isin(order, chosen)]
    start = 0
    while start < len(order):
        length = int(totals[order[start]])
        if buckets:
            length = size_class(length, LENGTH_STEP)
        most = rows_at_once
        if tokens_at_once is not None:
            most = min(most, max(1, tokens_at_once // length))
        rows = order[start : start + most]
        height = most if buckets else len(rows)
        own = any(rollout.jobs[row].prompt.teacher_tokens is not None for row in rows)
        teacher = _pack(rollout, rows, height, buckets, True) if own else None
        yield replace(_pack(rollout, rows, height, buckets, False), teacher=teacher)
        start += most


def _starts(rollout: Rollout, teacher: bool) -> np.ndarray:
    """The place of each row's last prompt token, int `[B]`."""
    return np.array([len(job.prompt.tokens_for(teacher)) - 1 for job in rollout.jobs])


def _pack(rollout: Rollout, rows: np.ndarray, height: int, buckets: bool, teacher: bool) -> Packed:
    starts = _starts(rollout, teacher)[rows]
    length = int((starts + rollout.lengths[rows]).max())
    if buckets:
        length = size_class(length, LENGTH_STEP)
    ids = np.zeros((height, length), np.int32)
    for place, row in enumerate(rows):
        response = rollout.tokens[row, : rollout.lengths[row]].tolist()
        text = [*rollout.jobs[row].prompt.tokens_for(teacher), *response][:-1]
        ids[place, : len(text)] = text
    mask = rollout.mask[rows]
    grid = np.arange(len(rows))[:, None] * length + starts[:, None] + np.arange(mask.shape[1])
    positions = grid[mask]
    count = len(positions)
    size = size_class(count, COUNT_STEP) if buckets else count
    padded = np.pad(positions, (0, size - count))
    return Packed(rows, mask, mx.array(ids), mx.array(padded.astype(np.int32)), count)


def size_class(value: int, step: int) -> int:
    """`value` rounded up to a quarter of its power of two, and to a multiple of `step`.

    Classes grow geometrically: few for any range, and never more than a fifth of a long row is
    padding.
    """
    wide = max(step, 2 ** max(value - 1, 1).bit_length() // 8)
    return -(-value // wide) * wide
