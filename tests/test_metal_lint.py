"""What a round and a step ask of Metal, traced at a real vocabulary: no faults, and no growth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
# Launches, those of the compiled part, and MB, of two blocks where it has a model: what they are.
BUDGET = {
    "both softmaxes": (28, 22, 156),
    "a student's softmax and draw": (89, 45, 89),
    "a draw that nobody records": (82, 38, 69),
    "solver by the kernel": (1, 1, 24),
    "solver, before its trials": (47, 26, 283),
    "solver, a trial": (47, 28, 219),
    "test and replacement, all rows": (94, 44, 113),
    "records of both": (74, 54, 160),
    "scoring: the teacher's softmax and records": (60, 44, 182),
    "vanilla: softmax and records": (42, 32, 133),
    "SKD's law": (31, 18, 127),
    "nucleus, its long way": (443, 314, 1014),
    "student, a drafted token": (72, 67, 795),
    "teacher, a pass of 4": (72, 57, 691),
    "update, exact: 2 × 128 tokens": (455, 357, 8028),
    "update, tail: 2 × 128 tokens": (503, 393, 5858),
    "update, forward_kl: 2 × 128 tokens": (503, 353, 11043),
    "update, jsd: 2 × 128 tokens": (648, 393, 17055),
}


FAULTY = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import metal_lint
import mlx.core as mx

def spread(*shape, dtype=mx.float32):
    return mx.broadcast_to(mx.zeros((), dtype), shape)

def scatter(x, ids):
    x[ids] = x[ids] + 1
    return x

def attend(q, k, mask):
    return mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0, mask=mask)

rows, wide, ids = spread(2, metal_lint.VOCAB), spread(2**16, 2**15), mx.zeros((1,), mx.int32)
cases = dict(
    sort=(mx.sort, rows),
    float64=(mx.square, spread(2, 2, dtype=mx.float64)),
    scatter=(scatter, spread(2, 2, dtype=mx.int64), ids),
    large=(mx.exp, wide),
    missing=(lambda x: mx.linalg.inv(x, stream=mx.cpu), spread(2, 2)),
    mask=(attend, spread(2, 4, 1, 64), spread(2, 4, 9, 64), spread(2, 1, 1, 9, dtype=mx.bool_)),
    wide_heads=(attend, spread(1, 4, 12, 256), spread(1, 4, 12, 256), spread(12, 12)),
    many_heads=(attend, spread(1, 14, 8, 64), spread(1, 2, 8, 64), spread(8, 8)),
    fused=(attend, spread(1, 16, 8, 128), spread(1, 4, 8, 128), spread(8, 8)),
)
for name, (function, *arrays) in cases.items():
    print(name, *metal_lint.trace(name, function, *arrays).faults, sep="|")
"""


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[int, int, float, list[str]]]:
    """In a process of its own, since custom functions are replaced there."""
    found = json.loads(printed_by(str(SCRIPTS / "metal_lint.py"), "--layers", "2", "2", "--json"))
    return {name: tuple(values) for name, *values in found["parts"]}


def printed_by(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_asked_of_metal_that_it_lacks(parts: dict) -> None:
    assert {name: faults for name, (*_, faults) in parts.items() if faults} == {}


@pytest.mark.parametrize("name", BUDGET)
def test_launches_and_bytes_do_not_grow(name: str, parts: dict) -> None:
    launches, joined, size = BUDGET[name]
    count, compiled, found, _ = parts[name]
    assert 0.8 * launches <= count <= launches
    assert 0.8 * joined <= compiled <= joined
    assert 0.8 * size <= found / 1e6 <= 1.02 * size


def test_every_part_has_a_budget(parts: dict) -> None:
    assert parts.keys() == BUDGET.keys()


def test_what_metal_lacks_is_a_fault() -> None:
    lines = printed_by("-c", FAULTY).splitlines()
    faults = {name: set(found) for name, *found in (line.split("|") for line in lines)}
    scores = "scores of {} tokens held (head dimension {}, {} heads a key head)"
    assert faults == {
        "sort": {"Sort of whole rows of 151,936"},
        "float64": {"Square of float64"},
        "scatter": {"Scatter of 8 bytes"},
        "large": {"Exp of 2,147,483,648 entries"},
        "missing": {"Inverse, which Metal has not"},
        "mask": {"a mask [2, 1, 1, 9] copied to 4 heads"},
        "wide_heads": {scores.format(12, 256, 1)},
        "many_heads": {scores.format(8, 64, 7)},
        "fused": set(),
    }
