r"""The verifier's worker process: answers each line of JSON on stdin with one on stdout.

It is run as a file, never imported: importing the package would load mlx, and multiprocessing's
spawn would run the user's own script again. First it says whether the library that it was started
for is there; then each request is answered true if that library finds the response right.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 2**30  # bytes; answers of a page take a few million
IsRight = Callable[[dict[str, Any]], bool]


def math_verify_scorer() -> IsRight:
    """A request ``{"gold": text, "candidates": [text, ...]}`` is right if a candidate is."""
    import math_verify

    def is_right(request: dict[str, Any]) -> bool:
        gold = math_verify.parse(request["gold"], parsing_timeout=None)
        return any(
            math_verify.verify(
                gold, math_verify.parse(candidate, parsing_timeout=None), timeout_seconds=None
            )
            for candidate in request["candidates"]
        )

    return is_right


def reasoning_gym_scorer() -> IsRight:
    """A request ``{"grader": "NAME/SEED/COUNT/INDEX", "answer": text}`` is right at full score.

    The item is made anew from its numbers, and its own scorer is asked.
    """
    import reasoning_gym

    make_items = functools.cache(
        lambda name, seed, count: reasoning_gym.create_dataset(name, seed=seed, size=count)
    )

    def is_right(request: dict[str, Any]) -> bool:
        name, seed, count, index = request["grader"].rsplit("/", 3)
        items = make_items(name, int(seed), int(count))
        return bool(items.score_answer(request["answer"], items[int(index)]) == 1.0)

    return is_right


SCORERS = {"math-verify": math_verify_scorer, "reasoning-gym": reasoning_gym_scorer}


def main(library: str, give_up_s: int) -> None:
    """Answer requests until stdin closes, which it does when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    # A library that prints must not write into the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        is_right = SCORERS[library]()
    except ImportError:
        print("false", file=replies, flush=True)
        return
    print("true", file=replies, flush=True)
    _limit_memory()
    for line in sys.stdin:
        _alarm(give_up_s)
        request = json.loads(line)
        try:
            right = is_right(request)
        except Exception:  # memory is out, or the library raises on text that a student made up
            right = False
        print(json.dumps(right), file=replies, flush=True)
        _alarm(0)


def _limit_memory() -> None:
    """Refuse what would take over `MEMORY` bytes more than the libraries do, where it is heeded.

    Linux heeds it; macOS does not, and there the time-out alone ends a power of powers.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


def _alarm(seconds: int) -> None:
    """Let the system end this process should its parent die while it computes."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
