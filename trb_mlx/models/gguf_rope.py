"""Scaled rotary frequencies: linearly by a factor, or Llama 3.1's by a tensor of factors.

For these mlx-lm wants the parameters of which llama.cpp's converter made the factors. All of
Meta's models share all of them but the factor itself, so they are tried, and the file is refused
where the factors that they give are not the file's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trb_mlx.models.gguf_reader import GgufError, GgufFile, brief
from trb_mlx.models.gguf_tensors import F32

ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rope_scaling(file: GgufFile, name: str, base: float, head_dim: int) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json, or None where the frequencies are plain.

    As in llama.cpp, a factor without a type means linear scaling, also under its old key.

    Raises:
        GgufError: frequencies scaled in another way.
    """
    kind = file.metadata.get(f"{name}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise GgufError(f"its rotary frequencies are scaled ({brief(kind)}), which is not read")
    factor = _linear_factor(file.metadata, name) if kind == "linear" else 1.0
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if factor != 1.0:
        raise GgufError(
            f"its rotary frequencies are scaled by {ROPE_FACTORS} and by {factor:g} besides"
        )
    if tensor.kind != F32 or tensor.shape != (head_dim // 2,):
        raise GgufError(f"tensor {ROPE_FACTORS} is not {head_dim // 2} values of type F32")
    factors = tensor.data.copy().view(np.float32)
    scaling = LLAMA3 | {"factor": float(factors.max())}
    if not np.allclose(factors, llama3_factors(scaling, base, head_dim), rtol=1e-4):
        raise GgufError("its rotary frequencies are scaled in another way than Llama 3.1's")
    return scaling


def _linear_factor(metadata: dict[str, Any], name: str) -> float:
    """What positions are divided by; 0 means 1, as in llama.cpp."""
    for key in (f"{name}.rope.scaling.factor", f"{name}.rope.scale_linear"):
        value = metadata.get(key)
        if value is not None:
            if not isinstance(value, float) or not 0 <= value < math.inf:
                raise GgufError(f"{key} is {brief(value)}, expected a positive number")
            return value or 1.0
    return 1.0


def llama3_factors(scaling: dict[str, Any], base: float, head_dim: int) -> np.ndarray:
    """What each of the head_dim / 2 wavelengths is stretched by: 1 for the short, factor for the
    long, and the harmonic mean of both in between."""
    wavelengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] / wavelengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)
