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

import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.models.rope_utils import initialize_rope
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.callbacks import get_reporting_callbacks
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import (
    _download,
    _get_classes,
    dequantize_model,
    load_config,
    load_model,
    load_tokenizer,
    quantize_model,
    save_config,
    save_model,
)

__all__ = [
    "KVCache",
    "RotatingKVCache",
    "TokenizerWrapper",
    "config_fields",
    "create_causal_mask",
    "dequantize_model",
    "download",
    "get_reporting_callbacks",
    "initialize_rope",
    "linear_to_lora_layers",
    "load_adapters",
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
