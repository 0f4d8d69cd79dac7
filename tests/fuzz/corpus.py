"""Whole files to damage: models, a GGUF, adapters, data, configs, and the folder of a real run."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from gguf_files import write_gguf
from tiny import CHATML, make_model

from trb_mlx.cli import main

ROWS = [
    {"question": "1+1?", "answer": "#### 2"},
    {"messages": [{"role": "user", "content": "2+2?"}], "answer": 4},
    {"prompt": "3+3?", "answer": "\\boxed{6}"},
    {"conversations": [{"from": "human", "value": "4+4?"}], "final_answer": ["8"]},
    {"problem": "5+5?", "ground_truth": 10.0},
    {"question": "6+6?", "answer": "12"},
]
CONFIG = """\
teacher:
  model: teacher
student:
  model: student
  dtype: float32
lora:
  rank: 2
  keys: [self_attn.q_proj, mlp.up_proj]
data:
  train:
    source: data.jsonl
  eval:
    source: data.jsonl
prompt:
  plain: "{prompt}\\n"
rollout:
  max_tokens: 2
  rollouts_per_prompt: 1
behavior:
  budget: 0.1
  warmup_steps: 1
train:
  steps: 2
  prompts_per_step: 2
  learning_rate: 1e-4
  compile: off
  deterministic: true
eval:
  every: 1
  prompts: 2
run:
  name: a
  save_every: 1
  sample_every: 1
"""
COMPARISON = """\
base: run.yaml
methods:
  trb: {set: {behavior.kind: trb}}
  vanilla: {set: {behavior.kind: vanilla}}
seeds: [0]
problems: 2
early_steps: 1
decides: final.pass@1
"""


def make_corpus(root: Path) -> None:
    """Write everything into `root`, which is the current folder; takes a few seconds."""
    make_model(root / "student", seed=1, template=CHATML)
    make_model(root / "teacher", "qwen3", seed=2, template=CHATML)
    write_gguf(root / "model.gguf")
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "run.yaml").write_text(CONFIG)
    (root / "compare.yaml").write_text(COMPARISON)
    for command in (
        "train -c run.yaml",
        "eval runs/a -m 2",
        "export runs/a --to peft --base student",
        "compare compare.yaml",
    ):
        done = CliRunner().invoke(main, command.split(), catch_exceptions=False)
        assert done.exit_code == 0, (command, done.output, done.stderr)
