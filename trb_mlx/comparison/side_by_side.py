"""Several commands at once, each a process of its own with its share of the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trb_mlx.errors import RunError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
POLL_S = 0.2


def run_side_by_side(
    commands: Mapping[str, Sequence[str]], jobs: int, logs: Path, done: Callable[[str], None]
) -> None:
    """Run `trb-mlx` with each command's arguments, `jobs` at a time.

    Args:
        commands: name → arguments.
        jobs: processes at once.
        logs: what a process prints goes to LOGS/NAME.out.
        done: takes each name when its process has ended well.

    Raises:
        RunError: a process failed; the others were asked to stop and have kept their state.
    """
    waiting, running = dict(commands), dict[str, subprocess.Popen[bytes]]()
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = next(iter(waiting))
                running[name] = _start(waiting.pop(name), jobs, logs / f"{name}.out")
            time.sleep(POLL_S)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    output = logs / f"{name}.out"
                    text = output.read_text(encoding="utf-8", errors="replace").strip()
                    last = text.rpartition("\n")[2].removeprefix("trb-mlx: ")
                    raise RunError(
                        f"run {name} stopped: {last or f'nothing was printed ({output})'}"
                    )
                done(name)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _start(arguments: Sequence[str], jobs: int, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches the parent alone, which passes it on once."""
    share = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**dict.fromkeys(THREADS, share), **os.environ}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "trb_mlx", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
