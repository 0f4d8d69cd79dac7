"""LoRA on the student by mlx-lm's own functions, and checkpointing of its layers alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig
from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm


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
    module.freeze()
    mx.random.seed(seed)
    try:
        mlxlm.linear_to_lora_layers(
            module, lora_layers(module, config), lora_parameters(config), use_dora=config.dora
        )
    except ValueError as error:
        raise UserError(f"lora: {error}") from error
    names = [name for name, _ in tree_flatten(module.trainable_parameters())]
    if not names:
        raise UserError(f"lora.keys {config.keys} match no layer; try {_linear_names(module)}.")
    module.apply_to_modules(_adapters_to_float32)
    mx.eval(module.parameters())


def _adapters_to_float32(_: str, module: nn.Module) -> None:
    for leaf in ("lora_a", "lora_b", "m"):
        if leaf in module and module[leaf].dtype != mx.float32:
            module[leaf] = module[leaf].astype(mx.float32)


def _linear_names(module: nn.Module) -> str:
    linears = (nn.Linear, nn.QuantizedLinear)
    found = [name for name, m in module.layers[0].named_modules() if isinstance(m, linears)]
    return ", ".join(sorted(found))


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
