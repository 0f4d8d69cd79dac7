"""A task's lines and figures: whole, resumed at any point, and with a verification that hangs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trb_mlx.config import EvalConfig
from trb_mlx.data.rewards import Verifier
from trb_mlx.errors import UserError
from trb_mlx.evaluation import problems as problem_set
from trb_mlx.evaluation.evaluator import resolve_eval
from trb_mlx.evaluation.problems import Task, run_task, summarize
from trb_mlx.evaluation.result_folder import Line, ResultFolder
from trb_mlx.models.pair import Pair
from trb_mlx.types import Prompt

SETTINGS = {"samples": 2, "seed": 3}


@pytest.fixture
def task(pair: Pair) -> Task:
    prompts = [Prompt(i, f"p{i}", tuple(range(40, 43 + i)), "e") for i in range(5)]
    config = EvalConfig(samples=2, max_tokens=6)
    return Task(pair.student, pair, prompts, config, 3, batch_size=4, score_rows=3, support=4)


def run(task: Task, folder: ResultFolder | None = None) -> list[Line]:
    with Verifier() as verifier:
        return run_task(task, folder, verifier, lambda done: None)


def test_a_cut_evaluation_goes_on_to_the_same_file(task: Task, tmp_path: Path) -> None:
    """Wherever the file is cut, in a group or in a line, as by SIGKILL."""
    whole = ResultFolder(tmp_path / "whole", "x", SETTINGS)
    lines = run(task, whole)
    text = (whole.path / "problems.jsonl").read_bytes()
    assert [line["problem"] for line in lines] == [0, 1, 2, 3, 4]
    for cut in (0, 10, text.index(b"\n") + 1, len(text) // 2, len(text) - 3, len(text)):
        folder = ResultFolder(tmp_path / str(cut), "x", SETTINGS)
        (folder.path / "problems.jsonl").write_bytes(text[:cut])
        assert run(task, folder) == lines
        assert (folder.path / "problems.jsonl").read_bytes() == text


def test_finished_problems_are_not_drawn_again(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(task, ResultFolder(tmp_path, "x", SETTINGS))

    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(problem_set, "held_out_rollouts", refuse)
    assert run(task, ResultFolder(tmp_path, "x", SETTINGS)) == lines


def test_batches_do_not_change_the_draws(task: Task) -> None:
    small = run(replace(task, batch_size=2))
    assert [line["lengths"] for line in small] == [line["lengths"] for line in run(task)]


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    first = ResultFolder(tmp_path, "some/data.jsonl", SETTINGS)
    assert first.path.name.startswith("data-n2-")
    other = ResultFolder(tmp_path, "some/data.jsonl", SETTINGS | {"seed": 4})
    assert other.path != first.path
    (first.path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="was changed"):
        ResultFolder(tmp_path, "some/data.jsonl", SETTINGS)


def test_a_hung_verification_never_hangs_the_run(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer goes to a worker that sleeps for ten minutes."""
    script = tmp_path / "hangs.py"
    script.write_text(
        'import sys, time\nprint("true", flush=True)\nfor _ in sys.stdin: time.sleep(600)\n'
    )

    def algebra(*_: object) -> list[str]:
        return ["\\boxed{x+1}"] * 4

    monkeypatch.setattr("trb_mlx.evaluation.evaluator.response_texts", algebra)
    start = time.perf_counter()
    prompts = [Prompt(i, f"p{i}", (40, 41), "1+x") for i in range(2)]
    with Verifier(timeout_s=0.3, script=script) as verifier:
        lines = run_task(replace(task, prompts=prompts), None, verifier, lambda done: None)
        assert verifier.timeouts == 4
    assert [line["rewards"] for line in lines] == [[0, 0], [0, 0]]
    assert time.perf_counter() - start < 60


def line(rewards: Sequence[int] | None, lengths: Sequence[int], stopped: Sequence[int]) -> Line:
    return {"rewards": rewards, "lengths": lengths, "stopped": stopped}


def test_greedy_answers_are_drawn_once_and_owe_nothing_to_the_seed(task: Task) -> None:
    config = resolve_eval(EvalConfig(samples=3, temperature=0.0), 6)
    assert (config.samples, resolve_eval(EvalConfig(samples=3), 6).samples) == (1, 3)
    greedy = run(replace(task, config=config))
    assert [len(line["lengths"]) for line in greedy] == [1] * 5
    assert run(replace(task, config=config, seed=9)) == greedy
    assert run(replace(task, config=config.model_copy(update={"temperature": 1.0}))) != greedy


def test_figures_are_means_over_problems() -> None:
    lines = [line([1, 1, 0, 0], [3, 3, 3, 3], [1] * 4), line([0] * 4, [5] * 4, [0] * 4)]
    found = summarize(lines, 4, [1, 2])
    assert found["pass@1"].value == 0.25
    assert found["pass@2"].value == pytest.approx((1 - 1 / 6) / 2)
    assert found["mean_length"].value == 4.0
    assert found["truncated_fraction"].value == 0.5
    assert "reverse_kl" not in found


def test_problems_without_answers_have_distances_alone(task: Task) -> None:
    prompts = [replace(prompt, answer=None) for prompt in task.prompts]
    lines = run(replace(task, prompts=prompts))
    found = summarize(lines, 2, [1])
    assert "pass@1" not in found
    tokens = sum(each["distribution"]["tokens"] for each in lines)
    total = sum(each["distribution"]["reverse_kl"] for each in lines)
    assert found["reverse_kl"].value == pytest.approx(total / tokens)
    assert found["entropy_gap"].value == pytest.approx(
        found["student_entropy"].value - found["teacher_entropy"].value
    )


def test_of_many_samples_the_first_are_scored(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_set, "SCORED_ROLLOUTS", 1)
    for found in run(task):
        assert found["distribution"]["tokens"] == found["lengths"][0]
        assert np.isfinite(found["distribution"]["reverse_kl"])
