"""A model that decodes many rows at once; rows join with a prompt, rewind, and leave."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from trb_mlx.models import mlxlm
from trb_mlx.models.pair import Scorer
from trb_mlx.rollout.row_cache import Offsets, RowKVCache

PREFILL_TOKENS = 2048  # positions of each row that one prefill pass reads

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

    def join(self, prompts: Prompts) -> None:
        """Read every prompt but its last token, as new rows below the others."""

    def read(self, tokens: mx.array) -> mx.array:
        """Append T tokens a row, int `[B, T]`: what `Scorer.read` gives."""

    def logits(self, tokens: mx.array) -> mx.array:
        """Append T tokens a row, int `[B, T]`: their logits `[B, T, V]`, at the least cost."""

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """Keep the rows `going` in their order, each without the last `unused` tokens it read."""


def make_decoder(scorer: Scorer) -> Decoder:
    """A decoder that rewinds where the model's caches can, else one that only goes on."""
    masks = _row_masks(scorer)
    return MergedDecoder(scorer) if masks is None else RowDecoder(scorer, masks == GROUPED)


class RowDecoder:
    """Attention caches with an offset a row. Rollouts of one prompt share its prefill."""

    def __init__(self, scorer: Scorer, grouped: bool = False) -> None:
        """No rows yet; `grouped` as in `RowKVCache`."""
        self._scorer = scorer
        self._grouped = grouped
        self._windows = _windows(scorer)
        self._offsets = Offsets([])
        self._layers = self._empty(self._offsets)
        self._last: tuple[tuple[int, ...], list[RowKVCache]] | None = None

    def _empty(self, offsets: Offsets) -> list[RowKVCache]:
        return [RowKVCache(offsets, window, self._grouped) for window in self._windows]

    def join(self, prompts: Prompts) -> None:
        """See `Decoder`."""
        distinct = list(dict.fromkeys(prompts))
        if self._last is not None and distinct == [self._last[0]]:
            layers = self._last[1]
        else:
            layers = self._prefill([prompt[:-1] for prompt in distinct])
        rows = mx.array([distinct.index(prompt) for prompt in prompts])
        for mine, new in zip(self._layers, layers, strict=True):
            joined = RowKVCache(new.offsets)
            joined.keys, joined.values = new.keys, new.values
            joined.take(rows)
            mine.append(joined)
        lengths = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        self._offsets.set(np.concatenate([self._offsets.lengths, lengths]))
        self._remember(distinct[-1], layers, len(distinct) - 1)

    def _remember(self, prompt: tuple[int, ...], layers: list[RowKVCache], row: int) -> None:
        """Jobs come prompt by prompt: the next to join may be of the last one again."""
        kept = self._empty(Offsets([len(prompt) - 1]))
        for cache, layer in zip(kept, layers, strict=True):
            cache.keys, cache.values = layer.keys, layer.values
            cache.take(mx.array([row]))
        self._last = (prompt, kept)

    def _prefill(self, heads: Prompts) -> list[RowKVCache]:
        """Right-padded; what stands beyond a row's offset is never seen and written over."""
        offsets = Offsets([0] * len(heads))
        layers = self._empty(offsets)
        longest = max(1, *(len(head) for head in heads))
        rows = mx.array([list(head) + [0] * (longest - len(head)) for head in heads])
        for start in range(0, longest, PREFILL_TOKENS):
            part = rows[:, start : start + PREFILL_TOKENS]
            self._scorer.read(part, layers)
            offsets.set(offsets.lengths + part.shape[1])
            mx.eval([layer.state for layer in layers])
        return layers

    def read(self, tokens: mx.array) -> mx.array:
        """See `Decoder`."""
        found = self._scorer.read(tokens, self._layers)
        self._offsets.set(self._offsets.lengths + tokens.shape[1])
        return found

    def logits(self, tokens: mx.array) -> mx.array:
        """See `Decoder`."""
        found = self._scorer.logits(tokens, self._layers)
        self._offsets.set(self._offsets.lengths + tokens.shape[1])
        return found

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """See `Decoder`."""
        lengths = self._offsets.lengths[list(going)]
        if not len(going):
            self._layers = self._empty(self._offsets)
        elif len(lengths) < len(self._offsets.lengths):
            index = mx.array(list(going), dtype=mx.int32)
            for layer in self._layers:
                layer.take(index)
        self._offsets.set(lengths - unused.astype(np.int32))


class MergedDecoder:
    """mlx-lm's batch caches, with recurrent states too; they cannot rewind row by row."""

    def __init__(self, scorer: Scorer) -> None:
        """No rows yet."""
        self._scorer = scorer
        self._cache: list[Any] = []
        self._rows = 0

    def join(self, prompts: Prompts) -> None:
        """See `Decoder`."""
        rows = [mlxlm.make_prompt_cache(self._scorer.model.module) for _ in prompts]
        cache = [layers[0].merge(layers) for layers in zip(*rows, strict=True)]
        self._prefill(cache, [list(prompt[:-1]) for prompt in prompts])
        for mine, new in zip(self._cache, cache, strict=False):
            mine.extend(new)
        self._cache = self._cache or cache
        self._rows += len(prompts)

    def _prefill(self, cache: list[Any], heads: list[list[int]]) -> None:
        lengths = [len(head) for head in heads]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        rows = mx.array([head + [0] * pad for head, pad in zip(heads, padding, strict=True)])
        for start in range(0, longest, PREFILL_TOKENS):
            self._scorer.read(rows[:, start : start + PREFILL_TOKENS], cache)
            mx.eval([layer.state for layer in cache])
        if any(padding):
            for layer in cache:
                layer.finalize()

    def read(self, tokens: mx.array) -> mx.array:
        """See `Decoder`."""
        return self._scorer.read(tokens, self._cache)

    def logits(self, tokens: mx.array) -> mx.array:
        """See `Decoder`."""
        return self._scorer.logits(tokens, self._cache)

    def settle(self, going: Sequence[int], unused: np.ndarray) -> None:
        """See `Decoder`; nothing can be taken back here."""
        assert not unused.any(), "these caches cannot rewind"
        if not len(going):
            self._cache = []
        elif len(going) < self._rows:
            index = mx.array(list(going))
            for layer in self._cache:
                layer.filter(index)
        self._rows = len(going)


def _windows(scorer: Scorer) -> list[int | None]:
    """Each layer's sliding window.

    Raises:
        TypeError: a layer keeps something else than keys and values of all places or a window.
    """
    windows: list[int | None] = []
    for cache in mlxlm.make_prompt_cache(scorer.model.module):
        if type(cache) is mlxlm.KVCache:
            windows.append(None)
        elif type(cache) is mlxlm.RotatingKVCache and not cache.keep:
            windows.append(int(cache.max_size))
        else:
            raise TypeError(type(cache).__name__)
    return windows


# Two ragged rows, and what they read next: a block, part of it again, one token.
_PROBE = ((3, 5, 7, 11, 13, 17), (19, 23, 29))
_PROBE_BLOCK = ((2, 31, 37), (41, 43, 47))


# Forms of mask that models take: one for all heads, or one below an axis of grouped heads.
PLAIN, GROUPED = "plain", "grouped"
_known: dict[int, tuple[weakref.ref[Any], str | None]] = {}


def can_rewind(scorer: Scorer) -> bool:
    """Whether the model decodes rightly with rows that rewind, seen by trying it once."""
    return _row_masks(scorer) is not None


def _row_masks(scorer: Scorer) -> str | None:
    module = scorer.model.module
    reference, found = _known.get(id(module), (None, None))
    if reference is None or reference() is not module:
        forms = (form for form in (PLAIN, GROUPED) if _rewinds(scorer, form == GROUPED))
        found = next(forms, None)
        _known[id(module)] = weakref.ref(module), found
    return found


def _rewinds(scorer: Scorer, grouped: bool) -> bool:
    # An id beyond the embedding's rows would read whatever lies there.
    size = scorer.merge.size
    prompts, block = (
        [tuple(token % size for token in row) for row in rows] for rows in (_PROBE, _PROBE_BLOCK)
    )
    try:
        decoder = RowDecoder(scorer, grouped)
        decoder.join(prompts)
        decoder.read(mx.array(block))
        decoder.settle([0, 1], np.array([2, 0]))
        found = scorer.logits_of(decoder.read(mx.array(block)))[:, -1]
    except (TypeError, ValueError, AttributeError, IndexError):
        return False
    before = [[*prompts[0][:-1], block[0][0]], [*prompts[1][:-1], *block[1]]]
    texts = [[*text, *more] for text, more in zip(before, block, strict=True)]
    alone = mx.concatenate([scorer.logits(mx.array([text]))[:, -1] for text in texts])
    gap = mx.abs(mx.softmax(found, axis=-1) - mx.softmax(alone, axis=-1))
    # Half the L1 distance: rounding in 16 bits leaves a few percent.
    limit = 1e-3 if scorer.model.is_float32 else 0.1
    return bool(0.5 * gap.sum(-1).max() < limit)
