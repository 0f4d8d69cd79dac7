"""A comparison's rows as Markdown, JSON, CSV, and a table for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trb_mlx.comparison.spec import HIGHER_IS_BETTER, CompareSpec
from trb_mlx.comparison.statistics import Row
from trb_mlx.evaluation.intervals import LEVEL, Interval
from trb_mlx.files import disk_errors, json_text, replacing
from trb_mlx.runs.metrics import AXIS_WORDS
from trb_mlx.text import clock, is_share, number

# For a terminal, which has no room for whole headings.
SHORT = (
    "method",
    "final",
    "best",
    "Δ (seeds)",
    "Δ (problems)",
    "early",
    "rev. KL",
    "time",
    "tokens",
)
EQUAL = ("equal.pass@1", "equal.reverse_kl")
_AXIS = {"tokens": "tokens", "cpu_seconds": "CPU seconds"}
NARROW = ("method", "final", "Δ (seeds)", "early", "time")  # where not all columns fit


def _equal_headings(spec: CompareSpec) -> list[str]:
    at = f"at equal {_AXIS[spec.axis]}" if spec.axis in _AXIS else None
    return [f"pass@1 {at}", f"reverse KL {at}"] if at else []


def short_headings(spec: CompareSpec) -> list[str]:
    """The same for a terminal, which has no room for whole ones."""
    equal = ["equal", "equal rev. KL"] if spec.axis in _AXIS else []
    return [*SHORT[:5], *equal, *SHORT[5:]]


def headings(spec: CompareSpec) -> list[str]:
    """The table's columns."""
    against = f"Δ {spec.decides} to {spec.reference}"
    return [
        "method",
        "final pass@1",
        "best pass@1",
        f"{against} (seeds)",
        f"{against} (problems)",
        *_equal_headings(spec),
        f"early area (≤ {spec.early_steps})",
        "final reverse KL",
        "time",
        "tokens",
    ]


def cells(spec: CompareSpec, row: Row) -> list[str]:
    """One row as text; intervals as ± half their width, or as both ends where lopsided."""
    mean = row.over_seeds
    early = "early.area" if "early.area" in mean else "early.reverse_kl"
    return [
        row.variant + (" *" if row.chosen and row.variant != row.method else ""),
        _interval("final.pass@1", mean.get("final.pass@1")),
        _interval("best.pass@1", mean.get("best.pass@1")),
        _interval(spec.decides, row.difference.get(spec.decides), signed=True),
        _interval(spec.decides, row.over_problems.get(spec.decides), signed=True, ends=True),
        *[_interval(name, mean.get(name)) for name in EQUAL if spec.axis in _AXIS],
        _interval(early, mean.get(early)),
        _interval("final.reverse_kl", mean.get("final.reverse_kl")),
        clock(mean["cost.seconds"].value),
        f"{mean['cost.tokens'].value:,.0f}",
    ]


def _interval(
    metric: str, interval: Interval | None, signed: bool = False, ends: bool = False
) -> str:
    if interval is None:
        return "–"
    scale, form, unit = 1.0, ".3g", ""
    if is_share(metric):
        scale, form, unit = 100.0, ".1f", " pp" if signed else "%"
    sign = "+" if signed else ""
    value = number(scale * interval.value, sign + form)
    if interval.low is None or interval.high is None or interval.half_width is None:
        return value + unit
    if ends:
        low, high = (number(scale * end, sign + form) for end in (interval.low, interval.high))
        return f"{value}{unit} [{low}, {high}]"
    return f"{value} ± {number(scale * interval.half_width, form)}{unit}"


def verdict(spec: CompareSpec, rows: Sequence[Row]) -> str:
    """The deciding metric, and the method that leads by it among the variants chosen unseen.

    It is decided where the interval over seeds of the leader's difference to the reference leaves
    0 out; where the reference leads, that of the next best method.
    """
    candidates = [row for row in rows if row.chosen and spec.decides in row.over_seeds]
    if not candidates:
        return f"decides: {spec.decides}, which no run has."
    sign = 1.0 if spec.decides.endswith(HIGHER_IS_BETTER) else -1.0
    candidates.sort(key=lambda row: -sign * row.over_seeds[spec.decides].value)
    best = candidates[0]
    top = best.over_seeds[spec.decides]
    level = [row.variant for row in candidates if row.over_seeds[spec.decides].value == top.value]
    text = _interval(spec.decides, top)
    if len(level) > 1:
        return f"decides: {spec.decides}: {' and '.join(level)} are level with {text}"
    leads = f"decides: {spec.decides}: {best.variant} leads with {text}"
    rivals = candidates[1:] if best.method == spec.reference else [best]
    if not rivals or spec.decides not in rivals[0].difference:
        return leads
    rival = rivals[0]
    gap = rival.difference[spec.decides]
    ahead = _interval(spec.decides, gap, signed=True)
    doubt = _doubt(gap, len(rival.seeds))
    if rival is best:
        return f"{leads}, {ahead} to {spec.reference}{doubt}"
    return f"{leads}, {rival.variant} follows, {ahead} to it{doubt}"


def _doubt(gap: Interval, seeds: int) -> str:
    """Why a difference decides nothing, in brackets; empty where it does."""
    if gap.low is None or gap.high is None:
        return f" ({'one seed' if seeds == 1 else 'seeds alike'}, no interval: not decided)"
    return "" if gap.low > 0 or gap.high < 0 else " (the interval holds 0: not decided)"


def notes(spec: CompareSpec, rows: Sequence[Row]) -> list[str]:
    """What the figures are, in sentences."""
    seeds = max((row.seeds for row in rows), key=len)
    over = f"Student's t over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    if len(seeds) == 1:
        over = f"none over seeds, for there is one ({seeds[0]})"
    return [
        f"{LEVEL:.0%} intervals: {over}; (problems): paired BCa bootstrap over problems of the "
        "same difference.",
        "Paired: at one seed all methods train on the same prompts in the same order, for none may "
        f"change data, batch or seed, and answer the same {spec.problems} held-out problems × "
        f"{spec.samples} (checked by their texts).",
        "best: the checkpoint, and *: the setting of a sweep, that did best on other held-out "
        "problems during training, none of those reported on.",
        f"early area: mean height of the held-out curve up to step {spec.early_steps} (of reverse "
        "KL where no problem has an answer). "
        "time and tokens: of training a run, its evaluations included.",
        *_equal_note(spec, rows),
    ]


def _equal_note(spec: CompareSpec, rows: Sequence[Row]) -> list[str]:
    cost = rows[0].equal_cost
    if cost is None:
        return []
    return [
        f"equal: at {cost:,.0f} {AXIS_WORDS[spec.axis]}, which all runs reached; by the held-out "
        "problems of training, linear between its evaluations.",
    ]


def terminal_table(spec: CompareSpec, rows: Sequence[Row], console: Console) -> Table:
    """The table under short headings, with as many columns as the console has room for."""
    table = _terminal_table(spec, rows, short_headings(spec))
    unbounded = console.options.update(max_width=10_000)
    fits = console.measure(table, options=unbounded).maximum <= console.width
    return table if fits else _terminal_table(spec, rows, NARROW)


def _terminal_table(spec: CompareSpec, rows: Sequence[Row], columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, heading in enumerate(columns):
        table.add_column(heading, justify="right" if column else "left")
    for row in rows:
        by_heading = dict(zip(short_headings(spec), cells(spec, row), strict=True))
        table.add_row(*(by_heading[heading] for heading in columns))
    return table


def write_tables(folder: Path, spec: CompareSpec, rows: Sequence[Row], missing: int) -> None:
    """`table.md`, `table.json` and `table.csv`; `missing` runs are not finished yet."""
    for name, text in (
        ("table.md", _markdown(spec, rows, missing)),
        ("table.json", _json(spec, rows, missing)),
        ("table.csv", _csv(rows)),
    ):
        with disk_errors(str(folder / name)), replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")


def _markdown(spec: CompareSpec, rows: Sequence[Row], missing: int) -> str:
    columns = headings(spec)
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *(cells(spec, row) for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in table]
    unfinished = [f"{missing} runs are not finished.", ""] if missing else []
    items = [f"- {note}" for note in notes(spec, rows)]
    return "\n".join([*unfinished, verdict(spec, rows), "", *lines, "", *items, ""])


def _json(spec: CompareSpec, rows: Sequence[Row], missing: int) -> str:
    values: dict[str, Any] = {
        "spec": spec.model_dump(mode="json"),
        "missing_runs": missing,
        "verdict": verdict(spec, rows),
        "rows": [asdict(row) for row in rows],
    }
    return json_text(values) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """One line a variant, seed and metric: what a notebook wants."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "variant", "seed", "metric", "value"])
    for row in rows:
        for metric, values in row.values.items():
            for seed, value in zip(row.seeds, values, strict=True):
                writer.writerow([row.method, row.variant, seed, metric, value])
    return text.getvalue()
