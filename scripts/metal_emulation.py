"""What Metal computes where a CPU computes better, from MLX's own kernels (0.32).

Its expm1 reduces the range without the low part of log 2 and is off by up to 3,000 ulp; its log1p
is x·log(1 + x)/((1 + x) − 1); exp and log are taken to be off by 4 ulp, and logsumexp, whose exp is
the fast one, by 1e-6; denormals are flushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from trb_mlx.backend import can_compile
from trb_mlx.ops import (
    coupling,
    distribution,
    divergence,
    jensen_shannon,
    numerics,
    replacement,
    sampling,
    trust_region,
)
from trb_mlx.ops.distribution import Distribution
from trb_mlx.rollout import recording

ULP = 2.0**-23
# Where the product computes over the vocabulary.
MODULES = (
    coupling,
    distribution,
    divergence,
    jensen_shannon,
    numerics,
    recording,
    replacement,
    sampling,
    trust_region,
)
COEFFICIENTS = (1.97350979e-4, 1.39309070e-3, 8.33343994e-3, 4.16668020e-2, 1.66666716e-1)


def fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a·b + c of float32 numbers, rounded once."""
    wide = a.astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
    return np.asarray(wide + np.asarray(c, np.float32).astype(np.float64)).astype(np.float32)


def expm1(values: mx.array) -> mx.array:
    """As mlx/backend/metal/kernels/expm1f.h."""
    a = np.asarray(values.astype(mx.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        j = fma(a, 1.442695, 12582912.0) - np.float32(12582912.0)
        f = fma(j, -6.93145752e-1, a)
        r = np.full_like(f, COEFFICIENTS[0])
        for coefficient in (*COEFFICIENTS[1:], 4.99999970e-1):
            r = fma(r, f, coefficient)
        v = fma(r, f * f, np.where(j == 1, f + np.float32(0.5), f))
        half = np.float32(0.5)
        t = np.ldexp(half, np.clip(j, -300, 300).astype(np.int32)).astype(np.float32)
        y = t - half
        r = fma(v, t, (t - y) - half) + y
        r = np.where(j == 0, v, np.where(j == 1, v + v, r + r))
        far = np.exp2(a).astype(np.float32)
        r = np.where(np.abs(a - np.float32(1.0)) > 88.0, fma(far, far, -1.0), r)
    return flushed(mx.array(r.astype(np.float32)))


def log1p(values: mx.array) -> mx.array:
    """As mlx/backend/metal/kernels/utils.h."""
    more = 1.0 + values
    return mx.where(more == 1.0, values, values * (noisy_log(more) / (more - 1.0)))


def noisy_exp(values: mx.array) -> mx.array:
    """exp, off by up to 4 ulp."""
    return flushed(_noisy(mx.exp(values)))


def noisy_log(values: mx.array) -> mx.array:
    """log, off by up to 4 ulp."""
    return _noisy(mx.log(values))


def logsumexp(values: mx.array, axis: int = -1, keepdims: bool = False) -> mx.array:
    """logsumexp, off by up to 1e-6."""
    total = mx.logsumexp(values, axis=axis, keepdims=keepdims)
    return total + 1e-6 * mx.random.uniform(-1.0, 1.0, total.shape)


def logaddexp(one: mx.array, other: mx.array) -> mx.array:
    """As mlx/backend/metal/kernels/binary_ops.h."""
    high, low = mx.maximum(one, other), mx.minimum(one, other)
    return mx.where(low == -mx.inf, high, high + log1p(noisy_exp(low - high)))


def flushed(values: mx.array) -> mx.array:
    """Denormal numbers as 0."""
    return mx.where(mx.abs(values) < 2.0**-126, 0.0, values)


def _noisy(values: mx.array) -> mx.array:
    return values * (1.0 + 4 * ULP * mx.random.uniform(-1.0, 1.0, values.shape))


@contextmanager
def like_metal(seed: int = 0) -> Iterator[None]:
    """What is computed over the vocabulary computes as on Metal, without compiling."""
    mx.random.seed(seed)
    changed: dict[str, Any] = {"expm1": expm1, "log1p": log1p, "exp": noisy_exp, "log": noisy_log}
    changed |= {"logsumexp": logsumexp, "logaddexp": logaddexp}
    metal = SimpleNamespace(**{**vars(mx), **changed})
    prepare = trust_region._prepare

    def prepared(student: Distribution, teacher_logprobs: mx.array) -> trust_region._Rows:
        rows = prepare(student, teacher_logprobs)
        return trust_region._Rows(*(flushed(values) for values in rows))

    with ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(patch.object(module, "mx", metal))
        stack.enter_context(patch.object(trust_region, "_prepare", prepared))
        if can_compile():  # else it is off for good
            mx.disable_compile()
            stack.callback(mx.enable_compile)
        yield
