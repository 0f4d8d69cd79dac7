"""Body and head give the model's own logits, whatever the architecture does after its body."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from tiny import make_model

from trb_mlx.config import LoraConfig, ModelConfig, QuantizeConfig
from trb_mlx.models import mlxlm
from trb_mlx.models.head import split_model
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair

IDS = mx.array([[5, 80, 12, 3, 9], [7, 7, 1, 200, 30]])
HEADS = {
    "tied": ("llama", {}, None),
    "untied": ("llama", {"tie_word_embeddings": False}, None),
    "tied, 4 bits": ("qwen3", {}, QuantizeConfig(bits=4, group_size=32)),
    "untied, 4 bits": ("qwen3", {"tie_word_embeddings": False}, QuantizeConfig(group_size=32)),
    "soft cap": ("gemma2", {}, None),
    "logit scale": ("cohere", {}, None),
    "logits scaling": ("granite", {}, None),
    "another body": ("mamba2", {}, None),
}


def load(
    folder: Path, kind: str = "llama", quantize: QuantizeConfig | None = None, **changes: object
) -> LanguageModel:
    make_model(folder, kind, scale=20.0, **changes)
    return load_model(ModelConfig(model=str(folder), quantize=quantize))


@pytest.mark.parametrize("name", HEADS)
def test_head_of_body_is_the_model(tmp_path: Path, name: str) -> None:
    kind, changes, quantize = HEADS[name]
    module = load(tmp_path, kind, quantize, **changes).module
    split = split_model(module)
    assert split is not None
    hidden = split.body(IDS)
    assert hidden.shape == (2, 5, 32)
    expected = np.asarray(module(IDS))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(np.asarray(split.head(hidden)), expected, atol=1e-4)
    flat = split.head(hidden.reshape(-1, 32)[3:7])  # any places, without their rows
    np.testing.assert_allclose(np.asarray(flat), expected.reshape(10, -1)[3:7], atol=1e-4)


def test_a_wrapped_text_model_is_found(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.language_model = model

        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            return self.language_model(inputs, cache=cache)

    class Louder(Wrapper):
        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            return 2 * super().__call__(inputs, cache)

    module = load(tmp_path).module
    split = split_model(Wrapper(module))
    assert split is not None
    assert split.module is module
    assert split_model(Louder(module)) is None  # a head beyond the text model's own


def test_what_cannot_be_taken_apart_is_found_out(tmp_path: Path) -> None:
    plain = type(load(tmp_path).module)

    class Residual(plain):  # type: ignore[misc, valid-type]
        def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
            return super().__call__(inputs, cache) + inputs[..., None]

    module = load(tmp_path).module
    module.__class__ = Residual
    assert split_model(module) is None
    assert split_model(nn.Linear(4, 4)) is None


def test_the_cache_goes_through_the_body(tmp_path: Path) -> None:
    module = load(tmp_path).module
    split = split_model(module)
    assert split is not None
    cache = mlxlm.make_prompt_cache(module)
    parts = [split.body(IDS[:, :3], cache), split.body(IDS[:, 3:], cache)]
    np.testing.assert_allclose(
        np.asarray(mx.concatenate(parts, axis=1)), np.asarray(split.body(IDS)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("keys", "tied", "frozen"),
    [
        (None, True, True),
        (["model.embed_tokens"], True, False),
        (["model.embed_tokens"], False, True),
        (["lm_head"], False, False),
    ],
)
def test_adapters_on_the_head_are_seen(
    tmp_path: Path, keys: list[str] | None, tied: bool, frozen: bool
) -> None:
    """The embedding is the head's only where it is tied; adapters come after the split."""
    module = load(tmp_path, tie_word_embeddings=tied).module
    split = split_model(module)
    assert split is not None
    assert not split.is_frozen()
    add_lora(module, LoraConfig(rank=2, keys=keys), seed=0)
    assert split.is_frozen() == frozen


def test_scorers_give_the_shared_logits_of_hidden_states(pair: Pair) -> None:
    for scorer in (pair.student, pair.teacher):
        logits = scorer.logits_of(scorer.hidden(IDS))
        expected = scorer.logits(IDS)
        assert logits.shape == expected.shape == (2, 5, 259)
        finite = np.isfinite(np.asarray(expected))
        assert (np.isfinite(np.asarray(logits)) == finite).all()
        np.testing.assert_allclose(
            np.asarray(logits)[finite], np.asarray(expected)[finite], atol=1e-5
        )
