"""An examination as a table, as text for a bug report, and as JSON."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trb_mlx.doctor.check import FAIL, PASS, SKIPPED, Finding, Outcome
from trb_mlx.doctor.examination import Examination

STYLES = {PASS: "green", FAIL: "bold red", SKIPPED: "yellow"}


def as_table(found: Examination) -> Group:
    """Facts, checks and advice for a terminal."""
    about = Table(box=None, show_header=False, pad_edge=False)
    for name, value in found.facts.items():
        about.add_row(Text(name), Text(str(value)))
    checks = Table(box=None, pad_edge=False)
    for heading in ("check", "result", "measured"):
        checks.add_column(heading)
    checks.add_column("s", justify="right")
    for outcome in found.outcomes:
        result = Text(outcome.result, STYLES[outcome.result])
        checks.add_row(outcome.name, result, Text(outcome.told), f"{outcome.seconds:.1f}")
    told = [Text(f"→ {line}") for line in found.advice]
    return Group(about, Text(), checks, Text(), *told, Text(summary(found)))


def as_text(found: Examination) -> str:
    """The same in plain lines, ready to paste."""
    width = max(len(name) for name in found.facts)
    lines = [f"{name:<{width}}  {value}" for name, value in found.facts.items()]
    width = max((len(outcome.name) for outcome in found.outcomes), default=0)
    lines.append("")
    for outcome in found.outcomes:
        head = f"{outcome.result.upper():<7}  {outcome.name:<{width}}"
        lines.append(f"{head}  {outcome.told} ({outcome.seconds:.1f} s)")
    return "\n".join([*lines, "", *(f"advice: {line}" for line in found.advice), summary(found)])


def as_json(found: Examination) -> dict[str, Any]:
    """The same as JSON values; a figure that is not finite is null."""
    return {
        "machine": found.facts,
        "checks": [_outcome_json(outcome) for outcome in found.outcomes],
        "advice": found.advice,
        "passed": found.count(PASS),
        "failed": found.count(FAIL),
        "skipped": found.count(SKIPPED),
        "seconds": round(found.seconds, 1),
    }


def summary(found: Examination) -> str:
    """One line: how many passed, failed and were skipped, and how long it took."""
    return (
        f"{found.count(PASS)} passed, {found.count(FAIL)} failed, "
        f"{found.count(SKIPPED)} skipped in {found.seconds:.0f} s"
    )


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "result": outcome.result,
        "findings": [_finding_json(finding) for finding in outcome.findings],
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 2),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "figure": finding.figure if math.isfinite(finding.figure) else None,
        "bound": finding.bound,
        "at_least": finding.at_least,
        "ok": finding.ok,
    }
