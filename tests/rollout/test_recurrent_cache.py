"""Recurrent states and windows are taken back exactly, and nothing else in the process changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import DEAF, HYBRIDS, RECURRENT, make_model

from trb_mlx.config import BehaviorConfig, LoraConfig, ModelConfig
from trb_mlx.models import replay
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Scorer, load_pair, make_scorer
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.decoder import MergedDecoder, RowDecoder
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.recurrent_cache import RecurrentCache
from trb_mlx.rollout.sampler import sample_blended
from trb_mlx.types import Job, Prompt, RolloutKey, Sampling

FAMILIES = [*RECURRENT, *HYBRIDS]
# Their updates go from position to position; the others' and kimi_linear's attention round
# otherwise for one position than for several.
STEPWISE = {"qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid", "lfm2", "lfm2_moe"}


def scorer_of(kind: str, folder: Path) -> Scorer:
    """A model whose states move its logits."""
    scorer = make_scorer(
        load_model(ModelConfig(model=str(make_model(folder / kind, kind, seed=4))))
    )
    module = scorer.model.module
    weights = [
        (name, mx.full(array.shape, -2.0) if name.endswith("A_log") else 3 * array)
        for name, array in tree_flatten(module.parameters())
        if name.endswith("A_log") or (array.ndim > 1 and "embed" not in name)
    ]
    module.load_weights(weights, strict=False)
    return scorer


def rounds(scorer: Scorer, rejecting: bool, count: int = 8) -> tuple[float, bool]:
    """Rounds with rows that join, leave and are trimmed, against fresh passes of their texts.

    Returns:
        The largest difference of logits, and whether all bits are equal.
    """
    rng = np.random.default_rng(0)
    decoder, texts = RowDecoder(scorer, chunk=8), []
    worst, equal = 0.0, True
    for number in range(count):
        if free := 4 - len(texts):
            prompts = [
                tuple(rng.integers(1, 250, rng.integers(1, 20)).tolist()) for _ in range(free)
            ]
            decoder.prefill(prompts)
            texts += [list(prompt[:-1]) for prompt in prompts]
        length = int(rng.integers(1, 7))
        block = rng.integers(1, 250, (len(texts), length))
        ids = mx.array(block)
        if number % 2:  # as a teacher verifies
            logits = scorer.logits_of(decoder.hidden(ids))
        else:  # as a student drafts
            steps = [decoder.logits(ids[:, i : i + 1]) for i in range(length)]
            logits = mx.concatenate(steps, axis=1)
        for text, row, tokens in zip(texts, np.asarray(logits), block.tolist(), strict=True):
            text += tokens
            alone = np.asarray(scorer.logits(mx.array([text])))[0, -length:]
            worst = max(worst, float(np.abs(alone - row).max()))
            equal = equal and bool((alone == row).all())
        kept = [i for i in range(len(texts)) if rng.random() < 0.8]
        texts = [texts[i] for i in kept]
        decoder.filter(kept)
        unused = rng.integers(0, length + 1, len(kept)) if rejecting else np.zeros(len(kept), int)
        decoder.trim(unused)
        texts = [text[: len(text) - dropped] for text, dropped in zip(texts, unused, strict=True)]
    return worst, equal


@pytest.mark.parametrize("kind", FAMILIES)
def test_ragged_rounds_equal_fresh_passes(kind: str, tmp_path: Path) -> None:
    """Rewinding adds no rounding: where blocks alone are bit-equal, what is rewound is too."""
    scorer = scorer_of(kind, tmp_path)
    assert isinstance(make_decoder(scorer), RowDecoder)
    worst, equal = rounds(scorer, rejecting=True)
    assert worst < 1e-4
    if kind in STEPWISE:
        assert equal or not rounds(scorer, rejecting=False)[1]  # a BLAS that heeds the shapes


def test_the_rounds_see_a_state_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trim = RecurrentCache.trim
    monkeypatch.setattr(RecurrentCache, "trim", lambda self, counts: trim(self, None))
    for kind in ("qwen3_5", "lfm2", "mamba2", "falcon_h1"):
        scorer = scorer_of(kind, tmp_path)
        assert rounds(scorer, rejecting=True, count=3)[0] > 1e-2
        assert not isinstance(make_decoder(scorer), RowDecoder)


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "mamba2", "falcon_h1"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_blocks_and_batches_change_no_token(kind: str, role: str, tmp_path: Path) -> None:
    """Stops inside blocks, ragged prompts, rows that leave and others that come."""
    hybrid, llama = (
        ModelConfig(model=str(make_model(tmp_path / name, name, seed=seed, scale=4.0)))
        for seed, name in enumerate((kind, "llama"))
    )
    pair = load_pair(*((hybrid, llama) if role == "student" else (llama, hybrid)))
    texts = [b"a", b"Compute 12+7.", b"the quick brown fox jumps over it"]
    jobs = [
        Job(Prompt(i, "", tuple(text)), RolloutKey(0, 0, i, n))
        for i, text in enumerate(texts)
        for n in range(2)
    ]
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.05))
    found = [
        sample_blended(pair, jobs, Sampling(14, batch), behavior, 0.05, Fixed(block)).tokens
        for block, batch in ((1, 6), (3, 4), (8, 5))
    ]
    for tokens in found[1:]:
        np.testing.assert_array_equal(tokens, found[0])


def test_other_models_in_the_process_are_left_alone(tmp_path: Path) -> None:
    scorer, other = (scorer_of("qwen3_5", tmp_path / name) for name in "ab")
    plain = {type(layer) for layer in other.model.module.modules()}
    names = [name for name, _ in tree_flatten(scorer.model.module.parameters())]
    add_lora(scorer.model.module, LoraConfig(rank=2), seed=0)
    make_decoder(scorer)
    assert {type(layer) for layer in other.model.module.modules()} == plain
    assert nn.Conv1d in plain
    kept = [
        name for name, _ in tree_flatten(scorer.model.module.parameters()) if "lora" not in name
    ]
    assert [name.replace("linear.", "") for name in kept] == names
    recorded = type(scorer.model.module.layers[0].linear_attn)
    make_decoder(scorer)  # and its layers are replaced once
    assert type(scorer.model.module.layers[0].linear_attn) is recorded


def test_passes_without_these_caches_record_nothing(tmp_path: Path) -> None:
    scorer, ids = scorer_of("mamba2", tmp_path), mx.array([[3, 5, 7]])
    before = np.asarray(scorer.logits(ids))
    decoder = RowDecoder(scorer)
    decoder.prefill([(3, 5, 7)])
    caches: list[Any] = decoder._layers
    np.testing.assert_array_equal(np.asarray(scorer.logits(ids)), before)
    assert not any(cache._convolved or cache._updated for cache in caches)
    gradients = nn.value_and_grad(scorer.model.module, lambda m: m(ids).sum())
    assert np.isfinite(float(gradients(scorer.model.module)[0]))


@pytest.mark.parametrize("kind", sorted(DEAF))
def test_states_that_nobody_knows_are_decoded_token_by_token(kind: str, tmp_path: Path) -> None:
    scorer = scorer_of(kind, tmp_path)
    decoder = RowDecoder(scorer)
    with pytest.raises(TypeError, match="a state that cannot be computed again"):
        decoder.prefill([(3, 5, 7)])
    assert isinstance(make_decoder(scorer), MergedDecoder)


def test_a_state_that_is_not_what_was_computed_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that changes its state after the update, and an update that heeds no mask."""
    plain = RecurrentCache.__setitem__
    with monkeypatch.context() as patch:
        patch.setattr(RecurrentCache, "__setitem__", lambda self, i, v: plain(self, i, v * 1.0))
        assert not make_decoder(scorer_of("mamba2", tmp_path / "a")).is_trimmable
    with monkeypatch.context() as patch:
        patch.setattr(replay.Recurrence, "run_first", lambda self, counts: self.run())
        assert not make_decoder(scorer_of("qwen3_5", tmp_path / "b")).is_trimmable


def test_every_row_of_one_position_keeps_or_drops_it(tmp_path: Path) -> None:
    """Where a kernel of mlx-lm reads one position it takes no mask."""
    scorer = scorer_of("mamba2", tmp_path)
    decoder = RowDecoder(scorer)
    texts = [[3, 5], [7, 11, 13]]
    decoder.prefill([(*text, 1) for text in texts])
    decoder.hidden(mx.array([[17], [19]]))
    decoder.trim(np.array([1, 0]))
    texts[1].append(19)
    logits = np.asarray(decoder.logits(mx.array([[23], [29]])))[:, 0]
    for row, text, token in zip(logits, texts, (23, 29), strict=True):
        alone = np.asarray(scorer.logits(mx.array([[*text, token]])))[0, -1]
        np.testing.assert_allclose(row, alone, atol=1e-4)
