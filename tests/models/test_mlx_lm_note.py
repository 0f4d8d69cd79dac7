"""The note says that mlx-lm alone computes otherwise exactly where it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from tiny import make_model

from trb_mlx.config import ModelConfig
from trb_mlx.models.loading import load_model

IDS = mx.array([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
PLAIN = {"rope_theta": 3000.0, "rope_type": "default"}
NESTED = {"full_attention": PLAIN, "sliding_attention": {**PLAIN, "rope_theta": 500.0}}
KINDS = ["sliding_attention", "sliding_attention", "full_attention"]
LONGROPE = {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}
# What → model_type, what is added, what is taken away, and the note.
CASES: dict[str, tuple[str, dict[str, Any], list[str], str | None]] = {
    "nothing": ("llama", {}, [], None),
    "read by mlx-lm too": ("qwen3", {"rope_parameters": PLAIN}, ["rope_theta"], None),
    "rotary base": ("llama", {"rope_parameters": PLAIN}, ["rope_theta"], "rotary positions"),
    "missing keys": (
        "qwen3_moe",
        {"rope_parameters": PLAIN},
        ["rope_theta"],
        "cannot read this config.json",
    ),
    "two bases": (
        "gemma3_text",
        {"rope_parameters": NESTED, "layer_types": KINDS},
        ["rope_theta", "rope_local_base_freq", "sliding_window_pattern"],
        "rotary positions",
    ),
    "longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
        [],
        "rotary positions",
    ),
    "window": ("mistral", {"sliding_window": 5}, [], "no sliding window of 5 positions"),
    "window of its own": ("gemma3_text", {}, [], None),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_said_where_logits_differ_and_nowhere_else(case: str, tmp_path: Path) -> None:
    kind, added, taken, expected = CASES[case]
    model = noted(make_model(tmp_path, kind, seed=3, scale=10.0), added, taken)
    assert (expected is None) == (model.note is None)
    assert expected is None or expected in str(model.note)
    try:
        alone, _ = mlx_lm.load(str(tmp_path))
        logits = np.asarray(alone(IDS))
    except (TypeError, IndexError):  # of its ModelArgs, or of a layer that is not there
        assert model.note is not None
        return
    same = np.abs(logits - np.asarray(model.module(IDS))).max() < 1e-4
    assert same == (model.note is None)


def test_a_head_that_only_the_weights_speak_of(tmp_path: Path) -> None:
    folder = make_model(tmp_path, seed=3, tie_word_embeddings=False)
    assert "the head" in str(noted(folder, {}, ["tie_word_embeddings"]).note)


def noted(folder: Path, added: dict[str, Any], taken: list[str]) -> Any:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in taken}
    (folder / "config.json").write_text(json.dumps(config | added))
    return load_model(ModelConfig(model=str(folder)))
