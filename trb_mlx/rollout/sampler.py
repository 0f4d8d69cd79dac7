"""Draws rollouts from one model or from a behavior policy: rows come and go until all are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.desk import Desk
from trb_mlx.rollout.draft_length import DraftLength, Fixed
from trb_mlx.rollout.speculative import Alone, Blended, Drawer
from trb_mlx.types import Job, Records, Rollout, Sampling

__all__ = ["Sampling", "sample", "sample_blended", "wired_memory"]

# A model that draws alone goes on for this share of `max_tokens` before the host looks for rows
# that stopped: a look leaves the device idle, and tokens drawn beyond a stop are lost.
LOOK_SHARE, LONGEST_LOOK = 1 / 24, 16


def sample(scorer: Scorer, jobs: Sequence[Job], sampling: Sampling) -> Rollout:
    """Draw from one model alone; at temperature 0 its likeliest tokens, unrecorded."""
    look = Fixed(look_every(sampling.max_tokens))
    return _sample(Alone(scorer, sampling), jobs, sampling, scorer, look)


def look_every(max_tokens: int) -> int:
    """Tokens between two looks at rows of at most so many tokens."""
    return min(max(1, round(max_tokens * LOOK_SHARE)), LONGEST_LOOK)


def sample_blended(
    pair: Pair,
    jobs: Sequence[Job],
    sampling: Sampling,
    behavior: Behavior,
    budget: float,
    draft_length: DraftLength,
) -> Rollout:
    """Draw from the behavior policy: the student drafts blocks, the teacher verifies each at once.

    Token by token where `draft_length` says 1, or where a model's caches cannot rewind.
    """
    drawer = Blended(pair, behavior, budget, sampling)
    return _sample(drawer, jobs, sampling, pair.student, draft_length)


def _sample(
    drawer: Drawer,
    jobs: Sequence[Job],
    sampling: Sampling,
    scorer: Scorer,
    draft_length: DraftLength,
) -> Rollout:
    support = min(sampling.support, scorer.merge.size)
    records = Records.empty(len(jobs), sampling.max_tokens, support) if support else None
    desk = Desk(jobs, sampling.max_tokens, scorer.merge.stop_id, records)
    with wired_memory():
        while True:
            prompts = desk.seat(sampling.batch_size)
            if prompts:
                drawer.join(prompts)
            if not len(desk.rows):
                return desk.result(sampling.temperature)
            length = draft_length.choose(len(desk.rows))
            _advance(drawer, desk, min(length, drawer.longest, desk.most_left()), draft_length)


@contextmanager
def wired_memory() -> Iterator[None]:
    """Keep weights and caches resident while decoding; only Metal can page them out."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)


def _advance(drawer: Drawer, desk: Desk, length: int, draft_length: DraftLength) -> None:
    """One round: the only place where the host waits for the device."""
    found = drawer.draw(mx.array(desk.last), *desk.uniforms(length))
    mx.eval(found.tokens, found.accepted)
    accepted = np.asarray(found.accepted)
    counts = np.minimum(accepted + 1, length)
    draft_length.observe(int(counts.sum()), int((counts - accepted).sum()))
    counts, going = desk.take(np.asarray(found.tokens), counts)
    places = np.flatnonzero(np.arange(length) < counts[:, None])
    values = found.records(places)
    if values:
        mx.async_eval(values)  # type: ignore[no-untyped-call]
        desk.record(counts, values)
    drawer.settle(going, length - counts[going])
    desk.keep(going)
