"""Exports as PyTorch sees them: transformers and PEFT give the logits that MLX gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from export.making import make_run
from mlx.utils import tree_flatten
from tiny import EXTRAS, make_model

from trb_mlx.export.base import FAMILIES
from trb_mlx.exports import Request, export_run

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install '.[parity]'")
peft = pytest.importorskip("peft", reason="needs the parity extra: pip install '.[parity]'")
transformers = pytest.importorskip("transformers")

IDS = [[5, 6, 7, 8, 100, 30, 200, 31], [9, 9, 9, 40, 41, 42, 43, 44]]
FIELDS = {
    "phi3": {"rope_scaling": None, "pad_token_id": 0, "original_max_position_embeddings": 512},
    "granite": {
        "attention_multiplier": 0.35,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
}
LORA = {
    "lora": [],
    "dora": [("lora.dora", True)],
    "last block": [("lora.num_layers", 1)],
    "some keys": [("lora.keys", ["self_attn.q_proj", "mlp.down_proj"]), ("lora.scale", 0.3)],
    "full names": [("lora.keys", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"])],
}


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A tiny model of a family, its distributions sharpened."""

    def make(kind: str, **changes: Any) -> Path:
        monkeypatch.setitem(EXTRAS, kind, EXTRAS.get(kind, {}) | FIELDS.get(kind, {}))
        return make_model(tmp_path / kind, kind, seed=3, scale=10.0, **changes)

    return make


def mlx_logprobs(student: Any) -> np.ndarray:
    logits = student.module(mx.array(IDS)).astype(mx.float32)
    return np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def torch_logprobs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor(IDS)).logits.float(), dim=-1).numpy()


def torch_model(folder: Path) -> Any:
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return found.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_agree_with_transformers(
    kind: str, tied: bool, family: Callable[..., Path], tmp_path: Path
) -> None:
    """Under an adapter and merged, for every family that we promise."""
    base = family(kind, tie_word_embeddings=tied)
    expected = mlx_logprobs(make_run(tmp_path / "run", str(base)))
    export_run(Request(str(tmp_path / "run"), "peft"))
    export_run(Request(str(tmp_path / "run"), "merged"))
    plain = torch_model(base)
    assert np.abs(torch_logprobs(plain) - expected).max() > 0.1  # the adapter does something
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "run/export/peft")
    np.testing.assert_allclose(torch_logprobs(adapted), expected, atol=2e-4)
    merged = torch_model(tmp_path / "run/export/merged")
    np.testing.assert_allclose(torch_logprobs(merged), expected, atol=2e-4)


@pytest.mark.parametrize("changes", LORA.values(), ids=LORA)
def test_every_kind_of_adapter_loads_in_peft(
    changes: list[tuple[str, Any]], family: Callable[..., Path], tmp_path: Path
) -> None:
    base = family("llama", num_hidden_layers=3)
    student = make_run(tmp_path / "run", str(base), changes)
    done = export_run(Request(str(tmp_path / "run"), "peft"))
    model = peft.PeftModel.from_pretrained(torch_model(base), done.path)
    np.testing.assert_allclose(torch_logprobs(model), mlx_logprobs(student), atol=2e-4)
    ours = len(tree_flatten(student.module.trainable_parameters()))
    theirs = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(theirs) == ours  # PEFT put adapters nowhere else


def test_the_config_is_what_peft_reads_and_writes(
    family: Callable[..., Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "run", str(family("llama")))
    done = export_run(Request(str(tmp_path / "run"), "peft"))
    written = json.loads((done.path / "adapter_config.json").read_text())
    assert set(written) <= {field.name for field in dataclasses.fields(peft.LoraConfig)}
    read = peft.LoraConfig.from_pretrained(done.path)
    read.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert {key: again[key] for key in written} == {
        **written,
        "target_modules": again["target_modules"],  # a set to PEFT
    }
    assert sorted(again["target_modules"]) == written["target_modules"]


def test_a_bundled_student_comes_with_its_base(tmp_path: Path) -> None:
    student = make_run(tmp_path / "run", "bundled:arithmetic-student")
    done = export_run(Request(str(tmp_path / "run"), "peft"))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(done.path).eval()
    np.testing.assert_allclose(torch_logprobs(model), mlx_logprobs(student), atol=2e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/export/base")
    text = "Compute (12+7-5)*3.\n"
    assert tokenizer(text)["input_ids"] == student.tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_packed_gguf_student_comes_with_its_base(kind: str, tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("gguf_files", reason="needs the gguf package")
    gguf_files.write_gguf(tmp_path / "m.gguf", kind, gguf_files.TYPE["Q4_1"])
    float32 = [("student.dtype", "float32")]  # the scales are float16
    student = make_run(tmp_path / "run", str(tmp_path / "m.gguf"), float32)
    done = export_run(Request(str(tmp_path / "run"), "peft"))
    model = peft.AutoPeftModelForCausalLM.from_pretrained(done.path, dtype=torch.float32).eval()
    np.testing.assert_allclose(torch_logprobs(model), mlx_logprobs(student), atol=2e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/export/base")
    text = "Größe 12 + 345 = 357 ab"
    assert tokenizer(text)["input_ids"] == student.tokenizer.encode(text)
    for_mlx = export_run(Request(str(tmp_path / "run"), "mlx-lm"))
    theirs, _ = mlx_lm.load(str(for_mlx.beside[0]), adapter_path=str(for_mlx.path))
    logits = theirs(mx.array(IDS)).astype(mx.float32)
    np.testing.assert_allclose(
        np.asarray(logits), np.asarray(student.module(mx.array(IDS))), atol=2e-4
    )


def test_peft_trained_adapters_can_be_started_from(
    family: Callable[..., Path], tmp_path: Path
) -> None:
    """An adapter that PEFT itself wrote gives the same logits under MLX."""
    from trb_mlx.config_file import load_config
    from trb_mlx.export.starting import start_from, with_adapter
    from trb_mlx.models.loading import load_model

    base = family("qwen3")
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "up_proj"],
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(torch_model(base), settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config = with_adapter(
        load_config(
            None,
            [
                ("student.model", str(base)),
                ("teacher.model", str(base)),
                ("student.adapter", str(tmp_path / "theirs")),
            ],
        )
    )
    assert (config.lora.rank, config.lora.scale) == (4, 3.0)
    student = load_model(config.student)
    start_from(student.module, config)
    np.testing.assert_allclose(mlx_logprobs(student), torch_logprobs(theirs), atol=2e-4)
