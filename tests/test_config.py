"""One strict schema: every file under configs/ loads, every mistake names its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import Config
from trb_mlx.config_file import (
    dump_config,
    find_config,
    flatten,
    load_config,
    parse_config,
    parse_override,
)
from trb_mlx.errors import UserError

CONFIGS = sorted(
    path
    for path in (Path(__file__).parent.parent / "configs").rglob("*.yaml")
    if path.parent.name != "compare"  # of another schema
)
MODELS = {"teacher": {"model": "t"}, "student": {"model": "s"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(str(path))
    written = tmp_path / "config.yaml"
    written.write_text(dump_config(config))
    assert load_config(str(written)) == config


def test_a_shipped_config_is_found_by_name() -> None:
    assert load_config("small") == load_config(str(find_config("small")))


def test_paper_hyperparameters_are_the_defaults() -> None:
    config = parse_config(MODELS, "here")
    assert (config.behavior.kind, config.behavior.budget, config.behavior.warmup_steps) == (
        "trb",
        0.02,
        50,
    )
    assert config.train.betas == (0.9, 0.999)
    assert (config.train.weight_decay, config.train.max_grad_norm) == (0.01, 1.0)
    assert (config.train.learning_rate, config.train.lr_warmup_steps) == (1e-5, 15)
    assert (config.loss.mode, config.loss.top_k, config.rollout.temperature) == ("tail", 16, 1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "teacher.model is required"),
        ({"teacher": {}, "student": {"model": "s"}}, "teacher.model is required"),
        (
            MODELS | {"train": {"stepz": 3}},
            "train.stepz is not a known key; did you mean train.steps?",
        ),
        (MODELS | {"trian": {"steps": 3}}, "trian is not a known key; did you mean train?"),
        (MODELS | {"steps": 3}, "steps is not a known key; did you mean train.steps?"),
        (MODELS | {"train": {"steps": "3"}}, "train.steps is '3' (str), expected a valid integer"),
        (MODELS | {"train": {"steps": 2.5}}, "train.steps is 2.5 (float)"),
        (
            MODELS | {"train": {"steps": 0}},
            "train.steps is 0 (int), expected greater than or equal",
        ),
        (MODELS | {"behavior": {"budget": -1.0}}, "behavior.budget is -1.0 (float)"),
        (MODELS | {"behavior": {"budget": float("nan")}}, "behavior.budget is nan"),
        (MODELS | {"behavior": {"kind": "fxed"}}, "did you mean fixed?"),
        (MODELS | {"train": None}, "train is an empty value"),
        (
            {"teacher": {"model": "t", "quantize": {"bits": 7}}, "student": {"model": "s"}},
            "teacher.quantize.bits is 7",
        ),
    ],
)
def test_a_mistake_names_its_key(changes: dict, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(changes, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert expected in message
    assert "\n" not in message


def test_numbers_and_words_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "teacher: {model: t}\nstudent: {model: s}\ntrain: {learning_rate: 1e-5, compile: off}\n"
    )
    config = load_config(str(path), [("train.betas", [0.9, 0.95])])
    assert config.train.learning_rate == 1e-5
    assert config.train.compile == "off"
    assert config.train.betas == (0.9, 0.95)


@given(st.floats(min_value=1e-30, max_value=1e30, allow_nan=False))
def test_any_float_survives_an_override(value: float) -> None:
    assert parse_override(f"train.learning_rate={value!r}") == ("train.learning_rate", value)


def test_overrides_win_and_make_missing_sections() -> None:
    config = load_config(
        "small",
        [("train.steps", 3), ("teacher.quantize.bits", 3), ("teacher.quantize.store", "dense")],
    )
    assert config.train.steps == 3
    assert config.teacher.quantize is not None
    assert (config.teacher.quantize.bits, config.teacher.quantize.store) == (3, "dense")


@pytest.mark.parametrize("text", ["train.steps", "=3", "a.b=[1", ""])
def test_a_bad_override_is_told(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_override(text)


def test_a_missing_config_names_the_nearest_shipped_one() -> None:
    with pytest.raises(UserError, match="did you mean small"):
        find_config("smal")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [1\n", "not valid YAML"), ("- 1\n", "holds a list"), ("\x00", "not valid YAML")],
)
def test_an_unreadable_file_is_told(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load_config(str(path))


def test_every_key_appears_in_the_flat_view() -> None:
    config = parse_config(MODELS, "here")
    flat = flatten(config)
    assert flat["behavior.warmup_steps"] == 50
    assert set(yaml.safe_load(dump_config(config))) == set(Config.model_fields)
