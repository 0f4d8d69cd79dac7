"""Which decoder reads a model rightly: each is tried on a few tokens, the quickest first."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from trb_mlx.errors import UserError
from trb_mlx.models.pair import Scorer
from trb_mlx.models.precision import bound
from trb_mlx.ops.distribution import softmax
from trb_mlx.ops.numerics import total_variation
from trb_mlx.rollout.decoder import Decoder, MergedDecoder, RowDecoder, SeparateDecoder

Make = Callable[..., Decoder]
Tokens = Sequence[tuple[int, ...]]
TRIMMABLE: tuple[Make, ...] = (RowDecoder, partial(RowDecoder, grouped=True))
PREFILLED_SINGLY: Make = partial(MergedDecoder, batched=False)

# Ragged prompts (one has nothing before its last token), what their rows read next, and the
# prompt of a row that is added when the longest has left.
PROMPTS = ((3, 5, 7, 11, 13, 17, 2, 19, 23, 41, 37), (29,), (31, 37, 43))
BLOCK = ((2, 31, 37), (41, 43, 47), (53, 59, 61))
LATER = (47, 3, 29, 5)
CHUNK = 8  # positions of a prefill pass: short prompts end passes before the longest does

# The largest total variation that rounding brings about as a rule, by the model's precision, and
# how many times that is still taken for rounding.
ROUNDING, ROUNDING_16_BIT, NOISY = 1e-3, 0.1, 3.0

_chosen: dict[int, tuple[weakref.ref[Any], Make]] = {}


def make_decoder(scorer: Scorer) -> Decoder:
    """The quickest decoder that is right for the model, tried once for each loaded model.

    Raises:
        UserError: none gives what the model gives without a cache.
    """
    module = scorer.model.module
    reference, make = _chosen.get(id(module), (None, None))
    if make is None or reference is None or reference() is not module:
        make = _choose_decoder(scorer)
        _chosen[id(module)] = weakref.ref(module), make
    return make(scorer)


def _choose_decoder(scorer: Scorer) -> Make:
    """Rows that can be trimmed, else mlx-lm's batch caches, else no batches at all."""
    fine = bound(ROUNDING, ROUNDING_16_BIT)  # TF32 keeps as many bits as float16
    usual = fine if scorer.model.is_float32 else ROUNDING_16_BIT
    failures: list[Exception] = []
    gaps: dict[Make, float] = {}
    for make in TRIMMABLE:
        gaps[make] = _gap(scorer, make, failures)
        if gaps[make] < usual:
            return make
    # One row with a cache of its own is off by rounding, or the model is wrong with or without.
    separate = _gap(scorer, SeparateDecoder, failures)
    if not separate < NOISY * usual:
        raise UserError(
            f"model {scorer.model.name} gives other probabilities with mlx-lm's cache than "
            "without it, so rollouts would not be drawn from what is trained and scored; "
            "expected a model for which mlx-lm has both alike."
        ) from (failures[-1] if failures else None)
    limit = min(max(usual, NOISY * separate), NOISY * usual)
    for make, gap in gaps.items():
        if gap < limit:
            return make
    # Both decode alike, so rounding moves both alike: what is more comes from the prefill.
    batched = _gap(scorer, MergedDecoder, failures)
    singly = _gap(scorer, PREFILLED_SINGLY, failures)
    if batched < limit and batched <= max(NOISY * singly, 0.01 * usual):
        return MergedDecoder
    return PREFILLED_SINGLY if singly < limit else SeparateDecoder


def _gap(scorer: Scorer, make: Make, failures: list[Exception]) -> float:
    """`_decoding_gap` of a new decoder; infinite where it raises, which `failures` then holds."""
    try:
        return _decoding_gap(scorer, make(scorer, chunk=CHUNK))
    except Exception as error:  # a model's own code, with caches it was not written for
        failures.append(error)
        return math.inf


def _decoding_gap(scorer: Scorer, decoder: Decoder) -> float:
    """The largest total variation between what rows read and what each text gives alone.

    Rows of different length are prefilled, trimmed where they can be, and filtered; one is added.
    """
    size = scorer.merge.size  # an id beyond the embedding's rows would read whatever lies there
    prompts, block = (
        [tuple(token % size for token in row) for row in rows] for rows in (PROMPTS, BLOCK)
    )
    texts = [list(prompt[:-1]) for prompt in prompts]
    decoder.prefill(prompts)
    steps: list[Tokens] = [[(token,) for token in step] for step in zip(*block, strict=True)]
    if decoder.is_trimmable:
        gaps = [_reading_gap(scorer, decoder, texts, block)]
        _trim(decoder, texts, [2, 0, 1])
        for step in steps[:-1]:  # drafts are read one by one, and trimmed together
            _read(decoder, texts, step)
        gaps.append(_reading_gap(scorer, decoder, texts, steps[-1]))
    else:
        gaps = [_reading_gap(scorer, decoder, texts, step) for step in steps]
    decoder.filter([1, 2])
    texts = texts[1:]
    if decoder.is_trimmable:
        _trim(decoder, texts, [2, 1])
    later = tuple(token % size for token in LATER)
    decoder.prefill([later])
    texts.append(list(later[:-1]))
    gaps.append(_reading_gap(scorer, decoder, texts, block if decoder.is_trimmable else steps[0]))
    return float(np.max(gaps))  # nan where one is


def _trim(decoder: Decoder, texts: list[list[int]], counts: list[int]) -> None:
    decoder.trim(np.array(counts))
    for text, count in zip(texts, counts, strict=True):
        del text[len(text) - count :]


def _read(decoder: Decoder, texts: list[list[int]], block: Tokens) -> mx.array:
    """Append a block to the rows and to their texts: hidden states `[B, T, D]`."""
    for text, tokens in zip(texts, block, strict=True):
        text.extend(tokens)
    return decoder.hidden(mx.array(list(block)))


def _reading_gap(scorer: Scorer, decoder: Decoder, texts: list[list[int]], block: Tokens) -> float:
    """Append a block to the rows and to their texts; compare what both predict after it."""
    decoded = scorer.logits_of(_read(decoder, texts, block))[:, -1]
    alone = mx.concatenate([scorer.logits(mx.array([text]))[:, -1] for text in texts])
    return float(total_variation(softmax(decoded).probs, softmax(alone).probs).max())
