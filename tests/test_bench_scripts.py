"""The benchmarks run, and their sides agree on what they compute."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_loss
import bench_step


def test_every_way_of_the_loss_gives_one_gradient() -> None:
    problem = bench_loss.make_problem(bench_loss.Sizes(48, 500, 16, 24), mx.float32, seed=0)
    lines = bench_loss.compare(problem, bench_loss.SIDES, repeats=1, chunk_bytes=4 * 500 * 16)
    assert [line["side"] for line in lines] == list(bench_loss.SIDES)
    losses = {line["side"]: line["loss"] for line in lines}
    assert all(line["gradient_gap"] < 1e-4 for line in lines)
    assert losses["fused exact"] == pytest.approx(losses["plain exact"], rel=1e-4)
    assert losses["recomputed exact"] == pytest.approx(losses["plain exact"], rel=1e-4)
    assert losses["fused tail"] == pytest.approx(losses["plain tail"], rel=1e-4)
    assert 0 < losses["plain tail"] < losses["plain exact"]


def test_both_trainers_take_a_step() -> None:
    lines = bench_step.compare("11M", bench_step.Shape(1, 4, 5), 1, compiled=False, seed=0)
    assert [line["side"] for line in lines] == ["mlx-lm", "ours, tail", "ours, exact"]
    assert all(line["seconds"] > 0 and line["above_mib"] > 0 for line in lines)
    assert 10e6 < lines[0]["weights"] < 13e6
