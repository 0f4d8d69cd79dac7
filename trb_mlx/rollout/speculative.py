"""A behavior policy's tokens: the student drafts a block, the teacher verifies it in one pass.

A block of length 1 is token-by-token blending. What is emitted at a position depends on the
prefix and on the position's own uniforms alone, so the block length changes nothing but cost.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from trb_mlx.bounds import most_rows, row_groups
from trb_mlx.models.pair import Pair
from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import Distribution, softmax
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.decoder import second_stream
from trb_mlx.rollout.generator import Block, draw_rows
from trb_mlx.rollout.recording import BlockRecords, pair_records
from trb_mlx.types import Sampling


class Draft(NamedTuple):
    """A drafted block: ids `[B, T]`, and for each place the student's rows in `row_groups`."""

    tokens: mx.array
    distributions: list[list[Distribution]]


class SpeculativeGenerator:
    """A behavior policy: drafts of the student, verified by the teacher."""

    runs_ahead = False

    def __init__(self, pair: Pair, behavior: Behavior, budget: float, sampling: Sampling) -> None:
        """Both models' log-probs are tempered before the blend is solved."""
        self._teacher = pair.teacher
        self.readers = [pair.student.is_teacher, pair.teacher.is_teacher]
        self.decoders = [make_decoder(pair.student), make_decoder(pair.teacher)]
        self._trimmable = all(each.is_trimmable for each in self.decoders)
        self._behavior = behavior
        self._budget = mx.array(budget, dtype=mx.float32)
        self._temperature = sampling.temperature
        self._support = min(sampling.support, pair.student.merge.size)
        self._keep_hidden = sampling.keep_hidden

    def longest_block(self, rows: int) -> int:
        """1 where caches cannot be trimmed, else what keeps all its distributions in the bound."""
        return max(1, most_rows(self._teacher.merge.size) // rows) if self._trimmable else 1

    def generate(self, last: mx.array, draft_uniforms: mx.array, test_uniforms: mx.array) -> Block:
        """Draft a block and verify it."""
        student_last, teacher_last = last
        return self.verify(teacher_last, self.draft(student_last, draft_uniforms), test_uniforms)

    def draft(self, last: mx.array, uniforms: mx.array) -> Draft:
        """The student's block of T tokens after `last` `[B]`, with uniforms `[B, T, 2]`."""
        student_decoder, tokens, distributions = self.decoders[0], [], []
        for place in range(uniforms.shape[1]):
            logits = student_decoder.logits(last[:, None])[:, 0]
            last, rows = draw_rows(logits, self._temperature, uniforms[:, place])
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            tokens.append(last)
            distributions.append(rows)
        return Draft(mx.stack(tokens, axis=1), distributions)

    def verify(self, last: mx.array, draft: Draft, uniforms: mx.array) -> Block:
        """What stands of a draft after `last`; a block of 1 need not wait for it to be drawn.

        Place by place, rows whose drafts stand so far are blended and tested: what comes after a
        rejection is never looked at.
        """
        rows, length = draft.tokens.shape
        with mx.stream(second_stream()):
            inputs = last[:, None]
            if length > 1:
                inputs = mx.concatenate([inputs, draft.tokens[:, :-1]], axis=1)
            hidden = self.decoders[1].hidden(inputs)
            logits = self._teacher.logits_of(hidden)
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens, accepted = np.array(draft.tokens), np.zeros(rows, np.int32)
        records = BlockRecords(rows, length)
        for number, group in enumerate(row_groups(rows, logits.shape[-1])):
            standing = np.arange(group.start, group.stop)
            for place, groups in enumerate(draft.distributions):
                at: slice | mx.array = group  # a view while all stand
                within: slice | mx.array = slice(None)
                if len(standing) < group.stop - group.start:
                    at, within = mx.array(standing), mx.array(standing - group.start)
                student = groups[number].take(within)
                teacher = softmax(logits[at, place], self._temperature)
                blend = self._behavior.blend(student, teacher, self._budget)
                kept, emitted = accept_drafts(
                    draft.tokens[at, place], student, blend.probs, uniforms[at, place]
                )
                tokens[standing, place] = emitted
                if self._support:
                    values = pair_records(
                        student, teacher, blend, mx.array(emitted), self._support, self._temperature
                    )
                    values["corrected"] = mx.array(~kept)
                    if self._keep_hidden:
                        values["teacher_hidden"] = hidden[at, place]
                    records.add(standing, place, values)
                standing = standing[kept]
                if not len(standing):
                    break
                accepted[standing] += 1
        return Block(mx.array(tokens), accepted, records)
