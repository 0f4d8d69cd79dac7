"""What recurrent layers compute can be recorded, and a recurrence be run again by itself.

mlx-lm's recurrent layers call one of two update functions and `nn.Conv1d`. In one loaded model
these are made to ask whoever records the pass; where nobody does they are what they were.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from trb_mlx.models.rebinding import rebind

# mlx-lm's updates by name, with their arguments that have positions, `[B, T, …]`.
SEQUENCES = {
    "gated_delta_update": ("q", "k", "v", "a", "b"),
    "ssm_update": ("hidden_states", "B", "C", "dt"),
}
Update = Callable[..., tuple[mx.array, mx.array]]


@dataclass(frozen=True)
class Recurrence:
    """One call of an update: T positions of B rows, from their states on.

    Attributes:
        function: mlx-lm's update.
        sequences: by name, what each position gives, `[B, T, …]`.
        others: by name, its other arguments but the state.
        state: the states before, `[B, …]`, or None for those that begin.
    """

    function: Update
    sequences: dict[str, mx.array]
    others: dict[str, Any]
    state: mx.array | None

    def run(self) -> tuple[mx.array, mx.array]:
        """Outputs `[B, T, …]` and the states after them, as mlx-lm computes them."""
        return self.function(**self.sequences, **self.others, state=self.state)

    def run_first(self, counts: mx.array) -> tuple[mx.array, mx.array]:
        """As `run`, but each row's state is that after its first `counts` `[B]` positions."""
        length = next(iter(self.sequences.values())).shape[1]
        if length == 1:  # for which a kernel of mlx-lm takes no mask
            outputs, state = self.run()
            kept = (counts > 0).reshape(-1, *[1] * (state.ndim - 1))
            before = mx.zeros_like(state) if self.state is None else self.state
            return outputs, mx.where(kept, state, before)
        masked = self.others | {"mask": mx.arange(length) < counts[:, None]}
        if "lengths" in masked:
            masked["lengths"] = counts
        return self.function(**self.sequences, **masked, state=self.state)

    @staticmethod
    def join(calls: Sequence[Recurrence], length: int, rows: mx.array) -> Recurrence:
        """Some rows' first `length` positions of calls that follow each other."""
        first = calls[0]
        sequences = {
            name: mx.concatenate([call.sequences[name] for call in calls], axis=1)[rows, :length]
            for name in first.sequences
        }
        state = None if first.state is None else first.state[rows]
        return replace(first, sequences=sequences, state=state)

    def take(self, rows: mx.array) -> Recurrence:
        """The same of some rows."""
        sequences = {name: each[rows] for name, each in self.sequences.items()}
        state = None if self.state is None else self.state[rows]
        return replace(self, sequences=sequences, state=state)


class Recorder(Protocol):
    """What a pass is recorded by: the cache of the layer that computes."""

    def convolve(self, inputs: mx.array) -> None:
        """A convolution reads `[B, K - 1 + T, C]`: its window, and T new positions."""

    def update(self, recurrence: Recurrence) -> tuple[mx.array, mx.array]:
        """A layer asks for the outputs and states of a recurrence."""


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording() -> Iterator[None]:
    """A pass of a model, within which `record_to` says who records."""
    token = _recorder.set(None)
    try:
        yield
    finally:
        _recorder.reset(token)


def record_to(recorder: Recorder) -> None:
    """Whoever records what is convolved and updated from here on, in this pass."""
    _recorder.set(recorder)


def make_recordable(module: nn.Module) -> None:
    """Let a model's convolutions and recurrences be recorded, in place.

    Layers that are replaced or wrapped later (LoRA, checkpointing) change nothing of it.
    """
    if getattr(module, "is_recordable", False):
        return
    module.is_recordable = True
    for name, sequences in SEQUENCES.items():
        rebind(module, name, functools.partial(_recordable, names=sequences))
    for layer in module.modules():
        if type(layer) is nn.Conv1d:
            layer.__class__ = _RecordableConv1d


class _RecordableConv1d(nn.Conv1d):
    def __call__(self, x: mx.array) -> mx.array:
        if (recorder := _recorder.get()) is not None:
            recorder.convolve(x)
        return super().__call__(x)


def _recordable(update: Update, names: tuple[str, ...]) -> Update:
    """The update, as whoever records wants it."""
    if hasattr(update, "is_recordable"):  # in a copy of a model's layers
        return update
    signature = inspect.signature(update)

    @functools.wraps(update)
    def recordable(*args: Any, **kwargs: Any) -> tuple[mx.array, mx.array]:
        recorder = _recorder.get()
        if recorder is None:
            return update(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        others = bound.arguments
        sequences = {name: others.pop(name) for name in names}
        return recorder.update(Recurrence(update, sequences, others, others.pop("state")))

    recordable.is_recordable = True  # type: ignore[attr-defined]
    return recordable
