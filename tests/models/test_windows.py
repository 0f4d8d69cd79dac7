"""Sliding windows where transformers has them: what lies beyond is not seen, whoever reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import make_model

from trb_mlx.config import ModelConfig
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.lora import checkpoint_layers
from trb_mlx.models.pair import make_scorer
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.decoder import Decoder, MergedDecoder, RowDecoder

WINDOW = 5
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3_moe": {"use_sliding_window": True},
    "gemma2": {},
}
IDS = np.arange(40, 56)[None]


def load(kind: str, folder: Path, **changes: Any) -> LanguageModel:
    given = {"sliding_window": WINDOW, "scale": 10.0, **SLIDING[kind], **changes}
    return load_model(ModelConfig(model=str(make_model(folder / kind, kind, seed=5, **given))))


def reach(model: LanguageModel) -> int:
    """From which position on the first token no longer matters."""
    other = IDS.copy()
    other[0, 0] += 1
    gap = np.abs(np.asarray(model.module(mx.array(IDS)) - model.module(mx.array(other))))
    return int(np.flatnonzero(gap[0].max(-1) > 0)[-1]) + 1


@pytest.mark.parametrize("kind", SLIDING)
def test_a_token_is_seen_as_far_as_the_windows_reach(kind: str, tmp_path: Path) -> None:
    """Each of L layers hands it on by a window less one; gemma2's second layer sees all."""
    assert reach(load(kind, tmp_path, num_hidden_layers=1)) == WINDOW
    two = reach(load(kind, tmp_path))
    assert two == (IDS.size if kind == "gemma2" else 2 * (WINDOW - 1) + 1)


def test_only_the_layers_that_slide_do(tmp_path: Path) -> None:
    """qwen2 slides from `max_window_layers` on, and not at all unless it is told to."""
    assert reach(load("qwen2", tmp_path, num_hidden_layers=1, max_window_layers=1)) == IDS.size
    assert reach(load("qwen2", tmp_path, use_sliding_window=False)) == IDS.size
    assert reach(load("mistral", tmp_path, sliding_window=None)) == IDS.size


def test_a_window_beyond_the_context_changes_nothing(tmp_path: Path) -> None:
    layers = load("mistral", tmp_path, sliding_window=512).module.layers
    assert not any(hasattr(layer, "attention_window") for layer in layers)


@pytest.mark.parametrize("kind", SLIDING)
def test_decoding_equals_reading_at_once(kind: str, tmp_path: Path) -> None:
    """Ragged rows longer than the window, blocks, and tokens taken back."""
    scorer = make_scorer(load(kind, tmp_path))
    decoder: Decoder = make_decoder(scorer)
    assert isinstance(decoder, RowDecoder)
    prompts = [tuple(b"the quick brown fox"), tuple(b"ab"), tuple(b"jumps over")]
    decoder.prefill(prompts)
    texts = [list(prompt[:-1]) for prompt in prompts]
    for count, unused in ((3, [0, 2, 1]), (7, [6, 0, 7]), (1, [0, 0, 1]), (4, [0, 0, 0])):
        new = np.random.default_rng(count).integers(1, 250, size=(3, count))
        logits = np.asarray(scorer.logits_of(decoder.hidden(mx.array(new))))
        for row, text in enumerate(texts):
            text += new[row].tolist()
            alone = np.asarray(scorer.logits(mx.array([text])))[0, -count:]
            np.testing.assert_allclose(logits[row], alone, atol=5e-4)
            del text[len(text) - unused[row] :]
        decoder.trim(np.array(unused))


def test_mlx_lms_own_caches_see_the_window_too(tmp_path: Path) -> None:
    scorer = make_scorer(load("mistral", tmp_path))
    decoder = MergedDecoder(scorer)
    prompts = [tuple(b"the quick brown fox"), tuple(b"ab")]
    decoder.prefill(prompts)
    logits = np.asarray(scorer.logits_of(decoder.hidden(mx.array([[7], [8]]))))[:, -1]
    for row, token in ((0, 7), (1, 8)):
        text = mx.array([[*prompts[row][:-1], token]])
        np.testing.assert_allclose(logits[row], np.asarray(scorer.logits(text))[0, -1], atol=5e-4)


def test_the_update_sees_the_window_with_checkpointed_layers_too(tmp_path: Path) -> None:
    model = load("phi3", tmp_path)
    expected = np.asarray(model.module(mx.array(IDS)))
    checkpoint_layers(model.module)
    np.testing.assert_allclose(np.asarray(model.module(mx.array(IDS))), expected, atol=1e-5)
