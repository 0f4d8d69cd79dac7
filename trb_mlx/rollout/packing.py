"""Finished rollouts as right-padded rows with the positions that predict response tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trb_mlx.types import Rollout


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
    """

    rows: np.ndarray
    mask: np.ndarray
    ids: mx.array
    positions: mx.array
    count: int

    def pick(self, values: mx.array) -> mx.array:
        """The rows `[N, V]` of `[b', L, V]` that predict response tokens."""
        return values.reshape(-1, values.shape[-1])[self.positions]

    def flat(self, values: np.ndarray) -> mx.array:
        """`[B, T, …]` of the whole rollout as `[N, …]`, zeros at padding."""
        chosen = values[self.rows][self.mask]
        padding = self.positions.size - self.count
        return mx.array(np.pad(chosen, [(0, padding)] + [(0, 0)] * (chosen.ndim - 1)))


def pack_rollout(rollout: Rollout, rows_at_once: int, bucket: int = 1) -> Iterator[Packed]:
    """All rows of a rollout in groups of similar length.

    Args:
        rollout: finished rollouts.
        rows_at_once: rows a group.
        bucket: L and N are rounded up to multiples of it, and rows to `rows_at_once` where it
            is above 1, so that a compiled function sees few shapes.
    """
    totals = [len(job.prompt.tokens) for job in rollout.jobs] + rollout.lengths
    order = np.argsort(totals, kind="stable")
    for start in range(0, len(order), rows_at_once):
        yield _pack(rollout, order[start : start + rows_at_once], rows_at_once, bucket)


def _pack(rollout: Rollout, rows: np.ndarray, rows_at_once: int, bucket: int) -> Packed:
    texts = [
        [*rollout.jobs[row].prompt.tokens, *rollout.tokens[row, : rollout.lengths[row]].tolist()]
        for row in rows
    ]
    # The last token predicts nothing, so no model needs to read it.
    length = _round_up(max(len(text) for text in texts) - 1, bucket)
    ids = np.zeros((rows_at_once if bucket > 1 else len(rows), length), np.int32)
    for place, text in enumerate(texts):
        ids[place, : len(text) - 1] = text[:-1]
    mask = rollout.mask[rows]
    starts = np.array([len(rollout.jobs[row].prompt.tokens) - 1 for row in rows])
    grid = np.arange(len(rows))[:, None] * length + starts[:, None] + np.arange(mask.shape[1])
    positions = grid[mask]
    count = len(positions)
    # A wider step for N: one group of b rows may hold anything from b to b·T tokens.
    padded = np.pad(positions, (0, _round_up(count, bucket * 8 if bucket > 1 else 1) - count))
    return Packed(rows, mask, mx.array(ids), mx.array(padded.astype(np.int32)), count)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
