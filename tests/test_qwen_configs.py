"""The shipped Qwen3 configs, walked through with random weights of tiny size.

A base student that stops with <|endoftext|>, an instruct teacher that stops with <|im_end|> too
and has padded rows, ChatML prompts with a system prompt, and conversations as OpenThoughts3 has.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import CHATML, make_model

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.runs.folder import locate
from trb_mlx.training.session import train_run


def conversations(path: Path, count: int) -> str:
    """Prompts in OpenThoughts3's columns."""
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"What is {n} + {n}?"},
                {"from": "gpt", "value": "a long answer"},
            ],
            "domain": "math",
            "source": "made up",
            "difficulty": 1,
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(path: Path) -> str:
    """Held-out problems in GSM8K's columns."""
    rows = [{"question": f"{n} + 1?", "answer": f"Well.\n#### {n + 1}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny_version(name: str, root: Path) -> Config:
    """The shipped config with other models, data and sizes, and nothing else changed."""
    student = make_model(root / "student", "qwen3", seed=1, padding=5)
    teacher = make_model(
        root / "teacher",
        "qwen3",
        seed=2,
        eos=["<|im_end|>", "<|endoftext|>"],
        padding=69,
        template=CHATML,
        hidden_size=48,
    )
    return load_config(
        name,
        [
            ("student.model", str(student)),
            ("teacher.model", str(teacher)),
            ("data.train.source", conversations(root / "train.jsonl", 20)),
            ("data.train.streaming", False),
            ("data.eval", {"source": problems(root / "test.jsonl"), "split": "test"}),
            ("rollout.max_tokens", 12),
            ("behavior.warmup_steps", 2),
            ("train.steps", 3),
            ("train.prompts_per_step", 2),
            ("eval.prompts", 3),
            ("run.dir", str(root / "runs")),
        ],
    )


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-1.7b"])
def test_the_shipped_config_runs_on_tiny_models(name: str, tmp_path: Path) -> None:
    config = tiny_version(name, tmp_path)
    folder = locate(config, name)
    train_run(config, folder, False, Console(file=io.StringIO()))
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line.get("trb/epsilon") for line in lines] == [None, 0.02, 0.01, 0.0]
    assert all("loss" in line and not line["skipped"] for line in lines[1:])
    assert "eval/pass@1" in lines[0]
    sample = json.loads(folder.samples.read_text().splitlines()[0])
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    assert sample["prompt"].startswith(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    )
    assert sample["prompt"].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # The base student has no template: the teacher's was borrowed, and written down.
    kept = load_config(str(folder.config))
    assert kept.prompt.chat_template == CHATML
    stops = json.loads((folder.adapter_path / "adapter_config.json").read_text())["stop_ids"]
    assert stops == [256, 258]
