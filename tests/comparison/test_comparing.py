"""What a comparison takes over from its finished runs, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trb_mlx.comparison.one_run import check_data
from trb_mlx.comparison.outcomes import outcome_path, read_outcome
from trb_mlx.comparison.spec import CompareSpec, PlannedRun, load_spec, plan_runs
from trb_mlx.data.held_out import PromptSplit
from trb_mlx.errors import UserError
from trb_mlx.runs.digests import write_digests
from trb_mlx.runs.folder import RunFolder, locate, write_config
from trb_mlx.types import Prompt

SPEC = {
    "base": "base.yaml",
    "methods": {"vanilla": None},
    "seeds": [0],
    "problems": 3,
    "early_steps": 1,
}
BASE = {
    "teacher": {"model": "bundled:arithmetic-teacher"},
    "student": {"model": "bundled:arithmetic-student"},
    "data": {"train": {"source": "train.jsonl"}, "eval": {"source": "eval.jsonl"}},
    "train": {"steps": 1},
    "eval": {"every": 1, "prompts": 1},
}
LINE = {"answer": "1", "rewards": [1], "lengths": [3], "stopped": [1]}
Made = tuple[CompareSpec, PlannedRun, RunFolder]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A finished run of a comparison, as its files alone."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(SPEC))
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    for name in ("train", "eval"):
        rows = [{"prompt": f"{name} {place}", "answer": "1"} for place in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, root = load_spec("spec.yaml")
    (run,) = plan_runs(spec, root, "spec.yaml")
    folder = locate(run.config, run.name)
    write_lines(folder.metrics, [{"step": step, "eval/pass@1": 0.5} for step in (0, 1)])
    write_config(folder, run.config)
    path = outcome_path(spec, folder)
    point = {"step": 1, "folder": "e", "metrics": {"pass@1": 1.0}}
    path.write_text(json.dumps({"final": point, "best": point}))
    return spec, run, folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """As earlier versions did: no character escaped that JSON does not ask for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def problems(*answers: str) -> list[dict[str, Any]]:
    return [
        {"problem": place, "key": str(place), **LINE, "answer": answer}
        for place, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
def test_every_problem_counts_whatever_its_answer_holds(made: Made, mark: str) -> None:
    spec, run, folder = made
    write_lines(folder.path / "eval/e/problems.jsonl", problems("1", f"1{mark}2", "3"))
    outcome = read_outcome(spec, run)
    assert outcome is not None
    assert len(outcome.problems["final"]["pass@1"]) == 3


def test_a_lost_problem_is_an_error(made: Made) -> None:
    spec, run, folder = made
    write_lines(folder.path / "eval/e/problems.jsonl", problems("1", "2"))
    with pytest.raises(UserError, match="has 2 lines for the 3 problems asked for"):
        read_outcome(spec, run)


def test_a_run_of_other_data_is_not_taken_over(made: Made) -> None:
    spec, run, folder = made
    train = Path("train.jsonl")
    write_digests(folder, run.config, PromptSplit([Prompt(0, "", (1,))], [Prompt(0, "", (2,))]))
    check_data(spec, run)  # the files are the same, so nothing is loaded
    train.write_text(train.read_text() + '{"prompt": "one more", "answer": "2"}\n')
    with pytest.raises(UserError, match="are not those that run .* Remove .* to train it again"):
        check_data(spec, run)
