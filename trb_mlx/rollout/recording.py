"""What is kept of each drawn token: statistics of both models at one position, on the device.

The names are those of `trb_mlx.types.Records`.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from trb_mlx.ops.distribution import Distribution, entropy_of, log_rest, softmax, top_k
from trb_mlx.rollout.behavior import Blend

# Hidden states may take this share of the machine's memory: models, caches and the update's
# activations need the rest, and beyond it the teacher's body is run again instead.
KEEP_SHARE = 1 / 8


def student_records(
    rows: Distribution, tokens: mx.array, count: int, temperature: float
) -> dict[str, mx.array]:
    """The student's part: its support at temperature 1, and tempered statistics.

    Args:
        rows: `[..., V]`, tempered.
        tokens: int `[...]`, the drawn ids.
        count: K.
        temperature: τ of the rows.
    """
    plain = _at_temperature_one(rows, temperature)
    return _student_records(tuple(rows), plain.logprobs, tokens, count)


@mx.compile
def _student_records(
    rows: tuple[mx.array, ...], plain: mx.array, tokens: mx.array, count: int
) -> dict[str, mx.array]:
    support = top_k(plain, count)
    inside = mx.take_along_axis(plain, support, axis=-1)
    return {
        "support": support,
        "student_mass": mx.exp(inside).sum(-1),
        "student_entropy": entropy_of(Distribution(*rows)),
        "student_logprob": Distribution(*rows).at(tokens),
    }


def teacher_records(
    rows: Distribution, tokens: mx.array, support: mx.array, temperature: float
) -> dict[str, mx.array]:
    """The teacher's part: its log-probs on the student's support, at temperature 1, and the rest.

    Arguments as in `student_records`; `support` is int `[..., K]`.
    """
    plain = _at_temperature_one(rows, temperature)
    return _teacher_records(tuple(rows), tuple(plain), tokens, support)


@mx.compile
def _teacher_records(
    own_rows: tuple[mx.array, ...],
    plain_rows: tuple[mx.array, ...],
    tokens: mx.array,
    support: mx.array,
) -> dict[str, mx.array]:
    rows, plain = Distribution(*own_rows), Distribution(*plain_rows)
    own = top_k(plain.logprobs, support.shape[-1])
    shared = (own[..., :, None] == support[..., None, :]).sum(axis=(-1, -2))
    likeliest = mx.argmax(mx.take_along_axis(plain.logprobs, own, axis=-1), axis=-1)
    return {
        "teacher_support": mx.take_along_axis(plain.logprobs, support, axis=-1),
        "teacher_rest": log_rest(plain, support),
        "overlap": shared.astype(mx.int32),
        "teacher_entropy": entropy_of(rows),
        "teacher_logprob": rows.at(tokens),
        "teacher_top": mx.take_along_axis(own, likeliest[..., None], axis=-1).squeeze(-1),
    }


def pair_records(
    student: Distribution,
    teacher: Distribution,
    blend: Blend,
    tokens: mx.array,
    count: int,
    temperature: float,
) -> dict[str, mx.array]:
    """Both models' parts, and the behavior's; arguments as in `student_records`."""
    values = student_records(student, tokens, count, temperature)
    values |= teacher_records(teacher, tokens, values["support"], temperature)
    return values | {
        "weight": blend.weight,
        "kl_behavior": blend.kl,
        "total_variation": blend.total_variation,
    }


def _at_temperature_one(rows: Distribution, temperature: float) -> Distribution:
    return rows if temperature == 1.0 else softmax(rows.logprobs, 1.0 / temperature)


class BlockRecords:
    """What is recorded of a block, place by place, as its tokens are emitted."""

    def __init__(self, rows: int, length: int) -> None:
        """Nothing yet of `rows` rows of at most `length` tokens."""
        self._number = np.full((rows, length), -1)  # of each token in the order of recording
        self._count = 0
        self._parts: list[dict[str, mx.array]] = []

    def add(self, rows: np.ndarray, place: int, values: dict[str, mx.array]) -> None:
        """Of one token each of some rows: by name `[len(rows), …]`, submitted at once.

        What they are made from, `[len(rows), V]`, need not be held until the round ends.
        """
        mx.async_eval(values)  # type: ignore[no-untyped-call]
        self._number[rows, place] = self._count + np.arange(len(rows))
        self._count += len(rows)
        self._parts.append(values)

    def filter(self, rows: list[int]) -> None:
        """Keep the listed rows, in that order."""
        self._number = self._number[rows]

    def of_first(self, counts: np.ndarray) -> dict[str, mx.array]:
        """Of each row's first tokens, int `[rows]` of them: by name `[N, …]`, row by row."""
        first = np.arange(self._number.shape[1]) < counts[:, None]
        numbers = self._number[first]
        # One token of every row is as it was recorded: no gather in each of vanilla's rounds.
        if len(self._parts) == 1 and np.array_equal(numbers, np.arange(self._count)):
            return self._parts[0]
        order = mx.array(numbers.astype(np.int32))
        return {
            name: mx.concatenate([part[name] for part in self._parts])[order]
            for name in self._parts[0]
        }


def to_host(values: mx.array) -> np.ndarray:
    """A host array of the same bits (bfloat16, which numpy lacks, as uint16)."""
    return np.asarray(values.view(mx.uint16) if values.dtype == mx.bfloat16 else values)


def from_host(values: mx.array) -> mx.array:
    """What `to_host` was given, from its result brought back to the device."""
    return values.view(mx.bfloat16) if values.dtype == mx.uint16 else values


@dataclass(frozen=True)
class HiddenPlan:
    """Whether the teacher's hidden states are kept from rollout to update, and why."""

    keep: bool
    reason: str


def plan_hidden(setting: str, tokens: int, width: int, itemsize: int, memory: int) -> HiddenPlan:
    """Decide whether the hidden states of one step's tokens are kept.

    Args:
        setting: `loss.keep_hidden`: `on`, `off`, or `auto` for `KEEP_SHARE` of the memory.
        tokens: the most response tokens that a step can have.
        width: D of the teacher.
        itemsize: bytes a number.
        memory: bytes of the machine.
    """
    needed, limit = tokens * width * itemsize, int(memory * KEEP_SHARE)
    keep = setting == "on" or (setting == "auto" and needed <= limit)
    size = f"at most {needed / 2**20:,.0f} MiB for {tokens:,} tokens"
    share = f"{limit / 2**20:,.0f} MiB, an eighth of the memory"
    why = {
        "on": f"({size}; loss.keep_hidden is on)",
        "off": "(loss.keep_hidden is off): its body runs again in the update",
        "auto": f"({size}, within {share})"
        if keep
        else f"({size}, above {share}): its body runs again in the update",
    }
    kept = "are kept" if keep else "are not kept"
    return HiddenPlan(keep, f"the teacher's hidden states {kept} {why[setting]}")
