"""From examples to prompts: formatted, within the length limit, without duplicates, in order."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trb_mlx.config import DataConfig, PromptConfig, PromptSource
from trb_mlx.data.conversations import BadRow
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import Formatter, make_formatter
from trb_mlx.data.sources import is_generated, read_examples
from trb_mlx.data.teacher_prompts import TeacherPrompts
from trb_mlx.data.templates import TemplateTimeout
from trb_mlx.errors import UserError
from trb_mlx.types import Prompt

# So many bad rows before the first good one, and no more are read: a stream has no end.
MOST_BAD_ROWS = 1000


@dataclass(frozen=True)
class PromptSet:
    """The prompts that were kept, and how many were not.

    Attributes:
        prompts: in their order, numbered by `Prompt.index`.
        too_long: over `data.max_prompt_tokens`.
        duplicates: repeated one before them.
        bad_rows: could not be used; `first_bad` says which was the first, and why.
        notes: what is said of those that were kept, a line each.
    """

    prompts: tuple[Prompt, ...]
    too_long: int = 0
    duplicates: int = 0
    bad_rows: int = 0
    first_bad: str = ""
    notes: tuple[str, ...] = ()

    def left_out(self, limit: int) -> str:
        """What was left out, in words, `limit` being `data.max_prompt_tokens`; empty if nothing."""
        return ", ".join(
            f"{count} {noun}{'' if count == 1 else 's'}{more}"
            for count, noun, more in (
                (self.bad_rows, "row", f" that cannot be used (the first: {self.first_bad})"),
                (self.too_long, "prompt", f" over data.max_prompt_tokens = {limit}"),
                (self.duplicates, "duplicate", ""),
            )
            if count
        )


class _BadRows:
    """What is done about a row that cannot be used (`data.on_bad_row`)."""

    def __init__(self, on_bad_row: str) -> None:
        self.count = 0
        self.first: UserError | None = None
        self.good = False  # has there been a row that can be used?
        self._refuses = on_bad_row == "error"

    def add(self, error: UserError) -> None:
        """Count it, or raise it where it is asked for, or where no row looks like being good."""
        # A column that the first row lacks is lacking in all.
        if self._refuses or not (self.good or isinstance(error, BadRow)):
            raise error
        self.count += 1
        self.first = self.first or error
        if not self.good and self.count == MOST_BAD_ROWS:
            raise self.first


def load_prompts(
    source: PromptSource,
    data: DataConfig,
    prompt: PromptConfig,
    tokenizer: Any,
    seed: int,
    count: int | None = None,
    teacher: TeacherPrompts | None = None,
) -> PromptSet:
    """Read a source until `count` prompts are kept; None means `source.limit`, or all there are.

    `Prompt.index` is the place in the set. A streamed source is read no further than needed.

    Raises:
        UserError: the source's own troubles, a streamed source without a limit, no prompt that
            can be used, or with `data.on_bad_row: error` one that cannot.
    """
    wanted = source.limit if count is None else count
    if source.streaming and wanted is None:
        raise UserError(f"{source.source} is streamed without an end, expected a limit beside it.")
    bad = _BadRows(data.on_bad_row)
    context_column = None if teacher is None else teacher.context_column
    examples = read_examples(
        source, wanted if is_generated(source) else None, seed, bad.add, context_column
    )
    kept = _collect(examples, data, make_formatter(prompt, tokenizer), wanted, bad, teacher)
    if kept.prompts:
        return kept
    if bad.first is not None and not kept.too_long:
        raise bad.first
    raise UserError(
        f"{source.source} has no prompt left: {kept.too_long} are longer than "
        f"data.max_prompt_tokens = {data.max_prompt_tokens}, {kept.duplicates} repeat "
        f"one of them and {kept.bad_rows} cannot be used; raise the limit, or shorten the prompts."
    )


def _collect(
    examples: Iterator[Example],
    data: DataConfig,
    format_example: Formatter,
    wanted: int | None,
    bad: _BadRows,
    teacher: TeacherPrompts | None,
) -> PromptSet:
    prompts: list[Prompt] = []
    seen: set[str] = set()
    too_long = duplicates = 0
    for example in examples:
        key = _normalized(example)
        if data.deduplicate and key in seen:
            duplicates += (
                1  # left out before formatting: OpenThoughts3 repeats each prompt 16 times
            )
            continue
        seen.add(key)
        try:
            text, tokens = format_example(example)
            own = (None, None) if teacher is None else teacher(example)
        except UserError as error:
            sentence = f"{example.where}: {error}" if example.where else str(error)
            if isinstance(error, TemplateTimeout):
                raise UserError(sentence) from error
            bad.add(BadRow(sentence))
            continue
        bad.good = True
        if len(tokens) > data.max_prompt_tokens:
            too_long += 1
            continue
        prompts.append(Prompt(len(prompts), text, tokens, example.answer, example.grader, *own))
        if len(prompts) == wanted:
            break
    first = str(bad.first or "").removesuffix(".")
    notes = (*format_example.notes.lines(), *(teacher.lines() if teacher else ()))
    return PromptSet(tuple(prompts), too_long, duplicates, bad.count, first, notes)


def _normalized(example: Example) -> str:
    """Prompts that differ in white space or Unicode form only are the same."""
    text = "\n".join(f"{turn['role']} {turn['content']}" for turn in example.turns)
    more = [{k: v for k, v in t.items() if k not in ("role", "content")} for t in example.turns]
    if example.tools or any(more):
        text += json.dumps([example.tools, more], default=str)
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
