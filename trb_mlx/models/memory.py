"""What the machine can hold."""

from __future__ import annotations

import os

import mlx.core as mx

from trb_mlx.backend import on_gpu


def machine_memory() -> int:
    """Bytes that models can live in: the GPU's own where MLX tells, else the machine's."""
    if on_gpu():
        info = mx.device_info()
        # Metal and CUDA name it differently.
        size = info.get("memory_size") or info.get("total_memory")
        if size:
            return int(size)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
