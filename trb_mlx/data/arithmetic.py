"""Arithmetic problems with written-out steps: the offline demo's task, in pure Python.

A question chains three or four operations; brackets make the usual rules of precedence agree
with evaluation from left to right, so the solution works off one operation a line::

    Compute (12+7-5)*3.      the question
    12+7=19                  the solution, one step a line
    19-5=14
    14*3=42
    Answer: 42

Every number met on the way is an integer from 0 to 99.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

LARGEST_VALUE = 99
LARGEST_TERM = 20
OPERATION_COUNTS = (3, 4)

# One expression in ten is held out. The limits are promises well inside the real numbers of
# expressions (tens of millions), so that rejecting duplicates stays quick up to them.
TEST_SHARE = 10
LARGEST_COUNT = {"train": 500_000, "test": 20_000}


@dataclass(frozen=True)
class Problem:
    """One question, its worked solution ending in ``Answer: N``, and N as text."""

    question: str
    solution: str
    answer: str


@dataclass(frozen=True)
class _Step:
    """One operation: the value before it, its sign, its operand and the value after it."""

    before: int
    sign: str
    operand: int
    after: int


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Draw `count` different problems of one split.

    The splits partition the expressions by their checksum, so a train and a test problem never
    coincide, whatever the seeds.

    Args:
        split: ``"train"`` or ``"test"``.
        count: how many problems, from 0 to ``LARGEST_COUNT[split]``.
        seed: the same split, count and seed give the same list.

    Raises:
        ValueError: on an unknown split, or a count outside the split's range.
    """
    if split not in LARGEST_COUNT:
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'.")
    largest = LARGEST_COUNT[split]
    if not 0 <= count <= largest:
        raise ValueError(f"count is {count}, expected 0 to {largest} for split {split!r}.")
    generator = random.Random(f"arithmetic {split} {seed}")
    drawn: dict[str, Problem] = {}
    while len(drawn) < count:
        steps = _draw_steps(generator)
        expression = _expression(steps)
        # crc32 is the same in every process, hash() is not.
        is_test = zlib.crc32(expression.encode()) % TEST_SHARE == 0
        if is_test == (split == "test"):
            answer = str(steps[-1].after)
            lines = [f"{step.before}{step.sign}{step.operand}={step.after}" for step in steps]
            solution = "\n".join([*lines, f"Answer: {answer}"])
            drawn.setdefault(expression, Problem(f"Compute {expression}.", solution, answer))
    return list(drawn.values())


def _draw_steps(generator: random.Random) -> list[_Step]:
    value = generator.randint(2, LARGEST_VALUE // 2)
    steps = []
    for _ in range(generator.choice(OPERATION_COUNTS)):
        steps.append(_draw_step(generator, value))
        value = steps[-1].after
    return steps


def _draw_step(generator: random.Random, value: int) -> _Step:
    """Draw one operation that keeps the running value within 0 to 99."""
    ranges = {
        "+": (1, min(LARGEST_TERM, LARGEST_VALUE - value)),
        "-": (1, min(LARGEST_TERM, value)),
        "*": (2, min(9, LARGEST_VALUE // max(value, 1))),
    }
    sign = generator.choice([sign for sign, (low, high) in ranges.items() if low <= high])
    operand = generator.randint(*ranges[sign])
    after = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return _Step(value, sign, operand, after)


def _expression(steps: list[_Step]) -> str:
    """Write the chain, bracketing a sum or difference before it is multiplied."""
    text = str(steps[0].before)
    is_sum = False
    for step in steps:
        if step.sign == "*" and is_sum:
            text = f"({text})"
        text += f"{step.sign}{step.operand}"
        is_sum = step.sign != "*"
    return text
