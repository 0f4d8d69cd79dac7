"""Keys and values whose rows are extended, trimmed and filtered one by one.

Row b writes at its own offset and a mask hides what lies beyond, so that taking tokens back is
a smaller offset and moves no data (docs/log.md compares this with rolling padded rows). A row that
leaves frees its place in a buffer: the last row moves there, and one that comes is written behind
the others, so that neither copies what all other rows hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.backend import on_gpu

GROWTH = 256  # positions added when a buffer is full
FEW_TOKENS = 8  # for which Metal has an attention of its own


class Offsets:
    """How many positions of each row count, int `[B]`: one object for all layers of a model."""

    def __init__(self, lengths: Sequence[int], heads: int | None = None) -> None:
        """`lengths` are the positions that count at first; `heads` are the model's, if known."""
        self.heads = heads
        self.set(np.array(lengths, np.int32))

    def set(self, lengths: np.ndarray) -> None:
        """Replace all counts."""
        self.lengths = lengths
        self.array = mx.array(lengths)
        self._places: mx.array | None = None
        self._writers: mx.array | None = None
        self._masks: dict[tuple[int, int | None, bool], mx.array | None] = {}
        alike = lengths.size > 0 and bool((lengths == lengths[0]).all())
        self.common = int(lengths[0]) if alike else None  # the count that all rows share

    def places(self, count: int) -> mx.array:
        """Where the next `count` tokens of each row stand, `[B, 1, count, 1]`; for all layers."""
        if self._places is None or self._places.shape[2] != count:
            self._places = (self.array[:, None] + mx.arange(count))[:, None, :, None]
        return self._places

    def writers(self, rows: int) -> mx.array:
        """Which row writes to each of a buffer, int `[rows]`: the last one to spare ones too."""
        if self._writers is None or len(self._writers) != rows:
            self._writers = mx.minimum(mx.arange(rows), len(self.lengths) - 1)
        return self._writers

    def end(self, count: int) -> int:
        """The last place that any row has written once it appends `count` more."""
        return int(self.lengths.max(initial=0)) + count

    def mask(self, count: int, window: int | None, grouped: bool) -> mx.array | None:
        """As `RowKVCache.make_mask`, once for all layers that ask alike.

        Of all heads where Metal's attention for few tokens would copy it to them in every layer.
        """
        key = count, window, grouped
        if key not in self._masks:
            self._masks[key] = self._mask(*key)
        return self._masks[key]

    def _mask(self, count: int, window: int | None, grouped: bool) -> mx.array | None:
        end = self.end(count)
        if count == 1 and self.common is not None and (window is None or end <= window):
            return None
        places, own = mx.arange(end), self.places(count)
        seen = places <= own
        if window is not None:
            seen = seen & (places > own - window)
        if grouped:
            return seen[:, None]
        rows = len(self.lengths)
        if self.heads is not None and rows > 1 and count <= FEW_TOKENS and on_gpu():
            return seen & mx.ones((1, self.heads, 1, 1), mx.bool_)
        return seen


class RowKVCache:
    """One layer's cache, as mlx-lm's models use it.

    Attributes:
        keys, values: `[B or more, heads, places, dim]`, or None before the first pass.
        window: how many positions a token sees, itself included; None for all.
        grouped: whether the model's scores have an axis of heads that share keys.
    """

    def __init__(self, offsets: Offsets, window: int | None = None, grouped: bool = False) -> None:
        """An empty cache; `window` is the layer's own where the model names none."""
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.offsets = offsets
        self.window = window
        self.grouped = grouped

    @property
    def offset(self) -> mx.array:
        """Where each row's next token stands, int `[B]`: what rotary embeddings ask for."""
        return self.offsets.array

    @property
    def state(self) -> list[mx.array]:
        """The arrays that a prefill must have computed."""
        return [array for array in (self.keys, self.values) if array is not None]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write `[B, heads, T, dim]` at each row's offset and give all places in use."""
        rows, _, count, _ = keys.shape
        end = self.offsets.end(count)
        self.keys, self.values = _grown(self.keys, keys, end), _grown(self.values, values, end)
        common = self.offsets.common
        if common is not None:  # one place for all rows, and a slice is cheaper
            self.keys[:rows, :, common : common + count] = keys
            self.values[:rows, :, common : common + count] = values
        else:
            places = self.offsets.places(count)
            if rows < len(self.keys):
                writers = self.offsets.writers(len(self.keys))
                places, keys, values = places[writers], keys[writers], values[writers]
            self.keys = mx.put_along_axis(self.keys, _spread(places, keys), keys, axis=2)
            self.values = mx.put_along_axis(self.values, _spread(places, values), values, axis=2)
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def make_mask(
        self, count: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | None:
        """Which places each of T = `count` new tokens sees, bool `[B, 1, T, places]`.

        `[B, 1, 1, T, places]` where `grouped`. None where a single token sees them all.
        """
        return self.offsets.mask(count, window_size or self.window, self.grouped)

    def put(self, row: int, state: Sequence[mx.array]) -> None:
        """Write what `extract` gave of one row, once it is computed, over a row."""
        for buffer, values in zip(self.state, state, strict=True):
            buffer[row : row + 1] = values

    def extract(self, rows: mx.array) -> RowKVCache:
        """Another cache, of the listed rows; a row may be listed again."""
        cache = RowKVCache(self.offsets, self.window, self.grouped)
        if self.keys is not None and self.values is not None:
            cache.keys, cache.values = self.keys[rows], self.values[rows]
        return cache

    def extend(self, other: RowKVCache) -> None:
        """Add all rows of another cache's buffers below."""
        rows = len(self.offsets.lengths)
        self.keys = _stacked(self.keys, rows, other.keys)
        self.values = _stacked(self.values, rows, other.values)


def _grown(buffer: mx.array | None, new: mx.array, end: int) -> mx.array:
    """The buffer with room for `end` places; where it is made anew, without spare rows."""
    places = 0 if buffer is None else buffer.shape[2]
    if buffer is not None and places >= end:
        return buffer
    rows, heads, _, width = new.shape
    room = mx.zeros((rows, heads, -(-(end - places) // GROWTH) * GROWTH, width), new.dtype)
    return room if buffer is None else mx.concatenate([buffer[:rows], room], axis=2)


def _spread(places: mx.array, values: mx.array) -> mx.array:
    return mx.broadcast_to(places, values.shape)


def _stacked(one: mx.array | None, rows: int, other: mx.array | None) -> mx.array | None:
    """The first rows of one buffer and all of another: in place, or the shorter one padded."""
    if one is None or other is None:
        return other if one is None else one
    end, places = rows + len(other), max(one.shape[2], other.shape[2])
    if end <= len(one) and places == one.shape[2]:
        one[rows:end, :, : other.shape[2]] = other
        return one
    both = [
        mx.pad(array, [(0, 0), (0, 0), (0, places - array.shape[2]), (0, 0)])
        for array in (one[:rows], other)
    ]
    return mx.concatenate(both)
