"""Rotary embeddings that mlx-lm's model builds plainer than its config asks for."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten

from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm
from trb_mlx.models.model_config import LOCAL_BASES, SLIDING


def fit_rotary(module: nn.Module, config: dict[str, Any], model: str) -> None:
    """Replace plain embeddings where the config scales positions or turns a part of each head.

    Some architectures of mlx-lm take no note of `rope_scaling` or `partial_rotary_factor`, or know
    one base for all kinds of layers.

    Args:
        module: as mlx-lm built it; changed in place.
        config: from which it did.
        model: its name, for the error.

    Raises:
        UserError: the scaling is ignored in a place that cannot be reached.
    """
    fields = mlxlm.config_fields(config)
    local = config.get("rope_local_base_freq")
    if local and not {"rope_parameters", *LOCAL_BASES} & set(fields):
        for layer, kind in zip(module.layers, config.get("layer_types") or (), strict=False):
            for rope in layer.modules() if kind == SLIDING else ():
                if type(rope) is nn.RoPE:
                    rope.base = local
    ropes = {name: layer for name, layer in module.named_modules() if _is_rotary(layer)}
    plain = {name: m for name, m in ropes.items() if type(m) is nn.RoPE and m.scale == 1.0}
    part = config.get("partial_rotary_factor") or 1.0
    if "rope_parameters" in fields or {"partial_rotary_factor", "rotary_pct"} & set(fields):
        part = 1.0  # known to the model
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type") == "default":
        scaling = None
    if scaling is not None and len(plain) < len(ropes):
        scaling = None  # known to the model too
    if scaling is not None and not plain:
        raise UserError(
            f"model {model} scales its rotary positions ({scaling.get('rope_type')}), which mlx-lm "
            f"does not compute for {config.get('model_type')}."
        )
    if part == 1.0 and scaling is None:
        return
    limit = config.get("max_position_embeddings")
    changed = {
        name: mlxlm.initialize_rope(int(m.dims * part), m.base, m.traditional, scaling, limit)
        for name, m in plain.items()
    }
    module.update_modules(tree_unflatten(list(changed.items())))


def _is_rotary(layer: nn.Module) -> bool:
    name = type(layer).__name__.lower()
    return "rope" in name or "rotary" in name
