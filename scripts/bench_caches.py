"""Rows that take tokens back, and that leave: in place, or by moving what all rows hold."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from bench_rollouts import alternate
from mlx_lm.models.cache import BatchKVCache, dynamic_roll

from trb_mlx.rollout.row_cache import Offsets, RowKVCache

HEADS, PLACES, WIDTH, LAYERS, BLOCK = 8, 512, 64, 8, 8


def compare_caches(batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """Milliseconds to write a block of 8 to 8 layers and to take 0 to 7 tokens of a row back.

    By an offset a row, or by rolling mlx-lm's left-padded caches. Then how long it takes that the
    first row leaves: the last one moves to its place, or all others are copied.
    """
    rng = np.random.default_rng(seed)
    unused = rng.integers(0, BLOCK, batch).astype(np.int32)
    past, new = (mx.random.normal((batch, HEADS, length, WIDTH)) for length in (PLACES, BLOCK))
    offsets = Offsets([PLACES] * batch)
    rows = [RowKVCache(offsets) for _ in range(LAYERS)]
    for cache in rows:
        offsets.set(np.zeros(batch, np.int32))
        cache.update_and_fetch(past, past)
    padded = [BatchKVCache([0] * batch) for _ in range(LAYERS)]
    for cache in padded:
        cache.update_and_fetch(past, past)
    mx.eval(new, [cache.state for cache in rows], [cache.state for cache in padded])

    def with_offsets() -> None:
        offsets.set(np.full(batch, PLACES, np.int32))
        found = [cache.update_and_fetch(new, new) for cache in rows]
        offsets.set(offsets.lengths + BLOCK - unused)
        mx.eval(found)

    def with_rolls() -> None:
        found = [cache.update_and_fetch(new, new) for cache in padded]
        mx.eval(found)
        shifts = mx.array(unused)[:, None]
        for cache in padded:  # rows move right over the tokens taken back
            end = cache._idx
            cache.keys = dynamic_roll(cache.keys[:, :, :end], shifts, axis=2)
            cache.values = dynamic_roll(cache.values[:, :, :end], shifts, axis=2)
            cache.left_padding = cache.left_padding + mx.array(unused)
            cache.trim(BLOCK)
        mx.eval([(cache.keys, cache.values) for cache in padded])

    def last_moves() -> None:
        moved = [cache.extract(mx.array([batch - 1])).state for cache in rows]
        mx.eval(moved)
        for cache, state in zip(rows, moved, strict=True):
            cache.put(0, state)
        mx.eval([cache.state for cache in rows])

    def others_copied() -> None:
        mx.eval([cache.extract(mx.arange(1, batch)).state for cache in rows])

    seconds = alternate(repeats, offsets=with_offsets, rolls=with_rolls)
    seconds |= alternate(repeats, moved=last_moves, copied=others_copied)
    return {
        "batch": batch,
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "ratio": seconds["rolls"] / seconds["offsets"],
    }
