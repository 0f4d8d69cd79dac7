"""What a figure shows, apart from how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trb_mlx.text import rounded


@dataclass(frozen=True)
class Line:
    """One series: points `[N]`, with a spread drawn as a band or as bars where there is one.

    `reference` lines are dotted and unmarked; `notes` stand beside the points.
    """

    label: str
    slot: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    bars: bool = False
    marked: bool = False
    reference: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """One figure: its lines, axes, and what to say about it.

    `shaded` are the steps up to which the background is; `ticks` name the places 0, 1, … of a
    horizontal axis without a scale; `level` is a value with its label, drawn across.
    """

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    percent: bool = False
    log: bool = False
    ticks: Sequence[str] = ()
    shaded: Sequence[int] = ()
    level: tuple[float, str] | None = None

    @property
    def alt(self) -> str:
        """The figure in words: what it plots, and where each line begins, ends and turns."""
        parts = [f"Line chart: {self.title}, against {self.x_label}."]
        if self.shaded:
            ends = " and ".join(f"step {end}" for end in self.shaded)
            parts.append(f"The warm-up, up to {ends}, is shaded.")
        parts += [self._describe(line) for line in self.lines]
        if self.level is not None:
            parts.append(f"A level line marks {self.level[1]}, {self.value_text(self.level[0])}.")
        return " ".join(parts)

    def value_text(self, value: float) -> str:
        """A value of the figure as text."""
        return rounded(value, self.percent)

    def x_text(self, x: float) -> str:
        """A place on the horizontal axis as text."""
        return self.ticks[int(x)] if self.ticks else rounded(x)

    def _describe(self, line: Line) -> str:
        if len(line.y) == 1:
            return f"{line.label}: {self.value_text(line.y[0])} at {self.x_text(line.x[0])}."
        return (
            f"{line.label}: from {self.value_text(line.y[0])} at {self.x_text(line.x[0])} to "
            f"{self.value_text(line.y[-1])} at {self.x_text(line.x[-1])}, lowest "
            f"{self.value_text(line.y.min())}, highest {self.value_text(line.y.max())}."
        )
