"""LoRA on the student by mlx-lm's own functions, and checkpointing of its layers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.config import LoraConfig
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.models import mlxlm
from trb_mlx.models.lora_linear import speed_up_lora

# An adapter's matrices under a module's name; `m` is DoRA's magnitude.
LEAVES = ("lora_a", "lora_b", "m")


def lora_parameters(config: LoraConfig) -> dict[str, Any]:
    """mlx-lm's `lora_parameters` of a config."""
    values = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
    return values if config.keys is None else values | {"keys": list(config.keys)}


def lora_layers(module: nn.Module, config: LoraConfig) -> int:
    """How many of the last blocks carry adapters (all for -1)."""
    blocks = len(module.layers)
    return blocks if config.num_layers < 0 else min(config.num_layers, blocks)


def add_lora(module: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze a model and add fresh adapters in place; only they can be trained.

    The adapters are float32 whatever the base's type. `seed` fixes their first values.

    Raises:
        UserError: no layer carries an adapter, or a layer cannot.
    """
    _check_keys(module, config)
    module.freeze()
    mx.random.seed(seed)
    try:
        make_lora_layers(module, lora_layers(module, config), lora_parameters(config), config.dora)
    except ValueError as error:
        raise UserError(f"lora: {error}") from error
    for _, layer in module.named_modules():
        for leaf in LEAVES:
            if leaf in layer and layer[leaf].dtype != mx.float32:
                layer[leaf] = layer[leaf].astype(mx.float32)
    mx.eval(module.parameters())


def make_lora_layers(
    module: nn.Module, num_layers: int, parameters: dict[str, Any], dora: bool
) -> None:
    """Put mlx-lm's LoRA layers in the last blocks (all for -1), and let them run in few launches.

    Raises:
        ValueError: a layer cannot carry an adapter.
    """
    mlxlm.linear_to_lora_layers(module, num_layers, parameters, use_dora=dora)
    module.eval()  # new layers would drop out until the first update, in rollouts too
    speed_up_lora(module)


def adapted_modules(module: nn.Module, keys: Sequence[str], num_layers: int) -> set[str]:
    """The full names of the modules that mlx-lm adapts for `keys` in the last `num_layers` blocks.

    A key is a module's name in its block, or in full.
    """
    names = {id(inner): name for name, inner in module.named_modules()}
    blocks = module.layers[-max(num_layers, 0) :]
    inside = {
        names[id(inner)] for block in blocks for k, inner in block.named_modules() if k in keys
    }
    return inside | {name for name in names.values() if name in keys}


def _check_keys(module: nn.Module, config: LoraConfig) -> None:
    """Refuse a key that names no layer, also where others do: it may be misspelt."""
    keys = config.keys
    if keys is None:
        return
    linears = (nn.Linear, nn.QuantizedLinear)
    known = sorted(
        {k for layer in module.layers for k, m in layer.named_modules() if isinstance(m, linears)}
    )
    strange = [k for k in keys if not adapted_modules(module, [k], lora_layers(module, config))]
    if len(strange) == len(keys):
        raise UserError(f"lora.keys {keys} match no layer; try {', '.join(known)}.")
    if strange:
        leaf = strange[0].rpartition(".")[2]
        same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
        meant = f"; did you mean {same_leaf[0]}?" if same_leaf else did_you_mean(strange[0], known)
        raise UserError(
            f"lora.keys: {strange[0]} matches no layer{meant} (known: {', '.join(known)})."
        )


def checkpoint_layers(module: nn.Module) -> None:
    """Recompute every block of this one model in the backward pass instead of storing it.

    Each block gets a class of its own, so that a teacher of the same architecture is left
    alone, and calling twice does not nest.
    """
    for layer in module.layers:
        plain = type(layer)
        if not getattr(plain, "is_checkpointed", False):
            layer.__class__ = _checkpointed(plain)


def _checkpointed(plain: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def inner(params: Any, *inner_args: Any) -> Any:
            self.update(params)
            return plain.__call__(self, *inner_args, **kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args)

    return type(plain.__name__, (plain,), {"__call__": call, "is_checkpointed": True})
