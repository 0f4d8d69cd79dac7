"""Shorter roads: a growing horizon, a loss on first tokens, ends by cost, and what is counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trb_mlx.config import Config, TrainConfig
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.files import read_metrics
from trb_mlx.runs.folder import RunFolder, locate
from trb_mlx.training.cost import cost_of, is_over, tokens_read
from trb_mlx.training.metrics import rollout_metrics
from trb_mlx.training.session import train_run
from trb_mlx.types import Cost, Job, Prompt, Rollout, RolloutKey

TINY: dict[str, Any] = {
    "student.model": "bundled:arithmetic-student",
    "teacher.model": "bundled:arithmetic-teacher",
    "lora.rank": 2,
    "data.train.limit": 40,
    "behavior.kind": "vanilla",
    "rollout.max_tokens": 12,
    "rollout.rollouts_per_prompt": 2,
    "train.steps": 4,
    "train.prompts_per_step": 2,
    "train.lr_warmup_steps": 0,
    "eval.prompts": 2,
    "eval.teacher": False,
    "eval.every": 0,
}


def run(root: Path, resume: bool = False, **changes: Any) -> tuple[RunFolder, list[dict[str, Any]]]:
    """A run, and its lines of metrics by step."""
    values = TINY | {"run.dir": str(root)} | {k.replace("__", "."): v for k, v in changes.items()}
    config = load_config(values)
    folder = locate(config, "run")
    train_run(config, folder, resume, Console(file=io.StringIO()))
    return folder, read_metrics(folder.metrics)


def rollout(lengths: list[int], stopped: list[bool], horizon: int | None = None) -> Rollout:
    jobs = [
        Job(Prompt(i, "", tuple(range(3 + i))), RolloutKey(0, 0, i, 0)) for i in range(len(lengths))
    ]
    tokens = np.zeros((len(lengths), max(lengths)), np.int32)
    return Rollout(
        jobs, tokens, np.array(lengths), np.array(stopped), rounds=1, drafted=20, horizon=horizon
    )


def test_rows_that_a_horizon_cuts_are_neither_stopped_nor_truncated() -> None:
    cut = rollout([3, 4, 4], [True, False, True], horizon=4)
    assert cut.cut.tolist() == [False, True, False]
    assert rollout_metrics(cut, 0.0)["completions/truncated_fraction"] == 0.0
    whole = rollout([3, 4, 4], [True, False, True])
    assert not whole.cut.any()
    assert rollout_metrics(whole, 0.0)["completions/truncated_fraction"] == pytest.approx(1 / 3)


def test_the_first_tokens_of_a_response_do_not_end_where_they_are_cut() -> None:
    first = rollout([2, 5, 3], [True, True, False]).first(3)
    assert first.lengths.tolist() == [2, 3, 3]
    assert first.stopped.tolist() == [True, False, False]
    assert first.tokens.shape == (3, 3)


def test_a_horizon_grows_in_training_and_not_in_evaluation(tmp_path: Path) -> None:
    _, lines = run(tmp_path, rollout__horizon={"start": 2, "steps": 3})
    assert [line["rollout/horizon"] for line in lines[1:]] == [2, 5, 9, 12]
    for line in lines[1:]:
        assert line["completions/max_length"] <= line["rollout/horizon"]
        assert line["completions/cut_by_horizon_fraction"] <= 1.0
    assert lines[1]["completions/cut_by_horizon_fraction"] > 0.5
    assert lines[1]["completions/truncated_fraction"] == 0.0
    assert lines[0]["eval/mean_length"] > 2


def test_a_horizon_is_resumed(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"rollout__horizon": {"start": 2, "steps": 3}, "run__save_every": 1}
    _, whole = run(tmp_path / "whole", **keys)
    run(tmp_path / "cut", train__steps=2, **keys)
    _, resumed = run(tmp_path / "cut", resume=True, **keys)
    exact = ("loss", "rollout/horizon", "cost/loss_tokens", "cost/student_tokens")
    assert [[line.get(k) for k in exact] for line in resumed if line["step"] != 2] == [
        [line.get(k) for k in exact] for line in whole if line["step"] != 2
    ]
    assert resumed[-1]["cost/cpu_seconds"] > resumed[2]["cost/cpu_seconds"]


def test_only_the_first_tokens_are_in_the_loss(tmp_path: Path) -> None:
    """As if the responses had ended there: a horizon of so many tokens gives the same update."""
    _, first = run(tmp_path / "a", loss__position={"tokens": 3}, train__steps=1)
    _, short = run(tmp_path / "b", rollout__horizon={"start": 3, "steps": 9}, train__steps=1)
    assert first[1]["completions/max_length"] > 3
    assert first[1]["loss"] == pytest.approx(short[1]["loss"], rel=1e-5)
    assert first[1]["grad_norm"] == pytest.approx(short[1]["grad_norm"], rel=1e-4)
    assert first[1]["cost/loss_tokens"] == short[1]["cost/loss_tokens"] <= 3 * 4


def test_a_run_ends_with_the_step_that_costs_enough(tmp_path: Path) -> None:
    folder, lines = run(tmp_path, train__steps=9, train__max_response_tokens=60)
    last = lines[-1]
    assert lines[-2]["cost/loss_tokens"] < 60 <= last["cost/loss_tokens"]
    assert last["step"] < 9
    assert "eval/reverse_kl" in last  # the final evaluation
    assert (folder.adapter_path / "adapters.safetensors").exists()
    _, again = run(tmp_path, resume=True, train__steps=9, train__max_response_tokens=60)
    assert again == lines
    _, more = run(tmp_path, resume=True, train__steps=9, train__max_response_tokens=100)
    assert len(more) > len(lines)


def test_a_run_ends_with_its_minutes(tmp_path: Path) -> None:
    _, lines = run(tmp_path, train__steps=9, train__max_minutes=1e-6)
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[1]["cost/minutes"] > 0


def test_the_end_is_told_from_lines_of_metrics() -> None:
    train = TrainConfig(steps=9, max_response_tokens=60, max_minutes=2.0)
    assert not is_over(train, 8, Cost(59, minutes=1.9))
    assert is_over(train, 9, Cost())
    assert is_over(train, 1, cost_of({"step": 1, "cost/loss_tokens": 60.0}))
    assert is_over(train, 1, cost_of({"step": 1, "cost/minutes": 2.0}))
    assert cost_of({"step": 3}) == Cost()  # as earlier versions wrote it


@pytest.mark.parametrize(
    ("drawers", "again", "expected"),
    [
        ((True, False), False, (9 + 20 + 9 + 8, 9 + 9)),  # the teacher scores
        ((True, True), True, (9 + 20 + 9 + 8, 9 + 20 + 9 + 8)),  # and reads once more to learn
        ((False, True), False, (9 + 9 + 9 + 8, 9 + 20)),
    ],
)
def test_tokens_that_each_model_reads(
    drawers: tuple[bool, bool], again: bool, expected: tuple[int, int]
) -> None:
    """Prompts of 3, 4 and 5 ids, whose last is read with the response."""
    drawn = rollout([2, 4, 3], [True] * 3)
    assert tokens_read(drawn, drawn.first(3), drawers, again) == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rollout.horizon": {"start": 13, "steps": 2}}, "rollout.horizon.start is 13, above"),
        ({"rollout.horizon": {"start": 0, "steps": 2}}, "rollout.horizon.start"),
        ({"loss.position": {"kind": "last", "tokens": 2}}, "loss.position.kind"),
        ({"loss.position": {"kind": "first"}}, "loss.position.tokens"),
        ({"train.max_minutes": 0.0}, "train.max_minutes"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_config(TINY | changes)


def test_an_end_by_cost_wants_steps_for_the_schedules() -> None:
    values = {k: v for k, v in TINY.items() if k != "train.steps"}
    with pytest.raises(UserError, match=r"give train.steps too"):
        load_config(values | {"train.max_response_tokens": 100})
    assert isinstance(load_config(TINY | {"train.max_response_tokens": 100}), Config)
