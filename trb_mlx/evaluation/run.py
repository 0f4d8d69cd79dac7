"""Evaluation and generation as functions: a run or a model in, a result out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from trb_mlx.adapters.adapter import CONFIG
from trb_mlx.adapters.mlx_lm import WEIGHTS
from trb_mlx.data.benchmarks import BENCHMARKS, SYSTEM, evaluation_changes
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import make_formatter
from trb_mlx.errors import UserError
from trb_mlx.evaluation.held_out import Evaluation, evaluate_target
from trb_mlx.evaluation.target import Target, adapter_file, open_target
from trb_mlx.ranks.folders import shared_folder
from trb_mlx.ranks.group import Group, joined
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.text import response_texts
from trb_mlx.runs.folder import find_run
from trb_mlx.text import say as print_line
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling, Say, say_nothing

# What of a run's folder an evaluation reads, beside one adapter.
RUN_FILES = ("config.yaml", "data.json", "metrics.jsonl")


def evaluate(
    target: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    adapter_path: str | Path | None = None,
    checkpoint: str | int = "final",
    distances: bool | None = None,
    pass_k: Sequence[int] = (1,),
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool | Console = False,
) -> Evaluation:
    """Measure a run or a model on held-out problems.

    The same call again resumes an interrupted one, or gives the result of a finished one.

    >>> result = evaluate("bundled:arithmetic-teacher", "arithmetic",
    ...                   overrides={"eval.prompts": 4, "eval.max_tokens": 48})
    >>> result.metrics["pass@1"].value
    1.0

    Args:
        target: a run folder, or what `student.model` takes.
        data: a benchmark's name, `arithmetic`, or what `data.eval.source` takes; a run has
            held-out problems of its own.
        split: another split than the data's own.
        adapter_path: a folder with mlx-lm adapters; a run has its own.
        checkpoint: `final`, `best` (held out) or a step; of a run only.
        distances: measure KL to the teacher, overlap and entropies too; None where there is a
            teacher: a run's, or `teacher.model` among the overrides.
        pass_k: the k of pass@k.
        overrides: dotted keys and values on top of the config, such as `{"eval.samples": 8}`.
        out: keep results in this folder; a run keeps them in its own `eval/`.
        progress: show progress on standard error, or on a console of your own.

    Raises:
        UserError: the target or the data cannot be used, or a k is over the samples.
        Interrupted: a signal came; what is finished is kept.
    """
    adapter = None if adapter_path is None else str(adapter_path)
    with joined() as ranks, _everywhere(ranks, str(target), adapter, str(checkpoint)) as where:
        run, given = find_run(where[0]), dict(overrides or {})
        parent = Path(out).expanduser() if out else None if run is None else run.path / "eval"
        has_teacher = run is not None or "teacher.model" in given
        if distances and not has_teacher:
            raise UserError(f"--distribution needs --teacher MODEL, since {target} is no run.")
        changes = [*_data_changes(data, split, run is None), *given.items()]
        opened = open_target(
            *where,
            changes,
            with_teacher=has_teacher if distances is None else distances,
        )
        console = (
            progress
            if isinstance(progress, Console) and ranks.leads
            else Console(stderr=True, quiet=not (progress and ranks.leads))
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            row = bar.add_task("problems", total=None)
            return evaluate_target(
                opened,
                "held-out" if data is None else str(data),
                parent,
                pass_k,
                say=partial(print_line, console),
                progress=lambda done, count: bar.update(row, completed=done, total=count),
                ranks=ranks,
            )


@contextmanager
def _everywhere(
    ranks: Group, target: str, adapter: str | None, checkpoint: str
) -> Iterator[tuple[str, str | None, str]]:
    """Target, adapter folder and checkpoint as this rank has them.

    A run of rank 0's is copied to the others, with the one adapter that is asked for.
    """
    run = find_run(target) if ranks.leads and ranks.size > 1 else None
    files = {} if run is None else {name: run.path / name for name in RUN_FILES}
    if run is not None and adapter is None:
        weights = adapter_file(run, checkpoint)
        files[f"adapters/{WEIGHTS}"] = weights
        files[f"adapters/{CONFIG}"] = weights.parent / CONFIG
    with shared_folder(ranks, None if run is None else run.path, files) as place:
        if ranks.leads or place is None:
            yield target, adapter, checkpoint
        else:
            yield str(place), adapter or str(place / "adapters"), "final"


def _data_changes(
    data: str | Path | None, split: str | None, is_model: bool
) -> list[tuple[str, Any]]:
    """What `data` and `split` stand for; a bare model gets the paper's system prompt."""
    if data is None:
        return [] if split is None else [("data.eval.split", split)]
    changes = evaluation_changes(str(data), split)
    if is_model and data in BENCHMARKS:
        changes.append(("prompt.system", SYSTEM))
    return changes


def generate(
    target: str | Path | Target,
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    system_prompt: str | None = None,
    adapter_path: str | Path | None = None,
    checkpoint: str | int = "final",
    max_prompt_tokens: int | None = None,
    say: Say = say_nothing,
) -> str:
    """Answer one prompt with a run or a model.

    >>> print(generate("bundled:arithmetic-teacher", "Compute (12+7-5)*3."))
    12+7=19
    19-5=14
    14*3=42
    Answer: 42

    Args:
        target: a run folder, what `student.model` takes, or a target that is open already
            (`trb_mlx.evaluation.target.open_target`), which saves loading it for each prompt.
        prompt: the user's text, put into the target's prompt format.
        max_tokens: the longest answer.
        temperature: τ; 0 takes the likeliest token.
        seed: of the draws.
        system_prompt: for chat templates; not of an open target.
        adapter_path: a folder with mlx-lm adapters; a run has its own.
        checkpoint: `final`, `best` (held out) or a step; of a run only.
        max_prompt_tokens: the longest prompt accepted (default: `data.max_prompt_tokens`).
        say: takes a sentence on what the chat template did to the prompt.

    Returns:
        The answer without its stop token.

    Raises:
        UserError: the target cannot be used, or the prompt is empty or too long.
    """
    if not isinstance(target, Target):
        changes = [("prompt.system", system_prompt)] if system_prompt else []
        adapter = None if adapter_path is None else str(adapter_path)
        target = open_target(str(target), adapter, str(checkpoint), changes)
    if not prompt.strip():
        raise UserError("--prompt is empty; expected some text.")
    scorer, config = target.scorer, target.config
    format_example = make_formatter(config.prompt, scorer.model.tokenizer)
    text, tokens = format_example(Example(prompt))
    for sentence in format_example.notes.sentences():
        say(sentence)
    context = scorer.model.context
    longest = max_prompt_tokens or config.data.max_prompt_tokens
    if context is not None:
        longest = min(longest, context - 1)
    if len(tokens) > longest:
        raise UserError(
            f"--prompt has {len(tokens)} tokens, over the limit of {longest} "
            "(--max-prompt-tokens or data.max_prompt_tokens, and the model's context)."
        )
    job = Job(Prompt(0, text, tuple(tokens)), RolloutKey(seed, 0, 0, 0))
    rollout = sample(scorer, [job], Sampling(max_tokens, 1, temperature))
    return response_texts(scorer, rollout)[0]
