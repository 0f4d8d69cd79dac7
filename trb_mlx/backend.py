"""Where MLX computes, and whether it can compute and compile here at all.

MLX is imported within the functions, since `import trb_mlx` reads this module.
"""

from __future__ import annotations

import shutil
from importlib import import_module


def require_backend() -> None:
    """Import MLX's back end, or say how to install one.

    Raises:
        ImportError: there is none; one sentence for a person.
    """
    try:
        import_module("mlx.core")
    except ImportError as error:
        raise ImportError(
            "trb-mlx found no MLX back end: install it with the extra `cpu` (a Mac, or Linux "
            'without a GPU: pip install ".[cpu]") or `cuda13` (Linux with CUDA 13: pip install '
            '".[cuda13]").'
        ) from error


def on_gpu() -> bool:
    """Whether the default device is a GPU; a Mac that has Metal may still compute on its CPU."""
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.gpu)


def on_metal() -> bool:
    """Whether the default device is Metal's."""
    import mlx.core as mx

    return on_gpu() and mx.metal.is_available()


def prepare_backend() -> None:
    """Turn graph compilation off where it cannot work.

    On a CPU mx.compile calls a C++ compiler, also for the small kernels inside mlx-lm's models.
    """
    import mlx.core as mx

    if not can_compile():
        mx.disable_compile()


def can_compile() -> bool:
    """Whether mx.compile works here: always on a GPU, with a C++ compiler on a CPU."""
    return on_gpu() or shutil.which("g++") is not None
