"""One model on one set of problems: resumable by problem, summarised with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from trb_mlx.ranks.group import ALONE, Group
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
    ranks: Group = ALONE,
) -> list[Line]:
    """Evaluate every problem that the folder does not hold yet; give all lines, in order.

    Problems go in groups that the settings fix and that are kept whole: a resumed evaluation
    decodes the very batches that an uninterrupted one does, and its lines are the same. Ranks take
    a group of problems each at a time.

    Args:
        task: what to evaluate.
        folder: keeps finished problems; None keeps them in memory alone. Of rank 0 alone.
        verifier: scores answers.
        progress: takes the count of finished problems.
        ranks: who does it.
    """
    size = max(1, task.batch_size // task.config.samples)  # whose rollouts fill about one batch
    groups = [task.prompts[start : start + size] for start in range(0, len(task.prompts), size)]
    kept = ranks.share("the finished", folder.lines({*NAMES, "tokens"}) if folder else [])
    finished = _finished_groups(groups, kept)
    lines = kept[: sum(map(len, groups[:finished]))]
    progress(len(lines))
    if folder and finished < len(groups):
        folder.rewrite(lines)  # a crash may have left part of a group, or of a line
    for turn in range(finished, len(groups), ranks.size):
        own = groups[turn + ranks.rank : turn + ranks.rank + 1]
        mine = [line for group in own for line in _evaluate(task, group, verifier)]
        for new_lines in filter(None, ranks.gather("the problems", mine)):
            if folder:
                folder.append(new_lines)
            lines += new_lines
            progress(len(lines))
    return lines


def _finished_groups(groups: Sequence[Sequence[Prompt]], lines: Sequence[Line]) -> int:
    """How many groups, from the first on, have a line for each problem."""
    indices = [line.get("problem") for line in lines]
    start = 0
    for count, group in enumerate(groups):
        if indices[start : start + len(group)] != [prompt.index for prompt in group]:
            return count
        start += len(group)
    return len(groups)


def _evaluate(task: Task, prompts: Sequence[Prompt], verifier: Verifier) -> list[Line]:
    """A line for each problem of a group."""
    samples = task.config.samples
    rollout = held_out_rollouts(task.scorer, prompts, task.config, task.seed, task.batch_size)
    has_answers = [job.prompt.answer is not None for job in rollout.jobs]
    rewards = np.full(len(has_answers), np.nan)
    rewards[has_answers] = answer_rewards(task.scorer, rollout, verifier)
    sums = _distance_sums(task, task.pair, rollout) if task.pair else None
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
        if sums is not None:
            line["distribution"] = {name: float(values[place]) for name, values in sums.items()}
        lines.append(line)
    return lines


def _distance_sums(task: Task, pair: Pair, rollout: Rollout) -> dict[str, np.ndarray]:
    """Sums over the tokens of each problem's first rollouts, float64 `[P]`, and those tokens."""
    samples = task.config.samples
    count = min(samples, SCORED_ROLLOUTS)
    rows = np.arange(len(rollout.jobs)).reshape(-1, samples)[:, :count].ravel()
    scored = replace(
        rollout,
        jobs=[rollout.jobs[row] for row in rows],
        tokens=rollout.tokens[rows],
        lengths=rollout.lengths[rows],
        stopped=rollout.stopped[rows],
    )
    sums = distance_sums(pair, scored, task.score_rows, task.support)
    sums["tokens"] = scored.lengths.astype(np.float64)
    return {name: values.reshape(-1, count).sum(-1) for name, values in sums.items()}


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
    metrics: dict[str, Interval] = {}
    solved = [line["rewards"] for line in lines if line["rewards"] is not None]
    if solved:
        correct = np.sum(solved, axis=-1)
        for k in pass_k:
            metrics[f"pass@{k}"] = bootstrap_share(pass_at_k(correct, samples, k))
    metrics["mean_length"] = bootstrap_mean(np.mean([line["lengths"] for line in lines], axis=-1))
    stopped = np.mean([line["stopped"] for line in lines], axis=-1)
    metrics["truncated_fraction"] = bootstrap_share(1.0 - stopped)
    if all("distribution" in line for line in lines):
        names = (*NAMES, "tokens")
        sums = {name: np.array([line["distribution"][name] for line in lines]) for name in names}
        sums["entropy_gap"] = sums["student_entropy"] - sums["teacher_entropy"]
        for name in (*NAMES, "entropy_gap"):
            metrics[name] = bootstrap_ratio(sums[name], sums["tokens"])
    return metrics
