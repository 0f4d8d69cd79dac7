"""What must be the same on every rank before they begin, each difference in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trb_mlx.errors import UserError
from trb_mlx.ranks.group import Group

_SHOWN = 5  # differences; one wrong file makes many
# What draws and trains, and what scores answers.
PACKAGES = (
    *("trb-mlx", "mlx", "mlx-lm", "transformers", "numpy"),
    *("math-verify", "latex2sympy2-extended", "sympy", "reasoning-gym"),
)


def versions() -> dict[str, str]:
    """The installed versions of what a run's numbers come from."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[f"version of {name}"] = version(name)
        except PackageNotFoundError:
            installed[f"version of {name}"] = "none"
    return installed


def agree(group: Group, values: Mapping[str, Any]) -> None:
    """Compare what every rank has, by name, with what rank 0 has.

    Args:
        group: everyone.
        values: as JSON holds them; a name says what the value is of.

    Raises:
        UserError: they differ; a line for each of the first differences.
    """
    first, *others = group.gather("the comparison of ranks", dict(values))
    lines = []
    for rank, other in enumerate(others, 1):
        for name in dict.fromkeys((*first, *other)):
            if first.get(name) != other.get(name):
                lines.append(
                    f"{name} is {first.get(name)!r} on rank 0 and {other.get(name)!r} on rank "
                    f"{rank}; expected the same on every machine."
                )
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"{len(lines) - _SHOWN} more differences between the ranks."]
    if lines:
        raise UserError("\n".join(lines))
