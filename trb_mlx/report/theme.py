"""The report's colours: one set for light pages and PNGs, one for dark pages.

The six series colours stay apart under protanopia, deuteranopia and tritanopia (CIELAB distance
of at least 21 under Machado's matrices) and from the page (contrast of at least 3.5 to 1).
Series also differ by dash and by marker: no figure is read by colour alone.
"""

from __future__ import annotations

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
SLOTS = {"trb": 0, "vanilla": 1, "fixed": 2, "skd": 3, "temperature": 4}
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2), (6, 2, 1, 2), (3, 1.5), (8, 2, 3, 2), (1, 1))
MARKERS = "osD^vP"


def series(slot: int) -> str:
    """The light colour of a series."""
    return LIGHT[f"series-{slot % SERIES}"]


def assign_slots(kinds: list[str]) -> list[int]:
    """One slot a series: its kind's own where that is free, else the first free one.

    With more than six series slots repeat; dashes repeat with them, and names do not.
    """
    taken: list[int] = []
    for kind in kinds:
        wanted = SLOTS.get(kind)
        if wanted is None or wanted in taken:
            reserved = {SLOTS[k] for k in kinds if k in SLOTS} | set(taken)
            free = [s for s in range(SERIES) if s not in reserved]
            free = free or [s for s in range(SERIES) if s not in taken]
            wanted = free[-1] if free else len(taken) % SERIES
        taken.append(wanted)
    return taken
