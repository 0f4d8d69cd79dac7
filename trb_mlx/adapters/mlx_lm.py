"""mlx-lm's adapter format, both ways, with numbered snapshots beside the newest weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.adapters.adapter import (
    CONFIG,
    Adapter,
    checked,
    module_names,
    read_arrays,
    read_json,
)
from trb_mlx.config import LoraConfig
from trb_mlx.errors import UserError
from trb_mlx.files import json_text, replacing
from trb_mlx.models.arrays import save_arrays
from trb_mlx.models.lora import lora_layers, lora_parameters

WEIGHTS = "adapters.safetensors"


def adapter_config(
    module: nn.Module, lora: LoraConfig, model: str, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """What mlx-lm needs to rebuild the layers, and both models' EOS ids under `stop_ids`."""
    return {
        "model": model,
        "fine_tune_type": "dora" if lora.dora else "lora",
        "num_layers": lora_layers(module, lora),
        "lora_parameters": lora_parameters(lora),
        "stop_ids": sorted(stop_ids),
    }


def save_adapters(folder: Path, module: nn.Module, config: dict[str, Any], step: int) -> None:
    """Write `adapters.safetensors`, `adapter_config.json` and the snapshot of this step."""
    arrays = dict(tree_flatten(module.trainable_parameters()))
    with replacing(folder / CONFIG) as draft:
        draft.write_text(json_text(config) + "\n", encoding="utf-8")
    with replacing(snapshot(folder, step)) as draft:
        save_arrays(draft, arrays)
    with replacing(folder / WEIGHTS) as draft:
        shutil.copyfile(snapshot(folder, step), draft)


def snapshot(folder: Path, step: int) -> Path:
    """The numbered file of one step, as mlx-lm names it."""
    return folder / f"{step:07d}_{WEIGHTS}"


def snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots that a folder holds, by step and in order."""
    steps = {path.name.partition("_")[0]: path for path in folder.glob(f"*_{WEIGHTS}")}
    return dict(sorted((int(step), path) for step, path in steps.items() if step.isdigit()))


def remove_snapshots(folder: Path, step: int) -> None:
    """Remove the snapshots of later steps than `step`."""
    for later, path in snapshots(folder).items():
        if later > step:
            path.unlink()


def read_mlx_adapter(folder: Path, weights: Path | None = None) -> Adapter:
    """An adapter folder as mlx-lm writes it.

    Versions before 0.14.3 wrote `lora_layers` for `num_layers`, and multiplied `scale` by alpha
    over rank. Later ones kept writing an alpha that they did not read, beside `use_dora`, which
    came with 0.13.1: of the two versions in between, the later reading is taken.

    Args:
        folder: holds `adapter_config.json`.
        weights: the file to use, one of the folder's snapshots perhaps.

    Raises:
        UserError: a file is missing or damaged, or the adapter is of no known kind.
    """
    config = read_json(folder / CONFIG)
    kind = config.get("fine_tune_type") or ("dora" if config.get("use_dora") is True else "lora")
    if kind not in ("lora", "dora"):
        raise UserError(
            f"adapter {folder} is a {str(kind)[:60]!r} fine-tune, expected lora or dora."
        )
    arrays = read_arrays(weights or folder / WEIGHTS)
    try:
        parameters = config["lora_parameters"]
        rank, scale = int(parameters["rank"]), float(parameters["scale"])
        is_old = "lora_layers" in config and "num_layers" not in config
        if is_old and "use_dora" not in config and "alpha" in parameters:
            scale *= float(parameters["alpha"]) / rank
        keys = module_names(arrays) if is_old else parameters.get("keys")
        adapter = Adapter(
            source=str(folder),
            rank=rank,
            scale=scale,
            dropout=parameters.get("dropout", 0.0),
            dora=kind == "dora",
            keys=None if keys is None else tuple(str(key) for key in keys),
            num_layers=-1 if is_old else int(config["num_layers"]),
            arrays=arrays,
            stop_ids=tuple(int(token) for token in config.get("stop_ids") or ()),
        )
    except Exception as error:  # whatever such values make of themselves
        raise UserError(
            f"adapter {folder}: {CONFIG} lacks or garbles {str(error)[:100]}; expected mlx-lm's "
            "lora_parameters and num_layers."
        ) from error
    return checked(adapter)
