"""GGUF files as models: the same numbers as their source, the same manners as an mlx-lm folder."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import CHATML

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.models import gguf_rope
from trb_mlx.models.loading import load_model
from trb_mlx.models.mlxlm import make_model
from trb_mlx.models.pair import make_pair

gguf = pytest.importorskip("gguf")
from gguf_files import CONFIG, TYPE, gguf_name, write_gguf  # noqa: E402

IDS = mx.array([[72, 101, 108, 108, 111]])
KINDS = ["llama", "qwen2", "qwen3"]


def load(path: Path, **changes: object):  # type: ignore[no-untyped-def]
    return load_model(ModelConfig(model=str(path), **changes))


def source_logits(
    kind: str, weights: dict[str, np.ndarray], tied: bool, **changes: object
) -> np.ndarray:
    module = make_model({"model_type": kind, "tie_word_embeddings": tied, **CONFIG, **changes})
    module.load_weights([(name, mx.array(array)) for name, array in weights.items()])
    return np.asarray(module(IDS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_source(kind: str, tied: bool, tmp_path: Path) -> None:
    """In floats nothing is lost: the permutation, names, biases and norms are all right."""
    weights = write_gguf(tmp_path / "m.gguf", kind, tied=tied)
    model = load(tmp_path / "m.gguf")
    assert model.config["model_type"] == kind
    np.testing.assert_allclose(
        np.asarray(model.module(IDS)), source_logits(kind, weights, tied), atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "Q5_0", "Q5_1"])
def test_weights_are_those_that_the_gguf_package_reads(
    kind: str, name: str, tmp_path: Path
) -> None:
    """Packed, float and package-read types, against an independent dequantization, bit by bit."""
    path = tmp_path / "m.gguf"
    write_gguf(path, kind, TYPE[name])
    native = name.startswith(("Q4", "Q8"))
    model = load(path, dtype=None if name.startswith("Q5") else "float32")
    packed = [m for _, m in model.module.named_modules() if hasattr(m, "bits")]
    assert len(packed) == (15 if native else 0)
    assert all((m.bits, m.group_size) == (8 if name == "Q8_0" else 4, 32) for m in packed)
    parameters = dict(tree_flatten(unpacked(model.module).parameters()))
    expected = {
        t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors
    }
    assert {gguf_name(key) for key in parameters} == expected.keys()
    for key, array in parameters.items():
        reference = restored(key, expected[gguf_name(key)], kind)
        if name.startswith("Q5") and array.ndim == 2:
            reference = reference.astype(np.float16)
        np.testing.assert_array_equal(np.asarray(array), reference.reshape(array.shape))


def unpacked(module: nn.Module) -> nn.Module:
    from trb_mlx.models.mlxlm import dequantize_model

    return dequantize_model(module)


def restored(key: str, array: np.ndarray, kind: str) -> np.ndarray:
    """Rotary pairs (2i, 2i + 1) of every head back to (i, i + half), row by row."""
    if kind != "llama" or not key.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    rows = []
    for head in range(array.shape[0] // 16):
        rows += [16 * head + 2 * i for i in range(8)] + [16 * head + 2 * i + 1 for i in range(8)]
    return array[rows]


def test_it_behaves_as_a_model_from_a_folder(tmp_path: Path) -> None:
    changes = {"tokenizer.chat_template": CHATML, "tokenizer.ggml.eot_token_id": 256}
    write_gguf(tmp_path / "m.gguf", "llama", TYPE.Q4_0, changes)
    model = load(tmp_path / "m.gguf", dtype="float32")
    tokenizer = model.tokenizer
    assert model.stop_ids == (258, 256)
    assert model.context == 512
    assert len(tokenizer) == 260  # the unused rows behind the tokens are padding
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "ab"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert tokenizer.decode(rendered).startswith("<|im_start|>user\nab<|im_end|>\n<|im_start|>")
    assert tokenizer.encode("ab", add_special_tokens=False) == [259]
    assert tokenizer.decode(tokenizer.encode("naïve 12 東京\n")) == "naïve 12 東京\n"


@pytest.mark.parametrize("store", ["packed", "dense"])
@pytest.mark.parametrize("group_size", [32, 64])
def test_a_packed_file_is_rounded_again_from_its_own_values(
    store: str, group_size: int, tmp_path: Path
) -> None:
    """Three bits of what the file holds, not of what it was made from."""
    path = tmp_path / "m.gguf"
    write_gguf(path, "llama", TYPE.Q4_1)
    rounding = QuantizeConfig(bits=3, group_size=group_size, store=store)
    module = load(path, dtype="float32", quantize=rounding).module
    exact = load(path, dtype="float32", dequantize=True).module
    assert sum(hasattr(m, "bits") for _, m in module.named_modules()) == (
        0 if store == "dense" else 13 if group_size == 64 else 15  # 96 is no multiple of 64
    )
    plain = dict(tree_flatten(exact.parameters()))
    for name, array in tree_flatten(unpacked(module).parameters()):
        expected = plain[name]
        if array.ndim == 2 and array.shape[-1] % group_size == 0:
            parts = mx.quantize(expected, group_size, 3)
            expected = mx.dequantize(*parts, group_size, 3)
        np.testing.assert_array_equal(np.asarray(array), np.asarray(expected))


def test_a_gguf_pairs_with_another(tmp_path: Path) -> None:
    """Another architecture, more padded rows and another EOS: one vocabulary."""
    write_gguf(tmp_path / "t.gguf", "qwen3", TYPE.Q8_0)
    write_gguf(tmp_path / "s.gguf", "llama", TYPE.Q4_0, {"tokenizer.ggml.eos_token_id": 256})
    pair = make_pair(load(tmp_path / "s.gguf"), load(tmp_path / "t.gguf"))
    assert pair.stop_id == 256
    assert pair.student.logits(IDS).shape == pair.teacher.logits(IDS).shape == (1, 5, 260)


def test_scaled_frequencies_of_llama_3_are_recognised(tmp_path: Path) -> None:
    """The factors are taken from mlx-lm's own layer, the parameters found from them."""
    scaling = gguf_rope.LLAMA3 | {"factor": 32.0}
    base = {"rope_theta": 5e5}
    rope = make_model({"model_type": "llama", **CONFIG, **base, "rope_scaling": scaling})
    plain = 5e5 ** (np.arange(0, 16, 2) / 16)
    factors = (np.asarray(rope.layers[0].self_attn.rope._freqs) / plain).astype(np.float32)
    assert factors[0] == 1.0
    assert 1.0 < factors[4] < 32.0 == factors.max()
    path, changes = tmp_path / "m.gguf", {"llama.rope.freq_base": 5e5}
    weights = write_gguf(path, changes=changes, extra={gguf_rope.ROPE_FACTORS: factors})
    model = load(path)
    assert model.config["rope_scaling"] == scaling
    expected = source_logits("llama", weights, True, **base, rope_scaling=scaling)
    np.testing.assert_allclose(np.asarray(model.module(IDS)), expected, atol=1e-5)
    write_gguf(path, changes=changes, extra={gguf_rope.ROPE_FACTORS: factors[::-1].copy()})
    with pytest.raises(UserError, match="in another way than Llama 3.1's"):
        load(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "linear"}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, 1.0),
        ({"rope.scaling.type": "linear"}, 1.0),
        ({"rope.scaling.factor": 0.0}, 1.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, 4.0),
    ],
)
def test_linear_scaling_is_read_as_llama_cpp_does(
    kind: str, changes: dict[str, object], factor: float, tmp_path: Path
) -> None:
    """A factor without a type is linear, and so is one under the old key."""
    named = {f"{kind}.{key}": value for key, value in changes.items()}
    weights = write_gguf(tmp_path / "m.gguf", kind, changes=named)
    model = load(tmp_path / "m.gguf")
    scaling = {"rope_type": "linear", "factor": factor} if factor > 1 else None
    assert model.config["rope_scaling"] == scaling
    expected = source_logits(kind, weights, True, rope_scaling=scaling)
    np.testing.assert_allclose(np.asarray(model.module(IDS)), expected, atol=1e-5)
    assert (np.abs(expected - source_logits(kind, weights, True)).max() > 1e-4) == (factor > 1)
