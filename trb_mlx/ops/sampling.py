"""Keyed draws."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def row_uniforms(seed: int, step: int, prompt: int, rollout: int, length: int) -> np.ndarray:
    """Placeholder."""
    bits = np.random.Philox(key=[seed, step], counter=[0, 0, rollout, prompt])
    raw = bits.random_raw(length)
    hi = (raw >> 40).astype(np.float32) * 2.0**-24
    lo = ((raw >> 16) & 0xFFFFFF).astype(np.float32) * 2.0**-24
    return np.stack([hi, lo], -1).astype(np.float32)


def inverse_cdf(logprobs: mx.array, uniforms: mx.array) -> mx.array:
    """Placeholder."""
    c = mx.cumsum(mx.exp(logprobs), axis=-1)
    t = mx.minimum(uniforms[..., :1], 1 - 2**-20) * c[..., -1:]
    return (c <= t).sum(-1).astype(mx.int32)
