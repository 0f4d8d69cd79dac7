"""An adapter as one record, whatever tool wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from trb_mlx.errors import UserError, reading
from trb_mlx.files import json_kind
from trb_mlx.models.arrays import load_arrays
from trb_mlx.models.lora import LEAVES

CONFIG = "adapter_config.json"  # mlx-lm's and PEFT's
MAX_RANK = 2**31


@dataclass(frozen=True)
class Adapter:
    """LoRA or DoRA matrices under mlx-lm's names and in its layout.

    `arrays` maps MODULE.lora_a `[in, r]`, MODULE.lora_b `[r, out]` and, for DoRA, MODULE.m `[out]`.
    `keys` and `num_layers` say in mlx-lm's terms which modules carry them.
    """

    source: str
    rank: int
    scale: float
    dropout: float
    dora: bool
    keys: tuple[str, ...] | None
    num_layers: int
    arrays: dict[str, mx.array]
    stop_ids: tuple[int, ...] = ()

    @property
    def modules(self) -> list[str]:
        """The names of the adapted modules, sorted."""
        return module_names(self.arrays)


def module_names(names: Iterable[str]) -> list[str]:
    """The modules that matrices of these names belong to, sorted."""
    return sorted({name.rpartition(".")[0] for name in names})


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: the file is missing, unreadable or no JSON object.
    """
    with reading(str(path)):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{path.parent} holds no {path.name}; expected an adapter folder."
            ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {json_kind(values)}, expected an object.")
    return values


def read_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, in memory and finite.

    Raises:
        UserError: the file is missing, truncated, hostile, or holds NaN or infinity.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}.")
    with reading(str(path)):
        arrays = load_arrays(path)
        mx.eval(arrays)
    for name, array in arrays.items():
        if not bool(mx.isfinite(array).all()):
            raise UserError(f"{path}: {name} holds values that are not finite.")
    return arrays


def checked(adapter: Adapter) -> Adapter:
    """The adapter, if its numbers are sane and its matrices fit each other and its rank.

    Raises:
        UserError: a number is out of range, or a matrix is missing, of another kind, or of
            another rank.
    """
    _check_numbers(adapter)
    where = f"adapter {adapter.source}"
    expected = set(LEAVES if adapter.dora else ("lora_a", "lora_b"))
    if not adapter.arrays:
        raise UserError(f"{where} holds no tensors.")
    for module in adapter.modules:
        leaves = {leaf for leaf in LEAVES if f"{module}.{leaf}" in adapter.arrays}
        if leaves != expected:
            raise UserError(
                f"{where}: {module} has {_listed(leaves)}, expected {_listed(expected)}."
            )
        lora_a, lora_b = (adapter.arrays[f"{module}.{leaf}"] for leaf in ("lora_a", "lora_b"))
        if lora_a.ndim != lora_b.ndim or _ranks(lora_a, lora_b) != (adapter.rank, adapter.rank):
            raise UserError(
                f"{where}: {module} has matrices {lora_a.shape} and {lora_b.shape}, expected rank "
                f"{adapter.rank}."
            )
    for name in adapter.arrays:
        if name.rpartition(".")[2] not in expected:
            raise UserError(f"{where}: {name} is no {_listed(expected)}.")
    return adapter


def _check_numbers(adapter: Adapter) -> None:
    dropout = adapter.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(
            f"adapter {adapter.source}: dropout is {dropout!r:.60}, expected 0 or more and below 1."
        )
    if not 0 < adapter.rank < MAX_RANK or not 0 < adapter.scale < math.inf:
        raise UserError(
            f"adapter {adapter.source}: rank {str(adapter.rank)[:20]} and scale "
            f"{adapter.scale:.4g} are not both positive numbers of a usual size."
        )
    if adapter.num_layers < -1:
        raise UserError(f"adapter {adapter.source}: num_layers is {str(adapter.num_layers)[:20]}.")


def _ranks(lora_a: mx.array, lora_b: mx.array) -> tuple[int, int]:
    """The rank that each matrix has; stacked experts keep [E, r, in] and [E, out, r]."""
    if lora_a.ndim == 3:
        return int(lora_a.shape[1]), int(lora_b.shape[2])
    if lora_a.ndim == 2:
        return int(lora_a.shape[1]), int(lora_b.shape[0])
    return 0, 0


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
