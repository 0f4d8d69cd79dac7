"""On-policy distillation with trust-region behavior blending, on MLX.

The public names are imported when they are first used:

>>> import trb_mlx
>>> "solve_blend_weight" in dir(trb_mlx)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trb_mlx.backend import require_backend

if TYPE_CHECKING:
    from trb_mlx.comparison.run import compare
    from trb_mlx.evaluation.run import evaluate, generate
    from trb_mlx.exporting.run import export
    from trb_mlx.models.pair import load_pair
    from trb_mlx.ops.trust_region import blend_logprobs, solve_blend_weight
    from trb_mlx.rollout.behavior import Behavior, make_blend
    from trb_mlx.runs.metrics import load_metrics
    from trb_mlx.training.run import train

__version__ = "0.3.0"

__all__ = [
    "Behavior",
    "__version__",
    "blend_logprobs",
    "compare",
    "evaluate",
    "export",
    "generate",
    "load_metrics",
    "load_pair",
    "make_blend",
    "solve_blend_weight",
    "train",
]

# Where each name lives; no module of this package may have the name of one of them.
_HOMES = {
    "Behavior": "trb_mlx.rollout.behavior",
    "blend_logprobs": "trb_mlx.ops.trust_region",
    "compare": "trb_mlx.comparison.run",
    "evaluate": "trb_mlx.evaluation.run",
    "export": "trb_mlx.exporting.run",
    "generate": "trb_mlx.evaluation.run",
    "load_metrics": "trb_mlx.runs.metrics",
    "load_pair": "trb_mlx.models.pair",
    "make_blend": "trb_mlx.rollout.behavior",
    "solve_blend_weight": "trb_mlx.ops.trust_region",
    "train": "trb_mlx.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trb_mlx' has no attribute {name!r}")
    require_backend()
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
