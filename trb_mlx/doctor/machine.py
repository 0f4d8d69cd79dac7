"""What a bug report needs to know of a machine, and the advice that follows from it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from trb_mlx import __version__
from trb_mlx.backend import METAL_ENVIRONMENT, on_gpu, on_metal
from trb_mlx.models.memory import machine_memory
from trb_mlx.models.precision import EXACT_PRODUCTS, product_rounding, row_gap

# MLX's Linux wheel links a reference BLAS: about 4 GFLOP/s on two cores, and with OpenBLAS 180
# (docs/log.md). Between the two, a busy machine alone is not told to change its BLAS.
SLOW_GFLOPS = 20.0
LIBRARIES = ("/usr/lib", "*/openblas-pthread/libopenblas.so.0")


def back_end() -> str:
    """Where MLX computes by default: Metal, CUDA or CPU."""
    if not on_gpu():
        return "CPU"
    return "Metal" if on_metal() else "CUDA"


def matmul_gflops(repeats: int = 3) -> float:
    """10^9 float32 operations a second of square matrix products, the fastest of `repeats`."""
    size = 768 if back_end() == "CPU" else 4096
    one, other = (mx.full((size, size), value) for value in (0.5, 0.25))
    mx.eval(one @ other)
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        mx.eval(one @ other)
        seconds.append(time.perf_counter() - begun)
    return 2e-9 * size**3 / min(seconds)


def facts() -> dict[str, Any]:
    """The machine by name, without anything that tells whose it is.

    Sizes are in GiB, speed in GFLOP/s; a limit that only Metal has is left out elsewhere.
    """
    info = mx.device_info()
    known: dict[str, Any] = {
        "back end": back_end(),
        "device": str(mx.default_device()),
        "chip": str(info.get("device_name") or platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "OS": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "architecture": platform.machine(),
        "Python": platform.python_version(),
        "trb-mlx": __version__,
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "memory (GiB)": round(machine_memory() / 2**30, 1),
    }
    limit = info.get("max_recommended_working_set_size")
    if limit:
        known["recommended working set (GiB)"] = round(int(limit) / 2**30, 1)
    if on_metal():
        known |= metal_settings()
    known["float32 products (GFLOP/s)"] = round(matmul_gflops(), 1)
    known["rounding of float32 products"] = float(f"{product_rounding():.2g}")
    known["float32 products of many rows"] = _many_rows()
    known["C++ compiler"] = "g++" if shutil.which("g++") else "none"
    return known


def _many_rows() -> str:
    """Beside those of one row; TF32 is named where it shows."""
    if product_rounding() < EXACT_PRODUCTS:
        return "float32, as those of one row"
    own = "too" if row_gap(mx.float32) < EXACT_PRODUCTS else "not"
    return f"TF32 (10 bits), those of one row {own}"


def metal_settings() -> dict[str, str]:
    """How Metal was started, from the environment that it was started in."""
    operations, size, relaxed = (os.environ.get(name) for name in METAL_ENVIRONMENT)
    own = "MLX's own number of"
    return {
        "command buffers": f"{operations or own} operations, {size or own} MB",
        "GPU watchdog": "relaxed" if relaxed == "1" else "as macOS has it",
    }


def advice(known: Mapping[str, Any]) -> list[str]:
    """What would make this machine train faster or hold more, from its `facts`."""
    on_cpu = known["back end"] == "CPU"
    lines = []
    if on_cpu and sys.platform == "linux" and known["float32 products (GFLOP/s)"] < SLOW_GFLOPS:
        lines.append(_blas_advice(known["float32 products (GFLOP/s)"]))
    if on_cpu and known["C++ compiler"] == "none":
        lines.append(
            "No C++ compiler (g++): training works without one; train.compile: on does not."
        )
    if str(known.get("float32 products of many rows")).startswith("TF32"):
        lines.append(
            "Float32 products of many rows are rounded to TF32, so that what a rollout draws may "
            "depend on its batch; MLX_ENABLE_TF32=0 in the environment keeps float32, more slowly."
        )
    limit = known.get("recommended working set (GiB)")
    if known["back end"] == "Metal" and limit:
        lines.append(
            f"Both models, caches and activations should stay below {limit} GiB. On macOS 15 and "
            "later, `sudo sysctl iogpu.wired_limit_mb=N` raises that until the next restart; "
            f"choose N well below the {known['memory (GiB)']} GiB of the machine."
        )
    if known.get("GPU watchdog") == "as macOS has it":
        lines.append(
            "macOS may kill long work on the GPU while the display is on; trb-mlx sets "
            "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 against that, and the environment here overrides it."
        )
    return lines


def _blas_advice(speed: float) -> str:
    libraries = sorted(Path(LIBRARIES[0]).glob(LIBRARIES[1]))
    preload = f"LD_PRELOAD={libraries[0] if libraries else '…/libopenblas.so.0'} trb-mlx …"
    if "openblas" in os.environ.get("LD_PRELOAD", ""):
        return f"{speed} GFLOP/s though OpenBLAS is preloaded: is the machine busy?"
    have = "" if libraries else "install OpenBLAS (Debian: apt install libopenblas0-pthread) and "
    return (
        f"{speed} GFLOP/s is slow for float32 products, as MLX's Linux wheel is by itself: "
        f"{have}start with {preload}"
    )
