"""The metrics of a step, under the names that users of other stacks look for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trb_mlx.types import Metrics, Records, Rollout

# A budget counts as active where the behavior uses at least this share of it.
ACTIVE_SHARE = 0.98


def rollout_metrics(rollout: Rollout, budget: float) -> Metrics:
    """Means over all response tokens of a step (nats), and lengths (tokens).

    Args:
        rollout: finished rollouts with both models' records.
        budget: ε of this step; 0 leaves the active and feasible fractions at 0.
    """
    mask, lengths = rollout.mask, rollout.lengths
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/truncated_fraction": float((~rollout.stopped & ~rollout.cut).mean()),
        "trb/epsilon": budget,
        "rollout/draft_length": rollout.drafted / rollout.rounds,
        "rollout/tokens_per_round": float(lengths.sum()) / rollout.rounds,
    }
    records = rollout.records
    return metrics if records is None else metrics | _token_means(records, mask, budget)


def _token_means(records: Records, mask: np.ndarray, budget: float) -> Metrics:
    def mean(values: np.ndarray) -> float:
        return float(values[mask].mean(dtype=np.float64))

    student, teacher = mean(records.student_entropy), mean(records.teacher_entropy)
    blended = budget > 0
    active = records.kl_behavior >= ACTIVE_SHARE * budget
    return {
        "entropy/student": student,
        "entropy/teacher": teacher,
        "entropy/gap": abs(student - teacher),
        "topk/student_mass": mean(records.student_mass),
        "topk/teacher_mass": mean(1.0 - np.exp(records.teacher_rest)),
        "topk/overlap_ratio": mean(records.overlap / records.support.shape[-1]),
        "rollout/student_logprob": mean(records.student_logprob),
        "rollout/teacher_logprob": mean(records.teacher_logprob),
        "trb/beta_mean": mean(records.weight),
        "trb/kl_behavior_student": mean(records.kl_behavior),
        "trb/kl_behavior_student_max": float(records.kl_behavior[mask].max()),
        "trb/total_variation": mean(records.total_variation),
        "trb/acceptance_rate": 1.0 - mean(records.corrected),
        "trb/budget_active_fraction": mean(active) if blended else 0.0,
        "trb/teacher_feasible_fraction": mean(records.weight >= 1.0) if blended else 0.0,
    }


def rank_metrics(rollout: Rollout, size: int, seconds: Mapping[str, float]) -> Metrics:
    """Of several ranks: the tokens that each drew, and seconds of this one among the others."""
    assert rollout.ranks is not None
    tokens = np.bincount(rollout.ranks, weights=rollout.lengths, minlength=size)
    return {f"ranks/{rank}_tokens": float(count) for rank, count in enumerate(tokens)} | {
        f"time/ranks_{name}_s": spent for name, spent in seconds.items()
    }


def horizon_metrics(rollout: Rollout, limit: int) -> Metrics:
    """Under a growing horizon: the length limit of the step (tokens), and how many rows it cut."""
    return {
        "rollout/horizon": float(rollout.horizon or limit),
        "completions/cut_by_horizon_fraction": float(rollout.cut.mean()),
    }


def reward_metrics(rewards: Sequence[float | None]) -> Metrics:
    """`reward/mean` over the rollouts that have a reward (nothing where none has)."""
    known = [reward for reward in rewards if reward is not None]
    return {"reward/mean": float(np.mean(known))} if known else {}
