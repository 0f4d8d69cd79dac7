"""Where prompts come from: a generator, files, or a data set of the Hub."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from trb_mlx.config import PromptSource
from trb_mlx.data import arithmetic
from trb_mlx.data.examples import Example, example_of
from trb_mlx.data.gym import PREFIX, gym_examples
from trb_mlx.data.hub import hub_rows
from trb_mlx.data.row_files import Rows, ending, file_rows
from trb_mlx.errors import UserError, did_you_mean

GENERATORS = {"arithmetic": arithmetic.problems}
GENERATED_COUNT = 10_000  # problems made where neither the config nor the caller says how many

# mlx-lm's three files, and what else their splits are called.
SPLIT_FILES = {"train": "train", "valid": "valid", "validation": "valid", "test": "test"}


def _refuse(error: UserError) -> None:
    raise error


def read_examples(
    source: PromptSource,
    count: int | None,
    seed: int,
    bad_row: Callable[[UserError], None] = _refuse,
    context_column: str | None = None,
) -> Iterator[Example]:
    """Yield the examples of a source in their order, reading no further than is asked for.

    Args:
        source: `generated:NAME`, a file, a folder, or a Hub id. Its `limit` is not applied here:
            it counts the prompts that are kept (`prompts.load_prompts`).
        count: yield at most this many; None yields all (a generator then makes
            `GENERATED_COUNT`).
        seed: of the generator; files and the Hub do not use it.
        bad_row: is given what is wrong with a row, and raises it or leaves the row out.
        context_column: what the teacher alone reads; a generator has its `answer` alone.

    Raises:
        UserError: the source is missing, unreadable or empty, or lacks a column.
    """
    if is_generated(source):
        examples = _generated(source, GENERATED_COUNT if count is None else count, seed)
        if context_column is not None:
            examples = _with_answers(examples, source, context_column)
    else:
        examples = _from_rows(source, bad_row, context_column)
    yield from itertools.islice(examples, count)


def _with_answers(
    examples: Iterator[Example], source: PromptSource, column: str
) -> Iterator[Example]:
    if column != "answer":
        raise UserError(
            f"teacher.prompt.context_column is {column}, and {source.source} has no columns; "
            "expected answer, or a file or data set."
        )
    return (replace(example, context=example.answer or "") for example in examples)


def _from_rows(
    source: PromptSource, bad_row: Callable[[UserError], None], context_column: str | None
) -> Iterator[Example]:
    is_empty = True
    for where, row in _rows(source, context_column):
        is_empty = False
        try:
            example = example_of(row, source, where, context_column)
        except UserError as error:
            bad_row(error)
        else:
            yield example
    if is_empty:
        raise UserError(f"{source.source} is empty, expected at least one prompt.")


def is_generated(source: PromptSource) -> bool:
    """Whether the source makes its examples, and so has no end of its own."""
    return source.source.startswith("generated:")


def _generated(source: PromptSource, count: int, seed: int) -> Iterator[Example]:
    name = source.source.removeprefix("generated:")
    if name.startswith(PREFIX):
        return gym_examples(name.removeprefix(PREFIX), source.split, count, seed)
    if name not in GENERATORS:
        raise UserError(
            f"{source.source} is not known{did_you_mean(name, GENERATORS)} "
            f"(generators: {', '.join(GENERATORS)}, gym/NAME)."
        )
    try:
        problems = GENERATORS[name](source.split, count, seed)
    except ValueError as error:
        raise UserError(f"{source.source}: {error}") from error
    return (Example(problem.question, f"Answer: {problem.answer}") for problem in problems)


def _rows(source: PromptSource, context_column: str | None) -> Rows:
    path = Path(source.source).expanduser()
    if path.is_dir():
        files = split_files(path)
        return (
            file_rows(_split_file(source, files))
            if files
            else hub_rows(source, str(path), context_column)
        )
    if path.is_file():
        return file_rows(path)
    # A Hub id is `name` or `owner/name`; file endings and other slashes are a path's.
    is_id = re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", source.source) is not None
    if is_id and not ending(Path(source.source)) and not source.source.endswith(".txt"):
        return hub_rows(source, source.source, context_column)
    if path.parent.is_dir():
        names = [entry.name for entry in path.parent.iterdir()]
        raise UserError(f"{path} does not exist{did_you_mean(path.name, names) or '.'}")
    raise UserError(f"{path} does not exist, and neither does its folder.")


def split_files(folder: Path) -> dict[str, Path]:
    """mlx-lm's `{train,valid,test}.jsonl` that a folder holds, by their names."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "valid", "test")}
    return {name: file for name, file in files.items() if file.is_file()}


def _split_file(source: PromptSource, files: dict[str, Path]) -> Path:
    name = SPLIT_FILES.get(source.split, source.split)
    if name in files:
        return files[name]
    raise UserError(
        f"{source.source} has no split {source.split}{did_you_mean(source.split, files)} "
        f"(splits: {', '.join(files)})."
    )
