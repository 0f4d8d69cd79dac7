"""Adapters in mlx-lm's own format, with numbered snapshots beside the newest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig
from trb_mlx.errors import UserError
from trb_mlx.export.files import save_arrays
from trb_mlx.files import replacing
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import LanguageModel
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
        draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with replacing(snapshot(folder, step)) as draft:
        save_arrays(draft, arrays)
    with replacing(folder / WEIGHTS) as draft:
        shutil.copyfile(snapshot(folder, step), draft)


def snapshot(folder: Path, step: int) -> Path:
    """The numbered file of one step, as mlx-lm names it."""
    return folder / f"{step:07d}_{WEIGHTS}"


def load_adapter(model: LanguageModel, folder: Path, weights: Path) -> list[int]:
    """Put mlx-lm adapters on a model in place.

    Args:
        model: the base.
        folder: holds `adapter_config.json` and `adapters.safetensors`.
        weights: the file to use, one of the folder's snapshots perhaps.

    Returns:
        The EOS ids of the pair that trained them (empty for an adapter of another tool).

    Raises:
        UserError: a file is missing or damaged, or the adapter is of another base.
    """
    if not (folder / CONFIG).is_file() or not weights.is_file():
        raise UserError(
            f"adapter {folder} has no {CONFIG} with {weights.name}; "
            "expected a folder as mlx-lm writes it."
        )
    try:
        mlxlm.load_adapters(model.module, str(folder))
        model.module.load_weights(str(weights), strict=False)
        stops = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("stop_ids", [])
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"adapter {folder} does not fit {model.name}: {reason}") from error
    model.module.eval()
    return list(stops)
