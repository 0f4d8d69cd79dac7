"""What a step costs, and whether a run has cost what it may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trb_mlx.config import TrainConfig
from trb_mlx.types import Cost, Metrics, Rollout


def tokens_read(
    rollout: Rollout, trained: Rollout, drawers: tuple[bool, bool], again: bool
) -> tuple[int, int]:
    """Tokens that the student and the teacher read for a step.

    Whoever draws reads the prompts and all drafts, whoever does not scores the finished responses.
    The update reads prompts and the responses in the loss.

    Args:
        rollout: as it was drawn.
        trained: the part of it that the update reads.
        drawers: whether the student and the teacher took part in drawing.
        again: whether the teacher's body runs in the update too.
    """
    reads = []
    for teacher, draws in enumerate(drawers):
        own = [job.prompt.tokens_for(bool(teacher)) for job in rollout.jobs]
        prompts = sum(len(tokens) - 1 for tokens in own)
        drawn = rollout.drafted if draws else int(rollout.lengths.sum())
        update = prompts + int(trained.lengths.sum())
        reads.append(prompts + drawn + (update if again or not teacher else 0))
    return reads[0], reads[1]


def cost_metrics(cost: Cost) -> Metrics:
    """What training has cost up to a step, as `cost/NAME`."""
    return {f"cost/{name}": float(value) for name, value in vars(cost).items()}


def cost_of(line: Mapping[str, Any]) -> Cost:
    """What training had cost by a line of metrics (nothing where an earlier version wrote it)."""
    return Cost(**{name: line.get(f"cost/{name}", 0) for name in vars(Cost())})


def is_over(train: TrainConfig, step: int, cost: Cost) -> bool:
    """Whether a run ends after `step` updates at this cost."""
    tokens, minutes = train.max_response_tokens, train.max_minutes
    return (
        step >= train.steps
        or (tokens is not None and cost.loss_tokens >= tokens)
        or (minutes is not None and cost.minutes >= minutes)
    )
