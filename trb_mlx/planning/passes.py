"""What one pass of a model reads, makes and keeps, seen at its leaf modules; nothing is computed.

The model runs on ids whose arrays are never evaluated. At every leaf (a projection, a norm, a
convolution) and at every attention the shapes that come and go are noted: whatever the
architecture, a backward pass keeps the inputs of its projections and norms, the outputs that
something non-linear reads, and the probabilities of its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.models import mlxlm
from trb_mlx.models.checkpoint_files import LAYERS

# What a recurrence keeps besides, in outputs of the convolution before it: that output, activated,
# its parts for the recurrence, and what comes out of it.
RECURRENCE = 3.5
ROWS, TOKENS = 1, 64  # of the pass that is looked at; everything but scores grows evenly


@dataclass
class BlockPass:
    """Bytes of one block for a pass of one row, by what they grow with.

    Attributes:
        kept: a token's arrays that the backward pass reads again.
        width: a token's hidden state (what stays of a block that is computed again).
        made: a token's outputs of all projections, and so the gradients by them.
        widest: a token's arrays at the block's widest place, in a forward pass.
        score: an entry of the attention's scores, heads included (0 without attention).
        head_dim: the attention's (0 without one).
        linears: name, input and output width of each projection.
    """

    kept: float = 0.0
    width: float = 0.0
    made: float = 0.0
    widest: float = 0.0
    score: float = 0.0
    head_dim: int = 0
    linears: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass
class _Leaf:
    name: str
    kind: str
    inputs: mx.array
    output: mx.array


def block_passes(module: nn.Module) -> list[BlockPass]:
    """What every block of a model does in a pass, in their order.

    Args:
        module: as `outline_model` gives it, or a loaded one; nothing of it is evaluated.
    """
    events: list[_Leaf | tuple[str, Any, Any]] = []
    with _watched(module, events):
        module(mx.zeros((ROWS, TOKENS), mx.int32))
    blocks: dict[str, list[Any]] = {}
    current = ""
    for event in events:
        if isinstance(event, _Leaf):
            match = LAYERS.match(event.name)
            current = match[0] if match else ""
        if current:
            blocks.setdefault(current, []).append(event)
    return [_block_pass(each) for each in blocks.values()]


def _block_pass(events: list[Any]) -> BlockPass:
    leaves = [each for each in events if isinstance(each, _Leaf)]
    linears = [each for each in leaves if each.kind == "linear"]
    tokens = ROWS * TOKENS
    block = BlockPass(width=leaves[0].inputs.nbytes / tokens)
    kept: dict[int, mx.array] = {}
    attending: set[str] = set()
    activations = 0.0
    for event, before in zip(events, [None, *events[:-1]], strict=True):
        if isinstance(event, _Leaf):
            kept[id(event.inputs)] = event.inputs
            if event.kind == "conv":
                activations += RECURRENCE * event.output.nbytes
        else:
            _, queries, keys = event
            heads, block.head_dim = queries.shape[1], queries.shape[-1]
            block.score += heads * queries.dtype.size
            for array in event[1:]:
                kept[id(array)] = array
            kept[-len(kept) - 1] = keys  # the values are as large as the keys
            if isinstance(before, _Leaf):
                attending.add(before.name.rpartition(".")[0])
    # Projections whose output goes through something non-linear: all but a part's last, and in
    # attention none, whose queries and keys are kept as attention reads them.
    last = {each.name.rpartition(".")[0]: each for each in linears}
    inner: dict[str, list[mx.array]] = {}
    for each in linears:
        parent = each.name.rpartition(".")[0]
        if parent not in attending and last[parent] is not each:
            inner.setdefault(parent, []).append(each.output)
    for outputs in inner.values():
        kept |= {id(output): output for output in outputs}
        # A gate's activation is kept too, beside its product with the other projection.
        if len(outputs) > 1 and outputs[0].shape == outputs[1].shape:
            activations += outputs[0].nbytes
    block.kept = (sum(array.nbytes for array in kept.values()) + activations) / tokens
    parts: dict[str, float] = {}
    for each in linears:
        parent = each.name.rpartition(".")[0]
        parts[parent] = parts.get(parent, 0.0) + each.output.nbytes
    block.made = sum(parts.values()) / tokens
    block.widest = 2 * block.width + max(parts.values(), default=0.0) / tokens
    block.linears = [(each.name, each.inputs.shape[-1], each.output.shape[-1]) for each in linears]
    return block


@contextmanager
def _watched(module: nn.Module, events: list[Any]) -> Iterator[None]:
    """Note what goes through the leaves of a module and through attention."""
    names = {id(inner): name for name, inner in module.named_modules()}
    kinds = {type(inner) for inner in module.modules() if _is_leaf(inner)}
    calls: dict[type, Callable[..., Any]] = {kind: kind.__call__ for kind in kinds}
    attention = mx.fast.scaled_dot_product_attention

    def watch(kind: type) -> Callable[..., Any]:
        def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            output = calls[kind](self, x, *args, **kwargs)
            what = _leaf_kind(self)
            if what and id(self) in names and isinstance(output, mx.array):
                events.append(_Leaf(names[id(self)], what, x, output))
            return output

        return call

    def attend(queries: mx.array, keys: mx.array, values: mx.array, **kwargs: Any) -> mx.array:
        events.append(("attention", queries, keys))
        return attention(queries, keys, values, **kwargs)

    try:
        for kind in kinds:
            kind.__call__ = watch(kind)
        mx.fast.scaled_dot_product_attention = attend  # type: ignore[assignment]
        yield
    finally:
        mx.fast.scaled_dot_product_attention = attention
        for kind, plain in calls.items():
            kind.__call__ = plain


def _is_leaf(module: nn.Module) -> bool:
    return not module.children() and bool(module.parameters()) and _leaf_kind(module) != ""


def _leaf_kind(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear | nn.QuantizedLinear) or "SwitchLinear" in name:
        return "linear"
    if isinstance(module, nn.Conv1d):
        return "conv"
    return "norm" if "Norm" in name else ""


def cache_bytes(module: nn.Module) -> tuple[float, float]:
    """Bytes of a row's cache: of each place that it has read, and those that never grow."""
    cache = mlxlm.make_prompt_cache(module)
    module(mx.zeros((1, TOKENS), mx.int32), cache=cache)
    places = fixed = 0.0
    for layer in _flat(cache):
        state = [each for each in layer.state if isinstance(each, mx.array)]
        if isinstance(layer, mlxlm.ArraysCache):
            fixed += sum(each.nbytes for each in state)
        else:
            places += sum(each.nbytes / max(each.shape[2], 1) for each in state if each.ndim == 4)
    return places, fixed


def _flat(cache: list[Any]) -> Iterator[Any]:
    for layer in cache:
        yield from layer.caches if isinstance(layer, mlxlm.CacheList) else [layer]
