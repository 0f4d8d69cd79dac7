"""One self-contained HTML page, and a PNG of each figure beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trb_mlx import __version__
from trb_mlx.evaluation.diagnostics import Diagnostics, read_diagnostics
from trb_mlx.files import disk_errors, replacing
from trb_mlx.method import describe_method
from trb_mlx.report.charts import Chart
from trb_mlx.report.curve_charts import SECTIONS, SPECS, chart_of
from trb_mlx.report.curves import Method, RunData, group_runs, read_runs
from trb_mlx.report.diagnostic_charts import diagnostic_charts
from trb_mlx.report.plots import Drawing, draw
from trb_mlx.report.results import (
    differences,
    key_results,
    numbers,
    settings,
    time_spent,
)
from trb_mlx.report.theme import DARK, LIGHT, color_of
from trb_mlx.runs.metrics import Axis
from trb_mlx.text import minus, number

# Nats at which a token's shade grows by one step, on either side of zero.
EDGES = (0.25, 1.0, 3.0, 8.0)


@dataclass(frozen=True)
class Section:
    """A part of the page: its figures, the titles of those that lack a metric, and a note."""

    key: str
    title: str
    charts: Sequence[Chart]
    missing: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class MeasuredRun:
    """A run's diagnostics with their figures."""

    name: str
    diagnostics: Diagnostics
    charts: Sequence[Chart]


def kept_diagnostics(run: RunData) -> Diagnostics | None:
    """What was measured of a run before, or None."""
    return read_diagnostics(run.folder.diagnostics)


def report_runs(
    paths: Sequence[str],
    out: Path | None = None,
    diagnostics_of: Callable[[RunData], Diagnostics | None] = kept_diagnostics,
    axis: Axis = "steps",
) -> list[Path]:
    """Report on run folders and give the files written, the page first.

    Args:
        paths: run folders.
        out: where to; None is the run's own `report/`, or `./report/` for several runs.
        diagnostics_of: a run's diagnostics, or None where it has none.
        axis: what curves go over.

    Raises:
        UserError: a path is no run, or one whose metrics have no costs, for an axis of cost.
        RunError: the report could not be written.
    """
    runs = read_runs(paths)
    measured = {run.name: each for run in runs if (each := diagnostics_of(run))}
    if out is None:
        out = runs[0].folder.report if len(runs) == 1 else Path("report")
    with disk_errors(f"report {out}"):
        return write_report(group_runs(runs), measured, out, axis)


def write_report(
    methods: Sequence[Method],
    measured: Mapping[str, Diagnostics],
    out: Path,
    axis: Axis = "steps",
) -> list[Path]:
    """Write `index.html` and the PNGs of a report into `out`.

    Args:
        methods: the runs, grouped.
        measured: diagnostics by the name of their run.
        out: the folder, made where it is missing.
        axis: what curves go over.

    Returns:
        The files written, the page first.

    Raises:
        OSError: a file could not be written.
    """
    sections, examined = make_sections(methods, axis), measured_runs(methods, measured)
    parts: list[Section | MeasuredRun] = [*sections, *examined]
    drawings = {chart.key: draw(chart) for part in parts for chart in part.charts}
    page = out / "index.html"
    with replacing(page) as draft:
        draft.write_text(render(methods, sections, examined, drawings), encoding="utf-8")
    for key, drawing in drawings.items():
        with replacing(out / f"{key}.png") as draft:
            draft.write_bytes(drawing.png)
    return [page, *(out / f"{key}.png" for key in drawings)]


def make_sections(methods: Sequence[Method], axis: Axis = "steps") -> list[Section]:
    """The sections of curves; instead of lines at zero a sentence where no policy blended."""
    weights = [run.points("trb/beta_mean").values() for m in methods for run in m.runs]
    student_alone = all(each and not any(each) for each in weights)
    sections = []
    for key, title in SECTIONS.items():
        if key == "behavior" and student_alone:
            sections.append(Section(key, title, [], [], "The student drew every token alone."))
            continue
        drawn = [(spec, chart_of(spec, methods, axis)) for spec in SPECS if spec.section == key]
        charts = [chart for _, chart in drawn if chart is not None]
        missing = [spec.title for spec, chart in drawn if chart is None]
        sections.append(Section(key, title, charts, missing))
    return sections


def measured_runs(
    methods: Sequence[Method], measured: Mapping[str, Diagnostics]
) -> list[MeasuredRun]:
    """Of each method the first run that was measured: seeds share their models."""
    chosen: list[RunData] = []
    for method in methods:
        chosen += [run for run in method.runs if run.name in measured][:1]
    return [
        MeasuredRun(
            run.name,
            measured[run.name],
            diagnostic_charts(measured[run.name], f"run{place}-" if len(chosen) > 1 else ""),
        )
        for place, run in enumerate(chosen, start=1)
    ]


def render(
    methods: Sequence[Method],
    sections: Sequence[Section],
    examined: Sequence[MeasuredRun],
    drawings: Mapping[str, Drawing],
) -> str:
    """The page. Everything but our own SVG and CSS is escaped: prompts may hold anything."""
    first = methods[0].runs[0]
    configs = [run.config for method in methods for run in method.runs]
    environment = Environment(
        loader=PackageLoader("trb_mlx.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "method": describe_method,
        "color": color_of,
        "models": with_subscripts,
        "shade": shade,
        "score": lambda value: minus(number(value, ".2f")),
        "visible": visible,
    }
    context: dict[str, Any] = {
        "title": first.name if len(methods) == 1 else f"{len(methods)} methods compared",
        "version": __version__,
        "methods": methods,
        "first": first,
        "pairs": sorted({f"{c.student.model} ← {c.teacher.model}" for c in configs}),
        "results": [key_results(method) for method in methods],
        "sections": sections,
        "examined": examined,
        "times": [time_spent(method) for method in methods],
        "differences": differences(methods),
        "settings": settings(first),
        "light": LIGHT,
        "dark": DARK,
        "edges": EDGES,
        "drawings": drawings,
        "numbers": numbers,
    }
    return environment.get_template("report.html.j2").render(context)


def visible(piece: str) -> str:
    """A token's text with its line ends made visible."""
    return piece.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥\t")


def shade(score: float) -> int:
    """−4 (the teacher finds the token far less likely than the student) to 4."""
    level = sum(abs(score) >= edge for edge in EDGES)
    return level if score > 0 else -level


def with_subscripts(text: str) -> Markup:
    """Our own text with π_S and π_T set as they are in print."""
    return Markup(re.sub(r"π_([ST])", r"π<sub>\1</sub>", str(escape(text))))
