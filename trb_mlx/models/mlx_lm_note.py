"""What mlx-lm on its own computes otherwise than this project and transformers do."""

from __future__ import annotations

import copy
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from trb_mlx.models import mlxlm
from trb_mlx.models.model_config import attention_windows, build_config, complete_config
from trb_mlx.models.rotary import fit_rotary
from trb_mlx.models.windows import slide_layers


def mlx_lm_note(config: dict[str, Any], has_head: bool | None = None) -> str | None:
    """One sentence for whoever gives such a folder to mlx-lm; None where it computes the same.

    Args:
        config: the folder's config.json.
        has_head: whether the weights hold a head of their own, where that is known.
    """
    if has_head is None:
        has_head = not config.get("tie_word_embeddings", True)
    whole = complete_config(config, has_head)
    if not mlxlm.config_fields(whole):
        return None
    building = build_config(whole)
    right = mlxlm.make_model(building)
    fit_rotary(right, building, "")
    try:
        alone = mlxlm.make_model(copy.deepcopy(config))
        same_names = _names(alone) == _names(right)
    except Exception:  # of its ModelArgs or its layers, for keys that it misses
        return (
            "mlx-lm itself cannot read this config.json, as transformers 5 writes it; a merged "
            "export has one that it reads."
        )
    if not same_names or _positions(alone) != _positions(right):
        return (
            "mlx-lm itself reads the rotary positions or the head of this config.json otherwise "
            "than transformers: its logits differ from the trained student's."
        )
    windows = attention_windows(whole)
    if slide_layers(right, windows):
        window = min(window for window in windows if window)
        return (
            f"mlx-lm itself applies no sliding window of {window} positions to this architecture: "
            "its logits differ from the trained student's in texts that are longer."
        )
    return None


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in tree_flatten(module.parameters())}


def _positions(module: nn.Module) -> list[Any]:
    """All that decides how each layer turns its queries and keys."""
    positions: list[Any] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.RoPE):
            positions.append((name, layer.dims, layer.base, layer.scale))
        elif "_freqs" in layer:
            scale = getattr(layer, "_scale", None) or getattr(layer, "mscale", None)
            positions.append((name, np.asarray(layer["_freqs"]).tolist(), scale))
    return sorted(positions, key=lambda entry: entry[0])
