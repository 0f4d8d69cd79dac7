"""What counts of a model for a plan: bytes of its weights, its passes, its caches, its adapters."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import Outline
from trb_mlx.models.lora import LEAVES, lora_layers, lora_parameters
from trb_mlx.models.model_config import context_length
from trb_mlx.models.self_teacher import copied_module
from trb_mlx.planning.passes import BlockPass, block_passes, cache_bytes


@dataclass(frozen=True)
class ModelShape:
    """What counts of one model.

    Attributes:
        weights, read: bytes of its weights as they are used, and before they were rounded.
        blocks: what each of its blocks does in a pass.
        place, fixed: bytes of a row's cache a place, and whatever its length.
        vocab, width, item: of its head: ids, hidden width, bytes a number.
        context: the longest sequence, or None.
    """

    weights: int
    read: int
    blocks: list[BlockPass]
    place: float
    fixed: float
    vocab: int
    width: int
    item: int
    context: int | None


def shape_of(outline: Outline) -> ModelShape:
    """What counts of a model of which only headers were read."""
    blocks = block_passes(outline.module)
    place, fixed = cache_bytes(outline.module)
    logits = outline.module(mx.zeros((1, 1), mx.int32))
    item = logits.dtype.size
    width = round(blocks[-1].width / item)
    return ModelShape(
        outline.nbytes(),
        outline.read_bytes,
        blocks,
        place,
        fixed,
        logits.shape[-1],
        width,
        item,
        context_length(outline.config),
    )


def adapter_bytes(module: nn.Module, config: LoraConfig) -> int:
    """Bytes of the float32 adapters that a student of this module gets."""
    module = copied_module(module)
    count = lora_layers(module, config)
    mlxlm.linear_to_lora_layers(module, count, lora_parameters(config), use_dora=config.dora)
    arrays = tree_flatten(module.parameters())
    return sum(4 * a.size for name, a in arrays if name.rpartition(".")[2] in LEAVES)
