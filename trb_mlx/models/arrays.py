"""Safetensors, written and read."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx


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
