"""Matrix products as models make them: 4-bit weights, and many rows beside one."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from trb_mlx.backend import on_gpu
from trb_mlx.doctor.check import Finding
from trb_mlx.models import precision
from trb_mlx.models.precision import bound

WIDTH, OUTPUTS, GROUP, BITS = 512, 1024, 64, 4
ROWS = (1, 5, 40)  # a token, a block, a batch of blocks: a GPU has a kernel for each


def quantized_layers() -> Sequence[Finding]:
    """Products with 4-bit weights against float64 of the weights as their bits say."""
    rng = np.random.default_rng(4)
    weights = mx.array(rng.normal(size=(OUTPUTS, WIDTH)).astype(np.float32))
    findings = []
    for name, dtype, limit in (
        ("float32", mx.float32, bound(1e-5, 1e-3)),
        # MLX's CPU adds up in 16 bits, which is 2.5% of what comes out.
        ("bfloat16", mx.bfloat16, 1e-3 if on_gpu() else 2e-2),
    ):
        packed, scales, biases = mx.quantize(weights.astype(dtype), GROUP, BITS)
        exact = _unpacked(packed, scales, biases)
        gaps = []
        for count in ROWS:
            rows = mx.array(rng.normal(size=(count, WIDTH))).astype(dtype)
            product = mx.quantized_matmul(
                rows, packed, scales, biases, transpose=True, group_size=GROUP, bits=BITS
            )
            gaps.append(precision.rounding(product, _float64(rows), exact.T))
        findings.append(Finding(f"{name} off by", max(gaps), limit))
    return findings


def rows_of_products() -> Sequence[Finding]:
    """The same row of a product alone and among many, relative to its factors' norms.

    Where many rows are rounded to TF32 and one row is not, a rollout's log-probs depend on the
    batch that it was drawn in.
    """
    return (
        Finding("float32 rows differ by", precision.row_gap(mx.float32), bound(1e-5, 1e-3)),
        Finding("bfloat16 rows by", precision.row_gap(mx.bfloat16), 2e-3),
    )


def _unpacked(packed: mx.array, scales: mx.array, biases: mx.array) -> np.ndarray:
    """The weights `[OUTPUTS, WIDTH]` that 4-bit numbers, scales and biases stand for."""
    words = np.asarray(packed)[..., None] >> np.arange(0, 32, BITS, dtype=np.uint32)
    numbers = (words & (2**BITS - 1)).reshape(OUTPUTS, -1, GROUP).astype(np.float64)
    scale, bias = (_float64(x)[..., None] for x in (scales, biases))
    return (numbers * scale + bias).reshape(OUTPUTS, WIDTH)


def _float64(values: mx.array) -> np.ndarray:
    return np.asarray(values.astype(mx.float32)).astype(np.float64)
