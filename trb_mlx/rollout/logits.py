"""Logits of finished rollouts, by passes without a cache and never of many tokens at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.bounds import chunk_tokens, row_groups
from trb_mlx.models.pair import Scorer
from trb_mlx.rollout.decoder import second_stream
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.types import Rollout


class LogitChunk(NamedTuple):
    """Some response tokens of a rollout, and what each model predicts in their places.

    Attributes:
        rows: int `[n]`, the tokens' rows in the rollout.
        positions: int `[n]`, their response positions.
        hidden: for each model what `Scorer.hidden` gives before the tokens, `[n, …]`.
        logits: for each model, float32 `[n, V]`.
        batch: the number of the pass, of those that were asked for.
    """

    rows: np.ndarray
    positions: np.ndarray
    hidden: list[mx.array]
    logits: list[mx.array]
    batch: int = 0

    def take(self, values: np.ndarray) -> mx.array:
        """`[n, …]` of these tokens from `[B, T, …]` of the rollout."""
        return mx.array(values[self.rows, self.positions])


def logit_chunks(
    scorers: Sequence[Scorer],
    rollout: Rollout,
    rows_at_once: int,
    tokens_at_once: int | None = None,
    turns: tuple[int, int] = (0, 1),
) -> Iterator[LogitChunk]:
    """Every response token once, with the logits of one or several models over one vocabulary.

    The bodies of a batch have run before any logits of it are formed, the second model's beside
    the first's where the device has streams for both. Heads read many tokens at once, and what
    they give comes in groups of rows (`bounds`): a caller who evaluates what is made of one holds
    nothing else.

    Args:
        scorers: the models, the student first where it is among them.
        rollout: finished rollouts.
        rows_at_once: the most rows of a pass.
        tokens_at_once: the most positions of a pass (a longer row goes alone).
        turns: the first pass that is wanted, and the distance to the next one.
    """
    streams = [mx.default_stream(mx.default_device()), second_stream()]
    chunk = chunk_tokens(scorers[0].merge.size, len(scorers))
    readers = [scorer.is_teacher for scorer in scorers]
    passes = pack_rollout(rollout, rows_at_once, tokens_at_once, readers=readers)
    for batch, packed in enumerate(islice(passes, turns[0], None, turns[1])):
        hidden = []
        for scorer, stream in zip(scorers, streams, strict=False):
            with mx.stream(stream):
                own = packed.read_by(scorer.is_teacher)
                hidden.append(own.pick(scorer.hidden(own.ids)))
        mx.eval(hidden)
        rows, positions = np.nonzero(packed.mask)
        for start in range(0, packed.count, chunk):
            places = np.arange(start, min(start + chunk, packed.count))
            states = [values[start : start + chunk] for values in hidden]
            logits = [s.logits_of(each) for s, each in zip(scorers, states, strict=True)]
            mx.eval(logits)
            for group in row_groups(len(places), scorers[0].merge.size):
                yield LogitChunk(
                    packed.rows[rows[places[group]]],
                    positions[places[group]],
                    [each[group] for each in states],
                    [each[group] for each in logits],
                    batch,
                )
