"""Every mlx-lm function that this project relies on, imported in this one module.

mlx-lm promises only part of these; `tests/models/test_mlxlm.py` probes each signature, and
`pyproject.toml` pins the range that was probed.
"""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx_lm import load
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.callbacks import get_reporting_callbacks
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import (
    _get_classes,
    dequantize_model,
    load_tokenizer,
    quantize_model,
    save_config,
    save_model,
)

__all__ = [
    "KVCache",
    "RotatingKVCache",
    "TokenizerWrapper",
    "dequantize_model",
    "get_reporting_callbacks",
    "linear_to_lora_layers",
    "load",
    "load_adapters",
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
