"""How far a comparison is, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trb_mlx.comparison.outcomes import Outcome
from trb_mlx.comparison.spec import CompareSpec, PlannedRun
from trb_mlx.text import clock, number


class Progress:
    """Says each finished run with the time left of the whole comparison.

    A run is expected to cost what finished runs of its method did (else what all did), in seconds
    of training. What the clock of this call makes of those seconds, evaluations and runs at once
    included, is known from the first run on that ends in it.
    """

    def __init__(
        self,
        spec: CompareSpec,
        runs: Sequence[PlannedRun],
        finished: Mapping[str, Outcome],
        jobs: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`finished` are the outcomes known at the start by their run's name."""
        self._spec, self._runs, self._jobs, self._now = spec, runs, jobs, now
        self._finished = dict(finished)
        self._before = frozenset(finished)
        self._begun = now()

    def done(self, name: str, outcome: Outcome) -> str:
        """The line of a run that is done now."""
        self._finished[name] = outcome
        value = number(outcome.metrics.get(self._spec.decides))
        left = self.seconds_left()
        told = f", about {clock(left)} left" if left else ""
        place = f"{len(self._finished)} of {len(self._runs)}"
        return f"done {name} ({place}{told}): {self._spec.decides} {value}"

    def seconds_left(self) -> float | None:
        """Until the last run is done; None where nothing tells."""
        if not self._finished:
            return None
        left = sum(self._expected(run) for run in self._runs if run.name not in self._finished)
        new = [self._cost(self._finished[name]) for name in self._finished.keys() - self._before]
        if new:
            return left * (self._now() - self._begun) / sum(new)
        return left / self._jobs

    def _expected(self, run: PlannedRun) -> float:
        costs = [self._cost(each) for each in self._finished.values()]
        alike = [self._cost(each) for each in self._finished.values() if each.method == run.method]
        return float(np.mean(alike or costs))

    def _cost(self, outcome: Outcome) -> float:
        return max(outcome.metrics["cost.seconds"], 1e-9)
