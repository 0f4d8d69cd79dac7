"""Random-weight models of a few thousand parameters, as mlx-lm folders, made where needed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
EXTRAS: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {},  # mlx-lm maps it to llama
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
    },
    "phi3": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25, "layer_norm_eps": 1e-5},
    "granite": {
        "logits_scaling": 4.0,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mamba2": {  # recurrent throughout
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 2,
        "layer_norm_epsilon": 1e-5,
        "chunk_size": 8,
    },
    "gemma3_text": {
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10000.0,
        "rope_traditional": False,
    },
    "lfm2": {  # short convolutions and attention
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "gemma4_text": {  # windows, and other heads without one
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 8,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "pad_token_id": 0,
    },
    "gpt_oss": {  # sinks, windows and experts
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
        "head_dim": 64,
    },
    "olmo3": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm4": {"attention_bias": True, "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 128,
        },
        "layer_types": ["full_attention", "full_attention"],
    },
    "qwen3_next": {  # gated delta rule and attention, experts
        "num_hidden_layers": 2,
        "full_attention_interval": 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [],
        "moe_intermediate_size": 16,
        "partial_rotary_factor": 0.5,
    },
}
_QWEN3_5: dict[str, object] = {
    "full_attention_interval": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
_EXPERTS: dict[str, object] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
RECURRENT = ("lfm2", "mamba2", "qwen3_next")  # of those above
# More families of layers that keep windows or recurrent states, which are rewound.
HYBRIDS: dict[str, dict[str, object]] = {
    "qwen3_5": {"text_config": SIZES | _QWEN3_5},
    "qwen3_5_moe": {
        "text_config": SIZES | _QWEN3_5 | _EXPERTS | {"shared_expert_intermediate_size": 16}
    },
    "kimi_linear": {  # gated delta rule of gates a channel and latent attention, experts
        "linear_attn_config": {
            "kda_layers": [1],
            "full_attn_layers": [2],
            "num_heads": 2,
            "head_dim": 8,
            "short_conv_kernel_size": 4,
        },
        "model_max_length": 512,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "lfm2_moe": {
        **_EXPERTS,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
    },
    "granitemoehybrid": {  # Mamba 2 and attention, experts
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_proj_bias": False,
        "mamba_conv_bias": True,
    },
    "falcon_h1": {  # Mamba 2 beside attention in each layer
        "mamba_d_ssm": 64,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_heads": 4,
        "embedding_multiplier": 1.0,
        "lm_head_multiplier": 1.0,
    },
    "plamo2": {  # Mamba 2 and attention
        "hidden_size_per_head": 8,
        "mamba_num_heads": 4,
        "mamba_step": 2,
        "mamba_d_state": 8,
    },
    "olmo_hybrid": {  # gated delta rule and attention
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "linear_allow_neg_eigval": True,
        "attention_bias": False,
        "pad_token_id": 0,
    },
    "nemotron_h": {  # Mamba 2 and attention
        "hybrid_override_pattern": ["M", "*", "-"],
        "attention_bias": False,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
    },
}
# Families of recurrent layers that are not rewound, and heed no lengths in mlx-lm's batch caches.
DEAF: dict[str, dict[str, object]] = {
    "jamba": {  # Mamba and attention, experts
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "bailing_moe_linear": {  # linear attention and attention, experts
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "layer_group_size": 2,
        "group_norm_size": 2,
        "n_group": 1,
        "topk_group": 1,
    },
}
HEADS = ("gemma2", "cohere", "granite", "mamba2")  # other than a bare projection
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


@cache
def tokenizer_json(extra: int = 0) -> str:
    """A byte-level tokenizer of 256 bytes, the special tokens and `extra` more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, *(f"<extra{i}>" for i in range(extra))])
    return tokenizer.to_str()


def make_model(
    folder: Path,
    kind: str = "llama",
    seed: int = 0,
    eos: str | list[str] = "<|endoftext|>",
    template: str | None = None,
    padding: int = 0,
    extra_tokens: int = 0,
    scale: float = 1.0,
    **changes: object,
) -> Path:
    """Write a model folder that `mlx_lm.load` opens, and give its path.

    `padding` adds embedding rows beyond the tokenizer; `scale` sharpens the distributions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(extra_tokens))
    names = [eos] if isinstance(eos, str) else eos
    ids = [256 + SPECIAL.index(name) for name in names]
    details = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[0]}
    if template:
        details["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(details))
    vocab = 256 + len(SPECIAL) + extra_tokens + padding
    config = {
        "model_type": kind,
        "vocab_size": vocab,
        "eos_token_id": ids if len(ids) > 1 else ids[0],
        **SIZES,
        **(EXTRAS | HYBRIDS | DEAF).get(kind, {}),
        **changes,
    }
    if isinstance(text := config.get("text_config"), dict):
        config["text_config"] = {**text, "vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps(config))
    model_class, args_class = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config))
    weights = {
        name: array * scale if "embed" in name else array
        for name, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
