"""Adapters are mlx-lm's, and checkpoints come back."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load

from trb_mlx.adapters.apply import load_adapter
from trb_mlx.adapters.mlx_lm import adapter_config, save_adapters, snapshot
from trb_mlx.config import LoraConfig, LossConfig, ModelConfig, TrainConfig
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.runs.checkpoint import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper

IDS = mx.array([[5, 6, 7]])


def trained(pair: Pair, dora: bool = False) -> Stepper:
    """A student whose adapters are not at their start."""
    module = pair.student.model.module
    add_lora(module, LoraConfig(rank=4, dora=dora), seed=0)
    module.update({"model": {"layers": [{"mlp": {"up_proj": {"lora_b": mx.full((4, 64), 0.3)}}}]}})
    return Stepper(module, Objective(LossConfig(), pair), TrainConfig())


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_lm_loads_saved_adapters(
    pair: Pair, folders: tuple[Path, Path], tmp_path: Path, dora: bool
) -> None:
    stepper = trained(pair, dora)
    config = adapter_config(stepper.module, LoraConfig(rank=4, dora=dora), "s", [256, 258])
    save_adapters(tmp_path, stepper.module, config, 7)
    assert snapshot(tmp_path, 7).name == "0000007_adapters.safetensors"
    loaded, _ = mlx_lm_load(str(folders[0]), adapter_path=str(tmp_path))
    expected = np.asarray(stepper.module(IDS))
    np.testing.assert_allclose(np.asarray(loaded(IDS)), expected, atol=1e-5)
    model = load_model(ModelConfig(model=str(folders[0])))
    assert load_adapter(model, tmp_path, snapshot(tmp_path, 7)) == [256, 258]
    np.testing.assert_allclose(np.asarray(model.module(IDS)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "damage", ["absent", "other base", "truncated", "not json", "not finite", "a matrix less"]
)
def test_a_bad_adapter_is_one_sentence(
    pair: Pair, folders: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "adapters"
    stepper = trained(pair)
    config = adapter_config(stepper.module, LoraConfig(rank=4), "s", [])
    save_adapters(folder, stepper.module, config, 1)
    weights, base = folder / "adapters.safetensors", folders[0]
    if damage == "absent":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:300])
    elif damage in ("not finite", "a matrix less"):
        arrays = mx.load(str(weights))
        array = arrays.pop(min(arrays))
        if damage == "not finite":
            arrays["model.layers.0.mlp.down_proj.lora_a"] = array * float("nan")
        mx.save_safetensors(str(weights), arrays)
    elif damage == "not json":
        (folder / "adapter_config.json").write_text("{")
    else:
        from tiny import make_model

        base = make_model(tmp_path / "other", hidden_size=16)
    with pytest.raises(UserError) as caught:
        load_adapter(load_model(ModelConfig(model=str(base))), folder, weights)
    assert "\n" not in str(caught.value)
    assert "adapter" in str(caught.value)


@pytest.mark.parametrize(("extra", "factor"), [({}, 2.0), ({"use_dora": False}, 1.0)])
def test_an_adapter_of_an_early_mlx_lm_is_read(
    pair: Pair, folders: tuple[Path, Path], tmp_path: Path, extra: dict[str, bool], factor: float
) -> None:
    """It names its blocks `lora_layers`, no keys, and an alpha that scaled until 0.14.3."""
    module = pair.student.model.module
    add_lora(module, LoraConfig(rank=4, scale=3.0 * factor, keys=["self_attn.v_proj"]), seed=0)
    for layer in module.layers:
        layer.self_attn.v_proj.lora_b = mx.full(layer.self_attn.v_proj.lora_b.shape, 0.2)
    save_adapters(tmp_path, module, {}, 1)
    parameters = {"rank": 4, "alpha": 8, "scale": 3.0, "dropout": 0.0}
    config = {"lora_layers": 16, "lora_parameters": parameters} | extra
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = load_model(ModelConfig(model=str(folders[0])))
    assert load_adapter(model, tmp_path, tmp_path / "adapters.safetensors") == []
    np.testing.assert_allclose(np.asarray(model.module(IDS)), np.asarray(module(IDS)), atol=1e-5)


def test_a_full_fine_tune_of_mlx_lm_is_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    model = load_model(ModelConfig(model=str(folders[0])))
    whole = mx.full(model.module.layers[0].mlp.up_proj.weight.shape, 0.5)
    weights = tmp_path / "adapters.safetensors"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    for array, expected in ((whole, None), (whole * float("nan"), "not finite"), (whole[0], "64")):
        mx.save_safetensors(str(weights), {name: array})
        if expected is None:
            assert load_adapter(model, tmp_path, weights) == []
            assert model.module.layers[0].mlp.up_proj.weight.max().item() == 0.5
        else:
            with pytest.raises(UserError, match=expected):
                load_adapter(model, tmp_path, weights)


def test_checkpoints_come_back_bit_for_bit_and_old_ones_go(pair: Pair, tmp_path: Path) -> None:
    stepper = trained(pair)
    stepper.optimizer.learning_rate = mx.array(0.01)
    kept = {}
    for step in (1, 2, 3):
        grads = dict(stepper.module.trainable_parameters())
        stepper.optimizer.update(stepper.module, grads)
        kept = {k: np.array(v) for k, v in tree_flatten(stepper.module.trainable_parameters())}
        save_checkpoint(
            tmp_path, stepper.module, stepper.optimizer, TrainingState(step, 1, 2), keep=2
        )
    assert [path.name for path in checkpoints(tmp_path)] == ["0000002", "0000003"]
    state = {k: np.array(v) for k, v in tree_flatten(stepper.optimizer.state)}
    stepper.optimizer.update(stepper.module, stepper.module.trainable_parameters())
    progress = load_checkpoint(checkpoints(tmp_path)[-1], stepper.module, stepper.optimizer)
    assert progress == TrainingState(3, 1, 2)
    for name, value in tree_flatten(stepper.module.trainable_parameters()):
        np.testing.assert_array_equal(np.array(value), kept[name])
    for name, value in tree_flatten(stepper.optimizer.state):
        np.testing.assert_array_equal(np.array(value), state[name])


def test_a_damaged_checkpoint_is_one_sentence(pair: Pair, tmp_path: Path) -> None:
    stepper = trained(pair)
    save_checkpoint(tmp_path, stepper.module, stepper.optimizer, TrainingState(4), keep=1)
    path = checkpoints(tmp_path)[0]
    (path / "state.json").write_text(json.dumps({"stepp": 4}))
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path, stepper.module, stepper.optimizer)


def test_unfinished_folders_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / ".0000009.tmp").mkdir()
    assert checkpoints(tmp_path) == []
