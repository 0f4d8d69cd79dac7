"""Adapters: float32, zero at the start, the student's alone; recomputed blocks likewise."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig, ModelConfig, QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import adapted_modules, add_lora, checkpoint_layers

IDS = mx.array([[5, 6, 7, 8]])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_fresh_adapters_change_nothing(
    folders: tuple[Path, Path], packed: bool, dora: bool
) -> None:
    rounding = QuantizeConfig(group_size=32) if packed else None
    module = load_model(ModelConfig(model=str(folders[0]), quantize=rounding)).module
    before = np.asarray(module(IDS))
    add_lora(module, LoraConfig(rank=4, dora=dora), seed=3)
    # DoRA divides by the norm that it stored: equal but for float32 rounding.
    np.testing.assert_allclose(np.asarray(module(IDS)), before, atol=1e-5 if dora else 0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_float32_whatever_the_base_is(
    folders: tuple[Path, Path], packed: bool, dora: bool
) -> None:
    rounding = QuantizeConfig(group_size=32) if packed else None
    model = ModelConfig(model=str(folders[0]), dtype="bfloat16", quantize=rounding)
    module = load_model(model).module
    add_lora(module, LoraConfig(rank=4, dora=dora), seed=3)
    trainable = dict(tree_flatten(module.trainable_parameters()))
    leaves = {"lora_a", "lora_b", "m"} if dora else {"lora_a", "lora_b"}
    assert {name.rsplit(".", 1)[1] for name in trainable} == leaves
    assert {array.dtype for array in trainable.values()} == {mx.float32}
    assert len([name for name in trainable if name.endswith("lora_a")]) == 14


def test_the_seed_fixes_the_first_values(folders: tuple[Path, Path]) -> None:
    def first(seed: int) -> np.ndarray:
        module = load_model(ModelConfig(model=str(folders[0]))).module
        add_lora(module, LoraConfig(), seed)
        return np.asarray(module.layers[0].mlp.up_proj.lora_a)

    np.testing.assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


def test_keys_and_layers_choose_what_is_adapted(folders: tuple[Path, Path]) -> None:
    module = load_model(ModelConfig(model=str(folders[0]))).module
    add_lora(module, LoraConfig(keys=["self_attn.q_proj"], num_layers=1), seed=0)
    names = {name for name, _ in tree_flatten(module.trainable_parameters())}
    assert names == {f"model.layers.1.self_attn.q_proj.lora_{x}" for x in "ab"}


def test_nothing_drops_out_before_the_first_update(folders: tuple[Path, Path]) -> None:
    """A rollout of a resumed run, or of one that starts from an adapter, is drawn without it."""
    module = load_model(ModelConfig(model=str(folders[0]))).module
    add_lora(module, LoraConfig(dropout=0.5), seed=0)
    module.apply_to_modules(lambda _, m: "lora_b" in m and m.update({"lora_b": m.lora_b + 0.5}))
    first, second = (np.asarray(module(IDS)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_keys_that_match_nothing_are_told(folders: tuple[Path, Path]) -> None:
    module = load_model(ModelConfig(model=str(folders[0]))).module
    with pytest.raises(UserError, match=r"match no layer; try mlp.down_proj"):
        add_lora(module, LoraConfig(keys=["attention.query"]), seed=0)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("self_attn.k_prj", "did you mean self_attn.k_proj?"),
        ("q_proj", "did you mean self_attn.q_proj?"),
        ("model.layers.7.mlp.up_proj", "did you mean mlp.up_proj?"),
        ("zzz", "known: mlp.down_proj"),
    ],
)
def test_a_misspelt_key_beside_right_ones_is_told(
    folders: tuple[Path, Path], key: str, meant: str
) -> None:
    module = load_model(ModelConfig(model=str(folders[0]))).module
    with pytest.raises(UserError, match=rf"lora.keys: {key} matches no layer") as caught:
        add_lora(module, LoraConfig(keys=["self_attn.q_proj", key]), seed=0)
    assert meant in str(caught.value)


def test_a_key_of_a_block_without_adapters_is_told(folders: tuple[Path, Path]) -> None:
    """Names in full are taken from any block, others from the last `num_layers` alone."""
    module = load_model(ModelConfig(model=str(folders[0]))).module
    keys = ["self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    add_lora(module, LoraConfig(keys=keys, num_layers=1), seed=0)
    adapted = {name for name, m in module.named_modules() if "lora_a" in m}
    assert adapted == {"model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"}
    assert adapted_modules(module, ["mlp"], -1) == {"model.layers.0.mlp", "model.layers.1.mlp"}


def test_checkpointing_leaves_gradients_and_the_teacher_alone(folders: tuple[Path, Path]) -> None:
    student, teacher = (load_model(ModelConfig(model=str(folders[0]))).module for _ in range(2))
    add_lora(student, LoraConfig(), seed=0)

    def grads() -> dict[str, mx.array]:
        loss = nn.value_and_grad(student, lambda ids: mx.square(student(ids)).mean())
        return dict(tree_flatten(loss(IDS)[1]))

    plain = grads()
    checkpoint_layers(student)
    once = type(student.layers[0])
    checkpoint_layers(student)
    assert type(student.layers[0]) is once  # calling twice does not nest
    assert not hasattr(type(teacher.layers[0]), "is_checkpointed")
    recomputed = grads()
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        np.testing.assert_allclose(np.asarray(recomputed[name]), np.asarray(grad), atol=1e-6)
