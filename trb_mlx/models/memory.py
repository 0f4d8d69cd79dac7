"""What the machine can hold, and the limits that MLX is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx

from trb_mlx.backend import on_gpu, on_metal
from trb_mlx.types import Say

# Of what Metal may keep resident, or of a GPU's memory: models beyond that have stopped whole Macs.
LIMIT_SHARE = 0.85

_limit: ContextVar[int | None] = ContextVar("memory_limit", default=None)


def machine_memory() -> int:
    """Bytes that models can live in: the GPU's own where MLX tells, else the machine's."""
    if on_gpu():
        info = mx.device_info()
        # Metal and CUDA name it differently.
        size = info.get("memory_size") or info.get("total_memory")
        if size:
            return int(size)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(limit_gb: float | None = None, processes: int = 1) -> int | None:
    """Bytes that MLX's arrays may take: as many GiB as are given, or `LIMIT_SHARE` of a GPU's.

    None on a CPU where nothing is given. So many `processes` of a run share the GPU evenly.
    """
    if limit_gb is not None:
        return int(limit_gb * 2**30)
    if not on_gpu():
        return None
    whole = mx.device_info().get("max_recommended_working_set_size") or machine_memory()
    return int(LIMIT_SHARE * int(whole)) // processes


@contextmanager
def limited_memory(limit_gb: float | None, say: Say, processes: int = 1) -> Iterator[None]:
    """Inside, MLX waits at the limit for memory to come back, and wires no more than that.

    The limit is a guideline of MLX's: what is asked for at once is bounded by `bounds`.
    """
    limit = memory_limit(limit_gb, processes)
    if limit is None:
        yield
        return
    before, token = mx.set_memory_limit(limit), _limit.set(limit)
    say(f"memory: MLX is held to {limit / 2**30:.1f} GiB (run.memory_limit_gb)")
    try:
        yield
    finally:
        _limit.reset(token)
        mx.set_memory_limit(before)


@contextmanager
def wired_memory() -> Iterator[None]:
    """Keep weights and caches resident while decoding; only Metal can page them out."""
    if not on_metal():
        yield
        return
    most = int(mx.device_info()["max_recommended_working_set_size"])
    before = mx.set_wired_limit(min(most, _limit.get() or memory_limit() or most))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
