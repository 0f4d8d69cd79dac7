"""Evaluations as tables, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from trb_mlx.evaluation.intervals import LEVEL, Interval
from trb_mlx.text import is_share, number


def shown(name: str, interval: Interval) -> tuple[str, str]:
    """A metric's value and the ends of its interval as text."""
    form = ".1%" if is_share(name) else ".1f" if "length" in name else ".4f"
    ends = interval.low, interval.high
    span = "–" if ends == (None, None) else " to ".join(number(end, form) for end in ends)
    return number(interval.value, form), span


def evaluation_title(about: Mapping[str, Any]) -> str:
    """What was evaluated, and how."""
    return (
        f"{about['target']} on {about['data']}: {about['problems']} problems × "
        f"{about['samples']}, temperature {about['temperature']:g}, top-p {about['top_p']:g}, "
        f"at most {about['max_tokens']} tokens"
    )


def evaluation_table(metrics: Mapping[str, Interval]) -> Table:
    """One row a metric."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{LEVEL:.0%} interval over problems", justify="right")
    for name, interval in metrics.items():
        table.add_row(name, *shown(name, interval))
    return table
