"""One row of a data set, whatever its columns are called, as the messages a model answers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trb_mlx.config import PromptSource
from trb_mlx.data.answers import gold_answer
from trb_mlx.data.conversations import (
    BadRow,
    Message,
    check_unicode,
    read_messages,
    read_tools,
)
from trb_mlx.errors import UserError, did_you_mean

# In the order they are looked for, in any capitalisation. A column named in the config goes
# before all of them.
PROMPT_COLUMNS = ("messages", "conversations", "prompt", "problem", "question", "instruction")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "ground_truth")
SYSTEM_COLUMNS = ("system", "system_prompt")
MORE_COLUMNS = (*SYSTEM_COLUMNS, "tools", "input")


@dataclass(frozen=True)
class Example:
    """A prompt and the gold answer where there is one.

    The prompt is the text of one user turn, or a conversation that ends with a user turn.
    `grader` is as in `types.Prompt`, `tools` are for the chat template, `where` is the row's
    place (`file:line`), `unused` names what the row holds besides that cannot be used, and
    `context` is what the teacher alone reads.
    """

    messages: tuple[Message, ...] | str
    answer: str | None = None
    grader: str | None = None
    tools: tuple[Any, ...] = ()
    where: str = field(default="", compare=False)
    unused: tuple[str, ...] = field(default=(), compare=False)
    context: str | None = None

    def with_context(self, form: str) -> Example:
        """The example whose last turn is `form` with {context} and {prompt} filled in."""
        values = {"context": self.context or "", "prompt": self.turns[-1]["content"]}
        text = re.sub(r"\{(context|prompt)\}", lambda match: values[match[1]], form)
        *before, last = self.turns
        return replace(self, messages=(*before, last | {"content": text}))

    @property
    def turns(self) -> tuple[Message, ...]:
        """The prompt as messages."""
        if isinstance(self.messages, str):
            return ({"role": "user", "content": self.messages},)
        return self.messages

    @property
    def system(self) -> str | None:
        """The text of the system message, where the conversation brings one."""
        return next((turn["content"] for turn in self.turns if turn["role"] == "system"), None)

    @property
    def text(self) -> str:
        """What the turns say, one paragraph each, without the system message."""
        texts = [turn["content"] for turn in self.turns if turn["role"] != "system"]
        return "\n\n".join(text for text in texts if text)


def example_of(
    row: Mapping[str, Any], source: PromptSource, where: str, context_column: str | None = None
) -> Example:
    """The example that a row holds.

    Args:
        row: column name → value.
        source: its `prompt_column` and `answer_column` win over the columns found by name.
        where: the row's place (`file:line`, or the data set and row), for errors.
        context_column: what the teacher alone reads.

    Raises:
        BadRow: an empty prompt, a conversation without a user turn, an answer or a system text
            that is none, text that is no Unicode, or a row that is nested too deeply.
        UserError: a missing column.
    """
    try:
        example = _read(row, source, where)
    except RecursionError as error:
        raise BadRow(f"{where} is nested too deeply.") from error
    if context_column is None:
        return example
    key = "teacher.prompt.context_column"
    context = row[_named_column(row, context_column, key, where)]
    if not isinstance(context, str) or not context.strip():
        raise BadRow(f"{where} has no text in its column {context_column}, which {key} names.")
    check_unicode(context, where)
    return replace(example, context=context)


def _read(row: Mapping[str, Any], source: PromptSource, where: str) -> Example:
    # A column's name without its capitals → the column; an exact name goes first.
    names = {_plain(name): name for name in row} | {n: n for n in row if n == _plain(n)}
    messages = read_messages(_prompt_of(row, names, source, where), where)
    column = _answer_column(row, names, source, where)
    if column is not None and isinstance(row[column], Mapping):
        raise BadRow(f"{where} has an object in its column {column}, expected an answer.")
    answer = None if column is None else gold_answer(row[column])
    messages, unused = _with_system_column(messages, row, names, where)
    tools = read_tools(row[names["tools"]], where) if "tools" in names else ()
    check_unicode((messages, answer, tools), where)
    return Example(messages, answer, None, tools, where, unused)


def read_columns(
    columns: Iterable[str], source: PromptSource, context_column: str | None = None
) -> list[str]:
    """Those of a data set's columns that `example_of` looks at."""
    prompts = [source.prompt_column] if source.prompt_column else PROMPT_COLUMNS
    answers = [source.answer_column] if source.answer_column else ANSWER_COLUMNS
    wanted = {*prompts, *answers, *MORE_COLUMNS, context_column}
    return [name for name in columns if name in wanted or _plain(name) in wanted]


def _plain(name: str) -> str:
    return name.strip().casefold()


def _prompt_of(
    row: Mapping[str, Any], names: Mapping[str, str], source: PromptSource, where: str
) -> Any:
    if source.prompt_column is not None:
        return row[_named_column(row, source.prompt_column, "prompt_column", where)]
    there = [names[column] for column in PROMPT_COLUMNS if column in names]
    filled = next((name for name in there if row[name] is not None), None)
    if filled is not None:
        value, more = row[filled], row.get(names.get("input", ""))
        if _plain(filled) == "instruction" and isinstance(value, str) and isinstance(more, str):
            return f"{value}\n\n{more}" if more.strip() else value  # Alpaca's form
        return value
    if there:
        raise BadRow(f"{where} has nothing in its column {there[0]}, expected a prompt.")
    if "text" in row:
        raise UserError(
            f"{where} holds `text`, which does not say where its prompt ends; "
            f"expected one of {', '.join(PROMPT_COLUMNS)}, or prompt_column: text."
        )
    alike = (
        name
        for name in row
        if difflib.get_close_matches(_plain(name), PROMPT_COLUMNS, n=1, cutoff=0.6)
    )
    likely = next((f"; did you mean prompt_column: {name}?" for name in alike), "")
    raise UserError(
        f"{where} has no prompt column; expected one of {', '.join(PROMPT_COLUMNS)}, or "
        f"prompt_column to name one of its own{likely} (columns: {', '.join(row) or 'none'})."
    )


def _answer_column(
    row: Mapping[str, Any], names: Mapping[str, str], source: PromptSource, where: str
) -> str | None:
    if source.answer_column is not None:
        return _named_column(row, source.answer_column, "answer_column", where)
    there = (names[column] for column in ANSWER_COLUMNS if column in names)
    return next((name for name in there if row[name] is not None), None)


def _named_column(row: Mapping[str, Any], column: str, key: str, where: str) -> str:
    if column in row:
        return column
    raise UserError(
        f"{where} has no column {column}, which {key} names{did_you_mean(column, row)} "
        f"(columns: {', '.join(row) or 'none'})."
    )


def _with_system_column(
    messages: tuple[Message, ...] | str,
    row: Mapping[str, Any],
    names: Mapping[str, str],
    where: str,
) -> tuple[tuple[Message, ...] | str, tuple[str, ...]]:
    """The messages behind the system text of a column of its own, and what of it goes unused."""
    there = (names[column] for column in SYSTEM_COLUMNS if column in names)
    column = next((name for name in there if row[name]), None)
    if column is None:
        return messages, ()
    text = row[column]
    if not isinstance(text, str):
        raise BadRow(f"{where} has a {type(text).__name__} in its column {column}, expected text.")
    turns = ({"role": "user", "content": messages},) if isinstance(messages, str) else messages
    own = [turn["content"] for turn in turns if turn["role"] == "system"]
    if not own:
        return ({"role": "system", "content": text}, *turns), ()
    differs = own[0].strip() != text.strip()
    return messages, (f"a column {column} beside a system message",) if differs else ()
