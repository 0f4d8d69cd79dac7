"""What a comparison takes over from its finished runs, and what it does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from trb_mlx.comparison.one_run import check_data
from trb_mlx.comparison.outcomes import Outcome, read_outcome
from trb_mlx.comparison.progress import Progress
from trb_mlx.comparison.records import outcome_path, write_record
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


def test_a_recorded_run_needs_no_folder(made: Made, tmp_path: Path) -> None:
    spec, run, folder = made
    spec = spec.model_copy(update={"record": "kept"})
    mixed = problems("1", "2", "3")
    mixed[1]["rewards"] = None  # a prompt without a gold answer
    for place, line in enumerate(mixed):
        line["distribution"] = {"reverse_kl": place / 3, "tokens": 3.0}
    write_lines(folder.path / "eval/e/problems.jsonl", mixed)
    before = read_outcome(spec, run)
    write_record(spec, run)
    (record,) = Path("kept").iterdir()
    assert record.stat().st_size < 4_000
    shutil.rmtree(folder.path)
    after = read_outcome(spec, run)
    assert before is not None
    assert after is not None
    assert (after.metrics, after.curves) == (before.metrics, before.curves)
    kept, own = after.problems["final"], before.problems["final"]
    assert len(kept["pass@1"]) == 2
    assert kept.keys() == own.keys()
    assert kept["reverse_kl"]["2"] == pytest.approx(own["reverse_kl"]["2"], rel=1e-5)
    other = spec.model_copy(update={"problems": 4})
    with pytest.raises(UserError, match="is of 3 problems × 1, and the comparison asks for 4 × 1"):
        read_outcome(other, run)
    record.write_text("{")
    with pytest.raises(UserError, match=f"record {record}"):
        read_outcome(spec, run)


def test_the_time_left_is_told(made: Made) -> None:
    spec, run, _ = made
    runs = [replace(run, name=name, method=name[0]) for name in ("a0", "a1", "b0", "b1")]

    def done(method: str, seconds: float) -> Outcome:
        return Outcome(method, method, 0, {"cost.seconds": seconds}, 0.0, {}, {})

    clock = iter([0.0, 50.0, 60.0, 61.0])
    known = {"a0": done("a", 10.0), "b0": done("b", 30.0)}
    progress = Progress(spec, runs, known, 2, lambda: next(clock))
    assert progress.seconds_left() == 20.0  # 10 and 30 seconds, two at once
    # This call took 50 s over what training says were 10: b1's 30 will take 150.
    assert "(3 of 4, about 2:30 left)" in progress.done("a1", done("a", 10.0))
    assert "(4 of 4)" in progress.done("b1", done("b", 30.0))


def test_a_run_of_other_data_is_not_taken_over(made: Made) -> None:
    spec, run, folder = made
    train = Path("train.jsonl")
    write_digests(folder, run.config, PromptSplit([Prompt(0, "", (1,))], [Prompt(0, "", (2,))]))
    check_data(spec, run)  # the files are the same, so nothing is loaded
    train.write_text(train.read_text() + '{"prompt": "one more", "answer": "2"}\n')
    with pytest.raises(UserError, match="are not those that run .* Remove .* to train it again"):
        check_data(spec, run)
