"""The header of a GGUF file: metadata and tensor table, every length checked against the file.

A small reader of our own, because a header from the internet is not to be trusted: mlx's and
most others crash or allocate without bound on counts and offsets that point outside the file.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trb_mlx.errors import UserError

STRING, ARRAY = 8, 9
# value type → struct format of a scalar
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
MOST_ENTRIES = 10_000_000  # of one array; the largest vocabularies have 0.3 million
MOST_DIMENSIONS = 4


class GgufError(UserError):
    """What is wrong with a file, without its name: whoever opened it puts that in front."""


def brief(value: Any) -> str:
    """A value out of a file, short and on one line, for a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "missing" if value is None else " ".join(str(value)[:64].split())


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's place: `shape` is row-major, `data` its raw bytes in the mapped file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: np.ndarray  # uint8, not yet read from disk


@dataclass(frozen=True)
class GgufFile:
    """A checked header: metadata by key, tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True)
class BlockType:
    """How a tensor type is stored: `nbytes` for every block of `values`."""

    name: str
    values: int
    nbytes: int


class _Cursor:
    """Reads forward through the mapped bytes and never beyond them."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.place = 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` bytes."""
        if count > len(self.data) - self.place:
            raise GgufError("it ends within its header")
        self.place += count
        return self.data[self.place - count : self.place]

    def scalar(self, code: str) -> Any:
        """The next little-endian number of a struct code."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")).tobytes())[0]

    def text(self) -> str:
        """The next text: its length, then its UTF-8."""
        raw = self.take(self.scalar("Q")).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError("its header holds a text that is not UTF-8") from error

    def value(self) -> Any:
        """The next metadata value: its type, then a number, a text or a list of them."""
        kind = self.scalar("I")
        if kind == ARRAY:
            return self._array()
        return self._single(kind)

    def _single(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind not in SCALARS:
            raise GgufError(f"its header holds a value of unknown type {kind}")
        return self.scalar(SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == ARRAY or count > MOST_ENTRIES:
            raise GgufError(f"its header holds an array of {count} entries of type {kind}")
        if kind in SCALARS:
            code = SCALARS[kind]
            raw = self.take(count * struct.calcsize(f"<{code}"))
            return list(struct.unpack(f"<{count}{code}", raw.tobytes()))
        return [self._single(kind) for _ in range(count)]


def read_gguf(path: Path, block_types: dict[int, BlockType]) -> GgufFile:
    """Read and check a file's header; tensor data stays on disk until it is used.

    Args:
        path: the file.
        block_types: the tensor types that can be read, by their number.

    Raises:
        GgufError: not GGUF, truncated, of a version or tensor type that cannot be read, or with
            counts, lengths or offsets that do not fit the file.
    """
    if path.stat().st_size < 4:
        raise GgufError("it is no GGUF file (the first four bytes are not GGUF)")
    cursor = _Cursor(np.memmap(path, dtype=np.uint8, mode="r"))
    if cursor.take(4).tobytes() != b"GGUF":
        raise GgufError("it is no GGUF file (the first four bytes are not GGUF)")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise GgufError(f"it is of GGUF version {version}, expected 2 or 3 in little-endian order")
    tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in metadata:
            raise GgufError(f"its header gives {brief(key)} twice")
        metadata[key] = cursor.value()
    if metadata.get("split.count", 1) not in (0, 1):
        raise GgufError("it is one part of several; expected a model in one file")
    entries = [_entry(cursor) for _ in range(tensor_count)]
    # The data begins at the next multiple of the alignment.
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {brief(alignment)}, expected a power of two")
    start = -(-cursor.place // alignment) * alignment
    return GgufFile(metadata, _tensors(entries, cursor.data[start:], block_types))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, row-major shape, type and offset of one tensor."""
    name, dimensions = cursor.text(), cursor.scalar("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise GgufError(f"tensor {brief(name)} has {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _tensors(
    entries: list[tuple[str, tuple[int, ...], int, int]],
    data: np.ndarray,
    block_types: dict[int, BlockType],
) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    total = 0
    for name, shape, kind, offset in entries:
        label = brief(name)
        if name in tensors:
            raise GgufError(f"it holds tensor {label} twice")
        if kind not in block_types:
            known = ", ".join(each.name for each in block_types.values())
            raise GgufError(
                f"tensor {label} is of type {_OTHER_TYPES.get(kind, f'number {kind}')}, "
                f"expected one of {known}"
                + ("; `pip install 'trb-mlx[gguf]'` reads more" if kind in _OTHER_TYPES else "")
            )
        block = block_types[kind]
        if shape[-1] % block.values or not math.prod(shape):
            raise GgufError(f"tensor {label} has shape {shape}, which {block.name} cannot hold")
        size = math.prod(shape) // block.values * block.nbytes
        if offset + size > len(data):
            raise GgufError(f"tensor {label} lies beyond its end (is the file complete?)")
        total += size
        tensors[name] = TensorInfo(name, shape, kind, data[offset : offset + size])
    if total > len(data):  # else a few bytes could be asked for any number of times
        raise GgufError("its tensors overlap")
    return tensors


# Types that are not read here, by ggml's numbers.
_OTHER_TYPES = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
