"""Recurrent states and convolution windows whose rows are trimmed by running the recurrence again.

A state cannot forget a token, so what each position gave to it is kept until it is known how many
of them count. Then the recurrence alone is run over those from the old state, row by row: no
weights are read again, and no state is kept for every token (docs/log.md has the cost).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.models.replay import Recurrence, record_to, recording


class Standing(NamedTuple):
    """Rows that were trimmed, and what stands of the positions that they read since the last trim.

    Attributes:
        rows: which of the batch, int `[n]`, in order.
        counts: how many positions stand of each, int `[n]`.
        longest: the most of them, at least 1.
        runs: neighbours among `rows`: the first one in the batch, in `rows`, and their number.
    """

    rows: mx.array
    counts: mx.array
    longest: int
    runs: list[tuple[int, int, int]]

    @staticmethod
    def of(length: int, unused: np.ndarray) -> Standing | None:
        """What stands of `length` positions that each row read, `unused` `[B]` of which do not."""
        rows = np.flatnonzero(unused)
        if not len(rows):
            return None
        counts = length - unused[rows]
        starts = np.flatnonzero(np.diff(rows, prepend=-2) > 1)
        sizes = np.diff(starts, append=len(rows))
        runs = list(zip(rows[starts].tolist(), starts.tolist(), sizes.tolist(), strict=True))
        return Standing(mx.array(rows), mx.array(counts), max(1, int(counts.max())), runs)


class RecurrentCache:
    """One layer's cache, as mlx-lm's models use it: windows and states, each in a slot.

    Attributes:
        lengths, left_padding: what mlx-lm's own cache has for padded rows; nothing here.
        limits: how many positions of the next pass count, int `[B]`; None while that is open.
    """

    lengths = left_padding = None

    def __init__(self, size: int) -> None:
        """An empty cache of so many slots."""
        self.limits: mx.array | None = None
        self._slots: list[mx.array | None] = [None] * size
        # Of the pass that is read now: inputs of convolutions, and recurrences with their states.
        self._convolved: list[mx.array] = []
        self._updated: list[tuple[Recurrence, mx.array]] = []
        # Of the passes that may be trimmed, by slot.
        self._inputs: dict[int, list[mx.array]] = {}
        self._recurrences: dict[int, list[Recurrence]] = {}

    @property
    def state(self) -> list[mx.array]:
        """The arrays that a prefill must have computed."""
        return [slot for slot in self._slots if slot is not None]

    def make_mask(self, count: int) -> None:
        """To the model no position is padding: `limits` are seen to here."""

    def advance(self, count: int) -> None:
        """The model has read so many positions."""

    def __getitem__(self, slot: int) -> mx.array | None:
        """A window `[B, K - 1, C]` or a state `[B, …]` of the layer that computes from here on."""
        record_to(self)
        return self._slots[slot]

    def __setitem__(self, slot: int, value: mx.array) -> None:
        """The window or state after the pass."""
        self._slots[slot] = value

    def convolve(self, inputs: mx.array) -> None:
        """The layer's next convolution reads window and new positions, `[B, K - 1 + T, C]`."""
        self._convolved.append(inputs)

    def update(self, recurrence: Recurrence) -> tuple[mx.array, mx.array]:
        """Outputs and states of the layer's recurrence, up to `limits` where there are any."""
        limits = self.limits
        outputs, state = recurrence.run() if limits is None else recurrence.run_first(limits)
        self._updated.append((recurrence, state))
        return outputs, state

    def end_pass(self) -> None:
        """Keep what the pass gave until `trim`, or the windows at `limits`.

        Raises:
            TypeError: the layer keeps something that was neither convolved nor updated.
        """
        recurrences = {
            slot: recurrence
            for slot, value in enumerate(self._slots)
            for recurrence, state in self._updated
            if value is state
        }
        windows = [slot for slot in range(len(self._slots)) if slot not in recurrences]
        recorded = len(self._updated), len(self._convolved)
        if recorded != (len(recurrences), len(windows)):
            raise TypeError("a layer keeps a state that cannot be computed again")
        for slot, inputs in zip(windows, self._convolved, strict=True):
            if self.limits is None:
                self._inputs.setdefault(slot, []).append(inputs)
            else:
                self._slots[slot] = self._window(slot, [inputs], slice(None), self.limits)
        for slot, recurrence in recurrences.items() if self.limits is None else ():
            self._recurrences.setdefault(slot, []).append(recurrence)
        self._convolved, self._updated = [], []

    def _window(
        self, slot: int, inputs: list[mx.array], rows: mx.array | slice, counts: mx.array
    ) -> mx.array:
        """Some rows' last positions of the window before and `counts` positions after it."""
        window = self._slots[slot]
        assert window is not None
        size = window.shape[1]
        line = mx.concatenate([inputs[0], *(each[:, size:] for each in inputs[1:])], axis=1)[rows]
        places = counts[:, None] + mx.arange(size)
        return mx.take_along_axis(line, places[..., None], axis=1)

    def trim(self, standing: Standing | None) -> None:
        """Forget what was read since the last trim, but for what stands; None: all of it does."""
        if standing is not None:
            rows, counts, longest, _ = standing
            for slot, inputs in self._inputs.items():
                window = self._window(slot, inputs, rows, counts)
                self._replace(slot, window, standing)
            for slot, recurrences in self._recurrences.items():
                recurrence = Recurrence.join(recurrences, longest, rows)
                self._replace(slot, recurrence.run_first(counts)[1], standing)
        self._inputs, self._recurrences = {}, {}

    def _replace(self, slot: int, values: mx.array, standing: Standing) -> None:
        whole = self._slots[slot]
        assert whole is not None
        if len(values) == len(whole):
            whole = values
        else:  # slices are written in place: a scatter, or a gather of both, copies all rows
            for row, first, count in standing.runs:
                whole[row : row + count] = values[first : first + count]
        self._slots[slot] = whole

    def filter(self, rows: mx.array) -> None:
        """Keep the listed rows, int `[n]`, in that order; a row may be listed again."""
        self._slots = [None if slot is None else slot[rows] for slot in self._slots]
        self._inputs = {
            slot: [each[rows] for each in inputs] for slot, inputs in self._inputs.items()
        }
        self._recurrences = {
            slot: [each.take(rows) for each in recurrences]
            for slot, recurrences in self._recurrences.items()
        }

    def extract(self, rows: mx.array) -> RecurrentCache:
        """Another cache, of the listed rows; nothing of it can be trimmed."""
        cache = RecurrentCache(len(self._slots))
        cache._slots = [None if slot is None else slot[rows] for slot in self._slots]
        return cache

    def extend(self, other: RecurrentCache) -> None:
        """Add another cache's rows below; nothing read before can be trimmed."""
        self.trim(None)
        self._slots = [
            new if own is None else mx.concatenate([own, new])
            for own, new in zip(self._slots, other.state, strict=True)
        ]


@contextmanager
def reading(caches: Sequence[RecurrentCache], limits: mx.array | None = None) -> Iterator[None]:
    """A model's pass, of which `limits` `[B]` positions count, or as many as `trim` will say."""
    for cache in caches:
        cache.limits = limits
    with recording():
        yield
    for cache in caches:
        cache.end_pass()
