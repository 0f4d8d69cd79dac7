"""GGUF tensors as MLX arrays: Q4_0, Q4_1 and Q8_0 stay packed, floats stay what they are.

Both formats are affine in groups of 32 along a row, w = scale · q + bias; they differ in where
the q of a group lie and in how the bias is written:

    Q4_0  w = d (q − 8)      Q4_1  w = d q + m      Q8_0  w = d q with signed q

so that a scale and bias in float16 are exact. Types that MLX cannot hold packed (K-quants, Q5_0)
go through the `gguf` package, where it is installed, and become float16.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from trb_mlx.models.gguf_reader import BlockType, GgufError, TensorInfo, brief

GROUP = 32
F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
NATIVE = {
    F32: BlockType("F32", 1, 4),
    F16: BlockType("F16", 1, 2),
    BF16: BlockType("BF16", 1, 2),
    Q4_0: BlockType("Q4_0", GROUP, 18),
    Q4_1: BlockType("Q4_1", GROUP, 20),
    Q8_0: BlockType("Q8_0", GROUP, 34),
}
BITS = {Q4_0: 4, Q4_1: 4, Q8_0: 8}
_FLOATS: dict[int, np.dtype[Any]] = {
    F32: np.dtype("<f4"),
    F16: np.dtype("<f2"),
    BF16: np.dtype("<u2"),
}


def readable_types() -> dict[int, BlockType]:
    """The tensor types that can be read: `NATIVE`, and those of the `gguf` package if present."""
    package = _gguf_package()
    if package is None:
        return NATIVE
    sizes = package.GGML_QUANT_SIZES.items()
    return {int(kind): BlockType(kind.name, *size) for kind, size in sizes} | NATIVE


def _gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        return None
    return gguf


def unpack_tensor(tensor: TensorInfo) -> dict[str, mx.array]:
    """A tensor's arrays by suffix: `weight` alone, or packed `weight`, `scales` and `biases`.

    Packed weights are uint32 `[rows, columns · bits / 32]`, scales and biases float16
    `[rows, columns / 32]`, as `nn.QuantizedLinear` holds them.

    Raises:
        GgufError: a quantized tensor that is not a matrix, or one with scales that overflow.
    """
    if tensor.kind in BITS:
        return _packed(tensor)
    if tensor.kind in _FLOATS:
        values = tensor.data.view(np.dtype(_FLOATS[tensor.kind])).reshape(tensor.shape)
        array = mx.array(np.array(values))  # copied: a file may place tensors at odd bytes
        return {"weight": array.view(mx.bfloat16) if tensor.kind == BF16 else array}
    return {"weight": _dequantized(tensor)}


def _dequantized(tensor: TensorInfo) -> mx.array:
    package = _gguf_package()
    kind = package.GGMLQuantizationType(tensor.kind)
    try:
        floats = package.quants.dequantize(tensor.data.reshape(*tensor.shape[:-1], -1), kind)
    except NotImplementedError as error:
        raise GgufError(
            f"tensor {brief(tensor.name)} is of type {kind.name}, which is not read here"
        ) from error
    return mx.array(floats.reshape(tensor.shape).astype(np.float16))


def _packed(tensor: TensorInfo) -> dict[str, mx.array]:
    if len(tensor.shape) != 2:
        raise GgufError(f"tensor {brief(tensor.name)} is quantized and no matrix: {tensor.shape}")
    blocks = tensor.data.reshape(-1, NATIVE[tensor.kind].nbytes)
    scales = _halves(blocks, 0)
    with np.errstate(over="ignore"):
        if tensor.kind == Q4_0:
            values, biases = _nibbles(blocks[:, 2:]), scales * np.float16(-8)
        elif tensor.kind == Q4_1:
            values, biases = _nibbles(blocks[:, 4:]), _halves(blocks, 2)
        else:
            values, biases = blocks[:, 2:] ^ np.uint8(128), scales * np.float16(-128)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise GgufError(f"tensor {brief(tensor.name)} has scales that are not finite in float16")
    rows = tensor.shape[0]
    words = np.ascontiguousarray(values).view("<u4").reshape(rows, -1)
    return {
        "weight": mx.array(words),
        "scales": mx.array(scales.reshape(rows, -1)),
        "biases": mx.array(biases.reshape(rows, -1)),
    }


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte `start` of every block, `[blocks]`."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2")[:, 0]


def _nibbles(quants: np.ndarray) -> np.ndarray:
    """16 bytes a block in ggml's order (values 0 to 15 low, 16 to 31 high) in MLX's order.

    MLX puts neighbours together: value 2i in the low half of byte i, 2i + 1 in the high half.
    """
    ordered = np.concatenate([quants & 15, quants >> 4], axis=1)
    return ordered[:, 0::2] | (ordered[:, 1::2] << 4)
