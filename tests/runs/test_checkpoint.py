"""Checkpoints: bit for bit, whole or absent, and taken only where they fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.errors import UserError
from trb_mlx.models.arrays import save_arrays
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.runs.checkpoint import TrainingState, checkpoints, load_checkpoint, save_checkpoint
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper

Arrays = dict[str, mx.array]


def stepper_of(pair: Pair) -> Stepper:
    module = pair.student.model.module
    add_lora(module, LoraConfig(rank=4), seed=0)
    return Stepper(module, Objective(LossConfig(), pair), TrainConfig())


def saved(stepper: Stepper, folder: Path, progress: TrainingState, keep: int = 2) -> Path:
    save_checkpoint(folder, stepper.module, stepper.optimizer, progress, keep)
    return folder / f"{progress.step:07d}"


def dropped(arrays: Arrays, name: str) -> None:
    del arrays[name]


def renamed(arrays: Arrays, name: str) -> None:
    arrays[f"{name}_2"] = arrays.pop(name)


def reshaped(arrays: Arrays, name: str) -> None:
    arrays[name] = mx.zeros((*arrays[name].shape, 2))


def retyped(arrays: Arrays, name: str) -> None:
    arrays[name] = arrays[name].astype(mx.float16)


def poisoned(arrays: Arrays, name: str) -> None:
    arrays[name] = arrays[name] * float("nan")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (dropped, "lacks"),
        (renamed, "lacks"),
        (reshaped, "of shape"),
        (retyped, "float16, expected"),
        (poisoned, "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("file", ["adapters.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    pair: Pair,
    tmp_path: Path,
    file: str,
    damage: Callable[[Arrays, str], None],
    sentence: str,
) -> None:
    stepper = stepper_of(pair)
    path = saved(stepper, tmp_path, TrainingState(3))
    before = {k: np.array(v) for k, v in tree_flatten(stepper.module.trainable_parameters())}
    arrays = mx.load(str(path / file))
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    name = next(name for name in sorted(arrays) if arrays[name].ndim == 2)
    damage(arrays, name)
    save_arrays(path / file, arrays)
    with pytest.raises(UserError, match=f"{path} does not fit .*{sentence}") as caught:
        load_checkpoint(path, stepper.module, stepper.optimizer)
    assert file in str(caught.value)
    assert name in str(caught.value)
    for key, value in tree_flatten(stepper.module.trainable_parameters()):
        np.testing.assert_array_equal(np.array(value), before[key])  # nothing was put in place


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"step": 7}, "state.json is of step 7"),
        ({"step": "3"}, "has step '3'"),
        ({"bad_steps": -1}, "has bad_steps -1"),
        ({"skipped": True}, "has skipped True"),
        ({"stepp": 1}, "cannot be read"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(
    pair: Pair, tmp_path: Path, values: dict[str, object], sentence: str
) -> None:
    stepper = stepper_of(pair)
    path = saved(stepper, tmp_path, TrainingState(3))
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | values))
    with pytest.raises(UserError, match=sentence) as caught:
        load_checkpoint(path, stepper.module, stepper.optimizer)
    assert "remove it to go on from the one before" in str(caught.value)


def test_skipped_steps_do_not_push_the_last_good_checkpoint_out(pair: Pair, tmp_path: Path) -> None:
    stepper = stepper_of(pair)
    for step, bad in ((1, 0), (2, 0), (3, 1), (4, 2), (5, 3)):
        saved(stepper, tmp_path, TrainingState(step, bad))
    assert [int(path.name) for path in checkpoints(tmp_path)] == [2, 4, 5]
    for step in (6, 7):
        saved(stepper, tmp_path, TrainingState(step))
    assert [int(path.name) for path in checkpoints(tmp_path)] == [6, 7]


def test_a_loaded_state_is_saved_to_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    """Whatever order the names of a state have: it grew, or it was read from a file."""
    stepper = stepper_of(pair)
    stepper.optimizer.learning_rate = mx.array(0.01)
    stepper.optimizer.update(stepper.module, stepper.module.trainable_parameters())
    path = saved(stepper, tmp_path, TrainingState(1))
    shutil.copytree(path, tmp_path / "first")
    load_checkpoint(path, stepper.module, stepper.optimizer)
    saved(stepper, tmp_path, TrainingState(1))
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "first" / file.name).read_bytes()
