"""Ctrl-C, SIGTERM and a closed terminal at any moment, but not amid an update or a file.

Signals belong to the process, so what is known of them does too.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# So long after one interruption another is held back, until whoever catches the first is at it.
UNWINDING_S = 1.0
_MISTAKE = 2  # the exit code of a UserError


class Interrupted(BaseException):
    """A signal asked the command to stop; `signum` says which one, `advice` how to go on."""

    def __init__(self, signum: int) -> None:
        """Remember the signal's number."""
        super().__init__(signum)
        self.signum = signum
        self.advice = ""

    def __str__(self) -> str:
        """One sentence."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"stopped by {signal.Signals(self.signum).name}{advice}."

    @property
    def code(self) -> int:
        """What the command exits with, as a shell reports a process that the signal ended."""
        return 128 + self.signum


class Stopped(Interrupted):
    """Another process of the same run ended, so this one ends too: a sentence of its own."""

    def __init__(self, sentence: str, code: int = 1) -> None:
        """`sentence` says which process, and why; it has no full stop. `code` is exited with."""
        super().__init__(signal.SIGTERM)
        self.sentence, self._code = sentence, code

    def __str__(self) -> str:
        """The sentence, and the advice where no mistake has to be mended first."""
        advice = f"; {self.advice}" if self.advice and self._code != _MISTAKE else ""
        return f"{self.sentence}{advice}."

    @property
    def code(self) -> int:
        """What the command exits with."""
        return self._code


class _Watch:
    """What came, and whether it has to wait."""

    def __init__(self) -> None:
        self.shields = 0
        self.pending: int | None = None
        self.raised = float("-inf")  # when, by the monotonic clock
        self.cause: Interrupted | None = None  # raised in place of a signal's

    def receive(self, signum: int, _: FrameType | None) -> None:
        """The handler of all `SIGNALS`."""
        if self.shields or time.monotonic() < self.raised + UNWINDING_S:
            self.pending = signum
        else:
            self.interrupt(signum)

    def interrupt(self, signum: int) -> None:
        """Stop what is running."""
        self.pending, self.raised = None, time.monotonic()
        raise self.cause or Interrupted(signum)


_WATCH = _Watch()


@contextmanager
def watching() -> Iterator[None]:
    """Raise `Interrupted` inside when a signal comes, and put the handlers back afterwards.

    SIGHUP stays ignored where it was (nohup). Outside the main thread nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, _WATCH.receive)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Finish what is inside first; a signal that came meanwhile is raised afterwards."""
    _WATCH.shields += 1
    try:
        yield
    finally:
        _WATCH.shields -= 1
    if _WATCH.pending is not None and not _WATCH.shields:
        _WATCH.interrupt(_WATCH.pending)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let `stop_main` be called inside, and forget afterwards what it said."""
    try:
        yield
    finally:
        _WATCH.cause = _WATCH.pending = None


def stop_main(error: Interrupted) -> None:
    """Raise an error in the main thread as a signal's would be: at once, or behind a shield.

    Any thread may call it. The signals that come after it raise the same error.
    """
    _WATCH.cause = error
    _thread.interrupt_main(signal.SIGTERM)
