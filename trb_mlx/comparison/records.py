"""Outcomes apart from their run folders: a few kilobytes each, to keep beside what is told of them.

A record holds what `read_outcome` reads of a run folder, in columns and to six digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trb_mlx import __version__
from trb_mlx.comparison.spec import CompareSpec, PlannedRun
from trb_mlx.errors import UserError, reading
from trb_mlx.evaluation.result_folder import Line
from trb_mlx.files import disk_errors, json_digest, json_text, read_lines, read_metrics, write_text
from trb_mlx.runs.folder import RunFolder, locate

PHASES = ("time/rollout_s", "time/update_s", "time/reward_s", "time/eval_s")
TRAINING = (
    "step",
    "eval/pass@1",
    "eval/reverse_kl",
    "loss",
    "completions/mean_length",
    *PHASES,
    "cost/loss_tokens",
    "cost/student_tokens",
    "cost/teacher_tokens",
    "cost/cpu_seconds",
    "memory/peak_gb",
)
PROBLEM = ("problem", "key", "rewards", "lengths", "stopped")
_SUMS = "distribution"


@dataclass(frozen=True)
class Finished:
    """What a finished run left.

    Attributes:
        where: its folder or record, for errors.
        lines: its metrics.
        checkpoints: `final` and `best` → step, folder and metrics of their evaluation.
        answers: an evaluation's folder → its lines, one a problem.
    """

    where: Path
    lines: Sequence[Mapping[str, Any]]
    checkpoints: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Sequence[Line]]


def outcome_path(spec: CompareSpec, folder: RunFolder) -> Path:
    """Other evaluation settings are another outcome of the same training."""
    return folder.path / f"outcome-{json_digest([spec.problems, spec.samples])}.json"


def problem_lines(folder: RunFolder, checkpoint: Mapping[str, Any]) -> tuple[Path, list[Line]]:
    """The lines of a checkpoint's evaluation, which an outcome names, and their file."""
    path = folder.path / "eval" / checkpoint["folder"] / "problems.jsonl"
    return path, read_lines(path)


def read_finished(spec: CompareSpec, run: PlannedRun) -> Finished | None:
    """What a run left in its folder, or else in its record; None where it is not finished.

    Raises:
        UserError: it cannot be read, or the record is of another evaluation.
    """
    folder = locate(run.config, run.name)
    path = outcome_path(spec, folder)
    if not path.exists():
        return _read_record(spec, run)
    with reading(f"outcome {path}"):
        checkpoints = json.loads(path.read_text(encoding="utf-8"))
        answers = {each["folder"]: problem_lines(folder, each)[1] for each in checkpoints.values()}
        return Finished(folder.path, read_metrics(folder.metrics), checkpoints, answers)


def write_record(spec: CompareSpec, run: PlannedRun) -> None:
    """Keep a finished run under `spec.record`, unless that is not asked for or has it already."""
    path = _record_path(spec, run)
    if path is None or path.exists():
        return
    finished = read_finished(spec, run)
    assert finished is not None
    content = {
        "run": run.name,
        "method": run.method,
        "variant": run.variant,
        "seed": run.seed,
        "version": __version__,
        "problems": spec.problems,
        "samples": spec.samples,
        "checkpoints": finished.checkpoints,
        "training": _columns(finished.lines, TRAINING),
        "answers": {name: _answer_columns(lines) for name, lines in finished.answers.items()},
    }
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _one_line_a_column(_rounded(content)))


def _record_path(spec: CompareSpec, run: PlannedRun) -> Path | None:
    return None if spec.record is None else Path(spec.record) / f"{run.name}.json"


def _read_record(spec: CompareSpec, run: PlannedRun) -> Finished | None:
    path = _record_path(spec, run)
    if path is None or not path.exists():
        return None
    with reading(f"record {path}"):
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["problems"], content["samples"]
        if found != (spec.problems, spec.samples):
            raise UserError(
                f"record {path} is of {found[0]} problems × {found[1]}, and the comparison asks "
                f"for {spec.problems} × {spec.samples}; expected another `record` folder."
            )
        answers = {name: _answer_lines(each) for name, each in content["answers"].items()}
        lines = _lines(content["training"])
        return Finished(path, lines, content["checkpoints"], answers)


def _columns(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Name → its value in each line; names that no line has are left out."""
    columns = {name: [line.get(name) for line in lines] for name in names}
    return {name: column for name, column in columns.items() if column != [None] * len(column)}


def _lines(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The lines of `_columns`; a value that is None is left out."""
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _answer_columns(lines: Sequence[Line]) -> dict[str, Any]:
    sums = [line.get(_SUMS, {}) for line in lines]
    return {**_columns(lines, PROBLEM), _SUMS: _columns(sums, list(sums[0]))}


def _answer_lines(columns: Mapping[str, Any]) -> list[Line]:
    plain = _lines({name: column for name, column in columns.items() if name != _SUMS})
    sums = _lines(columns[_SUMS]) if columns[_SUMS] else [{}] * len(plain)
    told = [{_SUMS: each} if each else {} for each in sums]
    return [{"rewards": None, **line, **more} for line, more in zip(plain, told, strict=True)]


def _rounded(value: Any) -> Any:
    """The same with six significant digits in every float."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _one_line_a_column(content: Mapping[str, Any]) -> str:
    """JSON with each list on one line, so that a change of one shows as a line."""
    lists: list[str] = []

    def set_aside(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: set_aside(each) for name, each in value.items()}
        if isinstance(value, list):
            lists.append(json_text(value, None))
            return f"@{len(lists) - 1}@"
        return value

    text = json_text(set_aside(content))
    for number, each in enumerate(lists):
        text = text.replace(f'"@{number}@"', each)
    return text + "\n"
