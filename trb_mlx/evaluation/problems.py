"""One model on one set of problems: resumable by problem, summarised with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trb_mlx.config import EvalConfig
from trb_mlx.data.rewards import Verifier
from trb_mlx.evaluation.distances import NAMES, distance_sums
from trb_mlx.evaluation.evaluator import answer_rewards, held_out_rollouts
from trb_mlx.evaluation.intervals import Interval, bootstrap_mean, bootstrap_ratio, bootstrap_share
from trb_mlx.evaluation.passk import pass_at_k
from trb_mlx.evaluation.result_folder import Line, ResultFolder
from trb_mlx.files import json_digest
from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.types import Prompt, Rollout

# Rollouts of a problem that both models score in full: that costs as much as drawing them.
SCORED_ROLLOUTS = 8


@dataclass(frozen=True)
class Task:
    """What is evaluated, and how.

    Attributes:
        scorer: the model that answers.
        pair: that model as the student and its teacher, for the distribution metrics, or None.
        prompts: the problems.
        config: samples a problem, temperature, top-p and length limit (not None).
        seed: of the draws, which are keyed by problem and rollout.
        batch_size: rows decoded at once.
        score_rows: rows scored at once by both models.
        support: K of the top-k overlap.
    """

    scorer: Scorer
    pair: Pair | None
    prompts: Sequence[Prompt]
    config: EvalConfig
    seed: int
    batch_size: int
    score_rows: int
    support: int


def run_task(
    task: Task,
    folder: ResultFolder | None,
    verifier: Verifier,
    progress: Callable[[int], None],
) -> list[Line]:
    """Evaluate every problem that the folder does not hold yet; give all lines, in order.

    Problems go in groups that the settings fix and that are kept whole: a resumed evaluation
    decodes the very batches that an uninterrupted one does, and its lines are the same.

    Args:
        task: what to evaluate.
        folder: keeps finished problems; None keeps them in memory alone.
        verifier: tells right answers.
        progress: is told how many problems are finished.
    """
    groups = _groups(task)
    kept = folder.lines({*NAMES, "tokens"}) if folder else []
    whole = _whole_groups(groups, kept)
    lines = kept[: sum(map(len, groups[:whole]))]
    progress(len(lines))
    if folder and whole < len(groups):
        folder.rewrite(lines)  # a crash may have left part of a group, or of a line
    for group in groups[whole:]:
        fresh = _evaluate(task, group, verifier)
        if folder:
            folder.append(fresh)
        lines += fresh
        progress(len(lines))
    return lines


def _whole_groups(groups: Sequence[Sequence[Prompt]], lines: Sequence[Line]) -> int:
    """How many groups, from the first on, are finished to the last problem."""
    done = [line.get("problem") for line in lines]
    whole = at = 0
    for group in groups:
        indices = [prompt.index for prompt in group]
        if done[at : at + len(group)] != indices:
            break
        whole, at = whole + 1, at + len(group)
    return whole


def _groups(task: Task) -> list[Sequence[Prompt]]:
    """Problems whose rollouts fill about one batch."""
    size = max(1, task.batch_size // task.config.samples)
    return [task.prompts[start : start + size] for start in range(0, len(task.prompts), size)]


def _evaluate(task: Task, prompts: Sequence[Prompt], verifier: Verifier) -> list[Line]:
    """A line for each problem of a group."""
    samples = task.config.samples
    rollout = held_out_rollouts(task.scorer, prompts, task.config, task.seed, task.batch_size)
    has_answers = [job.prompt.answer is not None for job in rollout.jobs]
    rewards = np.full(len(has_answers), np.nan)
    rewards[has_answers] = answer_rewards(task.scorer, rollout, verifier)
    apart = _distributions(task, rollout)
    lines: list[Line] = []
    for place, prompt in enumerate(prompts):
        rows = slice(place * samples, (place + 1) * samples)
        line: Line = {
            "problem": prompt.index,
            "key": json_digest(prompt.text),
            "answer": prompt.answer,
            "rewards": None if prompt.answer is None else rewards[rows].astype(int).tolist(),
            "lengths": rollout.lengths[rows].tolist(),
            "stopped": rollout.stopped[rows].astype(int).tolist(),
        }
        lines.append(line | ({"distribution": apart[place]} if apart else {}))
    return lines


def _distributions(task: Task, rollout: Rollout) -> list[dict[str, float]]:
    """Sums over the tokens of each problem's first rollouts (nothing without a teacher)."""
    if task.pair is None:
        return []
    samples = task.config.samples
    count = min(samples, SCORED_ROLLOUTS)
    rows = np.arange(len(rollout.jobs)).reshape(-1, samples)[:, :count].ravel()
    part = _rows(rollout, rows)
    sums = distance_sums(task.pair, part, task.score_rows, task.support)
    sums["tokens"] = part.lengths.astype(np.float64)
    problems = {name: values.reshape(-1, count).sum(-1) for name, values in sums.items()}
    return [
        {name: float(values[place]) for name, values in problems.items()}
        for place in range(len(rows) // count)
    ]


def _rows(rollout: Rollout, rows: np.ndarray) -> Rollout:
    return replace(
        rollout,
        jobs=[rollout.jobs[row] for row in rows],
        tokens=rollout.tokens[rows],
        lengths=rollout.lengths[rows],
        stopped=rollout.stopped[rows],
    )


def summarize(lines: Sequence[Line], samples: int, pass_k: Sequence[int]) -> dict[str, Interval]:
    """Every metric with its 95% interval over problems.

    `pass@k` (of problems with a gold answer), `mean_length` in tokens, `truncated_fraction`,
    and where both models scored the rollouts: `reverse_kl`, `forward_kl`, `topk_overlap`,
    `student_entropy`, `teacher_entropy` as means over tokens, and `entropy_gap`, the student's
    mean less the teacher's.

    Args:
        lines: of `run_task`.
        samples: n.
        pass_k: the k of pass@k, none over n.
    """
    found: dict[str, Interval] = {}
    solved = [line["rewards"] for line in lines if line["rewards"] is not None]
    if solved:
        for k in pass_k:
            scores = pass_at_k(np.sum(solved, axis=-1), samples, k)
            found[f"pass@{k}"] = bootstrap_share(scores)
    found["mean_length"] = bootstrap_mean(np.mean([line["lengths"] for line in lines], axis=-1))
    stopped = np.mean([line["stopped"] for line in lines], axis=-1)
    found["truncated_fraction"] = bootstrap_share(1.0 - stopped)
    if all("distribution" in line for line in lines):
        found |= _apart([line["distribution"] for line in lines])
    return found


def _apart(sums: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    table = {name: np.array([line[name] for line in sums]) for name in (*NAMES, "tokens")}
    found = {name: bootstrap_ratio(table[name], table["tokens"]) for name in NAMES}
    gap = table["student_entropy"] - table["teacher_entropy"]
    return found | {"entropy_gap": bootstrap_ratio(gap, table["tokens"])}
