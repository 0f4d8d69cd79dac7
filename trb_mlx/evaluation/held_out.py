"""An opened target on its held-out problems, kept in a folder and resumed from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trb_mlx import __version__
from trb_mlx.bounds import bounded
from trb_mlx.config import EvalConfig
from trb_mlx.config_file import load_config
from trb_mlx.data.context import fit_context, shortest_context
from trb_mlx.data.held_out import held_out_prompts, held_out_source, split_prompts
from trb_mlx.data.rewards import Verifier
from trb_mlx.errors import UserError
from trb_mlx.evaluation.evaluator import NONE_RIGHT, resolve_eval, truncation_warning
from trb_mlx.evaluation.intervals import Interval
from trb_mlx.evaluation.problems import Task, run_task, summarize
from trb_mlx.evaluation.result_folder import Line, ResultFolder
from trb_mlx.evaluation.target import Target
from trb_mlx.files import json_digest, locked
from trb_mlx.interrupts import watching
from trb_mlx.models.pair import model_digests
from trb_mlx.ranks.agreement import agree, versions
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.runs.digests import check_digests, chooses_same_prompts
from trb_mlx.types import Prompt, Say, say_nothing


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        about: what was evaluated and how, for people and for `result.json`.
        metrics: every metric with its interval over problems.
        lines: rewards, lengths and sums of distances of each problem.
        path: the folder that keeps it all, or None.
    """

    about: dict[str, Any]
    metrics: dict[str, Interval]
    lines: list[Line]
    path: Path | None

    def as_json(self) -> dict[str, Any]:
        """One flat object: `about`, a value a metric, and the ends of each interval."""
        ends = {n: [m.low, m.high] for n, m in self.metrics.items() if m.low is not None}
        values = {name: metric.value for name, metric in self.metrics.items()}
        return {**self.about, **values, "intervals": ends}


def evaluate_target(
    target: Target,
    name: str,
    parent: Path | None,
    pass_k: Sequence[int] = (1,),
    skip: int = 0,
    say: Say = say_nothing,
    progress: Callable[[int, int], None] = lambda done, count: None,
    ranks: Group = ALONE,
) -> Evaluation:
    """Evaluate on the held-out problems of the target's config, with its `eval` settings.

    Args:
        target: the model, with its teacher for the distribution metrics.
        name: what the problems are called.
        parent: where the evaluation's folder goes; None keeps nothing.
        pass_k: the k of pass@k.
        skip: leave out that many problems at the front.
        say: takes sentences on what was left out or looks wrong.
        progress: takes how many problems of how many are finished.
        ranks: who does it; `parent` is rank 0's.

    Raises:
        UserError: the problems cannot be read, or have no answers and no teacher is there to
            compare with; k is over the samples.
        Interrupted: a signal came; the folder holds what is finished.
    """
    _check_samples(target.config.eval, pass_k, say)
    task = _make_task(target, skip, say)
    settings = _settings(target, task)
    if ranks.size > 1:
        agree(ranks, _alike(target, settings))
    folder = None
    if parent is not None and ranks.leads:
        folder = ResultFolder(parent, name, settings)
    count = len(task.prompts)
    what = f"evaluation {folder.path}" if folder else ""
    lock = locked(folder.path / ".lock", what) if folder else nullcontext()
    most = bounded(target.config.train.vocabulary_mb)
    with watching(), lock, Verifier(strict=ranks.size > 1) as verifier, most:
        lines = run_task(task, folder, verifier, lambda done: progress(done, count), ranks)
        if verifier.timeouts:
            say(f"{verifier.timeouts} answers took too long to verify and count as wrong")
    metrics = summarize(lines, task.config.samples, pass_k)
    cut = truncation_warning(
        metrics["truncated_fraction"].value, f"{task.config.max_tokens} tokens"
    )
    if cut is not None:
        say(cut)
    rewards = [reward for line in lines for reward in line["rewards"] or ()]
    if rewards and not any(rewards):
        say(NONE_RIGHT)
    about = {
        "target": target.name,
        "data": name,
        "problems": count,
        **{key: settings[key] for key in ("samples", "temperature", "top_p", "max_tokens", "seed")},
    }
    result = Evaluation(about, metrics, lines, folder.path if folder else None)
    if folder:
        folder.finish(result.as_json())
    return result


def _alike(target: Target, settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same on all ranks: settings but for places, versions, and weights."""
    values = {k: v for k, v in settings.items() if k not in ("student", "teacher", "source")}
    values["the digest of the problems"] = values.pop("problems_digest")
    values["rollout.batch_size"] = target.config.rollout.batch_size  # ranks take whole batches
    values |= model_digests(target.scorer, "the model")
    if target.pair is not None:
        values |= model_digests(target.pair.teacher, "the teacher")
    return versions() | values


def _check_samples(config: EvalConfig, pass_k: Sequence[int], say: Say) -> None:
    if config.temperature == 0.0:
        if max(pass_k) > 1:
            raise UserError(
                f"--pass-k {max(pass_k)} needs answers that differ, and at temperature 0 all are "
                "alike; expected --pass-k 1, or a temperature above 0."
            )
        if config.samples > 1:
            say(f"temperature 0: one answer a problem, for all {config.samples} would be alike")
        return
    for k in pass_k:
        if k > config.samples:
            raise UserError(
                f"--pass-k {k} needs at least {k} samples a problem, found {config.samples}; "
                f"expected --samples {k}, or k up to {config.samples}."
            )


def _make_task(target: Target, skip: int, say: Say) -> Task:
    config = target.config
    prompts = _target_prompts(target, say)[skip:]
    if all(prompt.answer is None for prompt in prompts) and target.pair is None:
        raise UserError(
            "the held-out prompts have no gold answers; name their column with "
            "--set data.eval.answer_column=NAME, or a --teacher to compare with."
        )
    contexts = [target.scorer.model.context]
    if target.pair is not None:
        contexts.append(target.pair.teacher.model.context)
    prompts, max_tokens = fit_context(
        prompts,
        shortest_context(contexts),
        config.eval.max_tokens or config.rollout.max_tokens,
        config.data.max_prompt_tokens,
        "held-out",
        say,
    )
    return Task(
        target.scorer,
        target.pair,
        prompts,
        resolve_eval(config.eval, max_tokens),
        config.train.seed,
        config.rollout.batch_size,
        config.train.micro_batch_size,
        config.loss.top_k,
    )


def _target_prompts(target: Target, say: Say) -> Sequence[Prompt]:
    """The held-out prompts that the config asks for; a run's own are those that it began with.

    Raises:
        UserError: the run's data has changed since.
    """
    config, folder, tokenizer = target.config, target.folder, target.scorer.model.tokenizer
    teachers = target.pair and target.pair.teacher.model.tokenizer
    if folder is None:
        return held_out_prompts(config, tokenizer, say, teachers)
    kept = load_config(str(folder.config))
    if not chooses_same_prompts(config, kept):
        return held_out_prompts(config, tokenizer, say, teachers)
    wanted, own = config.eval.prompts, kept.eval.prompts
    if held_out_source(config) is None:
        split = split_prompts(kept, tokenizer, say_nothing, teachers)
        check_digests(folder, kept, vars(split), say)
        if wanted > len(split.eval) and wanted != own:
            say(f"{folder.path} held out {len(split.eval)} prompts and trained on the others")
        return split.eval[-wanted:]
    prompts = held_out_prompts(kept, tokenizer, say, teachers)
    check_digests(folder, kept, {"eval": prompts}, say)
    return prompts if wanted == own else held_out_prompts(config, tokenizer, say_nothing, teachers)


def _settings(target: Target, task: Task) -> dict[str, Any]:
    """All that the lines depend on: other settings are another evaluation."""
    config = target.config
    source = held_out_source(config)
    problems = [[list(prompt.tokens), prompt.answer, prompt.grader] for prompt in task.prompts]
    return {
        "version": __version__,
        "student": config.student.model_dump(mode="json"),
        "adapter": target.adapter,
        "teacher": config.teacher.model_dump(mode="json") if target.pair else None,
        "source": None if source is None else source.model_dump(mode="json"),
        "problems": len(problems),
        "first_problem": task.prompts[0].index,
        "problems_digest": json_digest(problems),
        "samples": task.config.samples,
        "temperature": task.config.temperature,
        "top_p": task.config.top_p,
        "max_tokens": task.config.max_tokens,
        "seed": task.seed,
        "support": task.support if target.pair else None,
    }
