"""Run folders with random adapters, made without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from trb_mlx.adapters.mlx_lm import adapter_config, save_adapters
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.runs.folder import RunFolder, write_config

METRICS = [
    {"step": 0, "eval/pass@1": 0.1, "eval/reverse_kl": 2.5},
    {"step": 1, "loss": 1.0},
    {"step": 2, "loss": 0.5, "eval/pass@1": 0.6, "eval/reverse_kl": 0.25},
    {"step": 3, "loss": 0.4, "eval/pass@1": 0.4, "eval/reverse_kl": 0.5},
]


def make_run(
    folder: Path, model: str, changes: Sequence[tuple[str, Any]] = (), steps: Sequence[int] = (2, 3)
) -> LanguageModel:
    """Write a run whose student carries other random adapters at each step; the last stays on."""
    config = load_config(
        None,
        [
            ("student.model", model),
            ("teacher.model", "bundled:arithmetic-teacher"),
            ("lora.rank", 4),
            *changes,
        ],
    )
    student = load_model(config.student)
    add_lora(student.module, config.lora, seed=7)
    folder.mkdir(parents=True)
    run = RunFolder(folder, folder / "adapters")
    write_config(run, config)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    details = adapter_config(student.module, config.lora, model, student.stop_ids)
    for step in steps:
        randomise(student, seed=step)
        save_adapters(run.adapter_path, student.module, details, step)
    return student


def randomise(student: LanguageModel, seed: int, spread: float = 0.1) -> None:
    """Give every adapter matrix random values; DoRA's magnitudes are scaled by 0.5 to 1.5."""
    mx.random.seed(seed)
    values = []
    for name, array in tree_flatten(student.module.trainable_parameters()):
        if name.endswith(".m"):
            values.append((name, array * mx.random.uniform(0.5, 1.5, array.shape)))
        else:
            values.append((name, spread * mx.random.normal(array.shape)))
    student.module.update(tree_unflatten(values))
    mx.eval(student.module.parameters())


def config_of(folder: Path) -> Config:
    """The config of a run folder."""
    return load_config(str(folder / "config.yaml"))
