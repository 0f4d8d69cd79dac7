"""One strict schema: every file under configs/ loads, every mistake names its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import READ_WITH, Config
from trb_mlx.config_file import (
    dump_config,
    find_config,
    flatten,
    load_config,
    parse_config,
    parse_override,
    unread_keys,
)
from trb_mlx.errors import UserError

# Comparisons are of another schema: tests/report/test_compare_spec.py.
FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "compare")
METHOD_KEYS = ("behavior.", "target.", "loss.")
MODELS = {"teacher": {"model": "t"}, "student": {"model": "s"}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_shipped_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(str(path))
    written = tmp_path / "config.yaml"
    written.write_text(dump_config(config))
    assert load_config(str(written)) == config


def test_a_shipped_config_is_found_by_name() -> None:
    assert load_config("small") == load_config(str(find_config("small")))
    assert find_config("methods/skd") == FOLDER / "methods" / "skd.yaml"


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
    assert (config.loss.mode, config.loss.top_k, config.rollout.temperature) == ("exact", 16, 1.0)


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
            MODELS | {"target": {"kind": "veto"}, "loss": {"mode": "tail"}},
            "my.yaml: target.kind veto needs both models' whole distributions, and loss.mode tail "
            "keeps the student's top-k only; set loss.mode: exact.",
        ),
        (
            MODELS | {"loss": {"divergence": "jsd", "mode": "tail"}},
            "loss.divergence jsd needs both models'",
        ),
        (MODELS | {"loss": {"divergence": "jds"}}, "did you mean jsd?"),
        (MODELS | {"loss": {"beta": 1.5}}, "loss.beta is 1.5 (float)"),
        (MODELS | {"target": {"power": 1.0}}, "target.power is 1.0 (float)"),
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
    for wrong, right in (("smal", "small"), ("skd", "methods/skd"), ("mine/fixd", "methods/fixed")):
        with pytest.raises(UserError, match=f"did you mean {right}\\?"):
            find_config(wrong)


def test_every_shipped_config_reads_what_it_sets() -> None:
    for path in CONFIGS:
        assert unread_keys(load_config(str(path))) == [], path


def test_a_key_that_the_method_does_not_read_is_told_in_a_sentence() -> None:
    config = load_config("small", [("behavior.kind", "vanilla"), ("behavior.top_k", 5)])
    assert unread_keys(config) == [
        "behavior.budget is 0.3, but behavior.kind vanilla does not use it.",
        "behavior.warmup_steps is 15, but behavior.kind vanilla does not use it.",
        "behavior.top_k is 5, but behavior.kind vanilla does not use it.",
    ]
    assert unread_keys(parse_config(MODELS | {"behavior": {"kind": "skd"}}, "here")) == []


def test_the_table_of_read_keys_names_keys_and_values_of_the_schema() -> None:
    flat = flatten(parse_config(MODELS, "here"))
    for key, (decider, values) in READ_WITH.items():
        assert key in flat
        for value in values:
            assert load_config("small", [(decider, value), ("loss.mode", "exact")])


@pytest.mark.parametrize("path", sorted((FOLDER / "methods").iterdir()), ids=lambda path: path.stem)
def test_a_method_differs_from_the_small_config_in_its_own_keys_only(path: Path) -> None:
    small, method = flatten(load_config("small")), flatten(load_config(str(path)))
    changed = {key for key in method if method[key] != small[key]}
    assert all(key.startswith(METHOD_KEYS) for key in changed), changed


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
