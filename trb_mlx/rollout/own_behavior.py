"""A behavior policy of a user's own, found by its name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from trb_mlx.config import BEHAVIOR_GROUP
from trb_mlx.errors import UserError, reading


def find_behavior(kind: str) -> Callable[..., Any]:
    """The function behind `package.module:NAME`, or behind an entry point's name.

    Modules are also looked for in the working folder, as by `python -m`.

    Raises:
        UserError: it cannot be imported, or has no such function.
    """
    with reading(f"behavior.kind {kind}"):
        if kind in entry_points(group=BEHAVIOR_GROUP).names:
            (entry,) = entry_points(group=BEHAVIOR_GROUP, name=kind)
            found = entry.load()
        else:
            module, _, name = kind.partition(":")
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())
            found = getattr(import_module(module), name, None)
    if not callable(found):
        raise UserError(
            f"behavior.kind {kind} names no function; expected one that takes the config's "
            "behavior section and gives a trb_mlx.Behavior."
        )
    return found
