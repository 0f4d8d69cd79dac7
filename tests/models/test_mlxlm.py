"""Every mlx-lm function that we rely on still has the signature that we rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import cache
from mlx_lm.models.gated_delta import gated_delta_update
from mlx_lm.models.ssm import ssm_update
from tiny import CHATML, make_model

from trb_mlx.models import mlxlm
from trb_mlx.models.replay import SEQUENCES

SIGNATURES = {
    "load_config": ["model_path"],
    "load_model": ["model_path", "model_config", "trust_remote_code"],
    "download": ["model", "revision"],
    "config_fields": ["config"],
    "create_causal_mask": ["N", "window_size"],
    "initialize_rope": [
        "dims",
        "base",
        "traditional",
        "scaling_config",
        "max_position_embeddings",
    ],
    "load_tokenizer": ["model_path", "tokenizer_config_extra", "eos_token_ids"],
    "linear_to_lora_layers": ["model", "num_layers", "config", "use_dora"],
    "quantize_model": ["model", "config", "group_size", "bits"],
    "dequantize_model": ["module"],
    "make_model": ["config"],
    "save_model": ["save_path", "model"],
    "save_config": ["config", "config_path"],
    "make_prompt_cache": ["model"],
    "get_reporting_callbacks": ["report_to", "project_name", "log_dir", "config"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(mlxlm, name)).parameters)
    assert set(SIGNATURES[name]) <= set(parameters)
    assert parameters[0] == SIGNATURES[name][0]  # we pass it by position


def test_everything_imported_is_probed() -> None:
    classes = {"KVCache", "RotatingKVCache", "ArraysCache", "CacheList"}
    classes |= {"LoRALinear", "TokenizerWrapper"}
    assert {*SIGNATURES, *classes} == set(mlxlm.__all__)


def test_caches_say_what_they_keep() -> None:
    """All places, a window of `max_size` after `keep` places that stay, arrays, or several."""
    assert mlxlm.KVCache().offset == 0
    window = mlxlm.RotatingKVCache(max_size=8)
    assert (window.max_size, window.keep) == (8, 0)
    assert mlxlm.ArraysCache(size=3).cache == [None] * 3
    assert mlxlm.CacheList(window, window).caches == (window, window)


@pytest.mark.parametrize("update", [gated_delta_update, ssm_update])
def test_updates_take_what_is_recorded(update: Callable[..., object]) -> None:
    names = {*SEQUENCES[update.__name__], "state", "mask"}
    assert names <= set(inspect.signature(update).parameters)


@pytest.mark.parametrize("kind", [cache.KVCache, cache.RotatingKVCache, cache.ArraysCache])
def test_caches_merge_into_batches_whose_rows_can_leave(kind: type) -> None:
    """What `MergedDecoder` asks of a cache: merge, prepare, finalize, filter, extend, state."""
    batch = kind.merge([kind(8), kind(8)] if kind is not cache.KVCache else [kind(), kind()])
    assert hasattr(batch, "state")
    assert "lengths" in inspect.signature(batch.prepare).parameters
    assert list(inspect.signature(batch.filter).parameters) == ["batch_indices"]
    assert list(inspect.signature(batch.extend).parameters) == ["other"]
    batch.finalize()


def test_the_tokenizer_wrapper_gives_what_we_read(tmp_path: Path) -> None:
    folder = make_model(tmp_path, eos=["<|im_end|>", "<|endoftext|>"], template=CHATML)
    wrapper = mlxlm.load_tokenizer(folder, eos_token_ids=[258, 256])
    assert isinstance(wrapper, mlxlm.TokenizerWrapper)
    assert wrapper.eos_token_ids == {256, 258}
    assert wrapper.eos_token_id == 258
    assert wrapper.has_chat_template
    assert wrapper.chat_template == CHATML
    ids = wrapper.encode("a b", add_special_tokens=False)
    assert wrapper.decode(ids) == "a b"
    messages = [{"role": "user", "content": "a"}]
    rendered = wrapper.apply_chat_template(messages, add_generation_prompt=True)
    assert all(isinstance(token, int) for token in rendered)
    assert len(wrapper) == len(wrapper.get_vocab()) == 259


def test_lora_layers_name_their_parameters_as_ours_expect() -> None:
    from mlx import nn
    from mlx_lm.tuner.lora import LoRALinear

    layer = LoRALinear.from_base(nn.Linear(8, 6), r=2, scale=3.0)
    assert layer.lora_a.shape == (8, 2)
    assert layer.lora_b.shape == (2, 6)
    assert layer.lora_a.dtype == mx.float32
