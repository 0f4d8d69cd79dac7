r"""The verifier's worker process: answers each line of JSON on stdin with one on stdout.

It is run as a file, never imported: importing the package would load mlx, and multiprocessing's
spawn would run the user's own script again. First it says whether math-verify is there; then a
request ``{"gold": text, "candidates": [text, ...]}`` is answered true if a candidate is right.
"""

from __future__ import annotations

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
    # A library that prints must not write into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import math_verify
    except ImportError:
        print("false", file=answers, flush=True)
        return
    print("true", file=answers, flush=True)
    _limit_memory()
    for line in sys.stdin:
        _alarm(give_up_s)
        print(json.dumps(_is_right(math_verify, json.loads(line))), file=answers, flush=True)
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


def _is_right(math_verify: Any, request: dict[str, Any]) -> bool:
    try:
        gold = math_verify.parse(request["gold"], parsing_timeout=None)
        return any(
            math_verify.verify(
                gold, math_verify.parse(candidate, parsing_timeout=None), timeout_seconds=None
            )
            for candidate in request["candidates"]
        )
    except Exception:  # (memory is out, or sympy raises anything on text a student made up)
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
