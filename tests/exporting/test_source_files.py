"""Mixtures of experts merged: the source's files, in which the adapted layers alone change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from exporting.run_folders import make_run
from mlx_lm import load as mlx_lm_load
from mlx_lm.utils import quantize_model, save_config, save_model
from tiny import make_model

from trb_mlx.errors import UserError
from trb_mlx.exporting.run import export
from trb_mlx.models.arrays import overwrite_arrays

ATTENTION = ["self_attn.q_proj", "self_attn.o_proj"]
IDS = mx.array([[5, 6, 7, 8]])


def make_source(folder: Path, dtype: mx.Dtype = mx.bfloat16) -> Path:
    """A qwen3_moe as transformers saves it: each expert apart, shards with an index, two types."""
    make_model(folder, "qwen3_moe", hidden_size=64, moe_intermediate_size=32)
    (file,) = folder.glob("*.safetensors")
    weights = mx.load(str(file))
    file.unlink()
    assert isinstance(weights, dict)
    apart = {"lm_head.weight": mx.ones((259, 64), mx.bfloat16)}  # tied, so that mlx-lm drops it
    for name, array in weights.items():
        array = array.astype(mx.float32 if "gate.weight" in name else dtype)
        if "switch_mlp" in name:
            for expert in range(array.shape[0]):
                apart[name.replace("switch_mlp", f"experts.{expert}")] = array[expert]
        else:
            apart[name] = array
    shards = {name: f"model-0000{1 + ('layers.1' in name)}-of-00002.safetensors" for name in apart}
    for shard in set(shards.values()):
        part = {name: array for name, array in apart.items() if shards[name] == shard}
        mx.save_safetensors(str(folder / shard), part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    """The type and bytes of every tensor in a folder, read from the format itself."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (entry["dtype"], data[start + begin : start + end])
    return found


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(mx.float32, 1e-4), (mx.bfloat16, 0.1)])
def test_only_adapted_weights_change(
    tmp_path: Path, dtype: mx.Dtype, limit: float, dora: bool
) -> None:
    """Experts, norms, and a head that mlx-lm drops keep their bytes, types, names and files."""
    source = make_source(tmp_path / "experts", dtype)
    run = tmp_path / "run"
    changes = [("lora.keys", [*ATTENTION, "mlp.gate"]), ("lora.dora", dora)]
    student = make_run(run, str(source), changes)
    done = export(run, "merged")
    before, after = tensors(source), tensors(done.path)
    assert {n: kind for n, (kind, _) in after.items()} == {n: k for n, (k, _) in before.items()}
    changed = {name for name in before if before[name] != after[name]}
    parts = [*ATTENTION, "mlp.gate"]
    assert changed == {f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in parts}
    for name in ("model.safetensors.index.json", "tokenizer.json"):
        assert (done.path / name).read_bytes() == (source / name).read_bytes()
    merged, _ = mlx_lm_load(str(done.path))
    for module in (student.module, merged):  # a CPU multiplies experts in float32 alone
        module.set_dtype(mx.float32)
    expected, logits = (np.asarray(module(IDS)) for module in (student.module, merged))
    np.testing.assert_allclose(logits, expected, atol=limit)
    assert not done.notes


def test_another_type_than_the_source_has_is_said(tmp_path: Path) -> None:
    """The merged values are the exact sums, rounded once to what the source keeps them in."""
    source = make_source(tmp_path / "experts")
    run = tmp_path / "run"
    make_run(run, str(source), [("lora.keys", ATTENTION), ("student.dtype", "float32")])
    done = export(run, "merged")
    (note,) = done.notes
    assert "their source's type, bfloat16, and the student was trained in float32" in note
    name = "model.layers.1.self_attn.q_proj"
    adapters = mx.load(str(run / "adapters/adapters.safetensors"))
    shard = "model-00002-of-00002.safetensors"
    base, merged = (mx.load(str(f / shard))[f"{name}.weight"] for f in (source, done.path))
    scale = json.loads((run / "adapters/adapter_config.json").read_text())["lora_parameters"]
    delta = scale["scale"] * (adapters[f"{name}.lora_a"] @ adapters[f"{name}.lora_b"]).T
    exact = np.asarray(base.astype(mx.float32) + delta)
    assert merged.dtype == mx.bfloat16
    np.testing.assert_allclose(np.asarray(merged.astype(mx.float32)), exact, rtol=2**-8)


@pytest.mark.parametrize(
    ("keys", "changes", "match"),
    [
        (["self_attn.q_proj", "mlp.switch_mlp.up_proj"], [], "mlx-lm keeps .*switch_mlp.up_proj"),
        (["model.embed_tokens"], [], "mlx-lm keeps model.embed_tokens otherwise"),
        (None, [], "mlx-lm keeps .*switch_mlp"),
        (
            ATTENTION,
            [("student.quantize", {"bits": 8, "group_size": 32})],
            "is of model_type qwen3_moe",
        ),
    ],
)
def test_what_the_files_do_not_hold_alike_is_refused(
    tmp_path: Path, keys: list[str] | None, changes: list[tuple[str, Any]], match: str
) -> None:
    source = make_source(tmp_path / "experts")
    run = tmp_path / "run"
    make_run(run, str(source), [("lora.keys", keys), *changes])
    with pytest.raises(UserError, match=match):
        export(run, "merged")
    assert not (run / "export").exists()
    assert export(run, "merged", quantize=8, group_size=32).path.exists()


def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "experts")
    module, _, details = mlx_lm_load(str(source), return_config=True)
    module, details = quantize_model(module, details, 32, 8)
    for file in source.glob("model*"):
        file.unlink()
    save_model(source, module)
    save_config(details, source / "config.json")
    make_run(tmp_path / "run", str(source), [("lora.keys", ATTENTION)])
    with pytest.raises(UserError, match="is of model_type qwen3_moe"):
        export(tmp_path / "run", "merged")


def test_a_weight_that_a_second_file_holds_in_another_type_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "experts")
    make_run(tmp_path / "run", str(source), [("lora.keys", ATTENTION)])
    shard = mx.load(str(source / "model-00001-of-00002.safetensors"))
    wide = {name: array.astype(mx.float32) for name, array in shard.items()}
    mx.save_safetensors(str(source / "model.safetensors"), wide)
    with pytest.raises(UserError, match="bytes of model.layers.0.self_attn"):
        export(tmp_path / "run", "merged")
    assert not list((tmp_path / "run/export").iterdir())


def test_arrays_of_another_size_are_not_written(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), {"a": mx.zeros((2, 2)), "b": mx.ones((3,))})
    before = file.read_bytes()
    with pytest.raises(UserError, match="holds 16 bytes of a, expected 8"):
        overwrite_arrays(file, {"a": mx.ones((2, 2), mx.float16)})
    assert file.read_bytes() == before
    overwrite_arrays(file, {"b": mx.arange(3.0), "c": mx.ones((1,))})
    again = mx.load(str(file))
    assert again["b"].tolist() == [0, 1, 2]
    assert not again["a"].any()
