"""The tables of a report: key results, where the time went, what was set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trb_mlx.config_file import flatten
from trb_mlx.report.charts import Chart
from trb_mlx.report.curves import Curve, Method, RunData, curve, differing
from trb_mlx.text import clock, rounded

SHOWN_ROWS = 13  # of a figure's numbers
PHASES = {
    "time/rollout_s": "rollouts",
    "time/update_s": "updates",
    "time/reward_s": "rewards",
    "time/eval_s": "evaluation",
}
PEAKS = {  # runs of earlier versions have none of them
    "memory/rollout_gb": "rollouts",
    "memory/score_gb": "scoring",
    "memory/update_gb": "updates",
    "memory/eval_gb": "evaluation",
}


class Result(NamedTuple):
    """One key figure, with what belongs beside it."""

    name: str
    value: str
    note: str


def key_results(method: Method) -> list[Result]:
    """What a reader looks for first, as far as the runs have it."""
    results = []
    if accuracy := curve(method, "eval/pass@1"):
        best = int(np.argmax(accuracy.values))
        notes = [f"best {rounded(accuracy.values[best], True)} at step {accuracy.places[best]:.0f}"]
        if teacher := curve(method, "eval/teacher_pass@1"):
            notes.append(f"teacher {rounded(teacher.values[0], True)}")
        results.append(_first_to_last("pass@1", accuracy, len(method.runs), notes, share=True))
    if divergence := curve(method, "eval/reverse_kl"):
        notes = ["nats a token, held out"]
        results.append(_first_to_last("reverse KL", divergence, len(method.runs), notes))
    seconds = time_spent(method)
    if total := sum(seconds.values()):
        shares = {name: part / total for name, part in seconds.items() if part >= 0.01 * total}
        note = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        results.append(Result("time", clock(total), note))
    if speed := curve(method, "tokens_per_second"):
        results.append(Result("throughput", f"{speed.values.mean():,.0f} tokens/s", ""))
    if memory := curve(method, "memory/peak_gb"):
        phases = ((name, curve(method, metric)) for metric, name in PEAKS.items())
        note = ", ".join(f"{name} {rounded(gb.values.max())}" for name, gb in phases if gb)
        results.append(Result("peak memory", f"{rounded(memory.values.max())} GiB", note))
    return results


def _first_to_last(
    name: str, values: Curve, seeds: int, notes: Sequence[str], share: bool = False
) -> Result:
    """A metric's first and last value; of several seeds the last one's range heads the notes."""
    first, last = (rounded(values.values[end], share) for end in (0, -1))
    if seeds > 1 and values.low is not None and values.high is not None:
        low, high = rounded(values.low[-1], share), rounded(values.high[-1], share)
        notes = [f"seeds {low} to {high}", *notes]
    return Result(name, first if len(values.values) == 1 else f"{first} → {last}", ", ".join(notes))


def time_spent(method: Method) -> dict[str, float]:
    """Seconds a run in each phase that took any, the mean over seeds."""
    seconds = {
        name: float(np.mean([sum(run.points(metric).values()) for run in method.runs]))
        for metric, name in PHASES.items()
    }
    return {name: spent for name, spent in seconds.items() if spent}


def settings(run: RunData) -> dict[str, list[tuple[str, str]]]:
    """Section → its keys with their values."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in flatten(run.config).items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append((name, _setting_text(value)))
    return sections


def differences(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """The keys in which methods differ, each with the methods' values."""
    flat = [flatten(method.runs[0].config) for method in methods]
    return [(key, [_setting_text(each.get(key)) for each in flat]) for key in differing(methods)]


def _setting_text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", "↵")


def numbers(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """A figure's headings and rows, each value with its spread where it has one.

    Of a long curve some rows spread over it, ends included.
    """
    text = chart.value_text
    places = sorted({float(x) for line in chart.lines for x in line.x})
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), SHOWN_ROWS)).round())
    rows = [[chart.x_text(places[int(i)])] for i in chosen]
    for line in chart.lines:
        texts = [text(value) for value in line.y]
        if line.low is not None and line.high is not None:
            spreads = zip(texts, line.low, line.high, strict=True)
            texts = [f"{value} ({text(low)} to {text(high)})" for value, low, high in spreads]
        cells = dict(zip(line.x.tolist(), texts, strict=True))
        for row, index in zip(rows, chosen, strict=True):
            row.append(cells.get(places[int(index)], "–"))
    return [chart.x_label, *(line.label for line in chart.lines)], rows
