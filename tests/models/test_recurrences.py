"""Recurrent layers that read long texts in chunks give what mlx-lm's own code gives."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import make_model

from trb_mlx.config import LoraConfig, ModelConfig
from trb_mlx.models import loading, mlxlm, recurrences
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora, checkpoint_layers

DELTA = ("qwen3_next", "qwen3_5", "olmo_hybrid", "kimi_linear")
STATE_SPACE = ("mamba2", "nemotron_h", "granitemoehybrid", "falcon_h1", "plamo2")
KINDS = (*DELTA, *STATE_SPACE, "bailing_moe_linear", "rwkv7")
RWKV7 = {
    "model_type": "rwkv7",
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "norm_eps": 1e-5,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "a_low_rank_dim": 4,
    "v_low_rank_dim": 4,
    "gate_low_rank_dim": 4,
    "decay_low_rank_dim": 4,
}


def pair(kind: str, folder: Path) -> tuple[nn.Module, nn.Module]:
    """A model as it is loaded, and with mlx-lm's own updates."""
    if kind == "rwkv7":  # its fresh weights are zeros
        ours, plain = (mlxlm.make_model(RWKV7) for _ in range(2))
        mx.random.seed(0)
        weights = [
            (name, mx.random.normal(array.shape) * 0.3)
            for name, array in tree_flatten(plain.parameters())
        ]
        for module in (ours, plain):
            module.load_weights(weights)
            module.eval()
        recurrences.chunk_recurrences(ours)
        return ours, plain
    config = ModelConfig(model=str(make_model(folder / kind, kind, seed=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "chunk_recurrences", lambda module: None)
        plain = load_model(config).module
    return load_model(config).module, plain


def gradient(module: nn.Module, ids: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """A loss over all logits in training, and its gradient by name."""
    module.train()
    grad = nn.value_and_grad(module, lambda ids: nn.losses.cross_entropy(module(ids), ids).mean())
    loss, tree = grad(ids)
    module.eval()
    return loss, dict(tree_flatten(tree))


def assert_close(actual: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        gap = mx.linalg.norm(actual[name] - grad).item()
        assert gap <= 1e-4 * max(mx.linalg.norm(grad).item(), 1e-4), name


def ids(length: int, rows: int = 2) -> mx.array:
    return mx.array(np.random.default_rng(length).integers(1, 250, size=(rows, length)))


@pytest.mark.parametrize("kind", KINDS)
def test_training_has_mlx_lms_loss_and_gradients(kind: str, tmp_path: Path) -> None:
    ours, plain = pair(kind, tmp_path)
    (loss, grads), (expected, others) = gradient(ours, ids(70)), gradient(plain, ids(70))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_close(grads, others)


@pytest.mark.parametrize("kind", KINDS)
def test_long_and_short_prefill_continue_as_mlx_lm_does(kind: str, tmp_path: Path) -> None:
    """A long prompt, a second part on its state, then tokens one by one."""
    ours, plain = pair(kind, tmp_path)
    caches = [mlxlm.make_prompt_cache(module) for module in (ours, plain)]
    for length in (100, 65, 5, 1, 1):
        text = ids(length)
        logits = [module(text, cache=c) for module, c in zip((ours, plain), caches, strict=True)]
        np.testing.assert_allclose(*map(np.asarray, logits), atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_short_passes_are_mlx_lms_own(kind: str, tmp_path: Path) -> None:
    """Drafts and their verification round alike whatever the block: not a bit differs."""
    ours, plain = pair(kind, tmp_path)
    assert mx.array_equal(ours(ids(recurrences.LONG - 1)), plain(ids(recurrences.LONG - 1)))


def test_nothing_else_in_the_process_changes(tmp_path: Path) -> None:
    """mlx-lm's module, its classes and other models keep their function."""
    module = importlib.import_module("mlx_lm.models.qwen3_next")
    before = module.gated_delta_update
    ours, plain = pair("qwen3_next", tmp_path)
    assert module.gated_delta_update is before
    linear = [m for m in plain.modules() if hasattr(m, "in_proj_ba")]
    rebound = [m for m in ours.modules() if hasattr(m, "in_proj_ba")]
    assert {type(m) for m in linear} == {module.Qwen3NextGatedDeltaNet}
    assert all(
        type(m) is not module.Qwen3NextGatedDeltaNet
        and isinstance(m, module.Qwen3NextGatedDeltaNet)
        for m in rebound
    )
    assert type(ours).__call__ is type(plain).__call__
    names = [{name for name, _ in tree_flatten(m.parameters())} for m in (ours, plain)]
    assert names[0] == names[1]


def graph_size(loss: mx.array, folder: Path) -> int:
    """Operations of a graph that is still to be computed."""
    mx.export_to_dot(str(folder / "graph.dot"), loss)
    return (folder / "graph.dot").read_text().count("label")


@pytest.mark.parametrize("kind", ["qwen3_5", "kimi_linear", "bailing_moe_linear", "rwkv7"])
def test_training_is_no_loop_over_tokens(kind: str, tmp_path: Path) -> None:
    ours, plain = pair(kind, tmp_path)
    for module in (ours, plain):
        module.train()
    sizes = {
        name: [graph_size(module(ids(length)).sum(), tmp_path) for length in (64, 128)]
        for name, module in (("ours", ours), ("plain", plain))
    }
    grown = {name: after - before for name, (before, after) in sizes.items()}
    assert grown["ours"] < grown["plain"] / 2


@pytest.mark.parametrize("kind", ["qwen3_5", "mamba2"])
@pytest.mark.parametrize("on_top", [False, True])
def test_lora_checkpointing_and_compiling_work_on_top(
    kind: str, on_top: bool, tmp_path: Path
) -> None:
    ours, plain = pair(kind, tmp_path)
    grads: list[dict[str, mx.array]] = []
    for module in (ours, plain):
        add_lora(module, LoraConfig(rank=2), seed=0)
        spread = {
            name: mx.random.normal(array.shape, key=mx.random.key(i)) * 0.1
            for i, (name, array) in enumerate(tree_flatten(module.trainable_parameters()))
        }
        module.load_weights(list(spread.items()), strict=False)
        if module is ours and on_top:
            checkpoint_layers(module)
        module.train()
        grad: Any = nn.value_and_grad(
            module, lambda ids, module=module: nn.losses.cross_entropy(module(ids), ids).mean()
        )
        if module is ours and on_top:
            grad = mx.compile(grad, inputs=[module.state], outputs=[module.state])
        grads.append(dict(tree_flatten(grad(ids(70))[1])))
    assert any(".lora_a" in name for name in grads[0])
    assert_close(*grads)
