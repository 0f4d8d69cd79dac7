"""Checkpoints of many families, as transformers writes them, give under MLX what they give there.

`TRB_FAMILY_CHECKPOINTS` may name folders (separated as in PATH) that `family_checkpoints.py` has
written with another transformers: docs/models.md has the table of versions 4 and 5.
"""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from exporting.run_folders import make_run

from trb_mlx.config import ModelConfig
from trb_mlx.exporting.base import EXPERT_FAMILIES, HYBRID_FAMILIES
from trb_mlx.exporting.run import export
from trb_mlx.models.checkpoint_files import stored_arrays
from trb_mlx.models.loading import load_model

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install '.[parity]'")
peft = pytest.importorskip("peft", reason="needs the parity extra: pip install '.[parity]'")
transformers = pytest.importorskip("transformers")

from family_checkpoints import FAMILIES, known, write_checkpoint  # noqa: E402

LIMIT = 1e-4  # nats
# Nats that mlx-lm's own arithmetic costs, whatever the config.
LOOSE = {
    "gemma": 0.01,  # the exact GELU, where transformers has its approximation by tanh
    "starcoder2": 5e-3,  # the same
    "starcoder2_window": 5e-3,
    "gpt_neox": 5e-3,  # the other way round
    "qwen3_next": 5e-3,  # other small constants under the roots of its norms
    "qwen3_5": 5e-3,  # the same
}
# What mlx-lm cannot read from transformers' own files; each is refused in a sentence.
REFUSED = {
    "gpt2": "parameters not in model",
    "gpt_oss": "parameters not in model",  # unquantized experts
    "olmo": "another package",
    "qwen3_5_moe": "parameters not in model",  # experts one by one, as transformers 5 saves them
}
OTHERS = [Path(p) for p in os.environ.get("TRB_FAMILY_CHECKPOINTS", "").split(os.pathsep) if p]
WRITTEN = [folder for root in OTHERS for folder in sorted(root.iterdir()) if folder.is_dir()]


def reference_gap(folder: Path) -> float:
    """The largest difference of log-probs to those that transformers wrote beside the weights."""
    reference = np.load(folder / "reference.npz")
    logits = load_model(ModelConfig(model=str(folder))).module(mx.array(reference["ids"]))
    logits = logits.astype(mx.float32)
    found = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    return float(np.abs(found - reference["logprobs"]).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    if not known(name):
        pytest.skip("not in this transformers")
    check(write_checkpoint(tmp_path, name))


@pytest.mark.parametrize("folder", WRITTEN, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_log_probs_are_those_of_the_transformers_that_wrote_it(folder: Path) -> None:
    if not (folder / "reference.npz").exists():
        pytest.skip("not in that transformers")
    check(folder)


def check(folder: Path) -> None:
    if folder.name in REFUSED:
        with pytest.raises(Exception, match=REFUSED[folder.name]):
            load_model(ModelConfig(model=str(folder)))
    else:
        assert reference_gap(folder) < LOOSE.get(folder.name, LIMIT)


@pytest.mark.parametrize(
    "name",
    [
        "llama_llama3",
        "qwen2_yarn",
        "qwen2_window",
        "mistral_window",
        "phi3_window",
        "phi3_longrope",
        "ernie4_5",
        "gemma3_text",
        "olmo3",
        "seed_oss",
        "smollm3",
    ],
)
def test_exports_of_what_transformers_wrote_open_there_again(name: str, tmp_path: Path) -> None:
    """With the base's rotary embeddings and windows, under an adapter and merged."""
    base = write_checkpoint(tmp_path, name)
    run = tmp_path / "run"
    student = make_run(run, str(base))
    ids = np.load(base / "reference.npz")["ids"]
    logits = student.module(mx.array(ids)).astype(mx.float32)
    expected = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    plain = opened(base)
    assert np.abs(log_probs(plain, ids) - expected).max() > 0.1  # the adapter does something
    export(run, "peft")
    adapted = peft.PeftModel.from_pretrained(plain, run / "export/peft")
    np.testing.assert_allclose(log_probs(adapted, ids), expected, atol=2e-4)
    notes = export(run, "merged").notes
    np.testing.assert_allclose(log_probs(opened(run / "export/merged"), ids), expected, atol=2e-4)
    alone, _ = mlx_lm.load(str(run / "export/merged"))
    same = np.abs(np.asarray(alone(mx.array(ids)) - logits)).max() < 1e-3
    assert same == (not any("mlx-lm" in note for note in notes))


ATTENTION = [f"self_attn.{letter}_proj" for letter in "qkvo"]
QWEN3_5 = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
LINEAR = {  # of gated delta layers, the convolution left alone
    "qwen3_next": [f"linear_attn.{part}" for part in ("in_proj_qkvz", "in_proj_ba", "out_proj")],
    "qwen3_5": ["mlp.up_proj", *(f"linear_attn.{part}" for part in QWEN3_5)],
}


@pytest.mark.parametrize("name", [*EXPERT_FAMILIES, *HYBRID_FAMILIES])
def test_adapters_on_what_both_keep_alike_open_there(name: str, tmp_path: Path) -> None:
    """On the attention of experts, and on the linear layers of hybrids."""
    if not known(name):
        pytest.skip("not in this transformers")
    base = write_checkpoint(tmp_path, name)
    run = tmp_path / "run"
    student = make_run(run, str(base), [("lora.keys", ATTENTION + LINEAR.get(name, []))])
    ids = np.load(base / "reference.npz")["ids"]
    logits = student.module(mx.array(ids)).astype(mx.float32)
    expected = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    plain, limit = opened(base), LOOSE.get(name, 2e-4)
    assert np.abs(log_probs(plain, ids) - expected).max() > 0.1
    export(run, "peft")
    adapted = peft.PeftModel.from_pretrained(plain, run / "export/peft")
    np.testing.assert_allclose(log_probs(adapted, ids), expected, atol=limit)
    notes = export(run, "merged").notes
    np.testing.assert_allclose(log_probs(opened(run / "export/merged"), ids), expected, atol=limit)
    alone, _ = mlx_lm.load(str(run / "export/merged"))
    same = np.abs(np.asarray(alone(mx.array(ids)) - logits)).max() < max(1e-3, limit)
    assert same == (not any("mlx-lm" in note for note in notes))


def test_a_merged_hybrid_keeps_what_mlx_lm_leaves_out(tmp_path: Path) -> None:
    """Vision, multi-token prediction, whatever no adapter is on: byte for byte the source's."""
    base = write_checkpoint(tmp_path, "qwen3_5")
    (file,) = base.glob("*.safetensors")
    stored = mx.load(str(file))
    assert isinstance(stored, dict)
    mx.save_safetensors(str(file), stored | {"mtp.fc.weight": mx.ones((4, 8))}, {"format": "pt"})
    run = tmp_path / "run"
    make_run(run, str(base), [("lora.keys", LINEAR["qwen3_5"])])
    export(run, "merged")
    before, after = stored_arrays(base), stored_arrays(run / "export/merged")
    assert before.keys() == after.keys()
    assert any(name.startswith("model.visual.") for name in after)
    assert "mtp.fc.weight" in after
    changed = {name for name in after if not mx.array_equal(before[name], after[name])}
    adapted = tuple(f".{key}.weight" for key in LINEAR["qwen3_5"])
    assert changed == {name for name in after if name.endswith(adapted)}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("granitemoe", ["self_attn.q_proj", "block_sparse_moe.router.layer"]),
        ("mixtral", ["block_sparse_moe.gate", "lm_head"]),
        ("olmoe", ["mlp.gate"]),
        ("qwen2_moe", ["mlp.gate", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate"]),
        ("qwen3_moe", ["mlp.gate", "lm_head"]),
    ],
)
def test_adapters_beside_experts_are_merged(name: str, keys: list[str], tmp_path: Path) -> None:
    """On routers, shared experts and heads, which mlx-lm keeps as the files have them."""
    base = write_checkpoint(tmp_path, name)
    run = tmp_path / "run"
    student = make_run(run, str(base), [("lora.keys", keys), ("lora.dora", name == "olmoe")])
    ids = np.load(base / "reference.npz")["ids"]
    logits = student.module(mx.array(ids)).astype(mx.float32)
    expected = np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    assert np.abs(log_probs(opened(base), ids) - expected).max() > 0.01
    export(run, "merged")
    np.testing.assert_allclose(log_probs(opened(run / "export/merged"), ids), expected, atol=2e-4)


def opened(folder: Path) -> object:
    kwargs = {"dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def log_probs(model: object, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor(ids), use_cache=False).logits  # type: ignore[operator]
    return torch.log_softmax(logits.float(), dim=-1).numpy()
