"""The text of the trust region's kernel: one body, and what Metal, CUDA and hosts name apart."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

from trb_mlx.ops import trust_region

# A group of threads takes a row. Its size leaves each thread the registers that it needs: CUDA
# has 65,536 a group. Sums go through this many parts.
THREADS, PARTS = 512, 16
INPUTS = ("student", "roots", "teacher", "budget", "totals")
OUTPUTS = ("numbers", "probs")
CONSTANTS = ("SUPPORT_FLOOR", "TEACHER_FLOOR", "HOLE", "ENOUGH", "AIM", "TINY")


class Dialect(NamedTuple):
    """How a compiler names what the body needs.

    Attributes:
        function: what stands before a function.
        pointer: the address space of shared memory behind a pointer.
        barrier: the statement at which a group's threads wait for each other.
        start: the first lines of the kernel: `row`, `lane` (the thread's number) and `shared`.
    """

    function: str
    pointer: str
    barrier: str
    start: str


METAL = Dialect(
    "inline",
    "threadgroup",
    "threadgroup_barrier(mem_flags::mem_threadgroup)",
    "const int row = threadgroup_position_in_grid.x, lane = thread_index_in_threadgroup;\n"
    "threadgroup float shared[THREADS + PARTS];\n",
)
CUDA = Dialect(
    "__device__ inline",
    "",
    "__syncthreads()",
    "const int row = blockIdx.x, lane = threadIdx.x;\n__shared__ float shared[THREADS + PARTS];\n",
)


def header_of(dialect: Dialect, threads: int = THREADS, parts: int = PARTS) -> str:
    """What comes before the kernel: definitions, the solver's constants and the functions."""
    constants = {name: f"{getattr(trust_region, name)!r}f" for name in CONSTANTS}
    defined = {
        "FUNCTION": dialect.function,
        "SHARED": dialect.pointer,
        "BARRIER": dialect.barrier,
        "THREADS": threads,
        "PARTS": parts,
        # The trial at β = 1 is one of the kernel's.
        "TRIALS": trust_region.TRIALS,
        **constants,
    }
    lines = [f"#define {name} {value}\n" for name, value in defined.items()]
    return "".join(lines) + _read("trust_region_functions.h")


def body_of(dialect: Dialect) -> str:
    """The kernel itself, between the braces."""
    return dialect.start + _read("trust_region_body.h")


def _read(name: str) -> str:
    """A file without its comments, whose β and ε a compiler that reads ASCII would refuse."""
    text = (files("trb_mlx.kernels") / name).read_text(encoding="utf-8")
    return re.sub(r"\s*//.*", "", text)
