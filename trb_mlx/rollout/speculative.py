"""One round of decoding: the student drafts a block, the teacher verifies it in one pass.

A round of block length 1 is token-by-token blending. What is emitted at a position depends on
the prefix and on the position's own uniforms alone, so the block length changes nothing but cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.models.pair import Pair, Scorer
from trb_mlx.ops.coupling import accept_drafts
from trb_mlx.ops.numerics import kl_divergence, total_variation
from trb_mlx.ops.sampling import inverse_cdf, nucleus
from trb_mlx.rollout.behavior import Behavior
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.kv_cache import Prompts, second_stream
from trb_mlx.rollout.recording import student_records, teacher_records, tempered
from trb_mlx.types import Sampling

Values = dict[str, mx.array]


class Round(NamedTuple):
    """What a round emits.

    Attributes:
        tokens: int `[B, T]`, of which as many are emitted as were accepted, and the one after.
        accepted: int `[B]`, the drafts that stand.
        records: flat places among `[B·T]` → what is recorded of the tokens there.
    """

    tokens: mx.array
    accepted: mx.array
    records: Callable[[mx.array], Values]


class Drawer(Protocol):
    """Draws rounds; rows join, go on and leave as in `kv_cache.Decoder`."""

    longest: int  # the longest block that can be verified

    def join(self, prompts: Prompts) -> None:
        """Add rows."""

    def draw(self, last: mx.array, drafts: mx.array, tests: mx.array) -> Round:
        """One round after the tokens `last` `[B]`, with uniforms `[B, T, 2]` for each purpose."""

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """Keep the rows `going`, each without the last `unused` `[len(going)]` tokens read."""


@dataclass(frozen=True)
class Draft:
    """A drafted block: ids `[B, T]`, and at each place the student's logits, its tempered
    log-probs, and the log-probs that the draft was drawn from, all `[B, T, V]`."""

    tokens: mx.array
    logits: mx.array
    student_logprobs: mx.array
    draft_logprobs: mx.array


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
        tokens, logits = [], []
        for place in range(drafts.shape[1]):
            found = self._decoder.logits(last[:, None])[:, 0]
            last = self._pick(found, drafts[:, place])
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            tokens.append(last)
            logits.append(found)

        def records(places: mx.array) -> Values:
            if not self._support:
                return {}
            chosen = _flat(mx.stack(logits, axis=1))[places]
            drawn = _flat(mx.stack(tokens, axis=1))[places]
            return student_records(
                chosen, tempered(chosen, self._temperature), drawn, self._support
            )

        accepted = mx.full((last.shape[0],), len(tokens), dtype=mx.int32)
        return Round(mx.stack(tokens, axis=1), accepted, records)

    def _pick(self, logits: mx.array, uniforms: mx.array) -> mx.array:
        if self._temperature == 0.0:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        if self._top_p < 1.0:
            logits = nucleus(tempered(logits, self._temperature), self._top_p)
        elif self._temperature != 1.0:
            logits = logits / self._temperature
        return inverse_cdf(logits, uniforms)  # which normalises by itself


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
        steps: list[tuple[mx.array, ...]] = []
        for place in range(uniforms.shape[1]):
            logits = self._ours.logits(last[:, None])[:, 0]
            student_logprobs = tempered(logits, self._temperature)
            draft_logprobs = self._behavior.draft(student_logprobs)
            last = inverse_cdf(draft_logprobs, uniforms[:, place])
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            steps.append((last, logits, student_logprobs, draft_logprobs))
        return Draft(*(mx.stack(list(part), axis=1) for part in zip(*steps, strict=True)))

    def verify(self, last: mx.array, draft: Draft, tests: mx.array) -> Round:
        """What stands of a draft after `last`; a block of 1 need not wait for it to be drawn."""
        begin, block = last[:, None], tests.shape[1]
        with mx.stream(second_stream()):
            read = begin if block == 1 else mx.concatenate([begin, draft.tokens[:, :-1]], axis=1)
            hidden = self._theirs.read(read)
            teacher_logits = self._teacher.logits_of(hidden)
        teacher_logprobs = tempered(teacher_logits, self._temperature)
        blend = self._behavior.blend(draft.student_logprobs, teacher_logprobs, self._budget)
        uniforms = mx.concatenate([tests[..., 0], tests[..., 1]], axis=1)
        kept, replacement = accept_drafts(
            draft.tokens, draft.draft_logprobs, blend.logprobs, uniforms
        )
        rejected = mx.arange(block) == kept[:, None]
        tokens = mx.where(rejected, replacement[:, None], draft.tokens)

        def records(places: mx.array) -> Values:
            if not self._support:
                return {}
            logits, ours, theirs_raw, theirs, behavior, drawn = (
                _flat(array)[places]
                for array in (
                    draft.logits,
                    draft.student_logprobs,
                    teacher_logits,
                    teacher_logprobs,
                    blend.logprobs,
                    tokens,
                )
            )
            values = student_records(logits, ours, drawn, self._support)
            values |= teacher_records(theirs_raw, theirs, drawn, values["support"])
            values["weight"] = blend.weight.reshape(-1)[places]
            values["corrected"] = rejected.reshape(-1)[places]
            values["kl_behavior"] = kl_divergence(behavior, ours)
            values["total_variation"] = total_variation(behavior, ours)
            if self._keep_hidden:
                values["teacher_hidden"] = _flat(hidden)[places]
            return values

        return Round(tokens, kept, records)


def _flat(values: mx.array) -> mx.array:
    """`[B, T, …]` as `[B·T, …]`."""
    return values.reshape(-1, *values.shape[2:])
