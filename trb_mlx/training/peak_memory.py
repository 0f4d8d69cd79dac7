"""The highest use of MLX's allocator in each phase of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from trb_mlx.types import Metrics

# In the order in which a step has them; a step in which the teacher draws along has no scoring.
PHASES = ("rollout", "score", "update", "eval")


class PeakMemory:
    """Measures phases one after another; models and whatever else is resident count too."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._gb: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what runs inside as one of `PHASES`."""
        mx.reset_peak_memory()
        yield
        self._gb[name] = mx.get_peak_memory() / 2**30

    def take(self) -> Metrics:
        """`memory/PHASE_gb` in GiB of the phases since the last call."""
        metrics = {f"memory/{name}_gb": self._gb[name] for name in PHASES if name in self._gb}
        self._gb.clear()
        return metrics
