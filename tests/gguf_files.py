"""Tiny GGUF files, written by the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tiny import SPECIAL
from tokenizers import pre_tokenizers

from trb_mlx.models.gguf import NAMES
from trb_mlx.models.mlxlm import make_model

HEADS, KEY_HEADS, HEAD_DIM, HIDDEN, WIDE, BLOCKS = 4, 2, 16, 64, 96, 2
PADDED = 4  # unused entries behind the tokens
VOCAB = 256 + len(SPECIAL) + 1 + PADDED
TYPE = gguf.GGMLQuantizationType
SIZES = {
    "block_count": BLOCKS,
    "context_length": 512,
    "embedding_length": HIDDEN,
    "feed_forward_length": WIDE,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KEY_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
}
CONFIG = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "intermediate_size": WIDE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
LINEAR = {v: k for k, v in NAMES.items()}


def byte_tokenizer() -> dict[str, Any]:
    """The metadata of a byte-level tokenizer with one merge, special tokens and padded rows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    padding = [f"[PAD{i}]" for i in range(PADDED)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*alphabet, *SPECIAL, "ab", *padding],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(SPECIAL) + [1] + [5] * PADDED,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.padding_token_id": 256,
    }


def weights_of(kind: str, tied: bool, seed: int) -> dict[str, np.ndarray]:
    """Random weights in Hugging Face's names and order."""
    mx.random.seed(seed)
    module = make_model({"model_type": kind, "tie_word_embeddings": tied, **CONFIG})
    return {name: np.array(array) for name, array in tree_flatten(module.parameters())}


def write_gguf(
    path: Path,
    kind: str = "llama",
    tensor_type: gguf.GGMLQuantizationType = TYPE.F32,
    changes: dict[str, Any] | None = None,
    tied: bool = True,
    seed: int = 0,
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a model; give the weights that it was made of.

    `changes` are of the metadata, None leaving a key out; `extra` are float tensors besides.
    """
    weights = weights_of(kind, tied, seed)
    writer = gguf.GGUFWriter(path, kind)
    metadata = {f"{kind}.{key}": value for key, value in SIZES.items()} | byte_tokenizer()
    for key, value in (metadata | (changes or {})).items():
        if value is not None:
            _put(writer, key, value)
    for name, array in weights.items():
        stored = _permuted(name, array) if kind == "llama" else array
        chosen = tensor_type if array.ndim == 2 else TYPE.F32
        raw = gguf.quantize(stored.astype(np.float32), chosen)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=chosen)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    path, _, leaf = name.rpartition(".")
    if path.startswith("model.layers."):
        _, _, block, rest = path.split(".", 3)
        return f"blk.{block}.{LINEAR[rest]}.{leaf}"
    return f"{LINEAR[path]}.{leaf}"


def _permuted(name: str, array: np.ndarray) -> np.ndarray:
    """As llama.cpp's converter: `LlamaModel.permute`."""
    heads = HEADS if "q_proj" in name else KEY_HEADS
    if "q_proj" not in name and "k_proj" not in name:
        return array
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
