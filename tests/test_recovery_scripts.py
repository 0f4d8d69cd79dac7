"""The recovery script's own parts, on tiny models: DWQ in dense layers, and the measures."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from dense_dwq import DenseCodesEmbedding, DenseCodesLinear, Recipe, distil_weights
from mlx import nn
from recovery_measures import read_texts

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.pair import make_pair

IDS = mx.array([[5, 6, 7, 8, 9]])


def packed(folder: Path) -> LanguageModel:
    rounding = QuantizeConfig(bits=2, group_size=32)
    return load_model(ModelConfig(model=str(folder), quantize=rounding))


def test_dense_codes_compute_what_packed_layers_do() -> None:
    x = mx.random.normal((3, 64), key=mx.random.key(0))
    linear = nn.QuantizedLinear.from_linear(nn.Linear(64, 32, bias=False), 32, 3)
    np.testing.assert_allclose(
        np.asarray(DenseCodesLinear(linear)(x)), np.asarray(linear(x)), atol=1e-5
    )
    embedding = nn.QuantizedEmbedding.from_embedding(nn.Embedding(50, 64), 32, 3)
    dense = DenseCodesEmbedding(embedding)
    np.testing.assert_allclose(np.asarray(dense(IDS)), np.asarray(embedding(IDS)), atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(dense.as_linear(x)), np.asarray(embedding.as_linear(x)), atol=1e-5
    )


def test_dwq_trains_scales_and_keeps_codes(folders: tuple[Path, Path]) -> None:
    """What is stored at the end is dense, nearer to the teacher, and still two bits a weight."""
    folder = folders[0]
    teacher, student = load_model(ModelConfig(model=str(folder))), packed(folder)
    texts = np.random.default_rng(0).integers(1, 250, size=(60, 20)).tolist()

    def gap() -> float:
        return float(mx.square(student.module(IDS) - teacher.module(IDS)).mean())

    before = gap()
    recipe = Recipe(learning_rate=1e-3, tokens=900, batch_size=4, longest=33)
    assert 900 <= distil_weights(student, teacher, texts, recipe, seed=0) < 1000
    assert gap() < 0.9 * before
    weight = student.module.layers[0].mlp.up_proj.weight
    assert isinstance(student.module.layers[0].mlp.up_proj, nn.Linear)
    groups = np.asarray(weight).reshape(-1, 32)
    assert max(len(np.unique(group.round(5))) for group in groups) <= 4


def test_reading_texts_by_hand(folders: tuple[Path, Path]) -> None:
    """Ragged texts, against one at a time without padding."""
    student, teacher = (load_model(ModelConfig(model=str(folder))) for folder in folders)
    pair = make_pair(student, teacher)
    texts = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19], [20, 21, 22]]
    agreed, surprises = [], []
    for text in texts:
        ids = mx.array([text])
        ours, theirs = (np.asarray(s.logits(ids))[0, :-1] for s in (pair.student, pair.teacher))
        agreed += (ours.argmax(-1) == theirs.argmax(-1)).tolist()
        total = np.log(np.exp(ours).sum(-1))
        surprises += (total - ours[np.arange(len(ours)), text[1:]]).tolist()
    agreement, perplexity = read_texts(pair, texts)
    assert agreement == pytest.approx(np.mean(agreed))
    assert perplexity == pytest.approx(np.exp(np.mean(surprises)), rel=1e-4)
