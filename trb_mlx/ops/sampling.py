"""Draws that depend on what is drawn, never on how rollouts are batched."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

# Uniforms have 48 bits, in two parts that float32 holds exactly.
BITS = 24


def row_uniforms(seed: int, step: int, prompt: int, rollout: int, length: int) -> np.ndarray:
    """The uniforms of one rollout, from numpy's counter-based Philox generator.

    Args:
        seed: 0 ≤ seed < 2^63, with `step` the generator's key.
        step: the training step, or another stream's number.
        prompt: the prompt's index, with `rollout` the upper half of the counter.
        rollout: the rollout's number for that prompt.
        length: how many positions; a longer array begins with the shorter one.

    Returns:
        float32 `[length, 2]`, (high, low) in [0, 1): u = high + 2^−24·low.
    """
    generator = np.random.Philox(key=[seed, step], counter=[0, 0, rollout, prompt])
    words = generator.random_raw(length)
    mask = np.uint64(2**BITS - 1)
    parts = [words >> np.uint64(64 - BITS), (words >> np.uint64(64 - 2 * BITS)) & mask]
    return np.stack(parts, axis=-1).astype(np.float32) * np.float32(2.0**-BITS)


def inverse_cdf(logprobs: mx.array, uniforms: mx.array) -> mx.array:
    """Draw from each row by inverting its cumulative distribution.

    A float32 cumulative sum over 151,936 entries loses its tail, so the search has two levels:
    blocks of about √V entries by their masses, then the entries of the chosen block, with what
    is left of the uniform, its low bits included. An entry of probability 0 is never drawn.

    Args:
        logprobs: `[..., V]`, normalised or not.
        uniforms: `[..., 2]` from `row_uniforms`.

    Returns:
        int32 `[...]`.
    """
    vocab = logprobs.shape[-1]
    block = max(1, math.isqrt(vocab - 1) + 1)
    padding = -vocab % block
    peak = logprobs.max(axis=-1, keepdims=True)
    masses = mx.exp(logprobs.astype(mx.float32) - peak)
    if padding:
        masses = mx.pad(masses, [(0, 0)] * (masses.ndim - 1) + [(0, padding)])
    masses = masses.reshape(*masses.shape[:-1], -1, block)
    inner = mx.cumsum(masses, axis=-1)
    outer = mx.cumsum(inner[..., -1], axis=-1)
    total = outer[..., -1:]
    high, low = uniforms[..., :1] * total, uniforms[..., 1:] * total * 2.0**-BITS
    chosen = _first_above(outer, high)
    before = _at(mx.pad(outer, [(0, 0)] * (outer.ndim - 1) + [(1, 0)]), chosen)
    entries = mx.take_along_axis(inner, chosen[..., None], axis=-2).squeeze(-2)
    within = _first_above(entries, (high - before) + low)
    return (chosen * block + within).squeeze(-1).astype(mx.int32)


def _first_above(cumulative: mx.array, target: mx.array) -> mx.array:
    """The first index `[..., 1]` whose cumulative mass exceeds the target.

    Rounding may put the target on the end; the last entry that has mass is taken then.
    """
    last = cumulative[..., -1:]
    below = mx.minimum(target, last * (1.0 - 2.0**-BITS))
    found = (cumulative <= below).sum(axis=-1, keepdims=True)
    # Where even the largest float below the end rounds up to it, count what lies under the end.
    return mx.minimum(found, (cumulative < last).sum(axis=-1, keepdims=True))


def _at(values: mx.array, index: mx.array) -> mx.array:
    return mx.take_along_axis(values, index, axis=-1)
