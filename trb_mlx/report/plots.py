"""Draws a chart with matplotlib, as inline SVG that follows the page's theme and as PNG."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trb_mlx.report.charts import Chart, Line
from trb_mlx.report.svg import inline_svg
from trb_mlx.report.theme import DASHES, LIGHT, MARKERS, color_of, stroke_of
from trb_mlx.text import number, rounded

SIZE = (5.4, 3.1)  # inches
DPI = 180
LEGEND_CHARACTERS = 75  # across the axes
LONGEST_LABEL = 56
HEADROOM = 0.1  # of the vertical span, for the word above a shaded warm-up
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trb-mlx",  # one chart gives one file
    "text.parse_math": False,  # a run's name may hold a dollar sign
    "font.size": 9,
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
}
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its font cache is not news


@dataclass(frozen=True)
class Drawing:
    """A chart as an `<svg>` whose colours are the page's CSS variables, and as PNG bytes."""

    svg: str
    png: bytes


def draw(chart: Chart) -> Drawing:
    """Both forms of a chart; the PNG, which stands alone, has its title and a white ground."""
    with mpl.rc_context(STYLE):
        figure = _draw(chart)
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
        figure.suptitle(chart.title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.savefig(pixels, format="png", dpi=DPI, facecolor=LIGHT["page"])
    return Drawing(inline_svg(vector.getvalue(), chart.key, chart.alt), pixels.getvalue())


def _draw(chart: Chart) -> Figure:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for place, end in enumerate(chart.shaded):
        axes.axvspan(0, end, color=LIGHT["shade"], lw=0, zorder=0)
        if place == 0:
            axes.annotate(
                "warm-up",
                (0, 1),
                (3, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                fontsize=8,
                color=LIGHT["muted"],
            )
    for line in chart.lines:
        _draw_line(axes, line)
    _draw_level(axes, chart)
    _dress(axes, chart)
    if len(chart.lines) > 1:
        _add_legend(figure, axes, chart)
    return figure


def _add_legend(figure: Figure, axes: Axes, chart: Chart) -> None:
    """Above the axes, in as many columns as the figure is wide enough for."""
    longest = max(len(_short(line.label)) for line in chart.lines)
    most = min(max(1, LEGEND_CHARACTERS // (longest + 6)), len(chart.lines))
    for columns in range(most, 0, -1):
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            ncols=columns,
            fontsize=8.5,
            handlelength=2.4,
            borderaxespad=0,
            borderpad=0.2,
        )
        figure.draw_without_rendering()  # where things stand is known only then
        if legend.get_window_extent().x1 <= figure.bbox.x1:
            return


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _draw_line(axes: Axes, line: Line) -> None:
    color, stroke = LIGHT[color_of(line.slot)], stroke_of(line.slot)
    if line.reference:
        axes.plot(line.x, line.y, color=color, lw=1.2, dashes=(1, 1.6), label=_short(line.label))
        return
    dashes = DASHES[stroke]
    marker = MARKERS[stroke] if line.marked or len(line.x) == 1 else None
    axes.plot(
        line.x,
        line.y,
        color=color,
        lw=1.7,
        dashes=dashes or (None, None),
        marker=marker,
        ms=4.5,
        label=_short(line.label),
        clip_on=marker is None,
    )
    if line.low is not None and line.high is not None:
        if line.bars:
            axes.vlines(line.x, line.low, line.high, color=color, lw=1.2)
        else:
            axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, lw=0)
    for x, y, note in zip(line.x, line.y, line.notes, strict=False):
        axes.annotate(note, (x, y), (7, -9), textcoords="offset points", fontsize=8.5)


def _draw_level(axes: Axes, chart: Chart) -> None:
    if chart.level is None:
        return
    value, label = chart.level
    axes.axhline(value, color=LIGHT["muted"], lw=1, dashes=(3, 3), zorder=1)
    axes.annotate(
        label,
        (1, value),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=LIGHT["muted"],
    )


def _dress(axes: Axes, chart: Chart) -> None:
    """Scales, ticks, grid and labels."""
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.grid(axis="y")
    axes.tick_params(length=3)
    if chart.ticks:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks)
        axes.margins(x=0.12)
    elif chart.x_label == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.set_xlim(left=0)
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(*_limits(axes, chart))
    if chart.shaded:
        bottom, top = axes.get_ylim()
        grown = top * (top / bottom) ** HEADROOM if chart.log else top + HEADROOM * (top - bottom)
        axes.set_ylim(bottom, grown)
    if chart.percent:
        bottom, top = axes.get_ylim()  # a share above one is no share
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick < min(top, 1.001)])
    form = partial(number, form=".0%") if chart.percent else rounded
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _limits(axes: Axes, chart: Chart) -> tuple[float, float]:
    """From zero unless that would flatten the lines; shares that reach a half end at one."""
    bottom, top = axes.get_ylim()
    lowest = min(float(line.y.min()) for line in chart.lines)
    highest = max(float(line.y.max()) for line in chart.lines)
    if chart.percent:
        top = 1.02 if highest > 0.5 else top
    if lowest >= 0 and lowest < (0.5 if chart.percent else 0.4 * highest):
        bottom = 0.0
    if chart.level is not None and chart.level[0] <= bottom:
        bottom = chart.level[0] - 0.04 * (top - chart.level[0])
    return bottom, top
