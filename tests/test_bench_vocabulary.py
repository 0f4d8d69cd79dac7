"""The vocabulary benchmark runs the product's own round, and its sides do what they are named."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_vocabulary
from bench_trust_region import make_rows

from trb_mlx.ops.numerics import kl_divergence


def test_parts_are_told_in_log_softmaxes() -> None:
    line = bench_vocabulary.compare_parts(600, 0.02, 6, repeats=1, seed=0)
    assert {"solve_weight", "draws", "tests", "teacher_records", "round"} < set(line)
    assert all(value > 0 for value in line.values())


def test_the_round_is_a_whole_one() -> None:
    student, teacher = make_rows(40, 500, 0)
    noise = mx.array(np.random.default_rng(0).random((2, 40, 2), np.float32))
    found = bench_vocabulary.whole_round(student, teacher, 0.05, noise)()
    assert found["support"].shape == (40, bench_vocabulary.SUPPORT)
    binding = np.asarray(found["weight"]) < 1
    assert binding.any()
    kl = np.asarray(found["kl_behavior"])
    assert (kl <= 0.05).all()
    assert (kl[binding] > 0.0495).all()
    assert 0 < np.asarray(found["corrected"]).sum() < 40
    whole = np.asarray(kl_divergence(teacher, student))
    assert (whole[binding] > 0.05).all()
