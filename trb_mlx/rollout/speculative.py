"""One round of decoding: the student drafts a block, the teacher verifies it in one pass.

A round of block length 1 is token-by-token blending. What is emitted at a position depends on
the prefix and on the position's own uniforms alone, so the block length changes nothing but cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.distribution import Distribution, rows_at_once, softmax
from trb_mlx.ops.sampling import draw, nucleus
from trb_mlx.rollout.behavior import Behavior, Blend
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.kv_cache import Prompts, second_stream
from trb_mlx.rollout.recording import RoundRecords, student_records, teacher_records
from trb_mlx.types import Sampling

Values = dict[str, mx.array]


class Round(NamedTuple):
    """What a round emits.

    Attributes:
        tokens: int `[B, T]`, of which as many are emitted as were accepted, and the one after.
        accepted: int `[B]`, the drafts that stand.
        records: flat places `[N]` among `[B·T]`, all emitted → what is recorded of the tokens.
    """

    tokens: mx.array
    accepted: mx.array
    records: Callable[[np.ndarray], Values]


class Drawer(Protocol):
    """Draws rounds; rows join, go on and leave as in `kv_cache.Decoder`."""

    longest: int  # the longest block that can be verified

    def join(self, prompts: Prompts) -> None:
        """Add rows."""

    def draw(self, last: mx.array, drafts: mx.array, tests: mx.array) -> Round:
        """One round after the tokens `last` `[B]`, with uniforms `[B, T, 2]` for each purpose."""

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """Keep the rows `going`, each without the last `unused` `[len(going)]` tokens read."""


class Draft(NamedTuple):
    """A drafted block: ids `[B, T]`, and the student's rows at each place, in `parts`."""

    tokens: mx.array
    rows: list[list[Distribution]]


def parts(rows: int, vocab: int) -> list[slice]:
    """Rows taken together: all that is `[rows, vocab]` is made for so many at a time."""
    count = rows_at_once(vocab)
    return [slice(start, min(start + count, rows)) for start in range(0, rows, count)]


class Alone:
    """One model draws by itself; T tokens a round only spare the host some waiting."""

    longest = 2**31

    def __init__(self, scorer: Scorer, sampling: Sampling) -> None:
        """At temperature 0 the likeliest tokens are taken, and nothing may be recorded."""
        self._decoder = make_decoder(scorer)
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._support = min(sampling.support, scorer.merge.size)

    def join(self, prompts: Prompts) -> None:
        """See `Drawer`."""
        self._decoder.join(prompts)

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """See `Drawer`."""
        self._decoder.settle(going, unused)

    def draw(self, last: mx.array, drafts: mx.array, tests: mx.array) -> Round:
        """See `Drawer`."""
        rows, block = drafts.shape[:2]
        tokens, records = [], RoundRecords(rows, block)
        for place in range(block):
            logits = self._decoder.logits(last[:, None])[:, 0]
            last, drawn = self._pick(logits, drafts[:, place])
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            tokens.append(last)
            for part, of in zip(parts(*logits.shape), drawn, strict=True) if self._support else ():
                values = student_records(of, last[part], self._support, self._temperature)
                records.add(np.arange(part.start, part.stop), place, values)
        accepted = mx.full((rows,), block, dtype=mx.int32)
        return Round(mx.stack(tokens, axis=1), accepted, records)

    def _pick(self, logits: mx.array, uniforms: mx.array) -> tuple[mx.array, list[Distribution]]:
        if self._temperature == 0.0:
            return mx.argmax(logits, axis=-1).astype(mx.int32), []
        return draw_rows(logits, self._temperature, uniforms, self._top_p)


def draw_rows(
    logits: mx.array, temperature: float, uniforms: mx.array, top_p: float = 1.0
) -> tuple[mx.array, list[Distribution]]:
    """A token of each row of logits `[B, V]`, int `[B]`, and the rows' distributions, in `parts`.

    Where `top_p` is below 1 tokens are drawn from the distributions' nuclei.
    """
    tokens, rows = [], []
    for part in parts(*logits.shape):
        of = softmax(logits[part], temperature)
        masses = of.masses if top_p >= 1.0 else mx.exp(nucleus(of.logprobs, top_p))
        tokens.append(draw(masses, uniforms[part]))
        rows.append(of)
    return mx.concatenate(tokens), rows


class Blended:
    """A behavior policy draws: drafts of the student, verified by the teacher."""

    def __init__(
        self,
        pair: Pair,
        behavior: Behavior,
        budget: float,
        sampling: Sampling,
    ) -> None:
        """Both models' log-probs are tempered before the blend is solved."""
        self._student, self._teacher = pair.student, pair.teacher
        self._ours, self._theirs = make_decoder(pair.student), make_decoder(pair.teacher)
        self._behavior = behavior
        self._budget = mx.array(budget, dtype=mx.float32)
        self._temperature = sampling.temperature
        self._support = min(sampling.support, pair.student.merge.size)
        self._keep_hidden = sampling.keep_hidden
        rewinds = self._ours.rewinds and self._theirs.rewinds
        self.longest = 2**31 if rewinds else 1

    def join(self, prompts: Prompts) -> None:
        """See `Drawer`."""
        self._ours.join(prompts)
        self._theirs.join(prompts)

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """See `Drawer`."""
        self._ours.settle(going, unused)
        self._theirs.settle(going, unused)

    def draw(self, last: mx.array, drafts: mx.array, tests: mx.array) -> Round:
        """See `Drawer`."""
        return self.verify(last, self.draft(last, drafts), tests)

    def draft(self, last: mx.array, uniforms: mx.array) -> Draft:
        """The student's block of T tokens after `last` `[B]`, with uniforms `[B, T, 2]`."""
        tokens, rows = [], []
        for place in range(uniforms.shape[1]):
            logits = self._ours.logits(last[:, None])[:, 0]
            last, drawn = draw_rows(logits, self._temperature, uniforms[:, place])
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            tokens.append(last)
            rows.append(drawn)
        return Draft(mx.stack(tokens, axis=1), rows)

    def verify(self, last: mx.array, draft: Draft, tests: mx.array) -> Round:
        """What stands of a draft after `last`; a block of 1 need not wait for it to be drawn.

        Place by place, rows whose drafts stand so far are blended and tested: what comes after a
        rejection is never looked at.
        """
        begin, (rows, block) = last[:, None], draft.tokens.shape
        with mx.stream(second_stream()):
            read = begin if block == 1 else mx.concatenate([begin, draft.tokens[:, :-1]], axis=1)
            hidden = self._theirs.read(read)
            logits = self._teacher.logits_of(hidden)
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens, accepted = np.array(draft.tokens), np.zeros(rows, np.int32)
        records = RoundRecords(rows, block)
        for number, part in enumerate(parts(rows, logits.shape[-1])):
            standing = np.arange(part.start, part.stop)
            for place, drawn in enumerate(draft.rows):
                at: slice | mx.array = part  # a view while all stand
                within: slice | mx.array = slice(None)
                if len(standing) < part.stop - part.start:
                    at, within = mx.array(standing), mx.array(standing - part.start)
                student = drawn[number].take(within)
                teacher = softmax(logits[at, place], self._temperature)
                blend = self._behavior.blend(student, teacher, self._budget)
                kept, emitted = accept_drafts(
                    draft.tokens[at, place], student.probs, blend.probs, tests[at, place]
                )
                tokens[standing, place] = emitted
                if self._support:
                    values = self._records(student, teacher, blend, mx.array(emitted))
                    values["corrected"] = mx.array(~kept)
                    if self._keep_hidden:
                        values["teacher_hidden"] = hidden[at, place]
                    records.add(standing, place, values)
                standing = standing[kept]
                if not len(standing):
                    break
                accepted[standing] += 1
        return Round(mx.array(tokens), mx.array(accepted), records)

    def _records(
        self, student: Distribution, teacher: Distribution, blend: Blend, tokens: mx.array
    ) -> Values:
        values = student_records(student, tokens, self._support, self._temperature)
        values |= teacher_records(teacher, tokens, values["support"], self._temperature)
        return values | {
            "weight": blend.weight,
            "kl_behavior": blend.kl,
            "total_variation": blend.total_variation,
        }
