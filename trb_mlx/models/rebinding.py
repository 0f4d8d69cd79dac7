"""Another function under a global name, for the methods of one loaded model alone.

mlx-lm's models import what updates a recurrent state by name. An instance is given a subclass of
its class whose methods are the same code with other globals, so that whatever else the process does
with mlx-lm sees its own function, and names of parameters stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import mlx.nn as nn

Function = Callable[..., Any]


def rebind(module: nn.Module, name: str, wrap: Callable[[Function], Function]) -> bool:
    """Let the methods of a model's modules that read a global `name` find `wrap` of it, in place.

    What an earlier call has bound is wrapped again.

    Returns:
        Whether any method reads that name.
    """
    classes: dict[type, type] = {}
    for inner in module.modules():
        plain = type(inner)
        if plain not in classes:
            classes[plain] = _rebound(plain, name, wrap)
        if classes[plain] is not plain:
            inner.__class__ = classes[plain]
    return any(new is not plain for plain, new in classes.items())


def _rebound(plain: type, name: str, wrap: Callable[[Function], Function]) -> type:
    """A subclass whose methods find `wrap` of their global `name`; the class itself without any."""
    methods = {}
    for key in dir(plain):
        method = getattr(plain, key)
        if not isinstance(method, FunctionType) or name not in method.__code__.co_names:
            continue
        function = method.__globals__.get(name)
        if function is None:  # an attribute of that name
            continue
        new = FunctionType(
            method.__code__,
            {**method.__globals__, name: wrap(function)},
            method.__name__,
            method.__defaults__,
            method.__closure__,
        )
        new.__kwdefaults__ = method.__kwdefaults__
        new.__qualname__, new.__module__ = method.__qualname__, method.__module__
        methods[key] = new
    if not methods:
        return plain
    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (plain,), methods | named)
