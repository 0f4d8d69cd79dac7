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
from exporting.run_folders import make_run
from mlx.utils import tree_flatten
from tiny import EXTRAS, make_model

from trb_mlx.adapters.peft_keys import FREE, check_keys
from trb_mlx.errors import UserError
from trb_mlx.exporting.run import export

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
@pytest.mark.parametrize("kind", ["granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"])
def test_families_agree_with_transformers(
    kind: str, tied: bool, family: Callable[..., Path], tmp_path: Path
) -> None:
    """Under an adapter and merged; test_family_matrix.py has the other families."""
    base = family(kind, tie_word_embeddings=tied)
    expected = mlx_logprobs(make_run(tmp_path / "run", str(base)))
    export(tmp_path / "run", "peft")
    export(tmp_path / "run", "merged")
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
    done = export(tmp_path / "run", "peft")
    model = peft.PeftModel.from_pretrained(torch_model(base), done.path)
    np.testing.assert_allclose(torch_logprobs(model), mlx_logprobs(student), atol=2e-4)
    ours = len(tree_flatten(student.module.trainable_parameters()))
    theirs = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(theirs) == ours  # PEFT put adapters nowhere else


def test_the_config_is_what_peft_reads_and_writes(
    family: Callable[..., Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "run", str(family("llama")))
    done = export(tmp_path / "run", "peft")
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
    done = export(tmp_path / "run", "peft")
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
    done = export(tmp_path / "run", "peft")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(done.path, dtype=torch.float32).eval()
    np.testing.assert_allclose(torch_logprobs(model), mlx_logprobs(student), atol=2e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/export/base")
    text = "Größe 12 + 345 = 357 ab"
    assert tokenizer(text)["input_ids"] == student.tokenizer.encode(text)
    for_mlx = export(tmp_path / "run", "mlx-lm")
    theirs, _ = mlx_lm.load(str(for_mlx.beside[0]), adapter_path=str(for_mlx.path))
    logits = theirs(mx.array(IDS)).astype(mx.float32)
    np.testing.assert_allclose(
        np.asarray(logits), np.asarray(student.module(mx.array(IDS))), atol=2e-4
    )


def test_a_gguf_of_gemma_3_comes_with_its_base(tmp_path: Path) -> None:
    gguf_gemma = pytest.importorskip("gguf_gemma", reason="needs the gguf package")
    gguf_gemma.write(tmp_path / "m.gguf", gguf_gemma.source(tied=True))
    student = make_run(tmp_path / "run", str(tmp_path / "m.gguf"))
    expected = mlx_logprobs(student)
    done = export(tmp_path / "run", "peft")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(done.path, dtype=torch.float32).eval()
    np.testing.assert_allclose(torch_logprobs(model), expected, atol=1e-3)
    merged = torch_model(export(tmp_path / "run", "merged").path)
    np.testing.assert_allclose(torch_logprobs(merged), expected, atol=1e-3)


def started(base: Path, adapter: Path) -> tuple[Any, Any]:
    """A student that starts from an adapter, and the `lora` section that it gave."""
    from trb_mlx.adapters.initial import add_initial_adapter, with_initial_lora
    from trb_mlx.config_file import load_config
    from trb_mlx.models.loading import load_model

    keys = [("student.model", str(base)), ("teacher.model", str(base))]
    config = with_initial_lora(load_config(None, [*keys, ("student.adapter", str(adapter))]))
    student = load_model(config.student)
    add_initial_adapter(student.module, config)
    return student, config.lora


STARTS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True},
    "one of the first blocks": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "a block by its number": {"layers_to_transform": 1},
    "a pattern": {"target_modules": r".*\.0\..*\.(q_proj|down_proj)"},
    "all but some": {"exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    "DoRA": {"use_dora": True},
    "full names": {"target_modules": ["model.layers.0.self_attn.q_proj"]},
}


@pytest.mark.parametrize("changes", STARTS.values(), ids=STARTS)
def test_adapters_of_peft_can_be_started_from(
    changes: dict[str, Any], family: Callable[..., Path], tmp_path: Path
) -> None:
    """An adapter that PEFT itself wrote gives the same logits under MLX."""
    base = family("qwen3")
    torch.manual_seed(0)
    values = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False} | changes
    settings = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **values)
    theirs = peft.get_peft_model(torch_model(base), settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    student, lora = started(base, tmp_path / "theirs")
    assert (lora.rank, lora.scale) == (4, 3.0 if settings.use_rslora else 1.5)
    np.testing.assert_allclose(mlx_logprobs(student), torch_logprobs(theirs), atol=2e-4)


@pytest.mark.parametrize(
    "start", [True, "gaussian", "orthogonal", "mica", "pissa", "pissa_niter_2", "olora"]
)
def test_an_initialisation_is_taken_if_it_leaves_the_base_alone(
    start: Any, family: Callable[..., Path], tmp_path: Path
) -> None:
    base = family("llama")
    before = torch_model(base).state_dict()
    targets = ["q_proj", "down_proj"]
    settings = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=start)
    theirs = peft.get_peft_model(torch_model(base), settings)
    theirs.save_pretrained(tmp_path / "theirs")
    after = theirs.get_base_model().state_dict()
    names = [name for name in before if name.endswith(("q_proj.weight", "down_proj.weight"))]
    alike = all(
        torch.equal(before[n], after[n.replace(".weight", ".base_layer.weight")]) for n in names
    )
    if alike:
        started(base, tmp_path / "theirs")
    else:
        with pytest.raises(UserError, match="init_lora_weights"):
            started(base, tmp_path / "theirs")


def test_every_key_of_peft_is_free_or_refused_beside_its_default(tmp_path: Path) -> None:
    """A key that a later PEFT brings is either known by then or refused."""
    defaults = peft.LoraConfig().to_dict()
    check_keys(tmp_path, defaults)
    for key in set(defaults) - FREE - {"init_lora_weights"}:
        with pytest.raises(UserError, match=key):
            check_keys(tmp_path, defaults | {key: "another"})
    assert set(defaults) >= FREE - {"runtime_config"}
