"""Decoding with a cache equals reading the whole text, whichever rows come, go or are trimmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ArraysCache, BatchKVCache
from tiny import DEAF, EXTRAS, HYBRIDS, SIZES, make_model

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.evaluation.target import open_target
from trb_mlx.models import precision
from trb_mlx.models.loading import load_model
from trb_mlx.models.pair import Scorer, make_scorer
from trb_mlx.rollout import cache_trial, row_cache
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.decoder import Decoder, MergedDecoder, RowDecoder, SeparateDecoder
from trb_mlx.rollout.layer_caches import flatten
from trb_mlx.rollout.row_cache import Offsets, RowKVCache

MERGED_FAIL = {"gemma2"}  # mlx-lm's own batch caches do not work with its scores of grouped heads
PROMPTS = [tuple(t.encode()) for t in ("a", "Compute 12+7.", "the quick brown fox jumps", "hm?")]


def scorer_of(kind: str, folder: Path) -> Scorer:
    return make_scorer(load_model(ModelConfig(model=str(make_model(folder / kind, kind, seed=4)))))


def shapes_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all ids that models read from now on."""
    read: list[tuple[int, ...]] = []
    plain = Scorer.hidden
    monkeypatch.setattr(
        Scorer,
        "hidden",
        lambda self, ids, cache=None: read.append(ids.shape) or plain(self, ids, cache),
    )
    return read


def assert_reads(scorer: Scorer, decoder: Decoder, texts: list[list[int]], count: int) -> None:
    """Let every row read the next tokens and compare with reading `texts` and them at once."""
    new = np.random.default_rng(len(texts[0])).integers(1, 250, size=(len(texts), count))
    actual = np.asarray(scorer.logits_of(decoder.hidden(mx.array(new))))
    for row, text in enumerate(texts):
        text += new[row].tolist()
        alone = np.asarray(scorer.logits(mx.array([text])))[0, -count:]
        np.testing.assert_allclose(actual[row], alone, atol=2e-4)


@pytest.mark.parametrize("kind", sorted([*EXTRAS, *HYBRIDS]))
def test_rows_are_prefilled_trimmed_and_filtered(kind: str, tmp_path: Path) -> None:
    """Blocks of several lengths, ragged prompts, windows (gemma3) shorter than the rows."""
    scorer = scorer_of(kind, tmp_path)
    decoder = make_decoder(scorer)
    assert isinstance(decoder, RowDecoder)
    decoder.prefill(PROMPTS[:3])
    texts = [list(prompt[:-1]) for prompt in PROMPTS[:3]]
    for count, unused in ((3, [0, 2, 1]), (5, [4, 0, 5]), (12, [12, 3, 0]), (1, [0, 0, 1])):
        assert_reads(scorer, decoder, texts, count)
        decoder.trim(np.array(unused))
        for text, dropped in zip(texts, unused, strict=True):
            del text[len(text) - dropped :]
    assert_reads(scorer, decoder, texts, 2)
    decoder.filter([0, 2])  # the middle row leaves
    decoder.trim(np.array([2, 0]))
    texts = [texts[0][:-2], texts[2]]
    decoder.prefill([PROMPTS[3], PROMPTS[3], PROMPTS[0]])
    texts += [list(PROMPTS[3][:-1]), list(PROMPTS[3][:-1]), []]
    assert_reads(scorer, decoder, texts, 4)
    decoder.filter([])
    decoder.prefill(PROMPTS[:1])  # the prompt of the last row: its prefill is remembered
    assert_reads(scorer, decoder, [[]], 2)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_row_that_leaves_or_comes_copies_no_other(ragged: bool, tmp_path: Path) -> None:
    """What is held at once grows by a row or two, not by another set of caches."""
    scorer = scorer_of("llama", tmp_path)
    decoder = RowDecoder(scorer)
    rows = 32
    prompts = [PROMPTS[2][: len(PROMPTS[2]) - ragged * (row % 2)] for row in range(rows)]
    decoder.prefill(prompts)
    texts = [list(prompt[:-1]) for prompt in prompts]
    assert_reads(scorer, decoder, texts, 1)
    held = sum(array.nbytes for layer in flatten(decoder._layers) for array in layer.state)

    def peak_of(change: Callable[[], None]) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        change()
        mx.eval([layer.state for layer in flatten(decoder._layers)])
        return mx.get_peak_memory() - before

    order = [*range(3), rows - 1, *range(4, rows - 1)]
    assert peak_of(lambda: decoder.filter(order)) < held / 8
    texts = [texts[row] for row in order]
    decoder.hidden(mx.array([[5]] * len(texts)))  # a spare row writes too
    decoder.trim(np.ones(len(texts), np.int32))
    assert_reads(scorer, decoder, texts, 1)
    decoder._last = None
    assert peak_of(lambda: decoder.prefill(PROMPTS[1:2])) < held / 4
    texts.append(list(PROMPTS[1][:-1]))
    assert_reads(scorer, decoder, texts, 2)


@pytest.mark.parametrize("kind", sorted(set(EXTRAS) - MERGED_FAIL))
def test_merged_caches_are_extended_and_filtered(kind: str, tmp_path: Path) -> None:
    scorer = scorer_of(kind, tmp_path)
    decoder = MergedDecoder(scorer)
    decoder.prefill(PROMPTS[:3])
    texts = [list(prompt[:-1]) for prompt in PROMPTS[:3]]
    for _ in range(12):
        assert_reads(scorer, decoder, texts, 1)
    decoder.filter([0, 2])
    texts = [texts[0], texts[2]]
    decoder.prefill(PROMPTS[3:])
    texts.append(list(PROMPTS[3][:-1]))
    for _ in range(3):
        assert_reads(scorer, decoder, texts, 1)


@pytest.mark.parametrize("kind", sorted([*EXTRAS, *DEAF]))
def test_ragged_prompts_are_read_rightly(kind: str, tmp_path: Path) -> None:
    """Whatever a family's caches can do, rows of other lengths beside it change nothing."""
    scorer = scorer_of(kind, tmp_path)
    decoder = make_decoder(scorer)
    decoder.prefill(PROMPTS[:3])
    texts = [list(prompt[:-1]) for prompt in PROMPTS[:3]]
    for _ in range(3):
        assert_reads(scorer, decoder, texts, 1)
    decoder.filter([0, 2])
    decoder.prefill([PROMPTS[3], PROMPTS[3]])
    texts = [texts[0], texts[2], list(PROMPTS[3][:-1]), list(PROMPTS[3][:-1])]
    for _ in range(2):
        assert_reads(scorer, decoder, texts, 1)


@pytest.mark.parametrize("kind", sorted(DEAF))
def test_families_that_heed_no_lengths_are_prefilled_row_by_row(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(kind, tmp_path)
    decoder = make_decoder(scorer)
    assert isinstance(decoder, MergedDecoder)
    read = shapes_read(monkeypatch)
    decoder.prefill([PROMPTS[1], PROMPTS[2], PROMPTS[1]])
    assert read == [(1, len(PROMPTS[1]) - 1), (1, len(PROMPTS[2]) - 1)]


def test_rounding_in_16_bits_hides_no_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nemotron-H is moved by padding less than by what bfloat16 may be off by elsewhere."""
    monkeypatch.setattr(cache_trial, "TRIMMABLE", ())
    scorer = scorer_of("nemotron_h", tmp_path)
    module = scorer.model.module
    module.update(tree_map(lambda a: 3 * a if a.ndim > 1 else a, module.parameters()))
    module.set_dtype(mx.bfloat16)
    decoder = make_decoder(scorer)
    read = shapes_read(monkeypatch)
    decoder.prefill([PROMPTS[1], PROMPTS[2]])
    assert read == [(1, len(PROMPTS[1]) - 1), (1, len(PROMPTS[2]) - 1)]


def test_products_of_few_bits_are_no_fault_of_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that rounds to TF32 moves float32 models as much as 16 bits move others."""
    plain = Scorer.hidden
    monkeypatch.setattr(
        Scorer,
        "hidden",
        lambda self, ids, cache=None: plain(self, ids, cache) * (1.03 ** bool(cache)),
    )
    scorer = scorer_of("llama", tmp_path)
    with pytest.raises(UserError, match="other probabilities"):
        make_decoder(scorer)
    monkeypatch.setattr(precision, "product_rounding", lambda: 1e-4)
    assert isinstance(make_decoder(scorer), RowDecoder)


def test_a_wrong_cache_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are trimmed are given up where they mislead a model."""
    assert isinstance(make_decoder(scorer_of("llama", tmp_path)), RowDecoder)
    plain = Offsets.set

    def shifted(self: Offsets, lengths: np.ndarray) -> None:
        plain(self, np.maximum(lengths - 1, 0))
        self.lengths = lengths

    monkeypatch.setattr(Offsets, "set", shifted)
    assert isinstance(make_decoder(scorer_of("llama", tmp_path)), MergedDecoder)


def test_batches_whose_padding_is_seen_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row then has a cache of its own, and is read rightly."""
    monkeypatch.setattr(cache_trial, "TRIMMABLE", ())
    monkeypatch.setattr(
        BatchKVCache, "make_mask", lambda self, count, **_: create_causal_mask(count, self._idx)
    )
    scorer = scorer_of("lfm2", tmp_path)
    decoder = make_decoder(scorer)
    assert isinstance(decoder, SeparateDecoder)
    decoder.prefill([*PROMPTS[:3], PROMPTS[2]])
    texts = [list(prompt[:-1]) for prompt in (*PROMPTS[:3], PROMPTS[2])]
    assert_reads(scorer, decoder, texts, 1)
    decoder.filter([1, 3])
    assert_reads(scorer, decoder, [texts[1], texts[3]], 1)


def test_a_model_that_no_cache_serves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_trial, "TRIMMABLE", ())
    plain = ArraysCache.__getitem__
    monkeypatch.setattr(
        ArraysCache,
        "__getitem__",
        lambda self, index: None if (kept := plain(self, index)) is None else kept * 0.5,
    )
    with pytest.raises(UserError, match="lfm2 gives other probabilities with mlx-lm's cache"):
        make_decoder(scorer_of("lfm2", tmp_path))


def test_a_model_that_needs_a_cache_is_refused_at_load(tmp_path: Path) -> None:
    """Gemma 3n's last layers take keys from the cache, and their own weights without one."""
    text = {
        **SIZES,
        "model_type": "gemma3n_text",
        "vocab_size": 259,
        "num_hidden_layers": 4,
        "intermediate_size": [64] * 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
        "rope_local_base_freq": 1e4,
        "final_logit_softcapping": 30.0,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 259,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
    }
    folder = make_model(tmp_path / "gemma3n", "gemma3n", text_config=text)
    with pytest.raises(UserError, match="gemma3n gives other probabilities with mlx-lm's cache"):
        open_target(str(folder), None, "final")


def test_a_prefill_is_shared_by_the_rollouts_of_one_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of("llama", tmp_path)
    decoder = RowDecoder(scorer)
    read = shapes_read(monkeypatch)
    decoder.prefill([PROMPTS[1]] * 5 + [PROMPTS[2]] * 3)
    decoder.prefill([PROMPTS[2]] * 2)
    assert read == [(2, len(PROMPTS[2]) - 1)]


def test_a_gpu_is_given_one_mask_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are the same; a single row, more tokens and unknown heads keep the small one."""

    def masks(count: int, lengths: list[int], heads: int | None) -> np.ndarray:
        return np.asarray(RowKVCache(Offsets(lengths, heads)).make_mask(count))

    few, many = masks(2, [3, 1], 4), masks(9, [3, 1], 4)
    monkeypatch.setattr(row_cache, "on_gpu", lambda: True)
    np.testing.assert_array_equal(masks(2, [3, 1], 4), np.broadcast_to(few, (2, 4, 2, 5)))
    np.testing.assert_array_equal(masks(9, [3, 1], 4), many)
    assert masks(2, [3], 4).shape == (1, 1, 2, 5)
    assert masks(2, [3, 1], None).shape == (2, 1, 2, 5)
