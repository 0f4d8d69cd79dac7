"""Rounds of decoding: what generates a block of tokens for each row, and one model that does."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.bounds import row_groups
from trb_mlx.models.pair import Scorer
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.ops.sampling import draw, nucleus
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.decoder import Decoder
from trb_mlx.rollout.recording import BlockRecords, student_records
from trb_mlx.types import Sampling


class Block(NamedTuple):
    """What a round generates.

    Attributes:
        tokens: int `[B, T]`, of which as many are emitted as were accepted, and the one after.
        accepted: int `[B]` on the host, the drafts that stand.
        records: what is recorded of the emitted tokens.
    """

    tokens: mx.array
    accepted: np.ndarray
    records: BlockRecords

    def filtered(self, rows: list[int]) -> Block:
        """Of the listed rows alone, in that order."""
        self.records.filter(rows)
        return Block(self.tokens[mx.array(rows)], self.accepted[rows], self.records)


class BlockGenerator(Protocol):
    """Generates blocks with one or more models, all of whose decoders hold the same rows.

    Attributes:
        readers: for each model, whether it reads the teacher's prompts.
        decoders: the models; whoever asks for blocks prefills, filters and trims their rows.
        runs_ahead: whether all of a block stands, so that the next one can be submitted before
            the host has seen it.
    """

    readers: list[bool]
    decoders: list[Decoder]
    runs_ahead: bool

    def longest_block(self, rows: int) -> int:
        """The most tokens a row that can be generated at once for so many rows."""

    def generate(self, last: mx.array, draft_uniforms: mx.array, test_uniforms: mx.array) -> Block:
        """A block after the tokens `last` `[R, B]`, with uniforms `[B, T, 2]` for each purpose."""


def draw_rows(
    logits: mx.array, temperature: float, uniforms: mx.array, top_p: float = 1.0
) -> tuple[mx.array, list[Distribution]]:
    """A token of each row of logits `[B, V]`, int `[B]`, and each of `row_groups`' distributions.

    Where `top_p` is below 1 tokens are drawn from the distributions' nuclei.
    """
    tokens, distributions = [], []
    if temperature != 1.0:
        logits = logits / temperature
    for group in row_groups(*logits.shape):
        drawn, *rows = softmax_draw(logits[group], uniforms[group])
        distributions.append(Distribution(*rows))
        if top_p < 1.0:
            masses = mx.exp(nucleus(distributions[-1].logprobs, top_p))
            drawn = draw(masses, uniforms[group])
        tokens.append(drawn)
    return mx.concatenate(tokens), distributions


def draw_tokens(logits: mx.array, temperature: float, uniforms: mx.array) -> mx.array:
    """As `draw_rows`, where nobody asks for the distributions."""
    if temperature != 1.0:
        logits = logits / temperature
    groups = row_groups(*logits.shape)
    return mx.concatenate([bare_draw(logits[group], uniforms[group]) for group in groups])


@mx.compile
def bare_draw(logits: mx.array, uniforms: mx.array) -> mx.array:
    """A token of each row of logits `[B, V]`, the same as `softmax_draw`'s."""
    return draw(softmax(logits).masses, uniforms)


@mx.compile
def softmax_draw(logits: mx.array, uniforms: mx.array) -> tuple[mx.array, ...]:
    """A token of each row of logits `[B, V]`, and the parts of its `Distribution`."""
    rows = softmax(logits)
    return draw(rows.masses, uniforms), *rows


class ModelGenerator:
    """One model by itself, a token at a time."""

    runs_ahead = True

    def __init__(self, scorer: Scorer, sampling: Sampling) -> None:
        """At temperature 0 the likeliest tokens are taken, and nothing may be recorded."""
        self.readers, self.decoders = [scorer.is_teacher], [make_decoder(scorer)]
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._support = min(sampling.support, scorer.merge.size)

    def longest_block(self, rows: int) -> int:
        """1: nobody looks at several at once."""
        return 1

    def generate(self, last: mx.array, draft_uniforms: mx.array, test_uniforms: mx.array) -> Block:
        """Draw one token; it is accepted, and nothing is tested."""
        logits = self.decoders[0].logits(last[0][:, None])[:, 0]
        rows, uniforms, temperature = len(logits), draft_uniforms[:, 0], self._temperature
        distributions: list[Distribution] = []
        if temperature == 0.0:
            tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
        elif self._support or self._top_p < 1.0:
            tokens, distributions = draw_rows(logits, temperature, uniforms, self._top_p)
        else:
            tokens = draw_tokens(logits, temperature, uniforms)
        block = tokens[:, None]
        mx.async_eval(block)  # type: ignore[no-untyped-call]
        records = BlockRecords(rows, 1)
        if self._support:
            for group, student in zip(row_groups(*logits.shape), distributions, strict=True):
                values = student_records(student, tokens[group], self._support, temperature)
                records.add(np.arange(group.start, group.stop), 0, values)
        return Block(block, np.ones(rows, np.int32), records)
