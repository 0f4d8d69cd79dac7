"""What a callback may hear of a run."""

from __future__ import annotations

from typing import Literal

from trb_mlx.types import StepResult

Phase = Literal["update", "evaluation"]


class Callback:
    """Listens to a run. Every method is optional; steps count finished updates."""

    def on_start(self, step: int) -> None:
        """The run begins, or goes on, after `step` finished updates."""

    def on_phase(self, phase: Phase, step: int) -> None:
        """The update that makes `step` of them begins, or the evaluation after `step` updates."""

    def on_step(self, result: StepResult) -> None:
        """A step and its evaluation, if it had one, are done (step 0: evaluation alone)."""

    def on_stop(self, step: int) -> None:
        """The run is cut off, and its state after `step` updates is saved before it ends."""

    def on_save(self, step: int) -> None:
        """The state after `step` updates is to be kept."""

    def on_end(self, step: int) -> None:
        """The run is over after `step` updates, finished or interrupted."""
