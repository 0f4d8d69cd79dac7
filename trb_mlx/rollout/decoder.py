"""A model that decodes many rows at once; rows are prefilled, filtered and trimmed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.models import mlxlm
from trb_mlx.models.model_config import attention_heads
from trb_mlx.models.pair import Scorer
from trb_mlx.models.replay import make_recordable
from trb_mlx.rollout.layer_caches import RowCache, extract, flatten, make_row_cache, recurrent
from trb_mlx.rollout.recurrent_cache import Standing, reading
from trb_mlx.rollout.row_cache import Offsets, RowKVCache

PREFILL_TOKENS = 2048  # positions of each row that one prefill pass reads, as mlx-lm does

Prompts = Sequence[tuple[int, ...]]


@functools.cache
def second_stream() -> mx.Stream:
    """Where the teacher decodes while the student does.

    On a CPU a stream of its own, hence a core of its own; a GPU runs one kernel after another
    either way, and both models share its default stream.
    """
    device = mx.default_device()
    return mx.new_stream(device) if device == mx.Device(mx.cpu) else mx.default_stream(device)


class Decoder(Protocol):
    """What the sampler asks of a model with a cache."""

    is_trimmable: bool  # whether `trim` can take tokens back

    def prefill(self, prompts: Prompts) -> None:
        """Read every prompt but its last token, as new rows below the others."""

    def hidden(self, tokens: mx.array) -> mx.array:
        """Append T tokens a row, int `[B, T]`: what `Scorer.hidden` gives."""

    def logits(self, tokens: mx.array) -> mx.array:
        """Append T tokens a row, int `[B, T]`: their logits `[B, T, V]`, at the least cost."""

    def filter(self, rows: Sequence[int]) -> None:
        """Keep the listed rows, in that order; none may move down: `rows[i]` is at least i."""

    def trim(self, counts: np.ndarray) -> None:
        """Take back the last tokens that each row read, int `[B]`: none from before the last trim.

        A prefill leaves nothing to trim either.
        """


class RowDecoder:
    """Caches with an offset a row. Rollouts of one prompt share its prefill."""

    is_trimmable = True

    def __init__(self, scorer: Scorer, grouped: bool = False, chunk: int = PREFILL_TOKENS) -> None:
        """No rows yet; `grouped` as in `RowKVCache`, `chunk` positions a prefill pass.

        Raises:
            TypeError: a layer keeps something else than keys and values of all places or a window,
                or states of the recurrences that can be run again.
        """
        self._scorer = scorer
        self._chunk = chunk
        self._grouped = grouped
        self._kept = _empty_cache(scorer)
        self._offsets = Offsets([], attention_heads(scorer.model.config))
        self._layers = self._empty(self._offsets)
        self._untrimmed = 0  # positions that each row read since the last trim
        self._last: tuple[tuple[int, ...], list[RowCache]] | None = None
        if recurrent(self._layers):
            make_recordable(scorer.model.module)

    def _empty(self, offsets: Offsets) -> list[RowCache]:
        return [make_row_cache(kept, offsets, self._grouped) for kept in self._kept]

    def prefill(self, prompts: Prompts) -> None:
        """Read each distinct prompt once; several rows may share it."""
        distinct = list(dict.fromkeys(prompts))
        if self._last is not None and distinct == [self._last[0]]:
            layers = self._last[1]
        else:
            layers = self._prefill_padded([prompt[:-1] for prompt in distinct])
        rows = mx.array([distinct.index(prompt) for prompt in prompts])
        for layer, new in zip(flatten(self._layers), flatten(layers), strict=True):
            layer.extend(new.extract(rows))
        lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        self._offsets.set(np.concatenate([self._offsets.lengths, lengths]))
        self._untrimmed = 0
        # Jobs come prompt by prompt: the next to be admitted may be of the last one again.
        last = mx.array([len(distinct) - 1])
        self._last = distinct[-1], [extract(layer, last) for layer in layers]

    def _prefill_padded(self, heads: Prompts) -> list[RowCache]:
        """Right-padded; what stands beyond a row's offset is never seen and written over."""
        offsets = Offsets([0] * len(heads))
        layers = self._empty(offsets)
        lengths = np.array([len(head) for head in heads])
        longest = max(1, *(len(head) for head in heads))
        rows = mx.array([list(head) + [0] * (longest - len(head)) for head in heads])
        for start in range(0, longest, self._chunk):
            part = rows[:, start : start + self._chunk]
            counts = np.clip(lengths - start, 0, part.shape[1])
            padded = bool((counts < part.shape[1]).any())
            with reading(recurrent(layers), mx.array(counts) if padded else None):
                self._scorer.hidden(part, layers)
            for layer in recurrent(layers):
                layer.trim(None)
            offsets.set(offsets.lengths + part.shape[1])
            mx.eval([layer.state for layer in flatten(layers)])
        return layers

    def hidden(self, tokens: mx.array) -> mx.array:
        """Each row writes behind its own offset."""
        return self._read(self._scorer.hidden, tokens)

    def logits(self, tokens: mx.array) -> mx.array:
        """Each row writes behind its own offset."""
        return self._read(self._scorer.logits, tokens)

    def _read(self, forward: Callable[[mx.array, Any], mx.array], tokens: mx.array) -> mx.array:
        with reading(recurrent(self._layers)):
            output = forward(tokens, self._layers)
        self._offsets.set(self._offsets.lengths + tokens.shape[1])
        self._untrimmed += tokens.shape[1]
        return output

    def filter(self, rows: Sequence[int]) -> None:
        """Move the rows that change their place, one after another; all others stay."""
        if not len(rows):
            self._layers = self._empty(self._offsets)
        elif len(rows) < len(self._offsets.lengths):
            for states in recurrent(self._layers):
                states.filter(mx.array(list(rows), dtype=mx.int32))
            layers = [each for each in flatten(self._layers) if isinstance(each, RowKVCache)]
            for place, row in enumerate(rows):
                if row != place:
                    moved = [layer.extract(mx.array([row])).state for layer in layers]
                    mx.eval(moved)  # buffers that nothing else reads are then written in place
                    for layer, state in zip(layers, moved, strict=True):
                        layer.put(place, state)
        self._offsets.set(self._offsets.lengths[list(rows)])

    def trim(self, counts: np.ndarray) -> None:
        """Lower the offsets, where no data moves, and run recurrences again."""
        standing = Standing.of(self._untrimmed, counts)
        for layer in recurrent(self._layers):
            layer.trim(standing)
        self._untrimmed = 0
        if standing is not None:
            self._offsets.set(self._offsets.lengths - counts.astype(np.int32))


class MergedDecoder:
    """mlx-lm's batch caches, with recurrent states too; they cannot be trimmed row by row."""

    is_trimmable = False

    def __init__(self, scorer: Scorer, batched: bool = True, chunk: int = PREFILL_TOKENS) -> None:
        """No rows yet.

        Args:
            scorer: the model.
            batched: read prompts of different length at once, right-padded. A model that heeds
                no row lengths reads the padding too: its prompts are read one by one.
            chunk: positions of each row that one prefill pass reads.
        """
        self._scorer = scorer
        self._batched = batched
        self._chunk = chunk
        self._cache: list[Any] = []
        self._rows = 0

    def prefill(self, prompts: Prompts) -> None:
        """Read all prompts at once where `batched`, else each distinct one by itself."""
        if self._batched:
            cache = _merged([_empty_cache(self._scorer) for _ in prompts])
            self._prefill_padded(cache, [list(prompt[:-1]) for prompt in prompts])
        else:
            cache = _merged(_prefilled(self._scorer, prompts, self._chunk))
        for layer, new in zip(self._cache, cache, strict=False):
            layer.extend(new)
        self._cache = self._cache or cache
        self._rows += len(prompts)

    def _prefill_padded(self, cache: list[Any], heads: list[list[int]]) -> None:
        lengths = [len(head) for head in heads]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        rows = mx.array([head + [0] * pad for head, pad in zip(heads, padding, strict=True)])
        for start in range(0, longest, self._chunk):
            self._scorer.hidden(rows[:, start : start + self._chunk], cache)
            mx.eval([layer.state for layer in cache])
        if any(padding):
            for layer in cache:
                layer.finalize()

    def hidden(self, tokens: mx.array) -> mx.array:
        """One pass of all rows."""
        return self._scorer.hidden(tokens, self._cache)

    def logits(self, tokens: mx.array) -> mx.array:
        """One pass of all rows."""
        return self._scorer.logits(tokens, self._cache)

    def filter(self, rows: Sequence[int]) -> None:
        """mlx-lm's own filters, unless none leaves or all do."""
        if not len(rows):
            self._cache = []
        elif len(rows) < self._rows:
            index = mx.array(list(rows))
            for layer in self._cache:
                layer.filter(index)
        self._rows = len(rows)

    def trim(self, counts: np.ndarray) -> None:
        """Nothing can be taken back here."""
        assert not counts.any(), "these caches cannot be trimmed row by row"


class SeparateDecoder:
    """A cache of its own for each row: as many passes as rows, for models that take no others."""

    is_trimmable = False

    def __init__(self, scorer: Scorer, chunk: int = PREFILL_TOKENS) -> None:
        """No rows yet; `chunk` positions a prefill pass."""
        self._scorer = scorer
        self._chunk = chunk
        self._caches: list[list[Any]] = []

    def prefill(self, prompts: Prompts) -> None:
        """Read each distinct prompt once; each of its rows has a copy."""
        caches = _prefilled(self._scorer, prompts, self._chunk)
        self._caches += [copy.deepcopy(cache) for cache in caches]

    def hidden(self, tokens: mx.array) -> mx.array:
        """A pass a row."""
        return self._each(self._scorer.hidden, tokens)

    def logits(self, tokens: mx.array) -> mx.array:
        """A pass a row."""
        return self._each(self._scorer.logits, tokens)

    def _each(self, forward: Callable[[mx.array, Any], mx.array], tokens: mx.array) -> mx.array:
        rows = zip(mx.split(tokens, len(self._caches)), self._caches, strict=True)
        return mx.concatenate([forward(row, cache) for row, cache in rows])

    def filter(self, rows: Sequence[int]) -> None:
        """Drop the caches of all other rows."""
        self._caches = [self._caches[row] for row in rows]

    def trim(self, counts: np.ndarray) -> None:
        """Nothing can be taken back here."""
        assert not counts.any(), "these caches cannot be trimmed row by row"


def _empty_cache(scorer: Scorer) -> list[Any]:
    """mlx-lm's own caches of one row, a layer each."""
    cache: list[Any] = mlxlm.make_prompt_cache(scorer.model.module)
    return cache


def _prefilled(scorer: Scorer, prompts: Prompts, chunk: int) -> list[list[Any]]:
    """For each prompt the caches that have read all but its last token; equal ones are shared."""
    caches: dict[tuple[int, ...], list[Any]] = {}
    for prompt in dict.fromkeys(prompts):
        cache = caches[prompt] = _empty_cache(scorer)
        for start in range(0, len(prompt) - 1, chunk):
            scorer.hidden(mx.array([prompt[:-1][start : start + chunk]]), cache)
            mx.eval([layer.state for layer in cache])
    return [caches[prompt] for prompt in prompts]


def _merged(rows: Sequence[list[Any]]) -> list[Any]:
    """One batch cache a layer of the caches of several rows."""
    return [layers[0].merge(layers) for layers in zip(*rows, strict=True)]
