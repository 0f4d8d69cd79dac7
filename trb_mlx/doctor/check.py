"""A check: something measured against a bound, that passes, fails or says why it was skipped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


class Skip(Exception):
    """Raised by a check that cannot run on this machine; its text says why."""


@dataclass(frozen=True)
class Finding:
    """A measured figure and its bound: the most that is allowed, or the least (`at_least`)."""

    what: str
    figure: float
    bound: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the bound holds; nan never does."""
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    def __str__(self) -> str:
        sign = {(True, True): "≥", (True, False): "<", (False, True): "≤", (False, False): ">"}
        return f"{self.what} {self.figure:.4g} {sign[self.at_least, self.ok]} {self.bound:g}"


@dataclass(frozen=True)
class Check:
    """A name and what measures; it raises `Skip` where it cannot run here."""

    name: str
    measure: Callable[[], Sequence[Finding]]


@dataclass(frozen=True)
class Outcome:
    """What became of a check: `PASS`, `FAIL` or `SKIPPED`, with the reason where there is one."""

    name: str
    result: str
    findings: tuple[Finding, ...]
    reason: str
    seconds: float

    @property
    def measured(self) -> str:
        """Figures against bounds, or the reason, as one line."""
        return self.reason or "; ".join(str(finding) for finding in self.findings)


def run_check(check: Check) -> Outcome:
    """Run one check; an exception is a failure with its first line as the reason."""
    begun = time.perf_counter()
    findings: tuple[Finding, ...] = ()
    reason = ""
    try:
        findings = tuple(check.measure())
        result = PASS if findings and all(finding.ok for finding in findings) else FAIL
    except Skip as why:
        result, reason = SKIPPED, str(why)
    except Exception as error:  # whatever breaks here is what the user needs to know
        first = (str(error).strip().splitlines() or [""])[0]
        result, reason = FAIL, without_paths(f"{type(error).__name__}: {first}")
    return Outcome(check.name, result, findings, reason, time.perf_counter() - begun)


def run_checks(
    checks: Iterable[Check], begin: Callable[[str], None] = lambda name: None
) -> Iterator[Outcome]:
    """Run checks one after another; `begin` hears each name first."""
    for check in checks:
        begin(check.name)
        yield run_check(check)


def without_paths(text: str) -> str:
    """The text with folders and access tokens cut away, fit for a public bug report."""
    text = text.replace(str(Path.home()) + "/", "…/")
    text = re.sub(r"(?<![\w.…:/])(?:/[^\s/'\":,;()]+)+/", "…/", text)
    return re.sub(r"\b(?:hf|sk|ghp)[_-]\w{8,}", "(token)", text)
