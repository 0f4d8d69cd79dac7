r"""The worker process that asks reasoning-gym's scorers; the protocol is `verify_worker`'s.

A request ``{"grader": "NAME/SEED/COUNT/INDEX", "answer": text}`` is answered true if the scorer
of that item gives the answer its full score. The item is made anew from its numbers.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY = 2**30  # bytes; answers of a page take a few million


def main(give_up_s: int) -> None:
    """Answer requests until stdin closes, which it does when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    try:
        import reasoning_gym
    except ImportError:
        print("false", file=answers, flush=True)
        return
    print("true", file=answers, flush=True)
    _limit_memory()
    items = functools.cache(
        lambda name, seed, count: reasoning_gym.create_dataset(name, seed=seed, size=count)
    )
    for line in sys.stdin:
        _alarm(give_up_s)
        print(json.dumps(_is_right(items, json.loads(line))), file=answers, flush=True)
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


def _is_right(items: Any, request: dict[str, Any]) -> bool:
    name, seed, count, index = request["grader"].rsplit("/", 3)
    try:
        found = items(name, int(seed), int(count))
        return bool(found.score_answer(request["answer"], found[int(index)]) == 1.0)
    except Exception:  # some scorers raise on text that is no answer of theirs
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
