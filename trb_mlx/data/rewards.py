"""Verifiable rewards: 1 where a response's final answer equals the gold answer, else 0."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from trb_mlx.data.answers import (
    as_latex,
    boxed_answer,
    extract_answer,
    final_text,
    first_number,
    is_scaled,
    plain_number,
    same_answer,
)
from trb_mlx.errors import UserError

WORKER = Path(__file__).with_name("verify_worker.py")
MATH_VERIFY, REASONING_GYM = "math-verify", "reasoning-gym"  # what a worker may ask
START_TIMEOUT_S = 120.0  # importing sympy takes about a second, many on a busy machine
LONGEST_CANDIDATE = 4000  # characters that math-verify is given: an answer, or a response's end
_log = logging.getLogger(__name__)


class Verifier:
    """Scores responses; what numbers cannot decide goes to math-verify in one worker process.

    Works from any thread. An item over the time-out scores 0 and costs the worker, which the
    next item starts anew; the same item again costs nothing. Without math-verify only numbers
    and equal texts are right. Items of reasoning-gym go to its scorers, in a worker of their own.

    Attributes:
        timeouts: items that took longer than `timeout_s` seconds.
    """

    def __init__(self, timeout_s: float = 5.0, script: Path = WORKER, strict: bool = False) -> None:
        """`script` speaks the protocol of `verify_worker`; `strict` where others score too.

        Then a library that is installed and does not start is an error, for here alone answers
        would be scored without it.
        """
        self.timeouts = 0
        self._timeout_s = timeout_s
        self._script = script
        self._strict = strict
        self._workers: dict[str, _Worker] = {}  # by the library that it asks
        self._unavailable: set[str] = set()
        self._too_slow: set[str] = set()
        self._lock = threading.Lock()

    def score(self, response: str, answer: str, grader: str | None = None) -> float:
        """1.0 if the response's final answer is `answer`, else 0.0.

        With a `grader` (`data.gym`) it is also right if that item's own scorer says so.

        A gold answer that is itself marked (`Answer: 17`) asks for a marked one: a number that
        merely stands in the working is then no answer. What stands inside `<think>` never counts.
        """
        response = final_text(response)
        if grader is not None:
            return self._score_item(response, answer, grader)
        marked, gold = extract_answer(response), extract_answer(answer)
        if gold is not None and marked is None:
            return 0.0
        gold = gold or answer
        verdict = _plain_verdict(response, marked, gold)
        if verdict is not None:
            return float(verdict)
        candidates = _candidates(response, marked)
        if not candidates:
            return 0.0
        with self._lock:
            return float(self._ask(MATH_VERIFY, {"gold": _boxed(gold), "candidates": candidates}))

    def _score_item(self, response: str, answer: str, grader: str) -> float:
        """As `score`; the scorer sees the final answer alone, since some take any number."""
        final = extract_answer(response) or _last_line(response)
        verdict = _plain_verdict(response, final, answer)
        if verdict is not None:
            return float(verdict)
        gold = plain_number(answer)
        if gold and first_number(final) == -gold:  # gsm_symbolic's scorer ignores signs
            return 0.0
        with self._lock:
            return float(self._ask(REASONING_GYM, {"grader": grader, "answer": final}))

    def close(self) -> None:
        """End the worker processes; a later score starts others."""
        with self._lock:
            for library in list(self._workers):
                self._stop(library)

    def __enter__(self) -> Verifier:
        """The verifier itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _ask(self, library: str, request: dict[str, Any]) -> bool:
        key = json.dumps(request)
        if key in self._too_slow:  # a model that repeats itself pays once
            self.timeouts += 1
            return False
        worker = self._running_worker(library)
        if worker is None:
            return False
        reply = worker.ask(request, self._timeout_s)
        if reply is None:  # killed, or dead of its own: out of memory, a crash in C
            if worker.timed_out:
                self.timeouts += 1
                self._too_slow.add(key)
            self._stop(library)
        return bool(reply)

    def _running_worker(self, library: str) -> _Worker | None:
        worker = self._workers.get(library)
        if worker is not None and not worker.alive():
            self._stop(library)
            worker = None
        if worker is None and library not in self._unavailable:
            worker = self._workers[library] = _Worker(self._script, library, self._timeout_s)
            if worker.read(START_TIMEOUT_S) is not True:
                self._stop(library)
                self._unavailable.add(library)
                if self._strict and _is_installed(library):
                    raise UserError(
                        f"{library} is installed here and did not start; expected it to score "
                        f"answers as on the other ranks (pip install --force-reinstall {library})."
                    )
                _log.warning(
                    "%s is not installed or did not start: only plain numbers and equal "
                    "texts are scored as right (pip install %s).",
                    library,
                    library,
                )
                return None
        return worker

    def _stop(self, library: str) -> None:
        self._workers.pop(library).stop()


def _is_installed(library: str) -> bool:
    try:
        return bool(version(library))
    except PackageNotFoundError:
        return False


class _Worker:
    """A process that answers lines of JSON, and is killed when an answer takes too long."""

    def __init__(self, script: Path, library: str, timeout_s: float) -> None:
        self.timed_out = False
        # Twice the time-out: the parent's own kill comes first while the parent lives.
        give_up_s = max(1, math.ceil(2 * timeout_s))
        self._process = subprocess.Popen(
            # -P: none of this folder's modules may stand before those that math-verify imports.
            [sys.executable, "-P", str(script), library, str(give_up_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self.timed_out and self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout_s: float) -> Any:
        """The reply to a request, or None if there is none in time; the worker is then dead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self.read(timeout_s)

    def read(self, timeout_s: float) -> Any:
        """The next line's value. A timer's kill ends the wait: it works in any thread."""
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_s, self._give_up)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        timer.join()  # so that `timed_out` is certain even if both came at once
        return json.loads(line) if line.endswith("\n") else None

    def _give_up(self) -> None:
        self.timed_out = True
        self._process.kill()

    def stop(self) -> None:
        """Kill it and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # unwritten bytes for a dead process
                pipe.close()


def _plain_verdict(response: str, marked: str | None, gold: str) -> bool | None:
    """The verdict where text and plain numbers are enough for one, else None."""
    gold_number = plain_number(gold)
    if same_answer(_last_line(response) if marked is None else marked, gold):
        return True
    if marked is None:
        # No digit anywhere cannot be a number; pi or a set may still be in the text.
        return None if gold_number is None or any(map(str.isdigit, response)) else False
    number = plain_number(marked)
    return None if gold_number is None or number is None else number == gold_number


def _last_line(response: str) -> str:
    """The last line that is not blank; lines end at the line feed only."""
    return response.strip().rpartition("\n")[2].strip()


def _candidates(response: str, marked: str | None) -> list[str]:
    """What math-verify looks at: the marked answer, or the response's end where none is."""
    if marked is None:
        return [response[-LONGEST_CANDIDATE:]] if response.strip() else []
    if len(marked) > LONGEST_CANDIDATE:
        return []
    if boxed_answer(response) is not None or is_scaled(marked):
        return [_boxed(marked)]
    return [_boxed(marked), marked]  # `about 17` is LaTeX to no one: the text's own reading too


def _boxed(answer: str) -> str:
    return f"\\boxed{{{as_latex(answer)}}}"
