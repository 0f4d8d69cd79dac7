"""The trust region's kernel compiled as C++, with real threads for a GPU's."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from trb_mlx.kernels.source import INPUTS, OUTPUTS, Dialect, body_of, header_of
from trb_mlx.ops.distribution import Distribution
from trb_mlx.ops.trust_region import Solution

COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
FLAGS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror")
METAL_FLAGS = ("-DLIKE_METAL",)
HOST = Dialect("static inline", "", "if (THREADS > 1) group.arrive_and_wait()", "")
INCLUDED = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>
using std::fabs, std::ldexp, std::rint, std::sqrt;
#ifdef LIKE_METAL  // log is off by up to 4 ulp, and denormals are flushed
#include <xmmintrin.h>
static inline float log(float x) {
  static thread_local unsigned state = 1;
  state = state * 1664525u + 1013904223u;
  return std::log(x) * (1.0f + 0x1p-21f * (float(state) * 0x1p-31f - 1.0f));
}
#else
using std::log;
#endif
"""
PARAMETERS = ", ".join(
    [f"const float* {name}" for name in INPUTS] + [f"float* {name}" for name in OUTPUTS]
)
# Every row by THREADS real threads that wait for each other.
CALLED = f"""
static void row_of(int row, int lane, float* shared, const int* student_shape,
                   const int* budget_shape, {PARAMETERS}) {{
%s
}}
extern "C" void solve_rows(int rows, int vocab, int budgets, {PARAMETERS}) {{
  const int student_shape[2] = {{rows, vocab}}, budget_shape[1] = {{budgets}};
  std::vector<float> shared(THREADS + PARTS);
  auto work = [&](int lane) {{
#ifdef LIKE_METAL
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
    for (int row = 0; row < rows; ++row)
      row_of(row, lane, shared.data(), student_shape, budget_shape,
             {", ".join(INPUTS + OUTPUTS)});
  }};
  std::vector<std::thread> others;
  for (int lane = 1; lane < THREADS; ++lane) others.emplace_back(work, lane);
  others.emplace_back(work, 0);
  for (auto& other : others) other.join();
}}
extern "C" void transcendentals(int count, const float* x, float* expm1, float* log1p) {{
  for (int i = 0; i < count; ++i) {{
    expm1[i] = accurate_expm1(x[i]);
    log1p[i] = accurate_log1p(x[i]);
  }}
}}
"""


def host_source(threads: int, parts: int) -> str:
    """The whole text that is compiled."""
    group = "static std::barrier<> group(THREADS);\n"
    header = header_of(HOST, threads, parts)
    return INCLUDED + f"#define THREADS {threads}\n" + group + header + CALLED % body_of(HOST)


@cache
def compiled(threads: int = 1, parts: int = 1, *flags: str) -> ctypes.CDLL:
    """The library, compiled once a process."""
    assert COMPILER is not None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(host_source(threads, parts))
        subprocess.run([COMPILER, *FLAGS, *flags, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def solve_on_host(
    student: Distribution,
    teacher_logprobs: mx.array,
    budget: mx.array | float,
    threads: int = 1,
    parts: int = 1,
    metal: bool = False,
) -> Solution:
    """`ops.trust_region.solve_blend` by the kernel's body."""
    shape = student.logprobs.shape
    rows, vocab = int(np.prod(shape[:-1])), shape[-1]
    limits = np.asarray(budget, np.float32)
    if limits.size > 1:
        limits = np.broadcast_to(limits, shape[:-1])
    given = (student.logprobs, student.roots, teacher_logprobs, limits, student.total)
    inputs = [np.ascontiguousarray(np.asarray(x), np.float32) for x in given]
    numbers, probs = np.zeros((rows, 3), np.float32), np.zeros((rows, vocab), np.float32)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (*inputs, numbers, probs)]
    compiled(threads, parts, *METAL_FLAGS[:metal]).solve_rows(rows, vocab, limits.size, *pointers)
    weight, kl, distance = (mx.array(x.reshape(shape[:-1])) for x in numbers.T)
    return Solution(weight, kl, distance, mx.array(probs.reshape(shape)))


def solve_weight_on_host(
    student_logprobs: mx.array, teacher_logprobs: mx.array, budget: mx.array, metal: bool = False
) -> mx.array:
    """`ops.trust_region.solve_blend_weight` by the kernel's body."""
    roots = mx.exp(0.5 * student_logprobs)
    total = mx.ones((*student_logprobs.shape[:-1], 1))
    student = Distribution(student_logprobs, roots, total)
    return solve_on_host(student, teacher_logprobs, budget, metal=metal).weight
