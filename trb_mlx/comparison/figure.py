"""A comparison as a picture: each setting's paired difference to the reference, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trb_mlx.comparison.spec import CompareSpec
from trb_mlx.comparison.statistics import Row
from trb_mlx.files import disk_errors, replacing
from trb_mlx.report.plots import DPI, STYLE
from trb_mlx.report.theme import LIGHT
from trb_mlx.text import is_share

WIDTH = 7.6  # inches
ROW_HEIGHT = 0.36  # inches
MARGINS = 1.4  # inches of the height: title, legend, axis
GAP = 0.26  # of a row, between its two intervals
SERIES = (("over seeds (t)", "series-0", "o"), ("over problems (BCa)", "series-1", "s"))


def write_figure(path: Path, spec: CompareSpec, rows: Sequence[Row]) -> bool:
    """A PNG with a panel for the metric that decides and one for the early curve's area.

    Returns:
        Whether there was anything but the reference to draw.

    Raises:
        RunError: the file could not be written.
    """
    others = [row for row in rows if row.difference]
    wanted = dict.fromkeys((spec.decides, "early.area"))
    names = [name for name in wanted if any(name in row.difference for row in others)]
    if not names:
        return False
    with disk_errors(str(path)), replacing(path) as draft, mpl.rc_context(STYLE):
        figure = draw_differences(spec, others, names)
        figure.savefig(draft, format="png", dpi=DPI, facecolor=LIGHT["page"])
    return True


def draw_differences(spec: CompareSpec, rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """A panel a metric, and in it a line of dots and intervals a row."""
    figure = Figure(figsize=(WIDTH, MARGINS + ROW_HEIGHT * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, spec, rows, name)
    panels[0].set_yticks(range(len(rows)), [row.variant for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, handlelength=1.6)
    return figure


def _panel(axes: Axes, spec: CompareSpec, rows: Sequence[Row], name: str) -> None:
    scale = 100.0 if is_share(name) else 1.0
    for side, (label, color, marker) in enumerate(SERIES):
        intervals = {}  # by height
        for number, row in enumerate(rows):
            interval = (row.over_problems if side else row.difference).get(name)
            if interval is not None:
                intervals[number + GAP * (side - 0.5)] = interval
        if not intervals:
            continue
        ink = LIGHT[color]
        values = [scale * interval.value for interval in intervals.values()]
        axes.plot(values, list(intervals), marker, color=ink, ms=4.5, label=label)
        for height, interval in intervals.items():
            if interval.low is not None and interval.high is not None:
                axes.hlines(height, scale * interval.low, scale * interval.high, color=ink, lw=1.4)
    axes.axvline(0.0, color=LIGHT["muted"], lw=1, dashes=(3, 3), zorder=1)
    axes.set_title(f"{name} less {spec.reference}'s", loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel("percentage points" if scale > 1 else "nats a token" if "_kl" in name else "")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
