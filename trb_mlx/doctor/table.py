"""An examination as a table, as text for a bug report, and as JSON."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trb_mlx.doctor.check import FAIL, PASS, SKIPPED, Finding
from trb_mlx.doctor.examination import Examination

STYLES = {PASS: "green", FAIL: "bold red", SKIPPED: "yellow"}


def as_table(examination: Examination) -> Group:
    """Facts, checks and advice for a terminal."""
    about = Table(box=None, show_header=False, pad_edge=False)
    for name, value in examination.facts.items():
        about.add_row(Text(name), Text(str(value)))
    checks = Table(box=None, pad_edge=False)
    for heading in ("check", "result", "measured"):
        checks.add_column(heading)
    checks.add_column("s", justify="right")
    for outcome in examination.outcomes:
        result = Text(outcome.result, STYLES[outcome.result])
        checks.add_row(outcome.name, result, Text(outcome.measured), f"{outcome.seconds:.1f}")
    advice = [Text(f"→ {line}") for line in examination.advice]
    return Group(about, Text(), checks, Text(), *advice, Text(summary(examination)))


def as_text(examination: Examination) -> str:
    """The same in plain lines, ready to paste."""
    width = max(len(name) for name in examination.facts)
    lines = [f"{name:<{width}}  {value}" for name, value in examination.facts.items()]
    width = max((len(outcome.name) for outcome in examination.outcomes), default=0)
    lines.append("")
    for outcome in examination.outcomes:
        head = f"{outcome.result.upper():<7}  {outcome.name:<{width}}"
        lines.append(f"{head}  {outcome.measured} ({outcome.seconds:.1f} s)")
    return "\n".join(
        [*lines, "", *(f"advice: {line}" for line in examination.advice), summary(examination)]
    )


def as_json(examination: Examination) -> dict[str, Any]:
    """The same as JSON values; a figure that is not finite is null."""
    return {
        "machine": examination.facts,
        "checks": [
            {
                "name": outcome.name,
                "result": outcome.result,
                "findings": [_finding_json(finding) for finding in outcome.findings],
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 2),
            }
            for outcome in examination.outcomes
        ],
        "advice": examination.advice,
        "passed": examination.count(PASS),
        "failed": examination.count(FAIL),
        "skipped": examination.count(SKIPPED),
        "seconds": round(examination.seconds, 1),
    }


def summary(examination: Examination) -> str:
    """One line: how many passed, failed and were skipped, and how long it took."""
    return (
        f"{examination.count(PASS)} passed, {examination.count(FAIL)} failed, "
        f"{examination.count(SKIPPED)} skipped in {examination.seconds:.0f} s"
    )


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "figure": finding.figure if math.isfinite(finding.figure) else None,
        "bound": finding.bound,
        "at_least": finding.at_least,
        "ok": finding.ok,
    }
