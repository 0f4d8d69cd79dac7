"""One model in the words of transformers 4 and of 5: mlx-lm is told the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import _get_classes
from tiny import EXTRAS, SIZES, make_model

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.model_config import (
    FULL,
    attention_windows,
    build_config,
    complete_config,
    context_length,
    read_config,
)
from trb_mlx.models.rotary import fit_rotary

IDS = mx.array([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
BASE = 3000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": BASE}}
SMALL = {key: value for key, value in SIZES.items() if key != "rope_theta"} | {"vocab_size": 260}
# Family → what is common, what transformers 4 writes, what 5 writes.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    kind: (dict(EXTRAS.get(kind, {})), {"rope_theta": BASE}, PLAIN)
    for kind in (
        *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "olmo2", "seed_oss", "smollm3"),
        *("starcoder2", "granite", "ernie4_5", "gemma2", "cohere", "olmoe", "mixtral"),
    )
}
FORMS |= {
    "llama, llama3": (
        {"model_type": "llama"},
        {"rope_theta": BASE, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": BASE}},
    ),
    "llama, linear": (
        {"model_type": "llama"},
        {"rope_theta": BASE, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": BASE}},
    ),
    "qwen2, yarn": (
        {"model_type": "qwen2"},
        {"rope_theta": BASE, "rope_scaling": YARN},
        {"rope_parameters": {**YARN, "rope_theta": BASE}},
    ),
    "phi3, a part": (
        {"model_type": "phi3"},
        {"rope_theta": BASE, "partial_rotary_factor": 0.5},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": BASE,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "glm4, a part": (
        {"model_type": "glm4", "attention_bias": True},
        {"rope_theta": BASE, "partial_rotary_factor": 0.25},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": BASE,
                "partial_rotary_factor": 0.25,
            }
        },
    ),
    "gpt_neox, other names": (
        {"model_type": "gpt_neox"},
        {"rotary_emb_base": BASE, "rotary_pct": 0.5},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": BASE,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "gemma3_text": (
        {"model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window": 8},
        {
            "rope_theta": BASE,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
        },
        {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": BASE},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "olmo3": (
        {
            "model_type": "olmo3",
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"rope_theta": BASE},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": BASE},
                "sliding_attention": {"rope_type": "default", "rope_theta": BASE},
            }
        },
    ),
    "lfm2": (
        {
            "model_type": "lfm2",
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        {"rope_theta": BASE, "block_dim": 32},
        PLAIN,
    ),
}


def built(config: dict[str, Any]) -> Any:
    """The ModelArgs that mlx-lm builds from."""
    whole = complete_config(config, has_head=False)
    whole = build_config(whole)
    _, args_class = _get_classes(whole)
    return args_class.from_dict(whole)


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_build_one_model(name: str) -> None:
    common, old, new = FORMS[name]
    config = {"model_type": name, **SMALL, **common}
    config = {key: value for key, value in config.items() if key not in old}
    first, second = (dataclasses.asdict(built(config | form)) for form in (old, new))
    assert BASE in (first.get("rope_theta"), first.get("rotary_emb_base"))
    for config in (first, second):  # read by nobody where the keys above are there
        config.pop("rope_parameters", None)
        config.pop("layer_types", None)
    assert first == second


def test_the_form_of_transformers_5_changes_what_is_computed(tmp_path: Path) -> None:
    """Its base is used: the logits are those of the same weights with that base, in both forms."""
    folder = make_model(tmp_path, seed=3, scale=10.0)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    logits = {}
    for name, rotary in {"old": {"rope_theta": BASE}, "new": PLAIN, "none": {}}.items():
        (folder / "config.json").write_text(json.dumps(config | rotary))
        logits[name] = np.asarray(load_model(ModelConfig(model=str(folder))).module(IDS))
    np.testing.assert_array_equal(logits["old"], logits["new"])
    assert np.abs(logits["new"] - logits["none"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["qwen2", "starcoder2", "smollm3"])
def test_what_a_config_leaves_out_is_transformers_default(kind: str) -> None:
    """mlx-lm's defaults are others: a base of 1e6 for qwen2, of 1e5 for starcoder2."""
    config = {"model_type": kind, **SMALL}
    assert built(config).rope_theta == read_config(config)["rope_parameters"]["rope_theta"]


def test_the_text_model_in_a_wrapper_is_read_too() -> None:
    text = {
        **SMALL,
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": BASE},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    }
    whole = complete_config({"model_type": "gemma3", "text_config": text}, has_head=False)
    text_config = build_config(whole)["text_config"]
    assert (text_config["rope_theta"], text_config["rope_local_base_freq"]) == (BASE, 500.0)
    assert text_config["sliding_window_pattern"] == 2
    assert context_length(whole) == 512


def test_layers_without_a_pattern_are_refused() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config = {**SMALL, "model_type": "gemma3_text", "num_hidden_layers": 3, "layer_types": kinds}
    with pytest.raises(UserError, match="follow no pattern"):
        built(config)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3"])
def test_weights_decide_about_the_head_where_the_config_is_silent(
    kind: str, own: bool, tmp_path: Path
) -> None:
    folder = make_model(tmp_path, kind, seed=3, tie_word_embeddings=not own)
    expected = load_model(ModelConfig(model=str(folder))).module(IDS)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("tie_word_embeddings", "nothing"))
    silent = load_model(ModelConfig(model=str(folder)))
    np.testing.assert_array_equal(np.asarray(silent.module(IDS)), np.asarray(expected))
    assert silent.config["tie_word_embeddings"] == (not own)


def test_an_architecture_that_transformers_does_not_know_is_left_alone() -> None:
    config = {"model_type": "nobodys", "hidden_size": 4, "rope_theta": BASE}
    assert complete_config(config, has_head=True) == {**config, "tie_word_embeddings": False}
    assert attention_windows(config) == []


def test_longrope_turns_by_its_short_factors_in_the_context_where_they_hold(
    tmp_path: Path,
) -> None:
    """With the short factors in both places the model is the same; the context ends with them."""
    scaling = {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}
    both = scaling | {"long_factor": [1.5] * 4}
    models = [phi3(tmp_path / str(i), rotary) for i, rotary in enumerate((scaling, both))]
    assert [model.context for model in models] == [64, 64]
    same = [np.asarray(model.module(IDS)) for model in models]
    np.testing.assert_array_equal(*same)
    assert models[0].config["rope_scaling"]["long_factor"] == [4.0] * 4  # what exports carry on


def test_what_transformers_4_would_refuse_is_not_carried_on() -> None:
    """Its Phi-3 wants three keys in `rope_scaling` and no more; other keys stay as written."""
    rotary = {"rope_type": "longrope", "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}
    rotary |= {"rope_theta": BASE, "original_max_position_embeddings": 64}
    config = {"model_type": "phi3", **SMALL, "original_max_position_embeddings": 64}
    whole = complete_config(config | {"rope_parameters": rotary}, False)
    assert set(whole["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert context_length(whole) == 64
    written = {"type": "linear", "factor": 2.0}
    llama = {"model_type": "llama", **SMALL, "rope_scaling": written}
    assert complete_config(llama, False)["rope_scaling"] == written


def phi3(folder: Path, scaling: dict[str, Any]) -> LanguageModel:
    sizes = {"rope_scaling": scaling, "original_max_position_embeddings": 64}
    return load_model(
        ModelConfig(model=str(make_model(folder, "phi3", seed=3, scale=10.0, **sizes)))
    )


def test_building_leaves_the_config_as_it_was() -> None:
    """mlx-lm's qwen3_5 takes `rope_type` out of the dict that it is given."""
    rotary = {"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": 0.25}
    whole = complete_config(
        {**SMALL, "model_type": "qwen3_5_text", "rope_parameters": rotary}, True
    )
    build_config(whole)["rope_parameters"].pop("rope_type")
    assert whole["rope_parameters"] == rotary


def test_dynamic_scaling_is_none_within_the_context() -> None:
    config = {"model_type": "llama", **SMALL, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert built(config).rope_scaling["rope_type"] == "default"


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [("gemma2", YARN), ("cohere", LLAMA3), ("cohere", {"type": "linear", "factor": 2.0})],
)
def test_scaling_that_mlx_lm_leaves_out_is_computed(
    kind: str, scaling: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "scaled", kind, rope_scaling=scaling)
    scaled = load_model(ModelConfig(model=str(folder))).module
    ropes = [layer.self_attn.rope for layer in scaled.layers]
    assert all(type(rope) is not nn.RoPE or rope.scale == 0.5 for rope in ropes)


def test_scaling_in_a_place_out_of_reach_is_refused() -> None:
    config = {"model_type": "nanochat", "rope_scaling": YARN}  # which turns in its own attention
    with pytest.raises(UserError, match=r"scales its rotary positions \(yarn\)"):
        fit_rotary(nn.Linear(2, 2), config, "m")


def test_a_part_of_each_head_is_turned_where_mlx_lm_turns_all() -> None:
    """And sliding layers by a base of their own where mlx-lm has one for all."""
    config = {"model_type": "olmo3", **SMALL, "layer_types": ["sliding_attention", FULL]}
    config |= {"sliding_window": 8, "rope_theta": BASE, "rope_local_base_freq": 500.0}
    module = mlxlm.make_model(config)
    fit_rotary(module, config, "m")
    assert [layer.self_attn.rope.base for layer in module.layers] == [500.0, BASE]
    config = {"model_type": "glm", **SMALL, "attention_bias": True, "partial_rotary_factor": 0.5}
    config |= {"rope_theta": BASE}
    module = mlxlm.make_model(config)
    fit_rotary(module, config, "m")
    assert [layer.self_attn.rope.dims for layer in module.layers] == [4, 4]


def test_settings_of_a_scaled_embedding_that_mlx_lm_does_not_take() -> None:
    """Without rounding, the ramp between both frequencies starts and ends between dimensions."""
    scaling = YARN | {"type": "yarn", "attention_factor": 1.3}
    periods = []
    for truncate in (True, False):
        config = {"model_type": "llama", **SMALL, "head_dim": 32, "rope_theta": BASE}
        config["rope_scaling"] = scaling | {"truncate": truncate}
        module = mlxlm.make_model(config)
        fit_rotary(module, config, "m")
        rope = module.layers[0].self_attn.rope
        assert rope.mscale == 1.3
        periods.append(np.asarray(rope._freqs))
    plain = BASE ** (np.arange(16) / 16)
    ends = 16 * np.log(64 / (np.array([32, 1]) * 2 * np.pi)) / np.log(BASE)
    ramp = np.clip((np.arange(16) - max(ends[0], 0)) / (ends[1] - max(ends[0], 0)), 0, 1)
    np.testing.assert_allclose(periods[1], plain / (1 - ramp + ramp / 4), rtol=1e-5)
    assert np.abs(periods[0] / periods[1] - 1).max() > 0.01
