"""A LoRA layer in few launches: what mlx-lm's computes, with its names, attributes and files.

mlx-lm's layer takes float32 matrices to a 16-bit input by casting the input, and spends six
launches beside the base's product: cast, two products, scale, cast, sum. In a pass of one token
that is more than the model itself. Here the matrices are cast, the second product adds to the
base's, and layers that read one input (queries, keys and values; gate and up) share their first
product. Cast and joined matrices are kept from one update to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.models import mlxlm

IDS = ((1, 2, 3, 4),)

# How a layer comes by x·A `[..., r]` and by B, outside of training.
Down = Callable[["LoraLinear", mx.array], tuple[mx.array, mx.array]]


class LoraLinear(mlxlm.LoRALinear):
    """linear(x) + scale · (x·A)·B, with A `[in, r]` and B `[r, out]` in the type of x."""

    down: Down

    def __call__(self, x: mx.array) -> mx.array:
        """Outputs `[..., out]` of inputs `[..., in]`."""
        if self.training:
            low = self.dropout(x) @ self.lora_a.astype(x.dtype)
            up = self.lora_b.astype(x.dtype)
        else:
            low, up = self.down(self, x)
        return mx.addmm(self.linear(x), low, up, alpha=self.scale)


class SharedInput:
    """Layers that read one input, and their first products in one.

    Whichever is called first with an input computes them; the others take their columns. The
    matrices are cast and joined anew when one of them has been replaced.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        self._layers = {id(layer): layer for layer in layers}
        self._sources: list[mx.array] = []
        self._downs = self._input = mx.zeros(0)
        self._ups: dict[int, mx.array] = {}
        self._lows: dict[int, mx.array] = {}

    def __call__(self, layer: LoraLinear, x: mx.array) -> tuple[mx.array, mx.array]:
        """x·A `[..., r]` and B `[r, out]` of one of the layers, in the type of x."""
        if self._renew(x.dtype) or x is not self._input or id(layer) not in self._lows:
            ends = [*accumulate(up.shape[0] for up in self._ups.values())]
            self._input = x
            self._lows = dict(zip(self._ups, mx.split(x @ self._downs, ends[:-1], -1), strict=True))
        low = self._lows.pop(id(layer))
        if not self._lows:
            self._input = mx.zeros(0)  # else it would live until the next pass
        return low, self._ups[id(layer)]

    def _renew(self, dtype: mx.Dtype) -> bool:
        """Cast and join the matrices, unless that was done for these very arrays."""
        layers = self._layers
        sources = [leaf for part in layers.values() for leaf in (part.lora_a, part.lora_b)]
        same = len(sources) == len(self._sources) and all(map(_is, sources, self._sources))
        if same and self._downs.dtype == dtype:
            return False
        self._sources = sources
        self._downs = mx.concatenate([a.astype(dtype) for a in sources[::2]], axis=1)
        self._ups = {key: b.astype(dtype) for key, b in zip(layers, sources[1::2], strict=True)}
        return True


def _is(one: object, other: object) -> bool:
    return one is other


def speed_up_lora(module: nn.Module) -> None:
    """Let every plain LoRA layer of a model compute as `LoraLinear`, in place.

    Which layers read one input is seen in a pass over a few ids, of which nothing is computed.
    """
    layers = [m for _, m in module.named_modules() if type(m) is mlxlm.LoRALinear]
    read_by: dict[int, list[LoraLinear]] = {}
    inputs: list[mx.array] = []  # held, so that no two share an id

    def note(layer: LoraLinear, x: mx.array) -> tuple[mx.array, mx.array]:
        inputs.append(x)
        read_by.setdefault(id(x), []).append(layer)
        return SharedInput([layer])(layer, x)

    for layer in layers:
        layer.__class__ = LoraLinear
        layer.down = note
    module.eval()
    module(mx.array(IDS))
    calls = [id(layer) for readers in read_by.values() for layer in readers]
    for layer in layers:
        layer.down = SharedInput([layer])  # one that no pass reaches, or several times
    for readers in read_by.values():
        if all(calls.count(id(layer)) == 1 for layer in readers):
            shared = SharedInput(readers)
            for layer in readers:
                layer.down = shared
