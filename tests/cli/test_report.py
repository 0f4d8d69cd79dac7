"""`trb-mlx report`, end to end through the console script."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.conftest import SHORT, Run
from cli.test_mistakes import assert_told
from report.synthetic import make_run


def test_a_run_is_reported_and_measured_once(trb: Run, tmp_path: Path) -> None:
    assert trb("train", "-c", "small", *SHORT).returncode == 0
    first = trb("report", "runs/small")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "runs/small/report/index.html and 17 PNGs\n"
    page = tmp_path / "runs/small/report/index.html"
    assert "Not measured." in page.read_text()

    sizes = ("--prompts=6", "--cuts=4,8", "--budgets=0.1")
    measured = trb("report", "runs/small", "--diagnostics", *sizes)
    assert measured.returncode == 0, measured.stderr
    assert "continuations from 8 tokens" in measured.stderr
    assert "Vanilla, the student alone" in page.read_text()
    kept = (tmp_path / "runs/small/diagnostics.json").read_bytes()

    for arguments in ((), sizes):
        again = trb("report", "runs/small", "--diagnostics", *arguments)
        assert "is there already" in again.stderr
    assert trb("report", "runs/small").returncode == 0
    assert "Vanilla, the student alone" in page.read_text()
    assert (tmp_path / "runs/small/diagnostics.json").read_bytes() == kept


def test_several_runs_and_a_folder_of_choice(trb: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name)
    assert trb("report", "runs/a", "runs/b").stdout.startswith("report/index.html and ")
    assert trb("report", "runs/a", "--out", "here").stdout.startswith("here/index.html and ")
    assert (tmp_path / "here/eval-pass-at-1.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/smal"], "runs/smal does not exist; did you mean runs/small?"),
        (["runs/empty"], "runs/empty has no metrics yet"),
        (["runs/small", "runs/small"], "is named twice"),
        (["runs/small", "--cuts", "4"], "belong to --diagnostics"),
        (["runs/small", "--diagnostics", "--cuts", "a"], "--cuts a: expected whole numbers"),
        (["runs/small", "--diagnostics", "--cuts", "9999"], "--cuts 9999: expected 1 to 255"),
        (["runs/small", "--diagnostics", "--budgets", "-1"], "--budgets -1: expected numbers"),
        (["runs/small", "--diagnostics", "--budgets", "nan"], "--budgets nan: expected numbers"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], expected: str, trb: Run, tmp_path: Path
) -> None:
    make_run(tmp_path / "runs/small")
    make_run(tmp_path / "runs/empty", [])
    assert_told(trb("report", *arguments), expected)
    assert not (tmp_path / "runs/small/report").exists()


def test_a_folder_that_cannot_be_written_is_told(trb: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/small")
    (tmp_path / "file").write_text("")
    done = trb("report", "runs/small", "--out", "file/report")
    assert done.returncode == 1
    assert done.stderr.startswith("trb-mlx: report file/report could not be written")
    assert "Traceback" not in done.stderr
