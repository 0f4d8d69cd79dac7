"""Numbers, times and lines as a person reads them."""

from __future__ import annotations

import os
from contextlib import suppress

from rich.console import Console


class RunConsole(Console):
    """A console whose reader may leave, as `head` does: the run goes on without a word."""

    def on_broken_pipe(self) -> None:
        """Print no more, where rich would end the process."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # takes what is still buffered
        os.close(nowhere)


def say(console: Console, line: str, wrap: bool = True) -> None:
    """Print a line as it is; a terminal wraps it between words unless it is to be copied.

    A terminal or pipe that was closed takes nothing, which is no reason to stop a run.
    """
    soft_wrap = not (wrap and console.is_terminal)
    with suppress(OSError):
        console.print(line, highlight=False, markup=False, soft_wrap=soft_wrap)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(61), clock(3723.4)
    ('1:01', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def file_size(count: int) -> str:
    """Bytes in decimal units.

    >>> file_size(999), file_size(2_300_000)
    ('999 B', '2.3 MB')
    """
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
