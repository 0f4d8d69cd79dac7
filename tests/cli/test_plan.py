"""`trb-mlx plan`, end to end through the console script."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from cli.conftest import Run


def test_a_plan_names_each_phase_and_what_to_lower(trb: Run) -> None:
    done = trb("plan", "-c", "small")
    assert done.returncode == 0, done.stderr
    for word in ("load", "rollout", "update", "eval", "fits this", "a step: about"):
        assert word in done.stdout
    assert "lower rollout.batch_size to 32" in done.stdout


def test_a_plan_as_json_has_the_keys_that_scripts_read(trb: Run) -> None:
    done = trb("plan", "-c", "small", "--json", "--memory", "16GB")
    plan = json.loads(done.stdout)
    peaks = [plan["phases"][name]["peak_bytes"] for name in ("load", "rollout", "update", "eval")]
    assert plan["peak_bytes"] == max(peaks)
    assert 9 * 2**30 < plan["limit_bytes"] < 16 * 2**30
    assert plan["step"] is None  # nobody knows how fast that Mac is
    stated = ("--bandwidth", "120", "--tflops", "4")
    assert json.loads(trb("plan", "-c", "small", "--json", *stated).stdout)["step"]["update_s"] > 0


def test_a_config_that_fits_is_written_and_trains(trb: Run, tmp_path: Path) -> None:
    limit = ("--set", "run.memory_limit_gb=0.15")
    refused = trb("train", "-c", "small", *limit)
    assert refused.returncode == 2
    assert "does not fit" in refused.stderr
    assert not (tmp_path / "runs/small").exists()
    done = trb("plan", "-c", "small", *limit, "--fit", "fit.yaml")
    assert done.returncode == 0, done.stderr
    assert "changed: " in done.stdout
    fitted = yaml.safe_load((tmp_path / "fit.yaml").read_text())
    assert fitted["rollout"]["batch_size"] < 64
    again = trb("plan", "-c", "fit.yaml")
    assert "fits this" in again.stdout
    assert "does not fit" not in again.stdout


def test_what_cannot_be_lowered_enough_is_one_sentence(trb: Run) -> None:
    done = trb("plan", "-c", "small", "--set", "run.memory_limit_gb=0.001", "--fit", "fit.yaml")
    assert done.returncode == 2
    assert "nothing of this config can be lowered until it fits" in done.stderr
    assert trb("plan", "-c", "small", "--memory", "a lot").returncode == 2
