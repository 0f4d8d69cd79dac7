"""Data that changes under a run: `eval` and `--resume` say so, and score nothing trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import assert_one_sentence
from click.testing import CliRunner

from trb_mlx.cli import main

KEYS = (
    "-c small --name a --data data.jsonl --iters 2 --batch-size 1 --set eval.prompts=2 "
    "--set rollout.max_tokens=4 --set rollout.rollouts_per_prompt=1 --set eval.teacher=false"
).split()


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_changed_data_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"Compute {n}+1.", "answer": n + 1}) + "\n" for n in range(8)]
    data = Path("data.jsonl")
    data.write_text("".join(rows))
    invoke("train", *KEYS)
    data.write_text("".join(rows[:6]))
    evaluate = ["eval", "runs/a", "--no-distribution"]
    for command in (evaluate, [*evaluate, "--seed=3"], ["train", *KEYS, "--resume", "--iters=3"]):
        assert_one_sentence(command, "training prompts of data.jsonl are not those that run runs/a")
    # Another set is another question, and so may be evaluated.
    assert '"problems": 6' in invoke(*evaluate, "--data=data.jsonl", "--split=train", "--json")
    data.write_text("".join(rows))
    told = invoke(*evaluate, "--limit=5", "--json")
    assert "held out 2 prompts and trained on the others" in told
    assert '"problems": 2' in told
    data.rename("moved.jsonl")
    assert "going on after step 2" in invoke(
        "train", *KEYS, "--resume", "--iters=3", "--data=moved.jsonl"
    )
