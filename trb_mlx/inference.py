"""A run or a model, put to use: one answer, or pass@1 on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.held_out import held_out_prompts
from trb_mlx.data.prompts import make_formatter
from trb_mlx.data.rewards import Verifier
from trb_mlx.data.sources import Example
from trb_mlx.errors import UserError
from trb_mlx.export.adapters import WEIGHTS, load_adapter, snapshot
from trb_mlx.models.loading import load_model, prepare_backend
from trb_mlx.models.pair import Scorer, single
from trb_mlx.report.evaluation import answer_rewards, held_out_rollouts, responses
from trb_mlx.report.writers import read_lines
from trb_mlx.rollout.sampler import Sampling, sample
from trb_mlx.run_folder import RunFolder, find_run, nearest_run
from trb_mlx.types import Job, Prompt, RolloutKey

Changes = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Target:
    """A loaded model with its adapter, and the config that says how it is used."""

    scorer: Scorer
    config: Config


def open_target(
    target: str, adapter_path: str | None, checkpoint: str, changes: Changes = ()
) -> Target:
    """Load a run's student with its adapter, or a model with or without one.

    Args:
        target: a run folder, or what `student.model` takes.
        adapter_path: a folder with mlx-lm adapters; a run has its own.
        checkpoint: `final`, `best` (by held-out pass@1) or a step; of a run only.
        changes: dotted keys and values on top of the config.

    Raises:
        UserError: the target is neither, or the adapter does not exist or fit.
    """
    prepare_backend()
    folder = find_run(target)
    if folder is None:
        if target.startswith("runs/"):
            raise UserError(f"run {target} does not exist{nearest_run(target)}.")
        if checkpoint != "final":
            raise UserError(f"--checkpoint {checkpoint} needs a run folder, and {target} is none.")
        models = [("teacher.model", target), ("student.model", target)]
        config = load_config(None, [*models, *changes])
    else:
        config = load_config(str(folder.config), changes)
    model = load_model(config.student)
    stops: Sequence[int] = ()
    if adapter_path is not None:
        stops = load_adapter(model, Path(adapter_path), Path(adapter_path) / WEIGHTS)
    elif folder is not None:
        stops = load_adapter(model, folder.adapter_path, adapter_file(folder, checkpoint))
    return Target(single(model, stops), config)


def adapter_file(folder: RunFolder, checkpoint: str) -> Path:
    """The adapter weights of `final`, `best` or a step.

    Raises:
        UserError: the run has no such snapshot; names those it has.
    """
    if checkpoint == "final":
        return folder.adapter_path / WEIGHTS
    step = _best_step(folder) if checkpoint == "best" else checkpoint
    kept = sorted(int(path.name.split("_")[0]) for path in folder.adapter_path.glob(f"*_{WEIGHTS}"))
    if not str(step).isdigit() or int(step) not in kept:
        raise UserError(
            f"--checkpoint {checkpoint} is not in {folder.path}; expected final, best or one of "
            f"{', '.join(map(str, kept)) or 'none yet'}."
        )
    return snapshot(folder.adapter_path, int(step))


def _best_step(folder: RunFolder) -> int:
    lines = read_lines(folder.metrics) if folder.metrics.exists() else []
    scored = [line for line in lines if line["step"] and line.get("eval/pass@1") is not None]
    if not scored:
        raise UserError(f"--checkpoint best: {folder.path} has no evaluation with pass@1 yet.")
    return int(max(scored, key=lambda line: line["eval/pass@1"])["step"])


def generate_text(
    target: Target, prompt: str, max_tokens: int, temperature: float, seed: int, limit: int | None
) -> str:
    """One answer, without its stop token.

    Args:
        target: the model.
        prompt: the user's text, put into the target's prompt format.
        max_tokens: the longest answer.
        temperature: τ; 0 takes the likeliest token.
        seed: of the draws.
        limit: the longest prompt in tokens (default: `data.max_prompt_tokens`).

    Raises:
        UserError: an empty prompt, or one over the limit or the model's context.
    """
    if not prompt.strip():
        raise UserError("--prompt is empty; expected some text.")
    scorer, config = target.scorer, target.config
    text, tokens = make_formatter(config.prompt, scorer.model.tokenizer)(Example(prompt, None))
    context = scorer.model.context
    longest = limit or config.data.max_prompt_tokens
    if context is not None:
        longest = min(longest, context - 1)
    if len(tokens) > longest:
        raise UserError(
            f"--prompt has {len(tokens)} tokens, over the limit of {longest} "
            "(--max-prompt-tokens or data.max_prompt_tokens, and the model's context)."
        )
    job = Job(Prompt(0, text, tuple(tokens)), RolloutKey(seed, 0, 0, 0))
    rollout = sample(scorer, [job], Sampling(max_tokens, 1, temperature))
    return responses(scorer, rollout)[0]


def evaluate(target: Target) -> dict[str, float | int]:
    """pass@1 = mean of c/n over held-out problems, with the settings of the target's config.

    Raises:
        UserError: the prompts have no gold answers.
    """
    scorer, config = target.scorer, target.config
    prompts = held_out_prompts(
        config, scorer.model.tokenizer, lambda text: click.echo(text, err=True)
    )
    if all(prompt.answer is None for prompt in prompts):
        raise UserError(
            "the held-out prompts have no gold answers; name their column with "
            "--set data.eval.answer_column=NAME."
        )
    evaluation = config.eval.model_copy(
        update={"max_tokens": config.eval.max_tokens or config.rollout.max_tokens}
    )
    rollout = held_out_rollouts(
        scorer, prompts, evaluation, config.train.seed, config.rollout.batch_size
    )
    with Verifier() as verifier:
        rewards = answer_rewards(scorer, rollout, verifier)
    return {
        "pass@1": float(np.mean(rewards)),
        "problems": len(prompts),
        "samples": evaluation.samples,
        "mean_length": float(rollout.lengths.mean()),
        "truncated_fraction": float(1.0 - rollout.stopped.mean()),
    }
