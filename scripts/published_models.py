"""Headers of published models, made from their shapes: no weights, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.models import mlxlm
from trb_mlx.planning.headers import write_hollow

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN3_5 = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 10000000, "rope_type": "default"}
    | {"partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]},
}


def qwen3(layers: int, width: int, inner: int, heads: int, **more: Any) -> dict[str, Any]:
    """A Qwen3 of a size."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    return QWEN3 | sizes | {"num_attention_heads": heads} | more


def qwen3_5(
    layers: int, width: int, inner: int, heads: int, keys: int, values: int, tied: bool = True
) -> dict[str, Any]:
    """A Qwen3.5 of a size, in its wrapper of text and vision."""
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    more = {"num_attention_heads": heads, "num_key_value_heads": keys}
    text = QWEN3_5 | sizes | more | {"linear_num_value_heads": values, "tie_word_embeddings": tied}
    return {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": tied}


# Of the models' cards and config.json files.
PUBLISHED = {
    "Qwen/Qwen3-0.6B-Base": qwen3(28, 1024, 3072, 16, max_position_embeddings=32768),
    "Qwen/Qwen3-1.7B-Base": qwen3(28, 2048, 6144, 16, max_position_embeddings=32768),
    "mlx-community/Qwen3-4B-4bit": qwen3(36, 2560, 9728, 32),
    "mlx-community/Qwen3-8B-4bit": qwen3(36, 4096, 12288, 32, tie_word_embeddings=False),
    "Qwen/Qwen3.5-0.8B-Base": qwen3_5(24, 1024, 3584, 8, 2, 16),
    "mlx-community/Qwen3.5-4B-4bit": qwen3_5(32, 2560, 9216, 16, 4, 32),
    "mlx-community/Qwen3.5-9B-4bit": qwen3_5(32, 4096, 12288, 16, 4, 32, tied=False),
}
KINDS = {mx.bfloat16: "BF16", mx.uint32: "U32", mx.float32: "F32"}


def header_files(name: str, place: Path) -> Path:
    """A folder with the config.json and the headers of a published model."""
    config = dict(PUBLISHED[name])
    module = mlxlm.make_model(config)
    module.set_dtype(mx.bfloat16)
    if name.endswith("-4bit"):
        nn.quantize(module, 64, 4)
        config["quantization"] = {"group_size": 64, "bits": 4}
    folder = place / name.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = tree_flatten(module.parameters())
    write_hollow(
        folder / "model.safetensors", {key: (KINDS[a.dtype], a.shape) for key, a in arrays}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder
