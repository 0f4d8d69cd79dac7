"""The report's colours: one set for light pages and PNGs, one for dark pages.

The six series colours stay apart under protanopia, deuteranopia and tritanopia (CIELAB distance
of at least 21 under Machado's matrices) and from the page (contrast of at least 3.5 to 1).
Series also differ by dash and by marker: no figure is read by colour alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

LIGHT = {
    "page": "#ffffff",
    "ink": "#1c2530",
    "muted": "#56616e",
    "rule": "#dde2e8",
    "card": "#f6f8fa",
    "shade": "#eceff3",
    "series-0": "#0f7fd6",
    "series-1": "#d9690b",
    "series-2": "#0a4d38",
    "series-3": "#8a1a80",
    "series-4": "#665200",
    "series-5": "#7d8793",
}
DARK = {
    "page": "#15181c",
    "ink": "#e8ecf0",
    "muted": "#a6b0bb",
    "rule": "#333b44",
    "card": "#1c2126",
    "shade": "#262c33",
    "series-0": "#9bd2f7",
    "series-1": "#ec6a26",
    "series-2": "#2bd99b",
    "series-3": "#d454c8",
    "series-4": "#f0d24a",
    "series-5": "#7f8993",
}
SERIES = 6
# A method keeps its colour from one report to the next; what is not listed takes a free one.
SLOTS = {"trb": 0, "vanilla": 1, "fixed": 2, "skd": 3, "temperature": 4, "veto": 5, "sft": 11}
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (6, 2, 1, 2), (3, 1.5), (8, 2, 3, 2), (1, 1))
MARKERS = "osD^vP"


def color_of(slot: int) -> str:
    """The name of a slot's colour; slots from six on take them again."""
    return f"series-{slot % SERIES}"


def stroke_of(slot: int) -> int:
    """The place of a slot's dash and marker; a colour that comes again comes with another one."""
    return (slot + slot // SERIES) % SERIES


def assign_slots(kinds: Sequence[str]) -> list[int]:
    """One slot a series: its kind's own where that is free, else the lowest that none owns."""
    taken: list[int] = []
    owned = {SLOTS[kind] for kind in kinds if kind in SLOTS}
    for kind in kinds:
        slot = SLOTS.get(kind)
        if slot is None or slot in taken:
            slot = next(s for s in itertools.count() if s not in owned and s not in taken)
        taken.append(slot)
    return taken
