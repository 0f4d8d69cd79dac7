"""Weights and sizes that cannot be: refused before anything is built, or by the tensor's name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import mlx.core as mx
import pytest
from tiny import make_model

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.models import mlxlm
from trb_mlx.models.checkpoint_files import check_sizes
from trb_mlx.models.loading import load_model


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_hidden_layers", 10_000_000, "num_hidden_layers 10000000, and its weights hold 2"),
        ("num_hidden_layers", 3, "num_hidden_layers 3, and its weights hold 2 layers"),
        ("hidden_size", 10**12, "hidden_size 1000000000000, which no weight of it comes near"),
        ("vocab_size", 10**9, "vocab_size 1000000000"),
        ("num_attention_heads", 10**7, "num_attention_heads 10000000"),
        ("head_dim", 2**40, "head_dim 1099511627776"),
    ],
)
def test_sizes_are_held_against_the_weights_first(
    key: str, value: int, expected: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    start = time.perf_counter()
    with pytest.raises(UserError, match=expected):
        load_model(ModelConfig(model=str(folder)))
    assert time.perf_counter() - start < 2


def test_layers_in_two_lists_count_together() -> None:
    """mlx-lm's afm7 keeps the layers that share keys apart."""
    names = [f"model.{part}.{i}.norm" for part in ("layers", "kv_reuse_layers") for i in range(3)]
    shapes = dict.fromkeys(names, (8,))
    check_sizes({"num_layers": 6}, shapes, "m")
    with pytest.raises(UserError, match="its weights hold 6 layers"):
        check_sizes({"num_layers": 7}, shapes, "m")


def test_quantized_weights_do_not_look_too_small(tmp_path: Path) -> None:
    """At two bits a word of 32 holds 16 values of a row."""
    folder = make_model(tmp_path / "model", hidden_size=1024, num_hidden_layers=1, vocab_size=259)
    model = load_model(ModelConfig(model=str(folder)))
    packed, config = mlxlm.quantize_model(model.module, model.config, 32, 2)
    mlxlm.save_model(folder, packed)
    mlxlm.save_config(config, folder / "config.json")
    ids = mx.array([[5, 6, 7]])
    again = load_model(ModelConfig(model=str(folder))).module(ids)
    assert mx.array_equal(again, packed(ids)).item()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_named(value: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = float(value)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    for rounding in (None, QuantizeConfig(group_size=32)):
        with pytest.raises(UserError, match=rf"its tensor {name} holds NaN or infinite values"):
            load_model(ModelConfig(model=str(folder), quantize=rounding))


def test_a_cast_that_overflows_is_told(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"][0] = 1e6
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(UserError, match=r"model\.norm\.weight holds .* in float16"):
        load_model(ModelConfig(model=str(folder), dtype="float16"))


def test_an_architecture_that_ends_the_process_is_told(tmp_path: Path) -> None:
    """mlx-lm's olmo exits where the package that it wraps is not installed."""
    folder = make_model(tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"llama"', '"olmo"'))
    with pytest.raises(UserError, match="olmo needs another package"):
        load_model(ModelConfig(model=str(folder)))
