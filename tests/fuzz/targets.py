"""What is damaged, how, and the commands that then read it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from fuzz.mutations import (
    Mutation,
    either,
    mutate_bytes,
    mutate_json,
    mutate_line,
    mutate_text,
    mutate_yaml,
)

JSON = either(mutate_json, mutate_json, mutate_json, mutate_text)
LINES = either(mutate_line(mutate_json), mutate_line(mutate_json), mutate_text)


def mutate_by_form(content: bytes, rng: random.Random) -> bytes:
    """As JSON, or as JSON lines where the file holds several."""
    try:
        json.loads(content)
    except ValueError:
        return LINES(content, rng)
    return JSON(content, rng)


GENERATE = "generate student -p 1+1 -m 2"
RESUME = "train -c run.yaml --resume --iters 3"


@dataclass(frozen=True)
class Target:
    """A kind of file: where it lies in the corpus (a glob), its damage, and its readers."""

    name: str
    pattern: str
    mutate: Mutation
    commands: Sequence[str]


TARGETS = {
    target.name: target
    for target in (
        Target("config.json", "student/config.json", JSON, [GENERATE]),
        Target("tokenizer.json", "student/tokenizer.json", JSON, [GENERATE]),
        Target("tokenizer_config.json", "student/tokenizer_config.json", JSON, [GENERATE]),
        Target("weights", "student/model.safetensors", mutate_bytes, [GENERATE]),
        Target("GGUF", "model.gguf", mutate_bytes, ["generate model.gguf -p 1+1 -m 2"]),
        Target(
            "adapter_config.json",
            "runs/a/export/peft/adapter_config.json",
            JSON,
            ["train -c run.yaml --start-adapter runs/a/export/peft --name b --iters 1"],
        ),
        Target(
            "adapter_config.json of mlx-lm",
            "runs/a/adapters/adapter_config.json",
            JSON,
            [
                f"{GENERATE} --adapter-path runs/a/adapters",
                "export runs/a --to peft --base student",
                "train -c run.yaml --start-adapter runs/a/adapters --name b --iters 1",
            ],
        ),
        Target(
            "adapter weights",
            "runs/a/**/*adapter*.safetensors",
            mutate_bytes,
            [
                "generate runs/a -p 1+1 -m 2",
                RESUME,
                "export runs/a --to mlx-lm",
                "train -c run.yaml --start-adapter runs/a/export/peft --name b --iters 1",
            ],
        ),
        Target("JSONL", "data.jsonl", LINES, ["eval student --data data.jsonl -m 2 --limit 6"]),
        Target("YAML", "run.yaml", mutate_yaml, ["train -c run.yaml --dry-run"]),
        Target("comparison", "compare.yaml", mutate_yaml, ["compare compare.yaml --dry-run"]),
        Target(
            "config.yaml of a run",
            "runs/a/config.yaml",
            mutate_yaml,
            ["generate runs/a -p 1+1 -m 2", "report runs/a", RESUME, "eval runs/a -m 2"],
        ),
        Target(
            "metrics.jsonl",
            "runs/a/metrics.jsonl",
            LINES,
            [
                "report runs/a",
                "generate runs/a --checkpoint best -p 1+1 -m 2",
                "export runs/a --to mlx-lm",
                RESUME,
            ],
        ),
        Target("samples.jsonl", "runs/a/samples.jsonl", LINES, [RESUME]),
        Target("state.json", "runs/a/checkpoints/*/state.json", JSON, [RESUME]),
        Target("optimizer", "runs/a/checkpoints/*2/optimizer.safetensors", mutate_bytes, [RESUME]),
        Target("evaluation", "runs/a/eval/*/*.json*", mutate_by_form, ["eval runs/a -m 2"]),
        Target(
            "outcome",
            "compare/compare/runs/*/**/*.json*",
            mutate_by_form,
            ["compare compare.yaml", "compare compare.yaml --dry-run"],
        ),
    )
}
