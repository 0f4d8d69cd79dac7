"""From examples to prompts: formatted, within the length limit, without duplicates, in order."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trb_mlx.config import DataConfig, PromptConfig, PromptSource
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import Formatter, make_formatter
from trb_mlx.data.sources import is_generated, read_examples
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt

__all__ = ["Formatter", "PromptSet", "load_prompts", "make_formatter", "order"]


@dataclass(frozen=True)
class PromptSet:
    """The prompts that were kept, and how many were not: over the length limit, or repeated."""

    prompts: tuple[Prompt, ...]
    too_long: int = 0
    duplicates: int = 0


def load_prompts(
    source: PromptSource,
    data: DataConfig,
    prompt: PromptConfig,
    tokenizer: Any,
    seed: int,
    count: int | None = None,
) -> PromptSet:
    """Read a source until `count` prompts are kept; None means `source.limit`, or all there are.

    `Prompt.index` is the place in the set. A streamed source is read no further than needed.

    Raises:
        UserError: the source's own troubles, a streamed source without a limit, or no prompt
            within `data.max_prompt_tokens`.
    """
    wanted = source.limit if count is None else count
    if source.streaming and wanted is None:
        raise UserError(f"{source.source} is streamed without an end, expected a limit beside it.")
    examples = read_examples(source, wanted if is_generated(source) else None, seed)
    found = _collect(examples, data, make_formatter(prompt, tokenizer), wanted)
    if not found.prompts:
        raise UserError(
            f"{source.source} has no prompt left: {found.too_long} are longer than "
            f"data.max_prompt_tokens = {data.max_prompt_tokens} and {found.duplicates} repeat "
            "one of them; raise the limit, or shorten the prompts."
        )
    return found


def _collect(
    examples: Iterator[Example], data: DataConfig, format_example: Formatter, wanted: int | None
) -> PromptSet:
    prompts: list[Prompt] = []
    seen: set[str] = set()
    too_long = duplicates = 0
    for example in examples:
        key = _normalized(example)
        if data.deduplicate and key in seen:
            duplicates += 1  # told before formatting: OpenThoughts3 repeats each prompt 16 times
            continue
        seen.add(key)
        text, tokens = format_example(example)
        if len(tokens) > data.max_prompt_tokens:
            too_long += 1
            continue
        prompts.append(Prompt(len(prompts), text, tokens, example.answer, example.grader))
        if len(prompts) == wanted:
            break
    return PromptSet(tuple(prompts), too_long, duplicates)


def _normalized(example: Example) -> str:
    """Prompts that differ in white space or Unicode form only are the same."""
    text = "\n".join(f"{turn['role']} {turn['content']}" for turn in example.turns)
    return " ".join(unicodedata.normalize("NFC", text).split())


def order(count: int, seed: int, step: int, per_step: int) -> list[int]:
    """The prompts of step `step` (from 0): `per_step` indices below `count`.

    The epochs are permutations seeded by (seed, epoch), laid end to end; a step is a window of
    them. So the order depends on nothing but the step, and no epoch repeats a prompt.
    """
    start = step * per_step
    epochs = range(start // count, (start + per_step - 1) // count + 1)
    laid = np.concatenate(
        [np.random.default_rng([seed, epoch]).permutation(count) for epoch in epochs]
    )
    offset = start - epochs[0] * count
    return [int(index) for index in laid[offset : offset + per_step]]
