"""Safetensors, written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from trb_mlx.errors import UserError


def save_arrays(path: Path, arrays: dict[str, mx.array], framework: str = "mlx") -> None:
    """Write safetensors; `framework` is the `format` of their metadata (PEFT writes `pt`).

    Raises:
        OSError: the file could not be written whole (mlx itself raises RuntimeError).
    """
    try:
        mx.save_safetensors(str(path), arrays, metadata={"format": framework})
    except RuntimeError as error:
        raise OSError(f"writing {path} failed: {error}") from error


def load_arrays(path: Path) -> dict[str, mx.array]:
    """Read safetensors.

    Raises:
        RuntimeError: the file is missing or damaged.
    """
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def overwrite_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """Put arrays in the place of those that a safetensors file has under their names.

    Every other byte stays as it is; arrays of other names are left out.

    Raises:
        UserError: an array has another size than the one in the file.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in header.keys() & arrays.keys():
            begin, end = header[name]["data_offsets"]
            values = np.asarray(mx.contiguous(arrays[name]).view(mx.uint8)).tobytes()
            if len(values) != end - begin:
                raise UserError(
                    f"{path} holds {end - begin} bytes of {name}, expected {len(values)}; another "
                    "file beside it may hold it in another type."
                )
            file.seek(8 + length + begin)
            file.write(values)


def weights_digest(module: nn.Module) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a model's arrays and their names."""
    sha256 = hashlib.sha256()
    for name, array in sorted(tree_flatten(module.parameters())):
        sha256.update(f"{name} {array.dtype} {array.shape}".encode())
        sha256.update(np.asarray(array.reshape(-1).view(mx.uint8)).data)
    return sha256.hexdigest()[:12]
