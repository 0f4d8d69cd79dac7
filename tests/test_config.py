"""One strict schema: every file under configs/ loads, every mistake names its key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import Config
from trb_mlx.config_file import (
    dump_config,
    find_config,
    flatten,
    load_config,
    parse_override,
    parse_section,
)
from trb_mlx.config_mistakes import MLX_LM_KEYS
from trb_mlx.errors import UserError
from trb_mlx.method import READ_WITH, unread_keys
from trb_mlx.yaml_file import dump_yaml, parse_yaml

# Comparisons are of another schema: tests/comparison/test_spec.py.
FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "compare")
METHOD_KEYS = ("behavior.", "target.", "loss.", "rollout.horizon")
FLOATS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | TEXTS
# Each name nine times the one before, the last about 10^11 values.
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
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
    config = parse_section(Config, MODELS, "here")
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
        (MODELS | {"train": {"steps": "3"}}, "train.steps is '3', expected a whole number."),
        (MODELS | {"train": {"steps": 2.5}}, "train.steps is 2.5, expected a whole number."),
        (
            MODELS | {"train": {"steps": 0}},
            "train.steps is 0, expected at least 1.",
        ),
        (MODELS | {"behavior": {"budget": -1.0}}, "behavior.budget is -1.0, expected at least 0."),
        (MODELS | {"behavior": {"budget": float("nan")}}, "behavior.budget is nan"),
        (MODELS | {"behavior": {"kind": "fxed"}}, "did you mean fixed?"),
        (MODELS | {"train": None}, "train is an empty value, expected keys with values."),
        (MODELS | {"student": "s"}, "student is 's', expected keys with values."),
        (MODELS | {"train": {"grad_checkpoint": 1}}, "is 1, expected true or false."),
        (MODELS | {"lora": {"keys": "q_proj"}}, "lora.keys is 'q_proj', expected a list."),
        (MODELS | {"lora": {"keys": [1]}}, "lora.keys.0 is 1, expected text."),
        (
            MODELS | {"rollout": {"draft_length": "fast"}},
            "rollout.draft_length is 'fast', expected auto or a whole number",
        ),
        (MODELS | {"student": {"model": "s", "adapter": ["a"]}}, "is a list, expected text."),
        (MODELS | {"run": {"name": "x" * 500}, "lora": {"rank": "y" * 500}}, "yyy…', expected"),
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
        (MODELS | {"loss": {"beta": 1.5}}, "loss.beta is 1.5, expected at most 1."),
        (MODELS | {"target": {"power": 1.0}}, "target.power is 1.0, expected a number below 1."),
        (
            {"teacher": {"model": "t", "quantize": {"bits": 7}}, "student": {"model": "s"}},
            "teacher.quantize.bits is 7",
        ),
    ],
)
def test_a_mistake_names_its_key(changes: dict, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_section(Config, changes, "my.yaml")
    message = str(caught.value)
    assert all(line.startswith("my.yaml: ") for line in message.splitlines())
    assert expected in message
    for word in ("str", "int", "float", "bool", "dict", "None", "NoneType", "instance", "valid"):
        assert word not in re.split(r"\W+", message)


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "teacher: {model: t}\nstudent:\n  model: 3\ntrain:\n  stepz: 4\n  seed: x\n"
        "  betas: [0.9, 2]\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(str(path), [("train.micro_batch_size", 0)])
    assert str(caught.value).splitlines() == [
        f"{path}:3: student.model is 3, expected text.",
        f"{path}:6: train.seed is 'x', expected a whole number.",
        f"{path}:7: train.betas.1 is 2, expected a number below 1.",
        "the command line: train.micro_batch_size is 0, expected at least 1.",
        f"{path}:5: train.stepz is not a known key; did you mean train.steps?",
    ]
    path.write_text("\n".join(f"key{number}: 1" for number in range(40)))
    with pytest.raises(UserError, match=r"\n32 mistakes more\.$"):
        load_config(str(path))


def test_a_config_of_mlx_lm_is_told_what_its_keys_are_here(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text(
        "model: m\ntrain: true\ndata: d\nseed: 0\nbatch_size: 4\niters: 1000\n"
        "lora_parameters: {rank: 8, scale: 20.0, dropout: 0.0}\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path} is a config of mlx-lm's LoRA training.")
    for told in ("model is student.model", "iters is train.steps", "teacher.model is needed"):
        assert told in message
    assert "and nothing stands for train;" in message
    assert "\n" not in message


def test_the_keys_that_stand_for_those_of_mlx_lm_exist() -> None:
    known = set(flatten(parse_section(Config, MODELS, "here"))) | set(Config.model_fields)
    for named in filter(None, MLX_LM_KEYS.values()):
        assert set(named.split(" and ")) <= known


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+1", 1),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("on", "on"),
        ("yes", "yes"),
        ("True", True),
        ("~", None),
        ("2026-02-30", "2026-02-30"),
        ("2026-02-03", "2026-02-03"),
    ],
)
def test_yaml_is_of_the_core_schema_of_version_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text, "here") == value
    assert parse_yaml(dump_yaml({"a": value}), "here") == {"a": value}


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert parse_yaml(dump_yaml({"a": value}), "here") == {"a": value}


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


@given(TEXTS.filter(lambda text: text not in ("", "~", "null")))
def test_text_is_taken_as_it_is(text: str) -> None:
    """Unless it is a quoted scalar, whose escapes are then YAML's."""
    if text[0] not in "'\"":
        assert parse_override(f"prompt.system={text}") == ("prompt.system", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("prompt.system=Think # then answer", "Think # then answer"),
        ("prompt.plain={prompt}\\n", "{prompt}\\n"),
        ('prompt.plain="{prompt}\\n"', "{prompt}\n"),
        ("prompt.system='a' or 'b'", "'a' or 'b'"),
        ("prompt.system=[x", "[x"),
        ("prompt.system=a=b: c", "a=b: c"),
        ("prompt.system=null", None),
        ("run.name=2026", "2026"),
        ("student.model=010", "010"),
        ("data.eval.source=a: b", "a: b"),
        ("teacher.quantize.store=dense", "dense"),
        ("lora.keys=[a, b]", ["a", "b"]),
        ("data.train.limit=010", 10),
    ],
)
def test_an_override_is_text_where_the_key_takes_text(text: str, value: Any) -> None:
    assert parse_override(text) == (text.partition("=")[0], value)


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
    assert unread_keys(parse_section(Config, MODELS | {"behavior": {"kind": "skd"}}, "here")) == []


def test_the_table_of_read_keys_names_keys_and_values_of_the_schema() -> None:
    flat = flatten(parse_section(Config, MODELS, "here"))
    for key, (decider, values) in READ_WITH.items():
        assert key in flat
        for value in values:
            assert load_config("small", [(decider, value), ("loss.mode", "exact")])


@pytest.mark.parametrize("path", sorted((FOLDER / "methods").iterdir()), ids=lambda path: path.stem)
def test_a_method_differs_from_the_small_config_in_its_own_keys_only(path: Path) -> None:
    small, method = flatten(load_config("small")), flatten(load_config(str(path)))
    changed = {key for key in method if method[key] != small.get(key)}
    assert all(key.startswith(METHOD_KEYS) for key in changed), changed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "holds a list"),
        ("3", "holds one value"),
        ("\x00", "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "at line 3: a is given twice, first at line 1"),
        ("a: {b: 1,\n b: 2}\n", "at line 2: b is given twice, first at line 1"),
        ("a: &a [*a]\n", "grows beyond 100,000 values through its aliases"),
        ("a0: &a0 [x]\n" + BOMB, "grows beyond 100,000 values through its aliases"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("a: " + "9" * 5000, "a number of thousands of digits"),
        ('a: "\\ud800"\n', "at line 1: half of a surrogate pair is no character"),
        ("[a]: 1\n", "a key is a list or a mapping"),
        ("a: !!timestamp x\n", "the tag !!timestamp is not known here"),
        ("a: !!python/name:os.system\n", "the tag !!python/name:os.system is not known here"),
    ],
)
def test_an_unreadable_file_is_told(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load_config(str(path))


def test_every_key_appears_in_the_flat_view() -> None:
    config = parse_section(Config, MODELS, "here")
    flat = flatten(config)
    assert flat["behavior.warmup_steps"] == 50
    assert set(parse_yaml(dump_config(config), "here")) == set(Config.model_fields)
