"""Attention at the shapes of real models, through the caches that rollouts use, in float64 beside.

Tiny models have other head dimensions, for which a GPU takes other kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.doctor import reference
from trb_mlx.doctor.check import Finding
from trb_mlx.models.precision import bound
from trb_mlx.rollout.row_cache import Offsets, RowKVCache

HEAD_SIZES = (64, 128, 256)
KEY_HEADS, GROUPS = 2, (2, 7)  # query heads that share a key head
LENGTHS = (37, 20, 3)  # places that each of B = 3 rows has read
BLOCKS = (1, 5, 8, 12)  # T: a drafted token, and blocks that a teacher verifies
WINDOWS = (None, 16)


def attention(size: int) -> Sequence[Finding]:
    """Ragged rows and their blocks at one head dimension; the figures are of outputs near 1."""
    return [
        Finding(f"{name} off by", max(_gaps(size, dtype)), limit)
        for name, dtype, limit in (
            ("float32", mx.float32, bound(1e-5, 2e-2)),
            ("bfloat16", mx.bfloat16, 4e-2),
        )
    ]


def _gaps(size: int, dtype: mx.Dtype) -> Iterator[float]:
    """How far each block's outputs are from float64's, of the same rounded inputs."""
    for groups in GROUPS:
        for window in WINDOWS:
            rng = np.random.default_rng(size + groups)
            offsets = Offsets([0] * len(LENGTHS), KEY_HEADS * groups)
            cache = RowKVCache(offsets, window)
            keys, values = (_random(rng, KEY_HEADS, LENGTHS[0], size, dtype) for _ in range(2))
            mx.eval(cache.update_and_fetch(keys, values))
            offsets.set(np.array(LENGTHS, np.int32))
            texts = [
                (_float64(keys)[row, :, :length], _float64(values)[row, :, :length])
                for row, length in enumerate(LENGTHS)
            ]
            for count in BLOCKS:
                queries = _random(rng, KEY_HEADS * groups, count, size, dtype)
                keys, values = (_random(rng, KEY_HEADS, count, size, dtype) for _ in range(2))
                mask = cache.make_mask(count)
                outputs = mx.fast.scaled_dot_product_attention(
                    queries, *cache.update_and_fetch(keys, values), scale=size**-0.5, mask=mask
                )
                offsets.set(offsets.lengths + count)
                for row, (read, kept) in enumerate(texts):
                    read = np.concatenate([read, _float64(keys)[row]], axis=1)
                    kept = np.concatenate([kept, _float64(values)[row]], axis=1)
                    texts[row] = read, kept
                    expected = _attend(_float64(queries)[row], read, kept, window)
                    yield reference.gap(_float64(outputs)[row], expected)


def _random(
    rng: np.random.Generator, heads: int, count: int, size: int, dtype: mx.Dtype
) -> mx.array:
    return mx.array(rng.normal(size=(len(LENGTHS), heads, count, size))).astype(dtype)


def _float64(values: mx.array) -> np.ndarray:
    return np.asarray(values.astype(mx.float32)).astype(np.float64)


def _attend(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int | None
) -> np.ndarray:
    """Causal attention `[heads, T, size]` of a text's last T places, in a window or to all."""
    count, end, size = queries.shape[1], keys.shape[1], keys.shape[2]
    keys, values = (np.repeat(x, len(queries) // len(x), axis=0) for x in (keys, values))
    places, own = np.arange(end), np.arange(end - count, end)[:, None]
    seen = (places <= own) & (places > own - (window or end))
    scores = queries @ keys.swapaxes(-1, -2) * size**-0.5
    weights = np.exp(reference.normalize(np.where(seen, scores, -np.inf)))
    return weights @ values
