"""The machine that a run is planned for: this one, or another of which the memory is told."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from trb_mlx.backend import on_gpu, on_metal
from trb_mlx.errors import UserError
from trb_mlx.models.memory import LIMIT_SHARE, machine_memory, memory_limit

# macOS lets Metal keep this share of the memory resident, by size of the machine, as users report
# it; on a Mac itself Metal is asked.
SMALL_MAC, SMALL_SHARE, LARGE_SHARE = 36 * 2**30, 2 / 3, 3 / 4
# Python, MLX, tokenizers and data sets, beside MLX's arrays, on a machine with one memory.
PROCESS_BYTES = 700 * 10**6


@dataclass(frozen=True)
class Machine:
    """Where a run would live.

    Attributes:
        name: for people.
        memory_bytes: what it has.
        limit_bytes: what MLX's arrays may take of it.
        is_gpu: whether it computes on a GPU.
    """

    name: str
    memory_bytes: int
    limit_bytes: int
    is_gpu: bool


def this_machine(limit_gb: float | None = None, processes: int = 1) -> Machine:
    """The machine that this process runs on, by its default device.

    `limit_gb` GiB are the most that MLX may take; None is what `memory_limit` says on a GPU. So
    many `processes` of a run share what there is.
    """
    memory = machine_memory()
    limit = memory_limit(limit_gb, processes) or memory // processes - PROCESS_BYTES
    if on_metal():
        return Machine(f"this Mac ({size(memory)})", memory, limit, True)
    if on_gpu():
        return Machine(f"this GPU ({size(memory)})", memory, limit, True)
    return Machine(f"this CPU ({size(memory)} of RAM)", memory, limit, False)


def other_mac(memory: int, limit_gb: float | None = None) -> Machine:
    """A Mac with so many bytes of memory, of which MLX may take `limit_gb` GiB at most."""
    share = SMALL_SHARE if memory <= SMALL_MAC else LARGE_SHARE
    limit = int(LIMIT_SHARE * share * memory)
    if limit_gb is not None:
        limit = min(limit, int(limit_gb * 2**30))
    return Machine(f"a Mac with {size(memory)}", memory, limit, True)


def memory_size(text: str) -> int:
    """Bytes of `16GB` or `24 GiB`; a machine's GB are of 2³⁰ bytes, as makers count memory.

    Raises:
        UserError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b?)\s*", text, re.IGNORECASE)
    unit = match[2].lower().replace("i", "").removesuffix("b") if match else ""
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--memory is {text!r}, expected a size such as 16GB.")
    return int(float(match[1]) * 2 ** {"k": 10, "m": 20, "g": 30}[unit])


def size(count: float) -> str:
    """Bytes in binary units, as a machine's memory is counted.

    >>> size(16 * 2**30), size(3 * 2**20), size(5000)
    ('16 GiB', '3 MiB', '0.005 MiB')
    """
    if count >= 2**30:
        return f"{count / 2**30:.3g} GiB"
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**20:.1g} MiB"


def free_disk(path: str) -> int:
    """Bytes that are free where a path would be written."""
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if sys.platform == "win32":
        return 0
    stats = os.statvfs(place)
    return stats.f_bavail * stats.f_frsize
