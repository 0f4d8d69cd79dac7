"""The tables of a report: key results, where the time went, what was set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trb_mlx.config_file import flatten
from trb_mlx.report.charts import Chart, Line
from trb_mlx.report.curves import Curve, Method, RunData, curve, differing
from trb_mlx.text import clock, rounded

SHOWN_ROWS = 13  # of a figure's numbers
PHASES = {
    "time/rollout_s": "rollouts",
    "time/update_s": "updates",
    "time/reward_s": "rewards",
    "time/eval_s": "evaluation",
}


class Result(NamedTuple):
    """One key figure, with what belongs beside it."""

    name: str
    value: str
    note: str


def key_results(method: Method) -> list[Result]:
    """What a reader looks for first, as far as the runs have it."""
    return [result for part in (_accuracy, _divergence, _time, _speed) if (result := part(method))]


def _accuracy(method: Method) -> Result | None:
    found = curve(method, "eval/pass@1")
    if found is None:
        return None
    best = int(np.argmax(found.values))
    teacher = curve(method, "eval/teacher_pass@1")
    notes = [*_range(method, found, share=True)]
    notes.append(f"best {rounded(found.values[best], share=True)} at step {found.steps[best]}")
    notes += [f"teacher {rounded(teacher.values[0], share=True)}"] if teacher else []
    return Result("pass@1", _ends(found, share=True), ", ".join(notes))


def _divergence(method: Method) -> Result | None:
    found = curve(method, "eval/reverse_kl")
    if found is None:
        return None
    notes = [*_range(method, found), "nats a token, held out"]
    return Result("reverse KL", _ends(found), ", ".join(notes))


def _ends(found: Curve, share: bool = False) -> str:
    """The first and the last value."""
    first, last = rounded(found.values[0], share), rounded(found.values[-1], share)
    return first if len(found.values) == 1 else f"{first} → {last}"


def _range(method: Method, found: Curve, share: bool = False) -> list[str]:
    """The last value's range over seeds, where there are several."""
    if len(method.runs) == 1 or found.low is None or found.high is None:
        return []
    low, high = rounded(found.low[-1], share), rounded(found.high[-1], share)
    return [f"seeds {low} to {high}"]


def _time(method: Method) -> Result | None:
    spent = time_spent(method)
    total = sum(spent.values())
    if not total:
        return None
    shares = ", ".join(
        f"{name} {part / total:.0%}" for name, part in spent.items() if part >= 0.01 * total
    )
    return Result("time", clock(total), shares)


def time_spent(method: Method) -> dict[str, float]:
    """Seconds a run in each phase that took any, the mean over seeds."""
    spent = {
        name: float(np.mean([sum(run.points(metric).values()) for run in method.runs]))
        for metric, name in PHASES.items()
    }
    return {name: seconds for name, seconds in spent.items() if seconds}


def _speed(method: Method) -> Result | None:
    found, memory = curve(method, "tokens_per_second"), curve(method, "memory/peak_gb")
    if found is None:
        return None
    note = f"peak memory {rounded(memory.values.max())} GiB" if memory else ""
    return Result("throughput", f"{found.values.mean():,.0f} tokens/s", note)


def settings(run: RunData) -> dict[str, list[tuple[str, str]]]:
    """Section → its keys with their values."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in flatten(run.config).items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append((name, _shown(value)))
    return sections


def differences(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """The keys in which methods differ, each with the methods' values."""
    flat = [flatten(method.runs[0].config) for method in methods]
    return [(key, [_shown(each.get(key)) for each in flat]) for key in differing(methods)]


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", "↵")


def numbers(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """A figure's headings and rows; of a long curve some rows spread over it, ends included."""
    places = sorted({float(x) for line in chart.lines for x in line.x})
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), SHOWN_ROWS)).round())
    rows = [[chart.place(places[int(i)])] for i in chosen]
    for line in chart.lines:
        cells = dict(zip(line.x.tolist(), _cells(chart, line), strict=True))
        for row, index in zip(rows, chosen, strict=True):
            row.append(cells.get(places[int(index)], "–"))
    return [chart.x_label, *(line.label for line in chart.lines)], rows


def _cells(chart: Chart, line: Line) -> list[str]:
    """Each value, with its spread where it has one."""
    if line.low is None or line.high is None:
        return [chart.form(value) for value in line.y]
    return [
        f"{chart.form(value)} ({chart.form(low)} to {chart.form(high)})"
        for value, low, high in zip(line.y, line.low, line.high, strict=True)
    ]
