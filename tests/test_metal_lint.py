"""What a round and a step ask of Metal, traced at a real vocabulary: no faults, and no growth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
PROGRAM = f"""
import json, sys
sys.path.insert(0, {str(SCRIPTS)!r})
import metal_lint
parts = [*metal_lint.vocabulary_parts(), *metal_lint.model_parts((2, 2))]
print(json.dumps([[p.name, p.count, p.bytes / 1e6, p.faults] for p in parts]))
"""
# Launches and MB of each part, of two blocks where it has a model: what they are now.
BUDGET = {
    "both softmaxes": (28, 156),
    "a draw": (76, 11),
    "solver, before its trials": (47, 283),
    "solver, a trial": (47, 219),
    "test and replacement, all rows": (82, 50),
    "records of both": (74, 160),
    "scoring: the teacher's softmax and records": (60, 182),
    "vanilla: softmax and records": (42, 133),
    "SKD's law": (31, 127),
    "nucleus, its long way": (443, 1014),
    "student, a drafted token": (72, 795),
    "teacher, a pass of 4": (72, 691),
    "update, exact: 2 × 128 tokens": (455, 8028),
    "update, tail: 2 × 128 tokens": (503, 5858),
    "update, forward_kl: 2 × 128 tokens": (503, 11043),
    "update, jsd: 2 × 128 tokens": (648, 17055),
}


@pytest.fixture(scope="module")
def parts() -> dict[str, tuple[int, float, list[str]]]:
    """In a process of its own, since custom functions are replaced there."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (count, size, faults) for name, count, size, faults in json.loads(done.stdout)}


def test_nothing_is_asked_of_metal_that_it_lacks(parts: dict) -> None:
    assert {name: faults for name, (_, _, faults) in parts.items() if faults} == {}


@pytest.mark.parametrize("name", BUDGET)
def test_launches_and_bytes_do_not_grow(name: str, parts: dict) -> None:
    launches, size = BUDGET[name]
    count, found, _ = parts[name]
    assert 0.8 * launches <= count <= launches
    assert 0.8 * size <= found <= 1.02 * size


def test_every_part_has_a_budget(parts: dict) -> None:
    assert parts.keys() == BUDGET.keys()


def test_a_full_sort_and_a_copied_mask_are_faults() -> None:
    program = (
        PROGRAM.partition("parts =")[0]
        + """
import mlx.core as mx
rows = mx.broadcast_to(mx.zeros(()), (2, metal_lint.VOCAB))
faults = metal_lint.trace("sort", lambda x: mx.sort(x), rows).faults
q, mask = mx.zeros((2, 4, 1, 64)), mx.zeros((2, 1, 1, 64), mx.bool_)
def attend(q, mask):
    return mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, mask=mask)
print(faults + metal_lint.trace("mask", attend, q, mask).faults)
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert "Sort of whole rows of 151,936" in done.stdout, done.stderr
    assert "copied to 4 heads" in done.stdout
