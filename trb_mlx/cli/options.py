"""Flags that MLX users know, each standing for one key of the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from trb_mlx.config_file import parse_override

# flag → (key, type, help); the command line wins over YAML.
FLAGS: Mapping[str, tuple[str, Any, str]] = {
    "--model": ("student.model", str, "The student: a Hub id, a folder or bundled:NAME."),
    "--teacher": ("teacher.model", str, "The teacher: a Hub id, a folder or bundled:NAME."),
    "--data": ("data.train.source", str, "Training prompts: a Hub id, JSONL, or generated:NAME."),
    "--iters": ("train.steps", int, "Steps, one update each."),
    "--batch-size": ("train.prompts_per_step", int, "Prompts a step."),
    "--learning-rate": ("train.learning_rate", float, "Peak learning rate."),
    "--num-layers": ("lora.num_layers", int, "Last blocks that carry adapters (-1: all)."),
    "--seed": ("train.seed", int, "Seed of every draw."),
    "--steps-per-report": ("run.report_every", int, "Steps between printed lines."),
    "--steps-per-eval": ("eval.every", int, "Steps between held-out evaluations."),
    "--save-every": ("run.save_every", int, "Steps between checkpoints."),
    "--start-adapter": ("student.adapter", str, "A PEFT or mlx-lm adapter folder to start from."),
    "--adapter-path": ("run.adapter_path", str, "Where adapters go (default: RUN/adapters)."),
    "--name": ("run.name", str, "The run's name (default: the config's stem)."),
    "--report-to": ("run.report_to", str, "wandb or swanlab, through mlx-lm's callbacks."),
    "--project-name": ("run.project_name", str, "The project's name there."),
}


def config_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every flag of `FLAGS`, `--grad-checkpoint` and `--set` to a command."""
    command = click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the config."
    )(command)
    command = click.option(
        "--grad-checkpoint", is_flag=True, default=None, help="Recompute blocks to save memory."
    )(command)
    for flag, (key, kind, text) in reversed(list(FLAGS.items())):
        command = click.option(flag, _parameter(flag), type=kind, help=f"{text} [{key}]")(command)
    return command


def overrides(settings: tuple[str, ...], flags: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted keys and values: the flags that were given, then `--set`, which wins."""
    pairs: list[tuple[str, Any]] = []
    for flag, (key, _, _) in FLAGS.items():
        value = flags.get(_parameter(flag))
        if value is not None:
            pairs.append((key, value))
    if flags.get("grad_checkpoint"):
        pairs.append(("train.grad_checkpoint", True))
    return pairs + [parse_override(text) for text in settings]


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
