"""LoRA in few launches is mlx-lm's LoRA: values, gradients, names; and is few launches."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from trb_mlx.config import LoraConfig, ModelConfig, QuantizeConfig
from trb_mlx.models import mlxlm
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.lora_linear import LoraLinear

IDS = mx.array([[5, 6, 7, 8], [9, 4, 3, 2]])
# Of the largest value: a 16-bit sum of terms that are rounded at other places.
ROUNDING = {"float32": 2e-6, "bfloat16": 0.03}


def adapted(folder: Path, **values: object) -> nn.Module:
    """A student whose adapters are not zero."""
    module = load_model(ModelConfig(model=str(folder), **values)).module
    add_lora(module, LoraConfig(rank=4), seed=3)
    mx.random.seed(5)
    module.update(
        tree_map(lambda a: a + 0.2 * mx.random.normal(a.shape), module.trainable_parameters())
    )
    return module


def lora_layers(module: nn.Module) -> Iterator[nn.Module]:
    return (m for _, m in module.named_modules() if isinstance(m, mlxlm.LoRALinear))


def as_in_mlx_lm(module: nn.Module) -> nn.Module:
    for layer in lora_layers(module):
        layer.__class__ = mlxlm.LoRALinear
    return module


def assert_close(one: mx.array, other: mx.array, rounding: float) -> None:
    a, b = (np.asarray(x.astype(mx.float32)) for x in (one, other))
    assert np.abs(a - b).max() <= rounding * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_mlx_lm(
    folders: tuple[Path, Path], dtype: str, packed: bool
) -> None:
    values = {"dtype": dtype, "quantize": QuantizeConfig(group_size=32) if packed else None}
    module = adapted(folders[0], **values)
    assert all(isinstance(layer, LoraLinear) for layer in lora_layers(module))

    def measure() -> tuple[mx.array, dict[str, mx.array]]:
        module.eval()
        logits = module(IDS)
        module.train()
        grad = nn.value_and_grad(module, lambda ids: mx.square(module(ids)).sum())
        return logits, dict(tree_flatten(grad(IDS)[1]))

    logits, grads = measure()
    as_in_mlx_lm(module)
    plain_logits, plain_grads = measure()
    assert_close(logits, plain_logits, ROUNDING[dtype])
    assert grads.keys() == plain_grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == mx.float32
        assert_close(grad, plain_grads[name], 5 * ROUNDING[dtype])


def test_an_update_is_seen_by_the_next_pass(folders: tuple[Path, Path]) -> None:
    """Also where a pass ended before all of a block's layers were asked."""
    module = adapted(folders[0])
    before = module(IDS)
    attention = module.layers[0].self_attn
    attention.q_proj(mx.ones((1, 1, 32)))
    module.update(tree_map(lambda a: a * 1.5, module.trainable_parameters()))
    after = module(IDS)
    assert_close(after, as_in_mlx_lm(module)(IDS), ROUNDING["float32"])
    assert mx.abs(after - before).max() > 0.01


def test_dropout_drops_in_training_alone(folders: tuple[Path, Path]) -> None:
    module = load_model(ModelConfig(model=str(folders[0]))).module
    add_lora(module, LoraConfig(rank=4, dropout=0.5), seed=3)
    layer = module.layers[0].mlp.up_proj
    layer.lora_b = mx.ones_like(layer.lora_b)
    x = mx.ones((1, 64, 32))
    assert mx.array_equal(layer(x)[0, 0], layer(x)[0, 1])
    layer.train()
    assert len({float(row[0]) for row in layer(x)[0]}) > 8


def test_names_and_arrays_stay_mlx_lms(folders: tuple[Path, Path]) -> None:
    module = adapted(folders[0])
    names = [name for name, _ in tree_flatten(module.parameters())]
    module(IDS)  # keeps cast matrices beside
    assert names == [name for name, _ in tree_flatten(module.parameters())]
    assert names == [name for name, _ in tree_flatten(as_in_mlx_lm(module).parameters())]


def operations(module: nn.Module) -> Counter[str]:
    """How often each operation is in the graph of one token's pass."""
    mx.eval(module(IDS))  # makes what is kept between passes
    graph = io.StringIO()
    mx.export_to_dot(graph, module(IDS[:, :1]))  # type: ignore[no-untyped-call]
    return Counter(re.findall(r'label ="(\w+)"', graph.getvalue()))


def test_a_block_spends_few_launches_on_its_adapters(folders: tuple[Path, Path]) -> None:
    """Seven layers: four products (q, k and v share one, gate and up another) and seven sums."""
    module = load_model(ModelConfig(model=str(folders[0]), dtype="bfloat16")).module
    blocks = len(module.layers)
    bare = operations(module)
    add_lora(module, LoraConfig(rank=4), seed=3)
    more = operations(module) - bare
    for view in ("Split", "Broadcast", "Flatten", "Unflatten"):
        del more[view]
    assert more == Counter({"Matmul": 4 * blocks, "AddMM": 7 * blocks})
