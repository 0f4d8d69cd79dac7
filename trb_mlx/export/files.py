"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from trb_mlx.errors import RunError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place once it is filled."""
    draft = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn a full or failing disk into one sentence.

    Raises:
        RunError: instead of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"{what} could not be written: {reason}; earlier files are whole."
        ) from error
