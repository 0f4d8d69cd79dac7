"""A model as its own teacher: one set of weights, untouched by adapters, updates and rebinding."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from tests import tiny
from trb_mlx.config import LoraConfig, ModelConfig, QuantizeConfig
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora, checkpoint_layers
from trb_mlx.models.self_teacher import load_models, self_teacher
from trb_mlx.rollout.cache_trial import make_decoder

IDS = mx.array([[5, 6, 7, 8]])


@pytest.mark.parametrize("packed", [False, True])
def test_weights_are_held_once(tmp_path: Path, packed: bool) -> None:
    """At most 1.02 of one model and its adapters, from 8 MB on."""
    folder = str(tiny.make_model(tmp_path, hidden_size=512, intermediate_size=4096))
    rounding = QuantizeConfig(bits=8) if packed else None

    def resident() -> int:
        gc.collect()
        mx.clear_cache()
        return mx.get_active_memory()

    before = resident()
    student = load_model(ModelConfig(model=folder, quantize=rounding))
    add_lora(student.module, LoraConfig(rank=4), seed=0)
    one = resident() - before
    del student
    assert one > 8e6
    student = load_model(ModelConfig(model=folder, quantize=rounding))
    teacher = self_teacher(student)
    add_lora(student.module, LoraConfig(rank=4), seed=0)
    mx.eval(student.module(IDS), teacher.module(IDS))
    assert resident() - before <= 1.02 * one


@pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma3_text"])
def test_the_teacher_stays_the_model_before_its_adapters(tmp_path: Path, family: str) -> None:
    folder = str(tiny.make_model(tmp_path, family))
    student = load_model(ModelConfig(model=folder))
    before = np.asarray(student.module(IDS))
    teacher = self_teacher(student)
    teacher.module.freeze()
    add_lora(student.module, LoraConfig(rank=4), seed=0)
    checkpoint_layers(student.module)
    trainable = student.module.trainable_parameters()
    student.module.update(tree_map(lambda a: a + 0.1, trainable))
    student.module.train()
    assert (np.asarray(student.module(IDS)) != before).any()
    np.testing.assert_array_equal(np.asarray(teacher.module(IDS)), before)
    assert not tree_flatten(teacher.module.trainable_parameters())
    assert not any(isinstance(m, nn.Dropout) for m in teacher.module.modules())
    shared = dict(tree_flatten(teacher.module.parameters()))
    own = {id(array) for _, array in tree_flatten(student.module.parameters())}
    assert all(id(array) in own for array in shared.values())


def config(**values: Any) -> Any:
    return load_config({"student.model": "bundled:arithmetic-student"} | values)


def test_teacher_model_student_is_the_students_with_its_settings() -> None:
    chosen = config(**{"teacher.model": "student", "student.dtype": "bfloat16"})
    assert chosen.teacher.model == "bundled:arithmetic-student"
    assert chosen.teacher.dtype == "bfloat16"
    assert chosen.is_self_taught
    assert chosen.teacher.adapter is None
    student, teacher = load_models(chosen)
    own = {id(array) for _, array in tree_flatten(student.module.parameters())}
    assert all(id(array) in own for _, array in tree_flatten(teacher.module.parameters()))
    assert load_config(chosen.model_dump(mode="json")) == chosen  # as a run's config.yaml


def test_one_model_under_two_settings_is_two() -> None:
    same = config(**{"teacher.model": "bundled:arithmetic-student"})
    assert same.is_self_taught
    assert not config(
        **{"teacher.model": "bundled:arithmetic-student", "student.dtype": "bfloat16"}
    ).is_self_taught


def test_an_adapter_that_the_student_starts_from_is_its_teachers_too() -> None:
    values = {"teacher.model": "student", "student.adapter": "some/adapter"}
    assert config(**values).teacher.adapter == "start"
    assert config(**values, **{"teacher.adapter": "none"}).teacher.adapter == "none"
    spelt_out = {"teacher.model": "bundled:arithmetic-student", "student.adapter": "some/adapter"}
    assert config(**spelt_out).teacher.adapter is None  # as in earlier versions: its base


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"teacher.model": "student", "teacher.dtype": "float16"},
            "teacher.model is student, which has the student's settings, and teacher.dtype",
        ),
        (
            {"teacher.model": "student", "teacher.adapter": "start"},
            "teacher.adapter is start, which needs teacher.model: student and a student.adapter",
        ),
    ],
)
def test_contradictions_are_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(**values)


def test_its_decoders_are_two(folders: tuple[Path, Path]) -> None:
    """A trial of caches may rebind a model's classes, which the other must not see."""
    from trb_mlx.models.pair import make_pair

    student = load_model(ModelConfig(model=str(folders[0])))
    pair = make_pair(student, self_teacher(student))
    assert make_decoder(pair.student) is not make_decoder(pair.teacher)
    assert pair.teacher.is_teacher
    assert not pair.student.is_teacher
