"""Every mlx-lm function that we rely on still has the signature that we rely on."""

from __future__ import annotations

import inspect

import mlx.core as mx
import pytest
from mlx_lm.models import cache

from trb_mlx.models import mlxlm

SIGNATURES = {
    "load": [
        "path_or_hf_repo",
        "tokenizer_config",
        "return_config",
        "revision",
        "trust_remote_code",
    ],
    "load_adapters": ["model", "adapter_path"],
    "load_tokenizer": ["model_path"],
    "linear_to_lora_layers": ["model", "num_layers", "config", "use_dora"],
    "quantize_model": ["model", "config", "group_size", "bits"],
    "dequantize_model": ["model"],
    "make_prompt_cache": ["model"],
    "get_reporting_callbacks": ["report_to", "project_name", "log_dir", "config"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    found = list(inspect.signature(getattr(mlxlm, name)).parameters)
    assert set(SIGNATURES[name]) <= set(found)
    assert found[: 1 if name == "load" else None][0] == SIGNATURES[name][0]


def test_everything_imported_is_probed() -> None:
    assert {*SIGNATURES, "TokenizerWrapper"} == set(mlxlm.__all__)


@pytest.mark.parametrize("kind", [cache.KVCache, cache.RotatingKVCache, cache.ArraysCache])
def test_caches_merge_into_batches_whose_rows_can_leave(kind: type) -> None:
    """What `CachedModel` asks of a cache: merge, prepare, finalize, filter, state."""
    batch = kind.merge([kind(8), kind(8)] if kind is not cache.KVCache else [kind(), kind()])
    assert hasattr(batch, "state")
    assert "lengths" in inspect.signature(batch.prepare).parameters
    assert list(inspect.signature(batch.filter).parameters) == ["batch_indices"]
    batch.finalize()


def test_the_tokenizer_wrapper_has_what_we_read() -> None:
    for name in ("eos_token_ids", "has_chat_template", "apply_chat_template", "encode", "decode"):
        wrapped = inspect.getsource(mlxlm.TokenizerWrapper)
        assert name in wrapped or "__getattr__" in wrapped


def test_lora_layers_name_their_parameters_as_ours_expect() -> None:
    from mlx import nn
    from mlx_lm.tuner.lora import LoRALinear

    layer = LoRALinear.from_base(nn.Linear(8, 6), r=2, scale=3.0)
    assert layer.lora_a.shape == (8, 2)
    assert layer.lora_b.shape == (2, 6)
    assert layer.lora_a.dtype == mx.float32
