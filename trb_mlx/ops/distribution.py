"""A softmax in the forms that drawing, blending and recording share, computed once."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from trb_mlx.ops.numerics import in_blocks, sum_last

LOWEST = -1e30  # finite: 0·LOWEST is 0, and a row of −inf alone stays free of nan


class Distribution(NamedTuple):
    """Rows of a softmax; V may be padded by impossible entries to whole blocks.

    Attributes:
        logprobs: float32 `[..., V]`, normalised.
        roots: float32 `[..., V]`, the root of e^(z − max z). It holds what the mass itself, below
            e^−87, cannot, and the likeliest token's is exactly 1.
        total: float32 `[..., 1]`, the sum of the masses, the squares of the roots.
    """

    logprobs: mx.array
    roots: mx.array
    total: mx.array

    @property
    def masses(self) -> mx.array:
        """π·total, float32 `[..., V]`."""
        return self.roots * self.roots

    @property
    def probs(self) -> mx.array:
        """π, float32 `[..., V]`."""
        return self.masses / self.total

    def at(self, ids: mx.array) -> mx.array:
        """Log-probs `[...]` of one id a row, int `[...]`."""
        return mx.take_along_axis(self.logprobs, ids[..., None], axis=-1).squeeze(-1)

    def take(self, rows: mx.array | slice) -> Distribution:
        """Some rows."""
        return Distribution(*(values[rows] for values in self))


def softmax(logits: mx.array, temperature: float = 1.0) -> Distribution:
    """The distribution of logits `[..., V]` over τ, normalised or not, by one exponential a row."""
    logits = whole_blocks(logits.astype(mx.float32))
    if temperature != 1.0:
        logits = logits / temperature
    peak = mx.maximum(in_blocks(logits, -mx.inf).max(-1).max(-1), LOWEST)[..., None]
    shifted = logits - peak
    roots = mx.exp(0.5 * shifted)
    total = mx.maximum(sum_last(roots * roots, keepdims=True), 1e-37)
    return Distribution(shifted - mx.log(total), roots, total)


def whole_blocks(logits: mx.array) -> mx.array:
    """`[..., V]` padded by −inf until `in_blocks` is a mere view."""
    blocks = in_blocks(logits, -mx.inf)
    return blocks.reshape(*logits.shape[:-1], -1)


def entropy_of(rows: Distribution) -> mx.array:
    """Entropy `[...]` in nats."""
    terms = rows.masses * mx.maximum(rows.logprobs, LOWEST)
    return -sum_last(terms) / rows.total.squeeze(-1)


def log_rest(rows: Distribution, support: mx.array) -> mx.array:
    """Log of the mass outside a support of distinct ids `[..., K]`, about −168 at least.

    It is summed itself, never taken as one minus the rest, and in a unit of 2^−120: the rest of a
    sharp teacher is far below what float32 holds, and an infinite loss where it were 0.
    """
    scaled = rows.roots * 2.0**60
    outside = mx.put_along_axis(scaled * scaled, support, mx.array(0.0), axis=-1)
    rest = mx.maximum(sum_last(outside), 1e-37)
    small = mx.log(rest) - 120.0 * math.log(2.0)
    plain = mx.log(rest * 2.0**-120)  # to float32's last bit, where it can be formed
    return mx.where(small > -60.0, plain, small) - mx.log(rows.total).squeeze(-1)


def top_k(values: mx.array, count: int) -> mx.array:
    """Ids `[..., K]` of the largest of `[..., V]`, in no particular order; K is at most V.

    An argpartition of a whole row is a full sort on Metal. The K blocks with the largest maxima
    hold the K largest entries.
    """
    size = values.shape[-1]
    count = min(count, size)
    blocks = in_blocks(values, -mx.inf)
    if blocks.shape[-2] > count:
        best = _partition(blocks.max(-1), count)
        values = mx.take_along_axis(blocks, best[..., None], axis=-2)
        ids = best[..., None] * blocks.shape[-1] + mx.arange(blocks.shape[-1])
        # What pads the last block comes after every entry, −inf ones included.
        values = mx.where(ids < size, mx.maximum(values, LOWEST), -mx.inf)
        values, ids = (x.reshape(*x.shape[:-2], -1) for x in (values, ids))
        return mx.take_along_axis(ids, _partition(values, count), axis=-1).astype(mx.int32)
    return _partition(values, count).astype(mx.int32)


def _partition(values: mx.array, count: int) -> mx.array:
    return mx.argpartition(-values, kth=count - 1, axis=-1)[..., :count]
