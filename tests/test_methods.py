"""Every shipped config runs: two steps on the bundled pair, shrunken, nothing else changed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trb_mlx.config_file import load_config
from trb_mlx.runs.folder import locate
from trb_mlx.training.session import train_run

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = {
    path.relative_to(FOLDER).as_posix(): path
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.parent.name != "compare"  # of another schema
}
SMALL: dict[str, Any] = {
    "student": {"model": "bundled:arithmetic-student"},
    "teacher": {"model": "bundled:arithmetic-teacher"},
    "lora.rank": 2,
    "data.train": {"source": "generated:arithmetic", "limit": 40},
    "data.eval": None,
    "prompt": {},
    "rollout.max_tokens": 6,
    "rollout.rollouts_per_prompt": 2,
    "rollout.draft_length": 3,
    "train.steps": 2,
    "train.prompts_per_step": 2,
    "train.lr_warmup_steps": 0,
    "eval.prompts": 2,
    "eval.teacher": False,
}


def run(path: Path, root: Path, **changes: Any) -> tuple[list[dict[str, Any]], str]:
    """The metrics of both steps, and what was printed."""
    overrides = (
        SMALL | {"run.dir": str(root)} | {k.replace("__", "."): v for k, v in changes.items()}
    )
    config = load_config(str(path), overrides.items())
    folder, output = locate(config, path.stem), io.StringIO()
    train_run(config, folder, False, Console(file=output, width=200))
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return lines[1:], output.getvalue()


@pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS.keys())
def test_two_steps_of_every_shipped_config(path: Path, tmp_path: Path) -> None:
    lines, _ = run(path, tmp_path)
    assert len(lines) == 2
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        assert line["grad_norm"] > 0
        assert line["reverse_kl"] > 0
        assert not line["skipped"]
        assert line["logprob_gap"] < 1e-4


@pytest.mark.parametrize("name", ["trb", "skd", "saki"])
def test_token_by_token_gives_the_run_that_blocks_give(name: str, tmp_path: Path) -> None:
    """What is drawn is the same, so the losses agree to rounding."""
    path = CONFIGS[f"methods/{name}.yaml"]
    blocks, tokens = (
        run(path, tmp_path / str(length), rollout__draft_length=length)[0] for length in (3, 1)
    )
    for one, other in zip(blocks, tokens, strict=True):
        assert one["completions/mean_length"] == other["completions/mean_length"]
        for key in ("loss", "reverse_kl", "trb/total_variation", "trb/beta_mean"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)


def test_an_sft_warm_up_ends_and_the_run_goes_on_as_configured(tmp_path: Path) -> None:
    first, second = run(CONFIGS["methods/sft.yaml"], tmp_path, target__sft_steps=1)[0]
    assert first["trb/beta_mean"] == 1.0
    assert first["loss"] != first["reverse_kl"]
    assert second["trb/beta_mean"] == 0.0
    assert second["loss"] == second["reverse_kl"]


def test_a_key_without_effect_is_told(tmp_path: Path) -> None:
    _, output = run(CONFIGS["small.yaml"], tmp_path, behavior__kind="vanilla")
    assert "note: behavior.budget is 0.3, but behavior.kind vanilla does not use it." in output
