"""The trust region's kernel: its body in C++ against float64 and plain MLX, and its texts."""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import kernel_on_host
import solver_guarantee

from trb_mlx.kernels import blend
from trb_mlx.kernels.source import CUDA, INPUTS, METAL, OUTPUTS, Dialect, body_of, header_of
from trb_mlx.ops import trust_region
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.trust_region import Solution

compiles = pytest.mark.skipif(kernel_on_host.COMPILER is None, reason="no C++ compiler is here")


@compiles
@pytest.mark.parametrize(("metal", "binding"), [(False, 6_000), (True, 2_000)])
def test_the_budget_is_kept_and_used(metal: bool, binding: int) -> None:
    """`scripts/solver_guarantee.py --kernel` does the same on 200,000 rows."""
    shares_of = solver_guarantee.examine(binding, 50, None, 11, metal, kernel=True)
    assert set(shares_of) == {kind.__name__ for kind in solver_guarantee.KINDS}
    for kind, shares in shares_of.items():
        assert len(shares.binding) > binding / 100, kind
        assert shares.every.max() <= solver_guarantee.MOST, kind
        assert shares.binding.min() >= solver_guarantee.LEAST, kind


@compiles
def test_its_body_is_the_plain_solver() -> None:
    assert list(blend.differences(kernel_on_host.solve_on_host)) == []


@compiles
@pytest.mark.parametrize(("threads", "parts"), [(8, 2), (6, 3)])
def test_a_groups_threads_do_one_row_together(threads: int, parts: int) -> None:
    """Real ones, which wait for each other at every barrier; rows shorter than the group too."""
    rng = np.random.default_rng(3)
    for vocab in (2, 7, 301):
        logits = solver_guarantee.language(rng, 6, vocab)
        student, teacher = (softmax(mx.array(x.astype(np.float32))) for x in logits)
        budget = mx.array([0.0, 1e-4, 0.02, 0.3, 1.0, 50.0])
        one, many = (
            kernel_on_host.solve_on_host(student, teacher.logprobs, budget, *group)
            for group in ((1, 1), (threads, parts))
        )
        for alone, together in zip(one, many, strict=True):
            np.testing.assert_allclose(np.asarray(together), np.asarray(alone), atol=1e-5)


@compiles
def test_expm1_and_log1p_are_accurate_to_two_units() -> None:
    values = np.concatenate(
        [np.linspace(-101, 87.9, 200_001), np.geomspace(1e-30, 1, 5001), -np.geomspace(1e-30, 0.99)]
    ).astype(np.float32)
    found = np.zeros((2, len(values)), np.float32)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (values, *found)]
    kernel_on_host.compiled().transcendentals(len(values), *pointers)
    inside = values > -1.0
    for own, exact, at in (
        (found[0], np.expm1, values),
        (found[1][inside], np.log1p, values[inside]),
    ):
        expected = exact(at.astype(np.float64))
        assert (np.abs(own - expected) <= 2 * np.spacing(np.abs(expected.astype(np.float32)))).all()


def off(solve: Callable[..., Solution], **factors: float) -> Callable[..., Solution]:
    """A solver whose answers are multiplied."""

    def wrong(*arguments: mx.array) -> Solution:
        found = solve(*arguments)
        return found._replace(**{name: f * getattr(found, name) for name, f in factors.items()})

    return wrong


@pytest.mark.parametrize("what", Solution._fields)
def test_a_kernel_that_is_off_is_dropped_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    blend.check_kernel.cache_clear()
    plain = trust_region.solve_blend
    monkeypatch.setattr(blend, "launch", off(plain, **{what: 1.03}))
    sentence = blend.check_kernel()
    blend.check_kernel.cache_clear()
    assert sentence is not None
    assert sentence.startswith("The trust region is solved without its kernel, for on ")


def test_without_a_gpu_it_is_not_asked_and_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    blend.check_kernel.cache_clear()
    rows = [softmax(mx.array(x)) for x in np.random.default_rng(0).normal(size=(2, 3, 50))]
    found = blend.solve_blend(rows[0], rows[1].logprobs, 0.02)
    plain = trust_region.solve_blend(rows[0], rows[1].logprobs, 0.02)
    assert all(mx.array_equal(a, b) for a, b in zip(found, plain, strict=True))
    assert blend.check_kernel.cache_info().misses == 0
    # With a GPU that cannot build it everything goes on as here.
    monkeypatch.setattr(blend, "on_gpu", lambda: True)
    found = blend.solve_blend(rows[0], rows[1].logprobs, 0.02)
    assert all(mx.array_equal(a, b) for a, b in zip(found, plain, strict=True))
    sentence = blend.check_kernel()
    blend.check_kernel.cache_clear()
    assert sentence is not None
    assert "it cannot be built or run (RuntimeError: [metal_kernel] No Metal back-end.)" in sentence


# The texts that Metal and CUDA compile, read by a C++ compiler that knows their words as nothing.
METAL_WORDS = """
#include <cmath>
#include <cstddef>
using namespace std;
#define device
#define constant
#define threadgroup
struct uint3 { unsigned x, y, z; };
enum class mem_flags { mem_threadgroup };
void threadgroup_barrier(mem_flags);
"""
CUDA_WORDS = """
#include <cmath>
#include <cstddef>
using namespace std;
#define __device__
#define __global__
#define __shared__
struct uint3 { unsigned x, y, z; } threadIdx, blockIdx;
void __syncthreads();
"""
# Words of the Metal language that C++ leaves free.
RESERVED = {"thread", "device", "constant", "kernel", "vertex", "fragment", "half", "uint", "auto"}


def metal_text(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The whole text that MLX makes for Metal, from a trace, which needs no GPU."""
    kernel = blend._kernel()
    monkeypatch.setattr(blend, "_kernel", lambda: partial(kernel, verbose=True))
    launches = []

    def solve(student: mx.array, teacher: mx.array) -> list[mx.array]:
        return list(blend.launch(softmax(student), softmax(teacher).logprobs, 0.02))

    def seen(event: dict) -> None:
        launches.append(event.get("name"))

    with contextlib.suppress(StopIteration):
        mx.export_function(seen, solve, mx.zeros((8, 1000)), mx.zeros((8, 1000)))
    assert launches.count("CustomKernel") == 1
    return capfd.readouterr().out.split("```")[1]


def cuda_text() -> str:
    """As mlx/backend/cuda/custom_kernel.cpp writes it."""
    arrays = [f"const float* {name}" for name in INPUTS] + [f"float* {name}" for name in OUTPUTS]
    arrays[1:1] = ["const int* student_shape", "const int* budget_shape"]
    return (
        header_of(CUDA)
        + f"__global__ void kernel({', '.join(arrays)}) {{\n"
        + body_of(CUDA)
        + "\n}\n"
    )


@pytest.mark.parametrize("dialect", [METAL, CUDA], ids=["metal", "cuda"])
def test_the_texts_are_whole(
    dialect: Dialect,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    text = metal_text(capfd, monkeypatch) if dialect is METAL else cuda_text()
    assert text.isascii()  # MLX hands it to Metal as such
    for left, right in ("{}", "()", "[]"):
        assert text.count(left) == text.count(right) > 0
    shared = body_of(Dialect("", "", "", "")) + header_of(Dialect("", "", "", ""))
    assert not RESERVED & set(re.findall(r"\w+", shared))
    # Every name in capitals is defined, and every definition is used.
    defined = set(re.findall(r"#define (\w+)", text))
    assert set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", shared)) == defined
    if kernel_on_host.COMPILER is None:
        pytest.skip("the texts were not compiled: no C++ compiler is here")
    source = tmp_path / "kernel.cpp"
    source.write_text((METAL_WORDS if dialect is METAL else CUDA_WORDS) + text)
    flags = ["-std=c++14", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-attributes"]
    subprocess.run([kernel_on_host.COMPILER, *flags, source], check=True)
