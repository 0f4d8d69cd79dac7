"""How exact the device's matrix products are, which decides what may be asked of models."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

# Float32 products stay below, products of factors that a GPU rounds first (TF32) above.
EXACT_PRODUCTS = 1e-5
SIZE = 256


def rounding(product: mx.array, one: np.ndarray, other: np.ndarray) -> float:
    """The largest error of a product of float64 factors, relative to their norms."""
    sizes = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=0)
    return float((np.abs(np.asarray(product.astype(mx.float32)) - one @ other) / sizes).max())


def _factors(dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    one, other = np.random.default_rng(0).normal(size=(2, SIZE, SIZE)).astype(np.float32)
    return mx.array(one).astype(dtype), mx.array(other).astype(dtype)


@functools.cache
def product_rounding() -> float:
    """The largest error of a float32 matrix product, relative to its factors' norms.

    About 1e-7 where products are float32 throughout. Some GPUs keep 10 bits of the factors
    (TF32), which leaves about 1e-4.
    """
    one, other = _factors(mx.float32)
    return rounding(one @ other, *(np.asarray(x).astype(np.float64) for x in (one, other)))


@functools.cache
def row_gap(dtype: mx.Dtype) -> float:
    """How far a row of a product of many rows is from the product of that row alone.

    Relative to the factors' norms: about 1e-8 where both are computed alike, 1e-4 where the
    products of many rows alone are rounded to TF32.
    """
    one, other = _factors(dtype)
    alone = mx.concatenate([one[row : row + 1] @ other for row in range(0, SIZE, 32)])
    gap = (one @ other)[::32].astype(mx.float32) - alone.astype(mx.float32)
    sizes = mx.linalg.norm(one[::32].astype(mx.float32), axis=1)[:, None]
    return float(mx.abs(gap / sizes / mx.linalg.norm(other.astype(mx.float32), axis=0)).max())


def bound(fine: float, coarse: float) -> float:
    """`fine` where products are float32, `coarse` where the device rounds their factors."""
    return fine if product_rounding() < EXACT_PRODUCTS else coarse
