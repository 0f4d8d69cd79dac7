"""Ctrl-C and SIGTERM at any moment, but never in the middle of an update or a file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Shield = Callable[[], AbstractContextManager[None]]


class Interrupted(BaseException):
    """A signal asked the run to stop; `signum` says which one, `advice` how to go on."""

    def __init__(self, signum: int) -> None:
        """Remember the signal's number."""
        super().__init__(signum)
        self.signum = signum
        self.advice = "--resume goes on from here"


class Interrupts:
    """Turns SIGINT and SIGTERM into `Interrupted`, held back while shielded."""

    def __init__(self) -> None:
        """Nothing is caught until `watching`."""
        self._shields = 0
        self._pending: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Catch both signals inside; outside the main thread, nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._receive) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Finish what is inside first; a signal that came meanwhile is raised afterwards."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._pending is not None and not self._shields:
            raise Interrupted(self._pending)

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self._shields:
            self._pending = signum
        else:
            raise Interrupted(signum)
