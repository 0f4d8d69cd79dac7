"""Rows of a Hub data set (or of a local folder that `datasets` can load), one by one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from typing import Any

from trb_mlx.config import PromptSource
from trb_mlx.data.examples import PROMPT_COLUMNS, read_columns
from trb_mlx.errors import UserError, did_you_mean


def hub_rows(
    source: PromptSource, path: str, context_column: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a data set; with `streaming` only what is taken is downloaded.

    `path` is the Hub id, or a folder that `datasets` can load.

    Raises:
        UserError: no such data set, subset or split, no connection, or unreadable files.
    """
    where = f"data set {source.source}"
    try:
        import datasets  # takes seconds to import: generated prompts and files do without it

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        rows = datasets.load_dataset(
            path, name=source.subset, split=source.split, streaming=source.streaming
        )
        for number, row in enumerate(_needed_columns(rows, source, context_column), start=1):
            yield f"{where}, row {number}", dict(row)
    except ImportError as error:
        raise UserError(f"{where} needs `pip install datasets` ({error}).") from error
    except Exception as error:  # datasets, pyarrow and the HTTP client raise types of their own
        raise UserError(_failure(source, error)) from error


def _needed_columns(rows: Any, source: PromptSource, context_column: str | None) -> Any:
    """The data set without the columns nobody reads, such as images that cost decoding.

    A data set that lacks a column it should have is left whole: the error then lists them all.
    """
    names = getattr(rows, "column_names", None) or []
    wanted = read_columns(names, source, context_column)
    prompts = {source.prompt_column} if source.prompt_column else set(PROMPT_COLUMNS)
    prompt_is_there = prompts & {name for column in wanted for name in (column, column.casefold())}
    answer_is_there = source.answer_column is None or source.answer_column in names
    context_is_there = context_column is None or context_column in names
    complete = prompt_is_there and answer_is_there and context_is_there
    return rows.select_columns(wanted) if complete else rows


def _failure(source: PromptSource, error: Exception) -> str:
    """One sentence for what went wrong: which data set, what is the matter, what to do."""
    name, text = source.source, " ".join(str(error).split())
    kind = type(error).__name__
    if kind == "DatasetNotFoundError":
        return (
            f"data set {name} is not on the Hub, or is private or gated; check the id "
            "(owner/name), and log in with `hf auth login` if it needs an account."
        )
    if isinstance(error, ConnectionError) or "connect" in f"{kind} {text}".lower():
        return (
            f"data set {name} is neither a local file or folder nor in the Hub cache, and the "
            "Hub could not be reached; connect, or name a .jsonl file or generated:arithmetic."
        )
    choices = _choices(text)
    if re.search(r"(unknown|bad) split", text, re.IGNORECASE):
        known = f" (splits: {', '.join(choices)})." if choices else "."
        near = did_you_mean(source.split, choices)
        return f"data set {name} has no split {source.split}{near}{known}"
    if re.search(r"BuilderConfig .* not found|Config name is missing", text):
        known = f" (subsets: {', '.join(choices)})."
        if source.subset is None:
            return f"data set {name} has several subsets, expected one to be named{known}"
        near = did_you_mean(source.subset, choices)
        return f"data set {name} has no subset {source.subset}{near}{known}"
    return f"data set {name} could not be read: {(text or kind)[:300]}"


def _choices(text: str) -> list[str]:
    """The names in the first list of strings that an error's text holds."""
    for listing in re.findall(r"\[[^\[\]]*\]", text):
        try:
            return [str(choice) for choice in ast.literal_eval(listing)]
        except (ValueError, SyntaxError):
            continue
    return []
