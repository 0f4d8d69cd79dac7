"""Where MLX computes, and whether it can compute and compile here at all.

MLX is imported within the functions, since `import trb_mlx` reads this module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

# What Metal reads when it starts. A command buffer is handed over with so many operations or
# so many MB of arrays (MLX's own numbers on most chips, smaller than on the largest): until it
# ends nothing that it reads or writes is freed, and nothing else is drawn on the display, for
# which macOS kills work that takes long. MLX's maintainers name the last one against that
# (ml-explore/mlx#3267).
METAL_ENVIRONMENT = {
    "MLX_MAX_OPS_PER_BUFFER": "40",
    "MLX_MAX_MB_PER_BUFFER": "40",
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
}


def require_backend() -> None:
    """Import MLX's back end, or say how to install one.

    On a Mac `METAL_ENVIRONMENT` is set before, but for what the user has set.

    Raises:
        ImportError: there is none; one sentence for a person.
    """
    if sys.platform == "darwin":
        for name, value in METAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
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


@contextmanager
def kept_awake(wanted: bool) -> Iterator[None]:
    """Keep a Mac from sleeping inside; its display may. Elsewhere, or unwanted, nothing is done."""
    command = shutil.which("caffeinate") if wanted and sys.platform == "darwin" else None
    if command is None:
        yield
        return
    # With this process it ends too, should it be killed.
    process = subprocess.Popen([command, "-i", "-m", "-w", str(os.getpid())])
    try:
        yield
    finally:
        process.terminate()
        process.wait()
