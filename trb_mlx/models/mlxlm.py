"""Every mlx-lm function that this project relies on, imported in this one module.

mlx-lm promises only part of these; `tests/models/test_mlxlm.py` probes each signature, and
`pyproject.toml` pins the range that was probed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from mlx_lm.models.rope_utils import initialize_rope
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.callbacks import get_reporting_callbacks
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import (
    _download,
    _get_classes,
    load_config,
    load_model,
    load_tokenizer,
    save_config,
    save_model,
)
from mlx_lm.utils import dequantize_model as _dequantize_model
from mlx_lm.utils import quantize_model as _quantize_model

__all__ = [
    "ArraysCache",
    "CacheList",
    "KVCache",
    "LoRALinear",
    "RotatingKVCache",
    "TokenizerWrapper",
    "config_fields",
    "create_causal_mask",
    "dequantize_model",
    "download",
    "get_reporting_callbacks",
    "initialize_rope",
    "linear_to_lora_layers",
    "load_config",
    "load_model",
    "load_tokenizer",
    "make_model",
    "make_prompt_cache",
    "quantize_model",
    "save_config",
    "save_model",
]


def make_model(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's module of a config.json, with weights that are still to be loaded."""
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def dequantize_model(module: nn.Module) -> nn.Module:
    """Unpack quantized layers in place, to the type of the model's own floats.

    Of layers whose scales are no floats (mxfp4, nvfp4, mxfp8), mlx-lm itself makes bfloat16.
    """
    own = [
        array
        for name, array in tree_flatten(module.parameters())
        if mx.issubdtype(array.dtype, mx.floating) and "lora_" not in name
    ]
    names = [name for name, m in module.named_modules() if getattr(m, "mode", "affine") != "affine"]
    module = _dequantize_model(module)
    layers = dict(module.named_modules())
    for name in names if own else ():
        layers[name].set_dtype(own[0].dtype)
    return module


def quantize_model(
    model: nn.Module, config: dict[str, Any], group_size: int, bits: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Quantize in place, without mlx-lm's print of the bits per weight; give the config of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return _quantize_model(model, config, group_size, bits)


def config_fields(config: dict[str, Any]) -> dict[str, bool]:
    """The keys that mlx-lm reads of such a config.json, and whether it needs them.

    Empty where it has no such architecture.

    Raises:
        ValueError: the architecture cannot be imported here.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, args_class = _get_classes(config)
    except (KeyError, ValueError):
        return {}
    except SystemExit as error:  # one architecture is a wrapper of another package
        raise ValueError(
            f"mlx-lm's {config['model_type']} needs another package to be installed"
        ) from error
    missing = dataclasses.MISSING
    return {
        field.name: field.default is missing and field.default_factory is missing
        for field in dataclasses.fields(args_class)
    }


def download(model: str, revision: str | None) -> Path:
    """The folder of a model: itself, or the Hub's files in the local cache."""
    return _download(model, revision=revision)
