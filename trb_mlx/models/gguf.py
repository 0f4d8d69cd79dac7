"""A GGUF file as a model: architecture, weights, tokenizer and stop ids from one file.

The weights take Hugging Face's order and names, so that adapters trained here fit the same model
in mlx-lm's format: llama.cpp stores the q and k rows of llama models permuted for its rotary
embedding, and that is undone, on packed rows too.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.errors import UserError, one_line
from trb_mlx.models import mlxlm
from trb_mlx.models.gguf_reader import GgufError, GgufFile, brief, read_gguf
from trb_mlx.models.gguf_rope import ROPE_FACTORS, rope_scaling
from trb_mlx.models.gguf_tensors import BITS, GROUP, readable_types, unpack_tensor
from trb_mlx.models.gguf_tokenizer import load_tokenizer, token_id
from trb_mlx.models.model_config import FULL, SLIDING

# Architecture → its model_type in Hugging Face's words.
GEMMA = "gemma3_text"
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": GEMMA}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_NAMES = NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GEMMA_PERIOD = 6  # one layer of full attention after five of a sliding window, if not said
GEMMA_27B_BLOCKS = 62  # of this one size alone, queries are scaled by another width than a head's
STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


def load_gguf(path: Path) -> tuple[nn.Module, mlxlm.TokenizerWrapper, dict[str, Any]]:
    """The module, tokenizer and config of a GGUF file, as mlx-lm's `load` gives them.

    Raises:
        UserError: one sentence for a file that is damaged, or of an architecture, tensor type or
            tokenizer that is not known here.
    """
    try:
        file = read_gguf(path, readable_types())
        config = model_config(file)
        stops = config["eos_token_id"]
        tokenizer = load_tokenizer(file.metadata, stops if isinstance(stops, list) else [stops])
        if len(tokenizer) > config["vocab_size"]:
            raise GgufError(f"it has {len(tokenizer)} tokens for {config['vocab_size']} embeddings")
        return _module(file, config), tokenizer, config
    except OSError as error:
        raise UserError(f"model {path} cannot be read: {error.strerror}.") from error
    except GgufError as error:
        raise UserError(f"model {path} cannot be used: {error}.") from error


def model_config(file: GgufFile) -> dict[str, Any]:
    """The config.json that mlx-lm would read for this model, checked against the tensors.

    Raises:
        GgufError: an unknown architecture, or sizes that are missing or contradict the tensors.
    """
    metadata = file.metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GgufError(f"its architecture is {brief(name)}, expected one of {known}")
    heads = _size(metadata, f"{name}.attention.head_count")
    hidden = _size(metadata, f"{name}.embedding_length")
    head_dim = _size(metadata, f"{name}.attention.key_length", hidden // heads)
    _refuse_variants(file, name, head_dim)
    base = _positive(metadata, f"{name}.rope.freq_base", 10000.0)
    config = {
        "model_type": ARCHITECTURES[name],
        "hidden_size": hidden,
        "num_hidden_layers": _size(metadata, f"{name}.block_count"),
        "intermediate_size": _size(metadata, f"{name}.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _size(metadata, f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _positive(metadata, f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": base,
        "rope_scaling": rope_scaling(file, name, base, head_dim),
        "max_position_embeddings": _size(metadata, f"{name}.context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "eos_token_id": _stop_ids(metadata),
    }
    if name == "gemma3":
        config |= _gemma_keys(metadata, config)
    return config | {"vocab_size": _check_sizes(file, config)}


def _gemma_keys(metadata: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma 3 has besides; llama.cpp knows by heart what the metadata leaves out."""
    blocks, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if metadata.get("gemma3.final_logit_softcapping"):
        raise GgufError("gemma3.final_logit_softcapping is set, which no Gemma 3 has")
    period = _size(metadata, "gemma3.attention.sliding_window_pattern", GEMMA_PERIOD)
    if period > blocks:
        raise GgufError(f"it has {blocks} blocks, and none of full attention in {period}")
    is_27b = blocks == GEMMA_27B_BLOCKS
    return {
        "sliding_window": _size(metadata, "gemma3.attention.sliding_window"),
        "sliding_window_pattern": period,
        "layer_types": [SLIDING if (block + 1) % period else FULL for block in range(blocks)],
        "rope_local_base_freq": _positive(metadata, "gemma3.rope.freq_base_swa", 10000.0),
        "query_pre_attn_scalar": config["hidden_size"] // heads if is_27b else config["head_dim"],
    }


def _refuse_variants(file: GgufFile, name: str, head_dim: int) -> None:
    """Refuse what would load and then compute something else."""
    if file.metadata.get(f"{name}.expert_count"):
        raise GgufError("it is a mixture of experts, expected a dense model")
    turned = file.metadata.get(f"{name}.rope.dimension_count", head_dim)
    if turned != head_dim or head_dim % 2:
        raise GgufError(
            f"{brief(turned)} of {head_dim} dimensions of a head are rotated, expected all"
        )


def _size(metadata: dict[str, Any], key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GgufError(f"{key} is {brief(value)}, expected a positive whole number")
    return value


def _positive(metadata: dict[str, Any], key: str, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise GgufError(f"{key} is {brief(value)}, expected a positive number")
    return value


def _stop_ids(metadata: dict[str, Any]) -> int | list[int]:
    named = [token_id(metadata, name) for name in STOPS]
    ids = list(dict.fromkeys(index for index in named if index is not None))
    if not ids:
        raise GgufError("it has no tokenizer.ggml.eos_token_id")
    return ids if len(ids) > 1 else ids[0]


def _check_sizes(file: GgufFile, config: dict[str, Any]) -> int:
    """Hold the sizes against the tensors before a model of them is built; give the vocabulary's.

    Without this, a header of a few bytes could ask for any number of layers of any width.
    """
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(blocks) != config["num_hidden_layers"]:
        raise GgufError(
            f"it announces {config['num_hidden_layers']} blocks and holds {len(blocks)}"
        )
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    query, keys = (
        config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads")
    )
    rows = _shape(file, "token_embd.weight")[0]
    expected = {
        "token_embd.weight": (rows, hidden),
        "blk.0.attn_q.weight": (query, hidden),
        "blk.0.attn_k.weight": (keys, hidden),
        "blk.0.ffn_up.weight": (wide, hidden),
    }
    for name, shape in expected.items():
        if _shape(file, name) != shape:
            raise GgufError(f"tensor {name} has shape {_shape(file, name)}, expected {shape}")
    return rows


def _shape(file: GgufFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise GgufError(f"it has no tensor {name}")
    return file.tensors[name].shape


def _module(file: GgufFile, config: dict[str, Any]) -> nn.Module:
    """mlx-lm's module with the file's weights; linears and embeddings stay packed."""
    kind = config["model_type"]
    weights: dict[str, mx.array] = {}
    packed: dict[str, dict[str, int]] = {}
    try:
        for name, tensor in file.tensors.items():
            if name == ROPE_FACTORS:  # in the config by now
                continue
            path, leaf = _module_path(name, kind)
            if tensor.kind in BITS:
                packed[path] = {"group_size": GROUP, "bits": BITS[tensor.kind]}
            for suffix, array in unpack_tensor(tensor).items():
                key = f"{path}.{leaf if suffix == 'weight' else suffix}"
                weights[key] = _restore(path, array, config)
        module = mlxlm.make_model(config)
        if kind == GEMMA:
            weights = module.sanitize(weights)  # takes the head away where there is none
        nn.quantize(module, class_predicate=lambda path, _: packed.get(path, False))
        module.load_weights(list(weights.items()), strict=True)
    except ValueError as error:  # of mlx, about shapes and names
        reason = one_line(str(error), 200)
        raise GgufError(f"its tensors are not those of {kind}: {reason}") from error
    return module


def _module_path(name: str, kind: str) -> tuple[str, str]:
    """The path of the module, and its leaf, that a tensor's name stands for."""
    match = re.fullmatch(r"(?:blk\.(\d{1,5})\.)?([a-z_]+)\.(weight|bias)", name)
    names = GEMMA_NAMES if kind == GEMMA else NAMES
    if not match or match[2] not in names:
        raise GgufError(f"tensor {brief(name)} has no place in the architectures known here")
    prefix = "" if match[1] is None else f"model.layers.{match[1]}."
    return prefix + names[match[2]], match[3]


def _restore(path: str, array: mx.array, config: dict[str, Any]) -> mx.array:
    """Undo what llama.cpp's converter does: it adds one to Gemma's norms, and permutes rows.

    Rows of q and k are permuted for llama alone, whatever a row holds. Of every head, Hugging
    Face's row half · head_dim / 2 + pair lies at row 2 · pair + half.
    """
    layer = path.rpartition(".")[2]
    if config["model_type"] == GEMMA and layer.endswith("norm"):
        return array.astype(mx.float32) - 1.0
    if config["model_type"] != "llama" or layer not in ("q_proj", "k_proj"):
        return array
    heads = config["num_attention_heads" if layer == "q_proj" else "num_key_value_heads"]
    split = array.reshape(heads, array.shape[0] // heads // 2, 2, -1)
    return split.swapaxes(1, 2).reshape(array.shape)
