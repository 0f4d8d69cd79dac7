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

from trb_mlx.comparison.spec import CompareSpec
from trb_mlx.comparison.statistics import Row, is_better_higher
from trb_mlx.evaluation.intervals import LEVEL, Interval
from trb_mlx.files import disk_errors, json_text, replacing
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
NARROW = ("method", "final", "Δ (seeds)", "early", "time")  # where not all columns fit


def headings(spec: CompareSpec) -> list[str]:
    """The table's columns."""
    against = f"Δ {spec.decides} to {spec.reference}"
    return [
        "method",
        "final pass@1",
        "best pass@1",
        f"{against} (seeds)",
        f"{against} (problems)",
        f"early area (≤ {spec.early_steps})",
        "final reverse KL",
        "time",
        "tokens",
    ]


def cells(spec: CompareSpec, row: Row) -> list[str]:
    """One row as text; intervals as ± half their width, or as both ends where lopsided."""
    mean = row.over_seeds
    return [
        row.variant + (" *" if row.chosen and row.variant != row.method else ""),
        _told("final.pass@1", mean.get("final.pass@1")),
        _told("best.pass@1", mean.get("best.pass@1")),
        _told(spec.decides, row.difference.get(spec.decides), signed=True),
        _told(spec.decides, row.over_problems.get(spec.decides), signed=True, ends=True),
        _told("early.area", mean.get("early.area")),
        _told("final.reverse_kl", mean.get("final.reverse_kl")),
        clock(mean["cost.seconds"].value),
        f"{mean['cost.tokens'].value:,.0f}",
    ]


def _told(metric: str, found: Interval | None, signed: bool = False, ends: bool = False) -> str:
    if found is None:
        return "–"
    scale, form, unit = 1.0, ".3g", ""
    if is_share(metric):
        scale, form, unit = 100.0, ".1f", " pp" if signed else "%"
    sign = "+" if signed else ""
    value = number(scale * found.value, sign + form)
    if found.low is None or found.high is None or found.half_width is None:
        return value + unit
    if ends:
        low, high = (number(scale * end, sign + form) for end in (found.low, found.high))
        return f"{value}{unit} [{low}, {high}]"
    return f"{value} ± {number(scale * found.half_width, form)}{unit}"


def verdict(spec: CompareSpec, rows: Sequence[Row]) -> str:
    """The deciding metric, and the method that leads by it among the variants chosen unseen.

    Whether that is decided is told by the interval over seeds of the leader's difference to the
    reference; where the reference leads, of the next best method's.
    """
    able = [row for row in rows if row.chosen and spec.decides in row.over_seeds]
    if not able:
        return f"decides: {spec.decides}, which no run has."
    sign = 1.0 if is_better_higher(spec.decides) else -1.0
    able.sort(key=lambda row: -sign * row.over_seeds[spec.decides].value)
    best = able[0]
    top = best.over_seeds[spec.decides]
    level = [row.variant for row in able if row.over_seeds[spec.decides].value == top.value]
    told = _told(spec.decides, top)
    if len(level) > 1:
        return f"decides: {spec.decides}: {' and '.join(level)} are level with {told}"
    leads = f"decides: {spec.decides}: {best.variant} leads with {told}"
    rivals = able[1:] if best.method == spec.reference else able[:1]
    if not rivals or spec.decides not in rivals[0].difference:
        return leads
    gap = rivals[0].difference[spec.decides]
    ahead = _told(spec.decides, gap, signed=True)
    sure = "" if _excludes_zero(gap) else f" ({_doubt(gap, rivals[0])}: not decided)"
    if rivals[0] is best:
        return f"{leads}, {ahead} to {spec.reference}{sure}"
    return f"{leads}, {rivals[0].variant} follows, {ahead} to it{sure}"


def _doubt(found: Interval, row: Row) -> str:
    if found.low is not None:
        return "the interval holds 0"
    return "one seed, no interval" if len(row.seeds) == 1 else "seeds alike, no interval"


def _excludes_zero(found: Interval) -> bool:
    return found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)


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
        f"early area: mean height of the held-out curve up to step {spec.early_steps}. "
        "time and tokens: of training a run, its evaluations included.",
    ]


def terminal_table(spec: CompareSpec, rows: Sequence[Row], console: Console) -> Table:
    """The table under short headings, with as many columns as the console has room for."""
    table = _terminal_table(spec, rows, SHORT)
    unbounded = console.options.update(max_width=10_000)
    fits = console.measure(table, options=unbounded).maximum <= console.width
    return table if fits else _terminal_table(spec, rows, NARROW)


def _terminal_table(spec: CompareSpec, rows: Sequence[Row], columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, heading in enumerate(columns):
        table.add_column(heading, justify="right" if column else "left")
    for row in rows:
        told = dict(zip(SHORT, cells(spec, row), strict=True))
        table.add_row(*(told[heading] for heading in columns))
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
    told = [f"- {note}" for note in notes(spec, rows)]
    return "\n".join([*unfinished, verdict(spec, rows), "", *lines, "", *told, ""])


def _json(spec: CompareSpec, rows: Sequence[Row], missing: int) -> str:
    found: dict[str, Any] = {
        "spec": spec.model_dump(mode="json"),
        "missing_runs": missing,
        "verdict": verdict(spec, rows),
        "rows": [asdict(row) for row in rows],
    }
    return json_text(found) + "\n"


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
