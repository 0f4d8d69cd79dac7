"""What a folder's safetensors files hold, asked before anything is built and after it is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.errors import UserError, reading
from trb_mlx.models.model_config import text_config

LAYERS = re.compile(r"(.*?(?:layers|layer|blocks|h))\.(\d{1,9})\.")
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
WIDTHS = re.compile(r"(vocab|hidden|intermediate)_size|n_embd|head_dim|(num|n)_\w*(heads|experts)")
PACKED = 32  # values in a word of 32 bits, at most
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")


def check_json(folder: Path) -> None:
    """Hold that every JSON file of a model is one, before libraries read them and name none.

    Raises:
        UserError: names the file and the place in it.
    """
    for file in sorted(folder.glob("*.json")):
        with reading(str(file)):
            json.loads(file.read_text(encoding="utf-8"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that mlx-lm reads of a folder."""
    return sorted(folder.glob("model*.safetensors"))


def stored_arrays(folder: Path) -> dict[str, mx.array]:
    """All weights in a folder by name, each read from its file when it is used."""
    arrays: dict[str, mx.array] = {}
    for file in weight_files(folder):
        with reading(str(file)):
            weights = mx.load(str(file))
            assert isinstance(weights, dict)
            arrays |= weights
    return arrays


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of all weights in a folder; only the files' headers are read."""
    return {name: array.shape for name, array in stored_arrays(folder).items()}


def has_head(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the weights hold a head of their own beside the embedding."""
    return any(name.endswith(HEADS) and not LAYERS.match(name) for name in shapes)


def check_sizes(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], model: str) -> None:
    """Hold a config.json's sizes against the weights, before a model of those sizes is built.

    Raises:
        UserError: it announces more layers than the weights have, or a size beyond all of them.
    """
    if not shapes:  # mlx-lm says so better
        return
    lists: dict[str, int] = {}  # some architectures keep their layers in two lists
    for name in shapes:
        if match := LAYERS.match(name):
            lists[match[1]] = max(lists.get(match[1], 0), int(match[2]) + 1)
    layers = sum(lists.values()) or len(shapes)
    largest = PACKED * max(max(shape, default=1) for shape in shapes.values())
    for level in (config, text_config(config) or {}):
        for key, value in level.items():
            if not isinstance(value, int):
                continue
            if key in LAYER_COUNTS and value > layers:
                raise UserError(
                    f"config.json of model {model} has {key} {value}, and its weights hold "
                    f"{layers} layers; the two are not of one model."
                )
            if WIDTHS.fullmatch(key) and value > largest:
                raise UserError(
                    f"config.json of model {model} has {key} {value}, which no weight of it comes "
                    "near; the two are not of one model."
                )


def check_finite(module: nn.Module, model: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        UserError: names the first tensor with a NaN or an infinite value.
    """
    for name, array in tree_flatten(module.parameters()):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise UserError(
                f"model {model} cannot be used: its tensor {name} holds NaN or infinite values "
                f"in {str(array.dtype).rpartition('.')[2]}."
            )
