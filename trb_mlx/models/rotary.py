"""Rotary embeddings that mlx-lm's model builds plainer than its config asks for."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm
from trb_mlx.models.model_config import LOCAL_BASES, SLIDING, read_config


def fit_rotary(module: nn.Module, config: dict[str, Any], model: str) -> None:
    """Replace plain embeddings where the config scales positions or turns a part of each head.

    Some architectures of mlx-lm take no note of `rope_scaling` or `partial_rotary_factor`, or know
    one base for all kinds of layers. Those that transformers does not have are left as they are.

    Args:
        module: as mlx-lm built it; changed in place.
        config: from which it did.
        model: its name, for the error.

    Raises:
        UserError: the scaling is ignored in a place that cannot be reached.
    """
    if not read_config(config):
        return
    fields = mlxlm.config_fields(config)
    local = config.get("rope_local_base_freq")
    if local and not {"rope_parameters", *LOCAL_BASES} & set(fields):
        for layer, kind in zip(module.layers, config.get("layer_types") or (), strict=False):
            for rope in layer.modules() if kind == SLIDING else ():
                if type(rope) is nn.RoPE:
                    rope.base = local
    ropes = {
        name: layer
        for name, layer in module.named_modules()
        if any(word in type(layer).__name__.lower() for word in ("rope", "rotary"))
    }
    plain = {name: m for name, m in ropes.items() if type(m) is nn.RoPE and m.scale == 1.0}
    part = config.get("partial_rotary_factor") or 1.0
    if "rope_parameters" in fields or {"partial_rotary_factor", "rotary_pct"} & set(fields):
        part = 1.0  # known to the model
    scaling = config.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("rope_type") == "default":
        scaling = None
    if scaling is not None and len(plain) < len(ropes):
        for rope in ropes.values():
            _fit_scaled(rope, scaling, config)
        scaling = None  # known to the model too
    if scaling is not None and not plain:
        raise UserError(
            f"model {model} scales its rotary positions ({scaling.get('rope_type')}), which mlx-lm "
            f"does not compute for {config.get('model_type')}."
        )
    if part == 1.0 and scaling is None:
        return
    limit = config.get("max_position_embeddings")
    whole = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    changed = {}
    for name, m in plain.items():
        dims = int(m.dims * part) if m.dims == whole else m.dims
        changed[name] = mlxlm.initialize_rope(dims, m.base, m.traditional, scaling, limit)
    for rope in changed.values():
        _fit_scaled(rope, scaling or {}, config)
    module.update_modules(tree_unflatten(list(changed.items())))


def _fit_scaled(rope: nn.Module, scaling: dict[str, Any], config: dict[str, Any]) -> None:
    """Give a scaled embedding of mlx-lm the settings that it does not take.

    Yarn without `truncate` does not round the dimensions between which it goes over from one
    frequency to the other; `attention_factor` and longrope's `factor` say the scale of both
    queries and keys.
    """
    kind, scale = scaling.get("rope_type"), scaling.get("attention_factor")
    if kind == "longrope" and scale is None and (factor := scaling.get("factor")):
        key = "original_max_position_embeddings"
        original = int(scaling.get(key) or config[key])
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    name = {"longrope": "_scale", "yarn": "mscale"}.get(str(kind), "")
    if scale is not None and hasattr(rope, name):
        setattr(rope, name, scale)
    if kind == "yarn" and scaling.get("truncate") is False and "_freqs" in rope:
        rope._freqs = _yarn_periods(2 * rope["_freqs"].size, config["rope_theta"], scaling)


def _yarn_periods(dims: int, base: float, scaling: dict[str, Any]) -> mx.array:
    """Yarn's positions a radian, `[dims / 2]`, with a ramp whose ends are not rounded."""

    def dimension(rotations: float) -> float:
        turns = scaling["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(base))

    low = max(dimension(scaling.get("beta_fast") or 32), 0)
    high = min(dimension(scaling.get("beta_slow") or 1), dims - 1)
    steps = mx.arange(dims // 2, dtype=mx.float32)
    ramp = mx.clip((steps - low) / max(high - low, 1e-3), 0, 1)
    periods = base ** (2 * steps / dims)
    return periods / ((1 - ramp) + ramp / scaling["factor"])
