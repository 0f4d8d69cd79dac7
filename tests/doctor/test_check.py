"""What a check may end in, and what is shown of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trb_mlx.doctor.check import (
    FAIL,
    PASS,
    SKIPPED,
    Check,
    Finding,
    Skip,
    run_check,
    run_checks,
    without_paths,
)
from trb_mlx.doctor.examination import Examination
from trb_mlx.doctor.table import as_json, as_text


def raising(error: Exception) -> Check:
    def measure() -> list[Finding]:
        raise error

    return Check("broken", measure)


def test_a_bound_holds_or_not() -> None:
    assert Finding("x", 1.0, 1.0).ok
    assert not Finding("x", 1.1, 1.0).ok
    assert Finding("x", 1.0, 1.0, at_least=True).ok
    assert not Finding("x", 0.9, 1.0, at_least=True).ok
    assert not Finding("x", math.nan, 1.0).ok
    assert not Finding("x", math.nan, 1.0, at_least=True).ok
    assert str(Finding("x", 2.0, 1.0)) == "x 2 > 1"


def test_one_bad_figure_fails_a_check_and_so_does_none() -> None:
    good, bad = Finding("a", 0.0, 1.0), Finding("b", 2.0, 1.0)
    assert run_check(Check("", lambda: [good])).result == PASS
    assert run_check(Check("", lambda: [good, bad])).result == FAIL
    assert run_check(Check("", lambda: [])).result == FAIL


def test_an_exception_is_a_failure_and_the_others_still_run() -> None:
    fine = Check("fine", lambda: [Finding("a", 0.0, 1.0)])
    checks = [raising(ValueError("first line\nsecond")), raising(Skip("no compiler")), fine]
    heard: list[str] = []
    broken, skipped, last = run_checks(checks, heard.append)
    assert (broken.result, broken.reason) == (FAIL, "ValueError: first line")
    assert (skipped.result, skipped.measured) == (SKIPPED, "no compiler")
    assert last.result == PASS
    assert heard == ["broken", "broken", "fine"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no {Path.home()}/models/x.json", "no …/models/x.json"),
        ("no '/Users/jane/a b/x.gguf'", "no '…/a b/x.gguf'"),
        ("at /home/jane/x.py:12", "at …/x.py:12"),
        ("token hf_abcdefghijkl is bad", "token (token) is bad"),
        ("KL/ε and and/or 3/4", "KL/ε and and/or 3/4"),
    ],
)
def test_reports_tell_no_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_text_and_json_tell_the_same() -> None:
    outcomes = [
        run_check(Check("good", lambda: [Finding("gap", 0.5, 1.0)])),
        run_check(Check("odd", lambda: [Finding("gap", math.inf, 1.0)])),
        run_check(raising(Skip("no compiler"))),
    ]
    found = Examination({"mlx": "1"}, ["buy memory"], outcomes, 2.0)
    assert found.failed
    values = as_json(found)
    assert (values["passed"], values["failed"], values["skipped"]) == (1, 1, 1)
    assert values["checks"][1]["findings"][0]["figure"] is None
    text = as_text(found)
    for part in ("mlx  1", "gap 0.5 ≤ 1", "gap inf > 1", "no compiler", "advice: buy memory"):
        assert part in text
