"""A loaded model in two: the body up to its last hidden states, and the head that makes logits.

Every architecture of mlx-lm calls its body and then does what it wants with the result: a tied,
untied or quantized projection, a scale, a soft cap. That code is run as it is, on the hidden states
given, by showing it the module with another body: nothing about a head is written again here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.models.precision import bound

# What mlx-lm's models call their body, and a wrapper's text model.
BODIES = ("model", "transformer", "backbone")
WRAPPED = "language_model"
# Two rows, so that a head that works for one sequence only is found out.
PROBE = ((1, 2, 3, 4), (4, 3, 2, 1))


@dataclass(frozen=True)
class Split:
    """A model whose logits are `head(body(ids))`.

    Attributes:
        module: the part that has body and head (a multimodal wrapper's text model).
        body_name: the body's attribute there.
        head_names: dotted names, in `module`, of all that the head reads.
    """

    module: nn.Module
    body_name: str
    head_names: frozenset[str]

    def body(self, ids: mx.array, cache: Any = None) -> mx.array:
        """Hidden states `[B, L, D]` of ids `[B, L]`, after the final norm.

        The module's own call passes the arguments on; the logits that it goes on to build are
        dropped before anything computes them.
        """
        hidden: Any = None

        def record(*args: Any, **kwargs: Any) -> Any:
            nonlocal hidden
            hidden = getattr(self.module, self.body_name)(*args, **kwargs)
            return hidden

        _call(self.module, self.body_name, record, set(), ids, cache=cache)
        return hidden

    def head(self, hidden: mx.array) -> mx.array:
        """The model's own logits `[..., W]` of hidden states `[..., D]`."""
        return self._head(hidden, set())

    def _head(self, hidden: mx.array, read: set[str]) -> mx.array:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        ids = mx.zeros(rows.shape[:2], mx.int32)
        logits = _call(self.module, self.body_name, lambda *_, **__: rows, read, ids)
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def is_frozen(self) -> bool:
        """Whether nothing that the head reads is trained, as the module is now (LoRA included)."""
        names = [name for name, _ in tree_flatten(self.module.trainable_parameters())]
        heads = tuple(f"{name}." for name in self.head_names)
        return not any(f"{name}.".startswith(heads) for name in names)


def split_model(module: nn.Module) -> Split | None:
    """Body and head of a model, or None where the two do not give the model's own logits.

    That is tried on a few ids: any architecture that is built otherwise fails here.
    """
    inner = module
    while WRAPPED in inner:
        inner = inner[WRAPPED]
    name = next((name for name in BODIES if isinstance(inner.get(name), nn.Module)), None)
    if name is None:
        return None
    ids = mx.array(PROBE)
    expected = module(ids)
    read: set[str] = set()
    split = Split(inner, name, frozenset())
    try:
        logits = split._head(split.body(ids), read)
        if logits.shape != expected.shape:
            return None
        # Equal to rounding: other shapes of a product may add in another order.
        gap, size = (mx.abs(x.astype(mx.float32)).max() for x in (logits - expected, expected))
        same = bool(gap <= size * max(bound(1e-5, 4e-3), 2 * mx.finfo(expected.dtype).eps))
    except (AttributeError, IndexError, TypeError, ValueError):  # built in some other way
        return None
    return Split(inner, name, frozenset(read)) if same else None


def _call(
    module: nn.Module,
    body_name: str,
    body: Callable[..., Any],
    read: set[str],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The module's own `__call__` with another body; the names that it reads go to `read`."""
    own = _View(getattr(module, body_name), f"{body_name}.", {}, read, body)
    view = _View(module, "", {body_name: own}, read)
    return type(module).__call__(view, *args, **kwargs)


class _View:
    """A module's attributes and methods, some of them replaced, noting which are read."""

    def __init__(
        self,
        module: nn.Module,
        prefix: str,
        replaced: dict[str, Any],
        read: set[str],
        call: Callable[..., Any] | None = None,
    ) -> None:
        self._module = module
        self._prefix = prefix
        self._replaced = replaced
        self._read = read
        self._call = call

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced:
            return self._replaced[name]
        value = getattr(self._module, name)
        if isinstance(value, MethodType):  # what a method reads counts too
            return MethodType(value.__func__, self)
        self._read.add(self._prefix + name)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self._call is not None
        return self._call(*args, **kwargs)
