"""A tiny Gemma 3 as a GGUF file, as llama.cpp's converter writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf_files import CONFIG, SIZES, _put, byte_tokenizer
from mlx.utils import tree_flatten

from trb_mlx.models.mlxlm import make_model

BLOCKS = 7
GEMMA: dict[str, Any] = CONFIG | {
    "model_type": "gemma3_text",
    "num_hidden_layers": BLOCKS,
    "sliding_window": 8,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 16,
}
METADATA = SIZES | {
    "block_count": BLOCKS,
    "attention.key_length": 16,
    "attention.sliding_window": 8,
    "rope.freq_base": 1e6,
}


def source(tied: bool, **changes: Any) -> Any:
    """mlx-lm's own model with random weights, its norms away from 0."""
    mx.random.seed(5)
    module = make_model(GEMMA | changes)
    if tied:
        module.sanitize({})
    weights = [
        (name, array + 0.1 * mx.random.normal(array.shape) - ("norm" in name))
        for name, array in tree_flatten(module.parameters())
    ]
    module.load_weights(weights)
    return module


def write(path: Path, module: Any, **changes: Any) -> None:
    """The `gguf` package's own names for its tensors, and what the converter does to them."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, BLOCKS)
    writer = gguf.GGUFWriter(path, "gemma3")
    metadata = {f"gemma3.{key}": value for key, value in (METADATA | changes).items()}
    for key, value in (metadata | byte_tokenizer()).items():
        if value is not None:
            _put(writer, key, value)
    for name, array in tree_flatten(module.parameters()):
        stored = np.array(array) + (1.0 if name.endswith("norm.weight") else 0.0)
        chosen = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(chosen, stored.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
