"""Hybrids in blocks: rollouts against token by token, and what taking tokens back costs.

Layers have the shapes of real models and random weights: a part of the layers, with as much of
the vocabulary. Rollouts are of models of half their width and less. The behavior policy's budget
ties acceptance to itself, not to the models: at least 1 − √(ε/2) of the drafts is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from bench_models import STUDENT
from bench_rollouts import compare_rollouts

from trb_mlx.config import ModelConfig
from trb_mlx.models.head import split_model
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.mlxlm import make_model
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.vocab import merge_stops
from trb_mlx.rollout.decoder import MergedDecoder, RowDecoder
from trb_mlx.rollout.layer_caches import flatten

Row = dict[str, Any]
LENGTH = 8  # of the block whose round is compared with a plain pass
ACCEPTANCE = 0.9  # there, by draws of its own

_COMMON: Row = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 1e7,
    "max_position_embeddings": 4096,
}


def qwen3_5(width: int, vocab: int = 41_387) -> Row:
    """Of width 1,024, four of the 24 layers of Qwen3.5-0.8B."""
    text = _COMMON | {
        "model_type": "qwen3_5",
        "hidden_size": width,
        "num_hidden_layers": 4,
        "intermediate_size": width * 7 // 2,
        "num_attention_heads": width // 128,
        "vocab_size": vocab,
        "full_attention_interval": 4,
        "linear_num_value_heads": width // 64,
        "linear_num_key_heads": width // 64,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
        },
    }
    return {"model_type": "qwen3_5", "vocab_size": vocab, "text_config": text}


def lfm2(width: int, vocab: int = 16_384) -> Row:
    """Of width 1,024, four of the 16 layers of LFM2-350M."""
    return _COMMON | {
        "model_type": "lfm2",
        "hidden_size": width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 64,
        "vocab_size": vocab,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": width,
        "block_ff_dim": width * 13 // 2,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    }


def mamba2(width: int, vocab: int = 8_384) -> Row:
    """Of width 1,024, eight of the 48 layers of mamba2-370m."""
    return {
        "model_type": "mamba2",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 8,
        "num_heads": width // 32,
        "head_dim": 64,
        "state_size": 128,
        "n_groups": 1,
        "vocab_size": vocab,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": width // 16,
    }


FAMILIES = (qwen3_5, lfm2, mamba2)


def scorer_of(config: Row, seed: int) -> Scorer:
    """A model of random weights that reads the bundled pair's tokens."""
    mx.random.seed(seed)
    module = make_model(config)
    module.eval()
    mx.eval(module.parameters())
    tokenizer = load_model(ModelConfig(model=STUDENT)).tokenizer
    model = LanguageModel(config["model_type"], module, tokenizer, config)
    return Scorer(model, merge_stops(config["vocab_size"], 0, [0], [0]), split_model(module))


def round_costs(scorer: Scorer, batch: int, repeats: int, seed: int) -> Row:
    """CPU seconds of verified and drafted rounds with their trim, over those of plain passes."""
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(1, 400, 20 + 3 * row).tolist()) for row in range(batch)]
    rows, merged = RowDecoder(scorer), MergedDecoder(scorer)
    rows.prefill(prompts)
    merged.prefill(prompts)
    blocks = [mx.array(rng.integers(1, 400, (batch, LENGTH))) for _ in range(repeats)]
    # Of each row the drafts up to the first rejected one stand, and what replaces it.
    standing = np.minimum(rng.geometric(1 - ACCEPTANCE, (repeats, batch)), LENGTH)
    seconds: dict[str, list[float]] = {}
    for block, stands in zip(blocks, standing, strict=True):
        for name, decoder, width in (
            ("verified", rows, LENGTH),
            ("verified_plain", merged, LENGTH),
            ("drafted", rows, 1),
            ("drafted_plain", merged, 1),
        ):
            begun = time.process_time()
            for start in range(0, LENGTH, width):
                logits = scorer.logits_of(decoder.hidden(block[:, start : start + width]))
                mx.eval(logits)
            if decoder is rows:
                rows.trim(LENGTH - stands)
                caches = flatten(rows._layers)
            else:
                caches = merged._cache
            mx.eval([cache.state for cache in caches])
            seconds.setdefault(name, []).append(time.process_time() - begun)
    medians = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    return {
        f"{kind}_over_plain": medians[kind] / medians[f"{kind}_plain"]
        for kind in ("verified", "drafted")
    }


def compare_hybrids(
    family: Callable[..., Row], budget: float, batch: int, repeats: int, seed: int
) -> Row:
    """One line: a student of half the teacher's width drafts; rounds are those of width 1,024."""
    pair = Pair(*(scorer_of(family(width, 8_000), seed + width) for width in (256, 512)))
    line = compare_rollouts(pair, budget, batch, repeats, seed)
    costs = round_costs(scorer_of(family(1024), seed), batch, 6 * repeats, seed)
    return {"family": family.__name__} | line | costs
