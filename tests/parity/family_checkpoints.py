"""Tiny random checkpoints of many families, as the installed transformers writes them.

    python tests/parity/family_checkpoints.py FOLDER [FAMILY…]

Each folder gets the weights, config.json, a byte-level tokenizer, and `reference.npz` with ids
`[2, 40]` and transformers' own log-probs `[2, 40, V]`. It needs neither mlx nor this package, so
that an older transformers in another environment can write what tests here read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LENGTH, WINDOW = 40, 8
COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rope_theta": 3000.0,  # nobody's default
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}
MIXED = ["sliding_attention", "full_attention"]
QWEN3_5 = {
    "rope_theta": None,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 3000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    },
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 4,
}
# Name → (model_type, what differs from COMMON; None takes a key away).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_llama3": ("llama", {"rope_scaling": LLAMA3}),
    "llama_linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama_dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    "llama_yarn": ("llama", {"rope_scaling": YARN}),
    "llama_yarn_unrounded": (
        "llama",
        {"rope_scaling": {**YARN, "truncate": False, "attention_factor": 1.3}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "mixtral_window": ("mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}),
    "ministral3": (
        "ministral3",
        {"rope_parameters": YARN | {"rope_theta": 3000.0, "llama_4_scaling_beta": 0.1}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3": ("qwen3", {}),
    "qwen3_window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_next": (
        "qwen3_next",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "qwen3_5": ("qwen3_5", {"text_config": QWEN3_5, "vision_config": VISION}),
    "qwen3_5_moe": (
        "qwen3_5_moe",
        {
            "text_config": {**QWEN3_5, **EXPERTS, "shared_expert_intermediate_size": 16},
            "vision_config": VISION,
        },
    ),
    "phi": ("phi", {"head_dim": None, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3_window": ("phi3", {"sliding_window": WINDOW}),
    "phi3_partial": ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    "phi3_longrope": (
        "phi3",
        {
            "rope_scaling": LONGROPE,
            "original_max_position_embeddings": 64,
            "sliding_window": None,
        },
    ),
    "phi3_longrope_factor": (
        "phi3",
        {
            "rope_scaling": {**LONGROPE, "factor": 4.0},
            "original_max_position_embeddings": 64,
            "sliding_window": None,
        },
    ),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": MIXED * 2},
    ),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "seed_oss": ("seed_oss", {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "use_sliding_window": False}),
    "smollm3_window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    ),
    "starcoder2": ("starcoder2", {"tie_word_embeddings": True, "sliding_window": None}),
    "starcoder2_window": ("starcoder2", {"sliding_window": WINDOW}),
    "granite": (
        "granite",
        {"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    "mixtral_linear": (
        "mixtral",
        {
            "num_local_experts": 4,
            "sliding_window": None,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
    ),
    "gemma2_yarn": (
        "gemma2",
        {"tie_word_embeddings": True, "query_pre_attn_scalar": 8, "rope_scaling": YARN},
    ),
    "ernie4_5_llama3": ("ernie4_5", {"tie_word_embeddings": True, "rope_scaling": LLAMA3}),
    "granitemoe": ("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {"tie_word_embeddings": True, "sliding_window": 512, "query_pre_attn_scalar": 8},
    ),
    "gemma2_window": (
        "gemma2",
        {"tie_word_embeddings": True, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "tie_word_embeddings": True,
            "hidden_size": 64,  # mlx-lm rounds its root to bfloat16: this needs no rounding
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 8,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "layer_types": MIXED * 2,
            "sliding_window": WINDOW,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "hidden_size": 64,
            "num_kv_shared_layers": 0,
            "rope_theta": None,
        },
    ),
    "cohere": (
        "cohere",
        {"head_dim": None, "tie_word_embeddings": True, "logit_scale": 1.0},
    ),
    "cohere2": (
        "cohere2",
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "tie_word_embeddings": True,
            "logit_scale": 1.0,
        },
    ),
    "glm": ("glm", {"attention_bias": True}),
    "glm4": ("glm4", {"attention_bias": True, "partial_rotary_factor": 0.5}),
    "glm4_moe": (
        "glm4_moe",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "ernie4_5": ("ernie4_5", {"tie_word_embeddings": True}),
    "exaone4": (
        "exaone4",
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 4,
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "tie_word_embeddings": True,
            "block_auto_adjust_ff_dim": False,
            "head_dim": None,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "rope_scaling": {**YARN, "truncate": True},
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            "intermediate_size": 128,
            "rotary_pct": 0.5,
            "rotary_emb_base": 3000,
            "head_dim": None,
            "rope_theta": None,
        },
    ),
    "gpt2": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "tie_word_embeddings": True},
    ),
    "stablelm": ("stablelm", {"head_dim": None, "partial_rotary_factor": 0.5}),
    "nemotron": ("nemotron", {"partial_rotary_factor": 0.5}),
    "helium": ("helium", {}),
    "apertus": ("apertus", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "dots1": (
        "dots1",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "tie_word_embeddings": True,
        },
    ),
}


def known(name: str) -> bool:
    """Whether the installed transformers has the family."""
    return FAMILIES[name][0] in transformers.models.auto.configuration_auto.CONFIG_MAPPING


def write_checkpoint(folder: Path, name: str) -> Path:
    """A family's tiny random model with its reference, in `folder`/`name`."""
    kind, changes = FAMILIES[name]
    text = changes.get("text_config", changes)
    values = {key: value for key, value in (COMMON | text).items() if value is not None}
    for key, value in changes.items():  # where None is a value that the class knows
        if value is None and key == "sliding_window":
            values[key] = None
    if text is not changes:
        values = {**changes, "text_config": values, "tie_word_embeddings": False}
    config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(values)))
    torch.manual_seed(sum(name.encode()))
    auto = transformers.AutoModelForCausalLM
    if text is not changes:
        auto = transformers.AutoModelForImageTextToText
    model = auto.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, so that none can be left out
                parameter.add_(torch.randn_like(parameter) * 0.1)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, 256, (2, LENGTH), generator=generator)
        logprobs = torch.log_softmax(model(ids, use_cache=False).logits.float(), dim=-1)
    place = folder / name
    model.save_pretrained(place)
    np.savez(place / "reference.npz", ids=ids.numpy(), logprobs=logprobs.numpy())
    _write_tokenizer(place)
    return place


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    details = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(details))


if __name__ == "__main__":
    root, *names = sys.argv[1:]
    for family in names or FAMILIES:
        try:
            print(write_checkpoint(Path(root), family))
        except Exception as error:  # a family that this transformers does not have
            print(f"{family}: {type(error).__name__}: {error}")
