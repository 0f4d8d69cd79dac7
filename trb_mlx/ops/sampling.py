"""Draws that depend on what is drawn, never on how rollouts are batched."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from trb_mlx.ops.distribution import top_k
from trb_mlx.ops.numerics import in_blocks, sum_last

# Uniforms have 48 bits, in two parts that float32 holds exactly.
BITS = 24
# Masses are counted in units of 2^−30 of their total: sums of them fit in int32.
FIXED = 30
ONE_LEVEL = 1024
# The nucleus is looked for among so many likeliest tokens first: seldom does it have more.
LIKELY = 64
INFINITE = 0x7F800000  # the bits of float32's infinity


def row_uniforms(
    seed: int, step: int, prompt: int, rollout: int, length: int, stream: int = 0
) -> np.ndarray:
    """The uniforms of one rollout, from numpy's counter-based Philox generator.

    Args:
        seed: 0 ≤ seed < 2^63, with `step` the generator's key.
        step: the training step, or another stream's number.
        prompt: the prompt's index, with `rollout` the upper half of the counter.
        rollout: the rollout's number for that prompt.
        length: how many positions; a longer array begins with the shorter one.
        stream: which of several independent arrays, below 2^63.

    Returns:
        float32 `[length, 2]`, (high, low) in [0, 1): u = high + 2^−24·low.
    """
    generator = np.random.Philox(key=[seed, step], counter=[0, stream, rollout, prompt])
    words = generator.random_raw(length)
    mask = np.uint64(2**BITS - 1)
    parts = [words >> np.uint64(64 - BITS), (words >> np.uint64(64 - 2 * BITS)) & mask]
    return np.stack(parts, axis=-1).astype(np.float32) * np.float32(2.0**-BITS)


def draw(masses: mx.array, uniforms: mx.array) -> mx.array:
    """Draw from each row by inverting its cumulative distribution.

    A float32 cumulative sum over 151,936 entries loses its tail. So masses are summed as
    integers, which is exact, in levels of at most `ONE_LEVEL` entries: blocks of blocks, blocks,
    the entries of the chosen block. At each level a mass is rounded to a multiple of 2^−30 of the
    level's total; an entry that rounds to nothing is never drawn.

    Args:
        masses: `[..., V]`, of any total.
        uniforms: `[..., 2]` from `row_uniforms`.

    Returns:
        int32 `[...]`.
    """
    # Each part loses nothing as it is scaled, and what the low one has beyond 2^−30 is cut off.
    parts = uniforms * mx.array([2.0**FIXED, 2.0 ** (FIXED - BITS)])
    level = parts.astype(mx.int32).sum(axis=-1, keepdims=True)
    blocks = []
    while masses.shape[-1] > ONE_LEVEL:
        blocks.append(in_blocks(masses, 0.0))
        # Sixteen at a time: beside a mass of 1, a row's tail would be lost entry by entry.
        small = blocks[-1].reshape(*blocks[-1].shape[:-1], -1, 16).sum(axis=-1)
        masses = small.sum(axis=-1)
    index, level = _search(masses, level)
    for entries in reversed(blocks):
        chosen = mx.take_along_axis(entries, index[..., None], axis=-2).squeeze(-2)
        within, level = _search(chosen, level)
        index = index * entries.shape[-1] + within
    return index.squeeze(-1)


def nucleus(logprobs: mx.array, top_p: float) -> mx.array:
    """The likeliest tokens that together hold a mass of at least `top_p`; −inf elsewhere.

    Holtzman et al. 2020 (arXiv 1904.09751). Tokens as likely as the last one kept stay too.

    Args:
        logprobs: `[..., V]`, normalised.
        top_p: 0 < p ≤ 1; 1 changes nothing.

    Returns:
        `[..., V]`, not renormalised, which `draw` does not need.
    """
    if top_p >= 1.0:
        return logprobs
    logprobs = logprobs.astype(mx.float32)
    some = mx.take_along_axis(logprobs, top_k(logprobs, LIKELY), axis=-1)
    falling = -mx.sort(-some, axis=-1)
    before = mx.cumsum(mx.exp(falling), axis=-1, inclusive=False)
    # The first token is always kept: before it there is no mass.
    least = mx.where(before < top_p, falling, mx.inf).min(axis=-1, keepdims=True)
    enough = before[..., -1] + mx.exp(falling[..., -1]) >= top_p
    if some.shape[-1] < logprobs.shape[-1] and not enough.all().item():
        least = _least_kept(logprobs, top_p)
    return mx.where(logprobs < least, -mx.inf, logprobs)


def _least_kept(logprobs: mx.array, top_p: float) -> mx.array:
    """The smallest log-prob `[..., 1]` before which likelier tokens hold less than `top_p`.

    By halves of float32's numbers up to 0, in whose order their magnitudes' bits are.
    """
    low = mx.full((*logprobs.shape[:-1], 1), -INFINITE, dtype=mx.int32)
    high = mx.zeros_like(low)  # 0.0: no log-prob is above
    probs = mx.exp(logprobs)
    for _ in range(31):
        middle = low + ((high - low) >> 1)
        above = sum_last(mx.where(logprobs > _number(middle), probs, 0.0), keepdims=True)
        low, high = mx.where(above < top_p, low, middle), mx.where(above < top_p, middle, high)
    return _number(high)


def _number(order: mx.array) -> mx.array:
    """The float32 number, 0.0 or below, whose magnitude has the bits of −order, int32."""
    return -(-order).view(mx.float32)


def _search(masses: mx.array, uniform: mx.array) -> tuple[mx.array, mx.array]:
    """One level: the index drawn `[..., 1]`, and the uniform that is left for the next level.

    Args:
        masses: `[..., n]`, of any total.
        uniform: int32 or int64 `[..., 1]` in [0, 2^FIXED).
    """
    shares = masses / mx.maximum(masses.sum(axis=-1, keepdims=True), 1e-37)
    whole = mx.round(shares * 2.0**FIXED).astype(mx.int32)
    cumulative = mx.cumsum(whole, axis=-1)
    scaled = uniform * cumulative[..., -1:].astype(mx.int64)
    target = (scaled >> FIXED).astype(mx.int32)
    index = mx.minimum((cumulative <= target).sum(axis=-1, keepdims=True), masses.shape[-1] - 1)
    size = mx.take_along_axis(whole, index, axis=-1).astype(mx.int64)
    before = mx.take_along_axis(cumulative, index, axis=-1).astype(mx.int64) - size
    left = (scaled - (before << FIXED)) // mx.maximum(size, 1)
    return index.astype(mx.int32), left
