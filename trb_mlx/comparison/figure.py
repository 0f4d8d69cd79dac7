"""A comparison as a picture: each setting's paired difference to the reference, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trb_mlx.comparison.outcomes import Outcome
from trb_mlx.comparison.spec import CompareSpec
from trb_mlx.comparison.statistics import Row, equal_cost
from trb_mlx.files import disk_errors, replacing
from trb_mlx.report.plots import DPI, STYLE
from trb_mlx.report.theme import DASHES, LIGHT, MARKERS, assign_slots, color_of, stroke_of
from trb_mlx.runs.metrics import AXIS_WORDS
from trb_mlx.text import is_share

WIDTH = 7.6  # inches
ROW_HEIGHT = 0.36  # inches
MARGINS = 1.4  # inches of the height: title, legend, axis
GAP = 0.26  # of a row, between its two intervals
CURVES = {"pass@1": "pass@1", "reverse_kl": "reverse KL, nats a token"}
SERIES = (("over seeds (t)", "series-0", "o"), ("over problems (BCa)", "series-1", "s"))


def write_figure(path: Path, spec: CompareSpec, rows: Sequence[Row]) -> bool:
    """A PNG with a panel for the metric that decides and one for the early curve's area.

    Returns:
        Whether there was anything but the reference to draw.

    Raises:
        RunError: the file could not be written.
    """
    others = [row for row in rows if row.difference]
    wanted = dict.fromkeys((spec.decides, "early.area", "early.reverse_kl"))
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


def write_curves(path: Path, spec: CompareSpec, outcomes: Sequence[Outcome]) -> bool:
    """A PNG with the held-out curves of all methods, means over seeds, over the spec's axis.

    The dashed line is the cost at which methods are compared.

    Returns:
        Whether there was anything to draw.

    Raises:
        RunError: the file could not be written.
    """
    names = [name for name in CURVES if all(name in outcome.curves for outcome in outcomes)]
    if not names:
        return False
    with disk_errors(str(path)), replacing(path) as draft, mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _draw_curves(axes, spec, outcomes, name)
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4, handlelength=1.6)
        figure.savefig(draft, format="png", dpi=DPI, facecolor=LIGHT["page"])
    return True


def _draw_curves(axes: Axes, spec: CompareSpec, outcomes: Sequence[Outcome], name: str) -> None:
    methods = {outcome.variant: outcome.method for outcome in outcomes}
    for variant, slot in zip(methods, assign_slots([*methods.values()]), strict=True):
        curves = [outcome.curves[name] for outcome in outcomes if outcome.variant == variant]
        length = min(map(len, curves))  # evaluations that all seeds have
        places, values = np.mean([curve[:length] for curve in curves], axis=0).T
        color, stroke = LIGHT[color_of(slot)], stroke_of(slot)
        (line,) = axes.plot(places, values, MARKERS[stroke], ms=3, color=color, label=variant)
        line.set(linestyle="-", linewidth=1.4, dashes=DASHES[stroke])
    cost = equal_cost(spec, outcomes)
    if cost is not None:
        axes.axvline(cost, color=LIGHT["muted"], lw=1, dashes=(3, 3), zorder=1)
    axes.set_title(f"held-out {CURVES[name]}", loc="left", fontsize=9.5, fontweight="bold")
    axes.set_xlabel(AXIS_WORDS[spec.axis])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y")


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
