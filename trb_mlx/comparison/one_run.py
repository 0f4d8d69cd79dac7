"""One run of a comparison: checked, trained, evaluated."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.console import Console

from trb_mlx.adapters.mlx_lm import snapshots
from trb_mlx.backend import prepare_backend
from trb_mlx.comparison.outcomes import Outcome, read_outcome
from trb_mlx.comparison.records import outcome_path, problem_lines, write_record
from trb_mlx.comparison.spec import CompareSpec, PlannedRun
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.data.context import longest_prompt
from trb_mlx.data.held_out import held_out_prompts, split_prompts
from trb_mlx.errors import UserError
from trb_mlx.evaluation.held_out import evaluate_target
from trb_mlx.evaluation.target import best_step, open_target
from trb_mlx.files import (
    disk_errors,
    json_digest,
    json_line,
    locked,
    read_metrics,
    write_text,
)
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.runs.digests import check_digests, has_same_files
from trb_mlx.runs.folder import RunFolder, locate
from trb_mlx.training.cost import cost_of, is_over
from trb_mlx.training.session import train_run
from trb_mlx.types import Say, say_nothing


def finish_run(
    spec: CompareSpec, run: PlannedRun, root: Path, teacher: LanguageModel | None = None
) -> Outcome:
    """Train a run, or resume it, evaluate it, and keep its outcome (and its record).

    What it prints goes to ROOT/logs/NAME.log.

    Raises:
        RunError: another process works on this run, or it had to stop.
        UserError, Interrupted: as `train_run`.
    """
    outcome = read_outcome(spec, run)
    if outcome is not None:
        write_record(spec, run)
        return outcome
    folder = locate(run.config, run.name)
    path = outcome_path(spec, folder)
    (root / "logs").mkdir(parents=True, exist_ok=True)
    with locked(root / "logs" / f"{run.name}.lock", f"run {run.name}"):
        with (root / "logs" / f"{run.name}.log").open("a", encoding="utf-8") as log:
            if _trained_steps(folder, run.config) is None:
                resume = folder.config.exists()
                train_run(run.config, folder, resume, Console(file=log, width=100), teacher)
            say = partial(print, file=log)
            checkpoints = _evaluate_checkpoints(spec, run, folder, say, teacher)
        with disk_errors(str(path)):
            write_text(path, json_line(checkpoints))
    write_record(spec, run)
    mx.clear_cache()
    outcome = read_outcome(spec, run)
    assert outcome is not None
    return outcome


def check_problems(spec: CompareSpec, run: PlannedRun) -> None:
    """See before hours of training that there are enough held-out problems.

    Raises:
        UserError: there are fewer than the comparison reports on, or some are too long.
    """
    prepare_backend()
    config = _with_problems(spec, run.config)
    wanted = config.eval.prompts
    model = load_model(config.student)
    prompts = held_out_prompts(config, model.tokenizer, say_nothing)
    count = len(prompts)
    if count < wanted:
        raise UserError(
            f"problems is {spec.problems}, and the data has {count} held-out problems, "
            f"{run.config.eval.prompts} of which eval.prompts takes during training; "
            f"expected problems up to {max(count - run.config.eval.prompts, 0)}."
        )
    if model.context is None:
        return
    answer = config.eval.max_tokens or config.rollout.max_tokens
    longest = longest_prompt(model.context, answer, config.data.max_prompt_tokens)
    over = sum(len(prompt.tokens) > longest for prompt in prompts)
    if over:
        raise UserError(
            f"{over} of the {count} held-out problems leave no room for an answer of {answer} "
            f"tokens in the context of {model.context}; expected data.max_prompt_tokens up to "
            f"{longest}, which leaves them out."
        )


def check_data(spec: CompareSpec, run: PlannedRun) -> None:
    """Refuse a run that other data than its files now hold has trained or evaluated.

    Its prompts are looked at only where a file has changed.

    Raises:
        UserError: they are others.
    """
    folder = locate(run.config, run.name)
    if not folder.config.exists() or has_same_files(folder, run.config):
        return
    prepare_backend()
    kept = load_config(str(folder.config))  # with the teacher's template, where it was borrowed
    tokenizer = load_model(kept.student).tokenizer
    split = split_prompts(kept, tokenizer, say_nothing)
    try:
        check_digests(folder, kept, vars(split), say_nothing)
    except UserError as error:
        raise UserError(f"{error} Remove {folder.path} to train it again.") from error
    outcome = outcome_path(spec, folder)
    if outcome.exists():
        prompts = held_out_prompts(_with_problems(spec, kept), tokenizer, say_nothing)
        now = [json_digest(prompt.text) for prompt in prompts[kept.eval.prompts :]]
        for checkpoint in json.loads(outcome.read_text(encoding="utf-8")).values():
            _, lines = problem_lines(folder, checkpoint)
            if [line.get("key") for line in lines] != now:
                raise UserError(
                    f"run {folder.path} was evaluated on other problems than its data now holds; "
                    f"remove {outcome} to evaluate it again."
                )


def _with_problems(spec: CompareSpec, config: Config) -> Config:
    """The config with the problems that are reported on behind those that choose a checkpoint."""
    wanted = config.eval.prompts + spec.problems
    return config.model_copy(update={"eval": config.eval.model_copy(update={"prompts": wanted})})


def _trained_steps(folder: RunFolder, config: Config) -> int | None:
    """The steps of a run that is over, or None: the metrics' last line is kept before adapters."""
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    step = max(snapshots(folder.adapter_path), default=0)
    line = next((line for line in lines if line["step"] == step), None)
    return step if line is not None and is_over(config.train, step, cost_of(line)) else None


def _evaluate_checkpoints(
    spec: CompareSpec, run: PlannedRun, folder: RunFolder, say: Say, teacher: LanguageModel | None
) -> dict[str, Any]:
    """The final and the best checkpoint on problems that training never looked at.

    The best one is chosen by the first `eval.prompts` held-out problems, which are left out here.
    """
    seen = run.config.eval.prompts
    changes = [("eval.prompts", seen + spec.problems), ("eval.samples", spec.samples)]
    last = _trained_steps(folder, run.config)
    assert last is not None
    steps = {"final": last, "best": best_step(folder)}
    results: dict[int, dict[str, Any]] = {}
    for step in dict.fromkeys(steps.values()):
        target = open_target(str(folder.path), None, str(step), changes, True, teacher)
        result = evaluate_target(target, "held-out", folder.path / "eval", skip=seen, say=say)
        values = {name: metric.value for name, metric in result.metrics.items()}
        assert result.path is not None
        results[step] = {"step": step, "folder": result.path.name, "metrics": values}
    return {name: results[step] for name, step in steps.items()}
