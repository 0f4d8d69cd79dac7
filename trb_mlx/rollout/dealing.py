"""Rollouts that several ranks draw: whole jobs are dealt, and what they draw is put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trb_mlx.ranks.group import Group
from trb_mlx.types import Job, Records, Rollout

# What a token's loss needs, and nobody but the rank that drew it: most of the bytes.
HEAVY = ("support", "teacher_support", "teacher_hidden")
_COUNTS = ("temperature", "rounds", "drafted")


def draw_dealt(
    group: Group,
    jobs: Sequence[Job],
    max_tokens: int,
    draw: Callable[[list[Job]], Rollout],
    whole: bool = False,
) -> Rollout:
    """The rollouts of all jobs, each drawn by one rank, in the jobs' order on every rank.

    Draws are keyed by job, so who draws one changes none. A rank without a job draws nothing.

    Args:
        group: who draws.
        jobs: what is to be drawn; dealt by the tokens that each may come to.
        max_tokens: the longest response.
        draw: draws some of the jobs.
        whole: give every rank all records; else `HEAVY` ones are of a rank's own rows alone.
    """
    if group.size == 1:
        return draw(list(jobs))
    hands = group.deal([len(job.prompt.tokens) + max_tokens for job in jobs])
    mine = hands[group.rank]
    part = draw([jobs[index] for index in mine]) if mine else None
    arrays = {} if part is None else _arrays(part)
    sent = {name: a if whole or name not in HEAVY else a[:0] for name, a in arrays.items()}
    parts = group.gather_arrays("the rollouts", sent)
    parts[group.rank] = arrays
    return _merged(jobs, hands, parts)


def _arrays(part: Rollout) -> dict[str, np.ndarray]:
    kept = {"tokens": part.tokens, "lengths": part.lengths, "stopped": part.stopped}
    counts = {name: np.array(getattr(part, name)) for name in _COUNTS}
    return kept | counts | ({} if part.records is None else part.records.arrays())


def _merged(
    jobs: Sequence[Job], hands: list[list[int]], parts: Sequence[Mapping[str, np.ndarray]]
) -> Rollout:
    """Every rank's rows in their places; rows of records that were not sent are zeros."""
    drawn = [(rank, parts[rank]) for rank, hand in enumerate(hands) if hand]
    width = max(part["tokens"].shape[1] for _, part in drawn)
    values: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, part in drawn for name in part):
        if name in _COUNTS:
            continue
        for rank, part in drawn:
            array = part[name]
            if name not in values:
                wide = array.shape[1:] if array.ndim == 1 else (width, *array.shape[2:])
                values[name] = np.zeros((len(jobs), *wide), array.dtype)
            if not len(array):  # its own rank's alone
                continue
            rows = values[name][hands[rank]]
            rows[tuple(slice(size) for size in array.shape)] = array
            values[name][hands[rank]] = rows
    ranks = np.zeros(len(jobs), np.int64)
    for rank, hand in enumerate(hands):
        ranks[hand] = rank
    tokens, lengths, stopped = (values.pop(name) for name in ("tokens", "lengths", "stopped"))
    return Rollout(
        list(jobs),
        tokens,
        lengths,
        stopped,
        Records(**values) if values else None,
        float(drawn[0][1]["temperature"]),
        sum(int(part["rounds"]) for _, part in drawn),
        sum(int(part["drafted"]) for _, part in drawn),
        ranks=ranks,
    )
