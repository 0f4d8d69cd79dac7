"""How exact the device's matrix products are, which decides what may be asked of models."""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

# Float32 products stay below, products of factors that a GPU rounds first (TF32) above.
EXACT_PRODUCTS = 1e-5


@functools.cache
def product_rounding() -> float:
    """The largest error of a float32 matrix product, relative to its factors' norms.

    About 1e-7 where products are float32 throughout. Some GPUs keep 10 bits of the factors
    (TF32), which leaves about 1e-4.
    """
    one, other = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    product = np.asarray(mx.array(one) @ mx.array(other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    sizes = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=0)
    return float((np.abs(product - one @ other) / sizes).max())


def bound(fine: float, coarse: float) -> float:
    """`fine` where products are float32, `coarse` where the device rounds their factors."""
    return fine if product_rounding() < EXACT_PRODUCTS else coarse
