"""What a round's launches and bytes (`metal_lint.py`) take at this device's measured rates."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

Row = dict[str, Any]
ENTRIES = 2**26  # float32: far beyond any cache
CHAIN = 500  # launches that wait for one another


def bytes_a_second(repeats: int) -> float:
    """Read and written by an operation that does next to nothing else."""
    array = mx.zeros(ENTRIES)
    mx.eval(array)
    return 2 * array.nbytes / _median_s(lambda: array + 1.0, repeats)


def launches_a_second(repeats: int) -> float:
    """Operations on one number, each of which needs the one before."""

    def chain() -> mx.array:
        value = mx.zeros(1)
        for _ in range(CHAIN):
            value = value + 1.0
        return value

    return CHAIN / _median_s(chain, repeats)


def _median_s(work: Callable[[], mx.array], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        mx.eval(work())
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def compare_launches(repeats: int) -> Iterator[Row]:
    """A line for each part and each round: what its bytes take, and what its launches do.

    On a GPU the larger of both is the least that a part takes; on a CPU arithmetic comes first.
    """
    size, count = bytes_a_second(repeats), launches_a_second(repeats)
    command = [sys.executable, str(Path(__file__).with_name("metal_lint.py")), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    parts = [[name, launches, nbytes] for name, launches, _, nbytes, _ in found["parts"]]
    for name, launches, nbytes in [*parts, *found["rounds"]]:
        yield {
            "part": name,
            "launches": round(launches),
            "MB": nbytes / 1e6,
            "bytes_ms": 1e3 * nbytes / size,
            "launches_ms": 1e3 * launches / count,
            "GB/s": size / 1e9,
            "launch_us": 1e6 / count,
        }
