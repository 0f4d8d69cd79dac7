"""A run folder of 0.2.0 resumes, evaluates, reports and exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from cli.conftest import SHORT
from click.testing import CliRunner, Result

from trb_mlx.cli import main

# The keys of a config.yaml that 0.2.0 wrote: it knew no others, and kept no data.json.
MODEL = "model revision dtype quantize dequantize trust_remote_code"
OLD = {
    "teacher": MODEL,
    "student": f"{MODEL} adapter",
    "lora": "rank scale dropout keys num_layers dora",
    "data": "train eval max_prompt_tokens deduplicate",
    "prompt": "format plain system chat_template enable_thinking",
    "rollout": "max_tokens rollouts_per_prompt temperature batch_size draft_length",
    "behavior": "kind budget warmup_steps top_k teacher_temperature start_temperature",
    "target": "kind power warmup_steps corrections sft_steps",
    "loss": "mode top_k keep_hidden divergence beta",
    "train": "steps seed prompts_per_step learning_rate lr_warmup_steps betas weight_decay "
    "max_grad_norm micro_batch_tokens micro_batch_size grad_checkpoint compile deterministic "
    "max_bad_steps",
    "eval": "every prompts samples temperature top_p max_tokens teacher",
    "run": "dir name adapter_path report_every sample_every samples save_every keep_checkpoints "
    "report_to project_name",
}
SOURCE = "source subset split prompt_column answer_column limit streaming"


def invoke(*arguments: str) -> Result:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def make_old(run: Path) -> None:
    """Take away what later versions write."""
    (run / "data.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    old = {part: {key: config[part][key] for key in keys.split()} for part, keys in OLD.items()}
    old["data"]["train"] = {key: old["data"]["train"][key] for key in SOURCE.split()}
    (run / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))


def test_a_run_of_an_earlier_version_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "-c", "small", *SHORT]
    invoke(*train)
    run = Path("runs/small")
    shutil.copytree(run, "whole")
    make_old(run)
    sentence = "keeps no digest of its data"
    assert sentence in invoke("eval", "runs/small", "--no-distribution").output
    shutil.rmtree(run / "checkpoints/0000003")
    assert sentence in invoke(*train, "--resume").output
    assert sentence not in invoke(*train, "--resume").output  # said once
    for name in ("samples.jsonl", "data.json", "adapters/adapters.safetensors"):
        assert (run / name).read_bytes() == (Path("whole") / name).read_bytes()
    invoke("report", "runs/small")
    invoke("export", "runs/small", "--to", "mlx-lm")
