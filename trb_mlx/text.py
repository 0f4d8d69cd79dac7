"""Numbers, times and lines as a person reads them."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from rich.console import Console

# Metrics between 0 and 1 that are written in percent, by the end of their names.
SHARES = re.compile(
    r"(pass@\d+|topk_overlap|truncated_fraction|acceptance_rate|early\.area|reward/mean)$"
)


class RunConsole(Console):
    """A console whose reader may leave, as `head` does: the run goes on without a word."""

    def on_broken_pipe(self) -> None:
        """Print no more, where rich would end the process."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.file.fileno())  # takes what is still buffered
        os.close(devnull)


def say(console: Console, line: str, wrap: bool = True) -> None:
    """Print a line as it is; a terminal wraps it between words unless it is to be copied.

    A terminal or pipe that was closed takes nothing, which is no reason to stop a run.
    """
    soft_wrap = not (wrap and console.is_terminal)
    with suppress(OSError):
        console.print(line, highlight=False, markup=False, soft_wrap=soft_wrap)


def is_share(metric: str) -> bool:
    """Whether a metric is a share, which is written in percent and compared in points.

    >>> is_share("eval/teacher_pass@1"), is_share("final.reverse_kl")
    (True, False)
    """
    return SHARES.search(metric) is not None


def number(value: float | None, form: str = ".4g", missing: str = "–") -> str:
    """A number in one of Python's formats; `missing` where there is none.

    >>> number(0.12345), number(0.5, ".1%"), number(None)
    ('0.1235', '50.0%', '–')
    """
    return missing if value is None else f"{value:{form}}"


def rounded(value: float, share: bool = False) -> str:
    """A number as pages and figures show it: three digits, or a percentage.

    >>> rounded(-0.12345), rounded(12345.6), rounded(1e-7), rounded(0.9058, share=True)
    ('−0.123', '12,346', '1e-07', '90.6%')
    """
    if share:
        return number(value, ".1%")
    if abs(value) >= 1000:
        return minus(number(value, ".0f" if abs(value) < 10_000 else ",.0f"))
    return minus(number(value, ".3g"))


def minus(text: str) -> str:
    """A number's text with a minus sign that is one, except within an exponent's notation."""
    return text if "e" in text else text.replace("-", "−")


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
