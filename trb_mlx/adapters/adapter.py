"""An adapter as one record, whatever tool wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from trb_mlx.adapters.mlx_lm import CONFIG, WEIGHTS
from trb_mlx.errors import UserError, reading
from trb_mlx.files import json_kind
from trb_mlx.models.arrays import load_arrays

MOST_RANK = 2**31


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
    stop_ids: tuple[int, ...] = field(default=())

    @property
    def modules(self) -> list[str]:
        """The names of the adapted modules, sorted."""
        return sorted({name.rpartition(".")[0] for name in self.arrays})


def read_mlx_adapter(folder: Path, weights: Path | None = None) -> Adapter:
    """An adapter folder as mlx-lm writes it.

    Args:
        folder: holds `adapter_config.json`.
        weights: the file to use, one of the folder's snapshots perhaps.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of no known kind.
    """
    details = read_json(folder / CONFIG)
    kind = details.get("fine_tune_type") or ("dora" if details.get("use_dora") is True else "lora")
    if kind not in ("lora", "dora"):
        raise UserError(
            f"adapter {folder} is a {str(kind)[:60]!r} fine-tune, expected lora or dora."
        )
    arrays = read_arrays(weights or folder / WEIGHTS)
    try:
        parameters = details["lora_parameters"]
        is_old = "lora_layers" in details and "num_layers" not in details
        modules = tuple(sorted({name.rpartition(".")[0] for name in arrays}))
        keys = modules if is_old else parameters.get("keys")
        adapter = Adapter(
            source=str(folder),
            rank=int(parameters["rank"]),
            scale=float(parameters["scale"]) * (_old_factor(details) if is_old else 1.0),
            dropout=parameters.get("dropout", 0.0),
            dora=kind == "dora",
            keys=None if keys is None else tuple(str(key) for key in keys),
            num_layers=-1 if is_old else int(details["num_layers"]),
            arrays=arrays,
            stop_ids=tuple(int(token) for token in details.get("stop_ids") or ()),
        )
    except Exception as error:  # whatever such values make of themselves
        raise UserError(
            f"adapter {folder}: {CONFIG} lacks or garbles {str(error)[:100]}; expected mlx-lm's "
            "lora_parameters and num_layers."
        ) from error
    return checked(adapter)


def _old_factor(details: Mapping[str, Any]) -> float:
    """What mlx-lm multiplied `scale` by before 0.14.3: alpha over rank.

    Later versions kept writing an alpha that they did not read, beside `use_dora`, which came
    with 0.13.1: of the two versions in between, the later reading is taken.
    """
    parameters = details["lora_parameters"]
    if "use_dora" in details or "alpha" not in parameters:
        return 1.0
    return float(parameters["alpha"]) / int(parameters["rank"])


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
    """The adapter, if its matrices fit each other and its rank.

    Raises:
        UserError: a matrix is missing, of another kind, or of another rank.
    """
    _check_numbers(adapter)
    wanted = {"lora_a", "lora_b", "m"} if adapter.dora else {"lora_a", "lora_b"}
    if not adapter.arrays:
        raise UserError(f"adapter {adapter.source} holds no tensors.")
    for module in adapter.modules:
        found = {leaf for leaf in ("lora_a", "lora_b", "m") if f"{module}.{leaf}" in adapter.arrays}
        if found != wanted:
            raise UserError(
                f"adapter {adapter.source}: {module} has {_listed(found)}, expected "
                f"{_listed(wanted)}."
            )
        first, second = (adapter.arrays[f"{module}.lora_{leaf}"] for leaf in "ab")
        if first.ndim != second.ndim or _ranks(first, second) != (adapter.rank, adapter.rank):
            raise UserError(
                f"adapter {adapter.source}: {module} has matrices {first.shape} and "
                f"{second.shape}, expected rank {adapter.rank}."
            )
    strange = [n for n in adapter.arrays if n.rpartition(".")[2] not in wanted]
    if strange:
        raise UserError(f"adapter {adapter.source}: {strange[0]} is no {_listed(wanted)}.")
    return adapter


def _check_numbers(adapter: Adapter) -> None:
    dropout = adapter.dropout
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(
            f"adapter {adapter.source}: dropout is {dropout!r:.60}, expected 0 or more and below 1."
        )
    if not 0 < adapter.rank < MOST_RANK or not 0 < adapter.scale < math.inf:
        raise UserError(
            f"adapter {adapter.source}: rank {str(adapter.rank)[:20]} and scale "
            f"{adapter.scale:.4g} are not both positive numbers of a usual size."
        )
    if adapter.num_layers < -1:
        raise UserError(f"adapter {adapter.source}: num_layers is {str(adapter.num_layers)[:20]}.")


def _ranks(first: mx.array, second: mx.array) -> tuple[int, int]:
    """The rank that each matrix has; stacked experts keep [E, r, in] and [E, out, r]."""
    if first.ndim == 3:
        return int(first.shape[1]), int(second.shape[2])
    if first.ndim == 2:
        return int(first.shape[1]), int(second.shape[0])
    return 0, 0


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
