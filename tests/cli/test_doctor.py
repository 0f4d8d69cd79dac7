"""`trb-mlx doctor` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Run

from trb_mlx.cli import main
from trb_mlx.doctor import examination
from trb_mlx.doctor.check import Check, Finding


def test_the_whole_examination_passes(trb: Run) -> None:
    done = trb("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [check["name"] for check in found["checks"]] == [c.name for c in examination.CHECKS]
    assert found["failed"] == 0
    assert found["passed"] + found["skipped"] == len(examination.CHECKS)
    assert found["machine"]["back end"] in ("CPU", "CUDA", "Metal")
    assert all(f["ok"] for check in found["checks"] for f in check["findings"])


@pytest.fixture
def one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise OSError(f"no {Path.home()}/secret/file")

    checks = (Check("broken", broken), Check("wrong", lambda: [Finding("gap", 2.0, 1.0)]))
    monkeypatch.setattr(examination.examine, "__defaults__", (checks, lambda name: None))


@pytest.mark.usefixtures("one_failure")
@pytest.mark.parametrize("form", [[], ["--plain"], ["--json"]])
def test_a_failure_ends_with_1_and_tells_no_paths(form: list[str]) -> None:
    done = CliRunner().invoke(main, ["doctor", *form])
    assert done.exit_code == 1
    shown = done.stdout.replace("\\u2026", "…")  # as JSON writes it
    assert "2 failed" in shown or json.loads(shown)["failed"] == 2
    assert "no …/secret/file" in shown
    assert str(Path.home()) not in shown


def test_one_form_at_a_time() -> None:
    done = CliRunner().invoke(main, ["doctor", "--json", "--plain"])
    assert done.exit_code == 2
    assert done.stderr == "trb-mlx: --json and --plain were both given; choose one.\n"
