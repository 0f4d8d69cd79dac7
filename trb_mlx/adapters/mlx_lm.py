"""Adapters in mlx-lm's own format, with numbered snapshots beside the newest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig
from trb_mlx.files import json_text, replacing
from trb_mlx.models.arrays import save_arrays
from trb_mlx.models.lora import lora_layers, lora_parameters

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"


def adapter_config(
    module: nn.Module, lora: LoraConfig, model: str, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """What mlx-lm needs to rebuild the layers; `stop_ids` (ours) are both models' EOS ids."""
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


def remove_snapshots(folder: Path, step: int) -> None:
    """Remove the snapshots of later steps than `step`."""
    for path in folder.glob(f"*_{WEIGHTS}"):
        if path.name.split("_")[0].isdigit() and int(path.name.split("_")[0]) > step:
            path.unlink()


def snapshot(folder: Path, step: int) -> Path:
    """The numbered file of one step, as mlx-lm names it."""
    return folder / f"{step:07d}_{WEIGHTS}"
