"""Problem families of reasoning-gym: `generated:gym/NAME`, an optional extra.

Every item is made from its number alone, and the family's own scorer says what is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trb_mlx.data.examples import Example
from trb_mlx.errors import UserError, did_you_mean, one_line

PREFIX = "gym/"
# reasoning-gym seeds item i with seed + i, so two sets may share items unless their seeds are
# further apart than a set is long.
SPACING = 1_000_000
SPLITS = ("train", "test")


def gym_examples(name: str, split: str, count: int, seed: int) -> Iterator[Example]:
    """Yield `count` problems of a family; splits and seeds never share one.

    Raises:
        UserError: reasoning-gym is not installed, no such family or split, too many problems,
            or a family that needs settings of its own.
    """
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError("generated:gym/… needs `pip install 'trb-mlx[gym]'`.") from error
    families = sorted(DATASETS)
    if name not in families:
        raise UserError(
            f"generated:gym/{name} is not known{did_you_mean(name, families) or '; expected'} "
            f"one of reasoning-gym's {len(families)} families, such as gsm_symbolic or chain_sum."
        )
    if split not in SPLITS:
        raise UserError(f"generated:gym/{name} has no split {split} (splits: train, test).")
    if count > SPACING:
        raise UserError(f"generated:gym/{name}: {count} problems were asked for, over {SPACING}.")
    first = (2 * seed + SPLITS.index(split)) * SPACING
    items = make_items(name, first, count)
    for index in range(count):
        item = items[index]
        answer = item["answer"]  # None where many answers are right and the scorer knows them
        grader = f"{name}/{first}/{count}/{index}"
        yield Example(item["question"], "" if answer is None else str(answer), grader)


def make_items(name: str, seed: int, count: int) -> Any:
    """reasoning-gym's data set, whose items are dicts with `question` and `answer`.

    Raises:
        UserError: the family refuses its default settings.
    """
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, size=count, seed=seed)
    except Exception as error:  # each family checks its settings in its own way
        reason = one_line(str(error), 200) or type(error).__name__
        raise UserError(f"generated:gym/{name} cannot be made: {reason}.") from error
