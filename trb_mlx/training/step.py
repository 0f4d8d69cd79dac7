"""The one optimisation step: value_and_grad over micro-batches, clipping, a guard, AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from trb_mlx.backend import can_compile, on_gpu
from trb_mlx.config import TrainConfig
from trb_mlx.errors import UserError
from trb_mlx.interrupts import shielded
from trb_mlx.ranks.group import ALONE, Group
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.training.objective import Objective
from trb_mlx.training.reduction import Reduction
from trb_mlx.types import Metrics, Rollout


class Stepper:
    """Applies one update per rollout batch to the student's adapters.

    The loss is averaged over all response tokens of the step, however they are split into
    micro-batches. An update with a loss or gradient that is not finite is skipped.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, config: TrainConfig, group: Group = ALONE
    ) -> None:
        """Set up AdamW for the trainable parameters of `module`, which all ranks update alike.

        Raises:
            UserError: `train.compile: on` where no C++ compiler exists.
        """
        self.module = module
        self.optimizer = optim.AdamW(
            learning_rate=0.0,
            betas=list(config.betas),
            weight_decay=config.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(module.trainable_parameters())
        self.compiled = use_compile(config.compile)
        self._config = config
        self.objective = objective
        self._grad = self._make_grad(objective.loss)
        self._group = group
        self._reduction = Reduction(group, config.deterministic)
        self._before: Any = None
        self.updates = 0
        self.skipped = 0  # updates that were not applied

    def _make_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        grad = nn.value_and_grad(self.module, loss)
        if not self.compiled:
            return grad
        # The dropout masks come from the global random state, so it is part of the graph's.
        state = [self.module.state, mx.random.state]
        return mx.compile(grad, inputs=state, outputs=state)

    def update(self, rollout: Rollout, learning_rate: float) -> Metrics:
        """Accumulate gradients over the whole rollout and apply one update.

        Signals are held back while parameters change.

        Args:
            rollout: finished rollouts with the teacher's records filled in.
            learning_rate: of this step.

        Returns:
            `loss` and `reverse_kl` (nats a token), `grad_norm` before clipping, `logprob_gap`
            (mean |student log-prob of the drawn token now − when drawn|, nats), `skipped` (1 if
            not applied).
        """
        self.module.train()
        (loss, measures), grads = self._accumulate(rollout)
        self.module.eval()
        with shielded():
            sums = {"loss": loss, "reverse_kl": loss} | measures
            return self._apply(grads, sums, learning_rate)

    def _accumulate(self, rollout: Rollout) -> Any:
        """((loss, measures), gradients) of the whole rollout, micro-batch by micro-batch.

        Every rank computes its part of them; the sum is the same on all.

        Nothing here waits for the device: it works on one micro-batch while the host packs the
        next. What it holds stays that of about one, since work is handed over in order and
        every intermediate result is let go of as soon as it is used.
        """
        config, total = self._config, int(rollout.lengths.sum())
        parts: list[Any] = []
        shape: Any = None
        number = -1
        for number, packed in enumerate(
            pack_rollout(
                rollout,
                config.micro_batch_size,
                config.micro_batch_tokens,
                self.compiled,
                self.objective.readers(rollout),
                self._reduction.rows(rollout),
            )
        ):
            if not self._reduction.takes(number):
                continue
            # Dropout's masks are then of a micro-batch, not of what its process drew before.
            if self._group.size > 1 or config.deterministic:
                key = (config.seed * 1_000_003 + rollout.step) * 1_009 + int(packed.rows[0])
                mx.random.seed(key % 2**63)
            if packed.ids.shape != shape:
                mx.clear_cache()  # buffers of another shape would lie idle
            shape = packed.ids.shape
            batch = self.objective.batch(rollout, packed, total)
            mx.async_eval(batch)  # type: ignore[no-untyped-call]
            parts = self._reduction.add(parts, self._grad(batch))
            mx.async_eval(parts)  # type: ignore[no-untyped-call]
        return self._reduction.total(parts, number + 1)

    def rewind(self, updates: int) -> None:
        """Take the last update back where more than `updates` were made."""
        if self.updates > updates and self._before is not None:
            parameters, state, self.skipped = self._before
            self.module.update(parameters)
            self.optimizer.state = state
            self.updates, self._before = updates, None

    def _apply(self, grads: Any, sums: dict[str, Any], learning_rate: float) -> Metrics:
        """One AdamW update where all is finite, and the one transfer of the step's numbers."""
        clipped, norm = optim.clip_grad_norm(grads, self._config.max_grad_norm)
        finite = mx.isfinite(sums["loss"]) & mx.isfinite(norm)
        numbers = sums | {"grad_norm": norm, "skipped": ~finite}
        before = self._trees()
        # Arrays are immutable, so the old state costs no more than its bytes.
        self._before = (*tree_map(lambda array: array, before), self.skipped)
        self.updates += 1
        self.optimizer.learning_rate = mx.array(learning_rate, dtype=mx.float32)
        self.optimizer.update(self.module, clipped)
        parameters, state = tree_map(
            lambda new, old: mx.where(finite, new, old), self._trees(), self._before[:2]
        )
        self.module.update(parameters)
        self.optimizer.state = state
        values = mx.stack([number.astype(mx.float32) for number in numbers.values()])
        mx.eval(parameters, state, values)
        metrics = dict(zip(numbers, np.asarray(values).tolist(), strict=True))
        self.skipped += int(metrics["skipped"])
        mx.clear_cache()  # what comes next, drawing or evaluating, has other shapes
        return metrics | {"learning_rate": learning_rate}

    def _trees(self) -> tuple[Any, Any]:
        return self.module.trainable_parameters(), self.optimizer.state


def use_compile(setting: str) -> bool:
    """Whether the step is compiled.

    `auto` compiles on a GPU. On a CPU it does not: compiling takes longer there than it saves
    in a run of this size (figures in docs/log.md), and a choice by timing at run time would
    make two runs of one seed differ in rounding.

    Raises:
        UserError: `on` where it cannot work.
    """
    if setting == "on" and not can_compile():
        raise UserError(
            "train.compile is on, but no C++ compiler (g++) was found; use auto or off."
        )
    if setting == "auto":
        return on_gpu()
    return setting == "on"
