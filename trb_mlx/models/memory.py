"""What the machine can hold."""

from __future__ import annotations

import os

import mlx.core as mx


def machine_memory() -> int:
    """Bytes that models can live in: the GPU's own where MLX tells, else the machine's."""
    if mx.default_device() == mx.Device(mx.gpu):
        size = mx.device_info().get("memory_size")
        if size:
            return int(size)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
