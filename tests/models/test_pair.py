"""Two models over one vocabulary, or a sentence that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import make_model

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models.pair import Pair, load_pair, make_scorer
from trb_mlx.ops.numerics import log_softmax


def load(student: Path, teacher: Path) -> Pair:
    return load_pair(ModelConfig(model=str(student)), ModelConfig(model=str(teacher)))


def test_eos_and_padding_become_one_vocabulary(pair: Pair) -> None:
    """The base student stops with 256; the teacher with 258 or 256, and has 5 padded rows."""
    assert pair.stop_id == 256
    ids = mx.array([[72, 101, 108]])
    student, teacher = pair.student.logits(ids), pair.teacher.logits(ids)
    assert student.shape == teacher.shape == (1, 3, 259)
    assert (np.asarray(student)[..., 258] == -np.inf).all()
    assert (np.asarray(teacher)[..., 258] == -np.inf).all()
    raw = np.exp(np.asarray(log_softmax(pair.teacher.model.module(ids)[..., :259])))
    merged = np.exp(np.asarray(log_softmax(teacher)))
    np.testing.assert_allclose(merged[..., 256], raw[..., [256, 258]].sum(-1), rtol=1e-4)


def test_the_teacher_is_frozen(pair: Pair) -> None:
    assert not tree_flatten(pair.teacher.model.module.trainable_parameters())


def test_tokenizers_of_different_size_are_refused(folders: tuple, tmp_path: Path) -> None:
    other = make_model(tmp_path / "wide", extra_tokens=3)
    with pytest.raises(UserError, match=r"different size \(259 and 262 tokens\)"):
        load(folders[0], other)


def test_tokenizers_of_one_size_but_other_ids_are_refused(folders: tuple, tmp_path: Path) -> None:
    other = make_model(tmp_path / "swapped")
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="encode .* differently"):
        load(folders[0], other)


def test_a_model_that_cannot_end_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """An EOS id that no tokenizer knows, for either of both."""
    endless = make_model(tmp_path / "endless")
    details = json.loads((endless / "config.json").read_text()) | {"eos_token_id": None}
    (endless / "config.json").write_text(json.dumps(details))
    (endless / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(
        UserError, match=r"teacher .*endless has no EOS id that its tokenizer knows"
    ):
        load(folders[0], endless)
    with pytest.raises(UserError, match=r"student .*endless has no EOS id"):
        load(endless, folders[0])


def test_a_model_alone_masks_the_stops_it_was_trained_with(pair: Pair) -> None:
    scorer = make_scorer(pair.student.model, other_stops=[256, 258])
    assert scorer.merge == pair.student.merge
