"""A model with one cache row per rollout, of ragged prompts, whose rows can leave."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from trb_mlx.models import mlxlm
from trb_mlx.models.pair import Scorer
from trb_mlx.ops.vocab import shared_logits

PREFILL_TOKENS = 2048  # positions of each row that one prefill pass reads


@functools.cache
def second_stream() -> mx.Stream:
    """Where the teacher decodes while the student does.

    On a CPU a stream of its own, hence a core of its own; a GPU runs one kernel after another
    either way, and both models share its default stream.
    """
    device = mx.default_device()
    return mx.new_stream(device) if device == mx.Device(mx.cpu) else mx.default_stream(device)


class CachedModel:
    """Decodes B rows at once with mlx-lm's batch caches.

    Works with every cache that mlx-lm can merge: full, rotating (sliding window), recurrent.
    """

    def __init__(self, scorer: Scorer, prompts: Sequence[Sequence[int]]) -> None:
        """Read every prompt but its last token, which the first `step` takes."""
        self._scorer = scorer
        self._cache = [
            layers[0].merge(layers)
            for layers in zip(*(_row_cache(scorer) for _ in prompts), strict=True)
        ]
        self._prefill([list(prompt[:-1]) for prompt in prompts])

    def _prefill(self, heads: list[list[int]]) -> None:
        lengths = [len(head) for head in heads]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        ragged = any(padding)
        if ragged:
            for cache in self._cache:
                cache.prepare(lengths=lengths, right_padding=padding)
        rows = mx.array([head + [0] * pad for head, pad in zip(heads, padding, strict=True)])
        for start in range(0, longest, PREFILL_TOKENS):
            self._scorer.model.module(rows[:, start : start + PREFILL_TOKENS], cache=self._cache)
            mx.eval([cache.state for cache in self._cache])
        if ragged:
            for cache in self._cache:
                cache.finalize()

    def step(self, tokens: mx.array) -> mx.array:
        """Append one token a row, int `[B]`, and give the next logits `[B, V]` (float32)."""
        logits = self._scorer.model.module(tokens[:, None], cache=self._cache)
        return shared_logits(logits[:, -1], self._scorer.merge)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row that is not listed; the rest keep their order."""
        index = mx.array(list(rows))
        for cache in self._cache:
            cache.filter(index)


def _row_cache(scorer: Scorer) -> list[Any]:
    return mlxlm.make_prompt_cache(scorer.model.module)
