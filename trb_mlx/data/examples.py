"""One row of a data set, whatever its columns are called, as the messages a model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trb_mlx.config import PromptSource
from trb_mlx.config_file import nearest
from trb_mlx.data.answers import gold_answer
from trb_mlx.errors import UserError

Message = dict[str, str]  # {"role": "user", "content": "..."}

# In the order they are looked for. A column named in the config goes before all of them.
PROMPT_COLUMNS = ("messages", "conversations", "prompt", "problem", "question")
ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "ground_truth")
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names, as OpenThoughts3 has them


@dataclass(frozen=True)
class Example:
    """A prompt and the gold answer where there is one.

    The prompt is the text of one user turn, or a conversation that ends with a user turn.
    `grader` is as in `types.Prompt`.
    """

    messages: tuple[Message, ...] | str
    answer: str | None = None
    grader: str | None = None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The prompt as messages."""
        if isinstance(self.messages, str):
            return ({"role": "user", "content": self.messages},)
        return self.messages

    @property
    def system(self) -> str | None:
        """The text of the system message, where the conversation brings one."""
        found = [turn["content"] for turn in self.turns if turn["role"] == "system"]
        return found[0] if found else None

    @property
    def text(self) -> str:
        """What the turns say, one paragraph each, without the system message."""
        return "\n\n".join(turn["content"] for turn in self.turns if turn["role"] != "system")


def example_of(row: Mapping[str, Any], source: PromptSource, where: str) -> Example:
    """The example that a row holds.

    Args:
        row: column name → value.
        source: its `prompt_column` and `answer_column` win over the columns found by name.
        where: the row's place (`file:line`, or the data set), for errors.

    Raises:
        UserError: a missing column, an empty prompt, or a conversation without a user turn.
    """
    messages = _messages(row[_prompt_column(row, source, where)], where)
    column = _answer_column(row, source, where)
    return Example(messages, None if column is None else gold_answer(row[column]))


def _prompt_column(row: Mapping[str, Any], source: PromptSource, where: str) -> str:
    if source.prompt_column is not None:
        return _named_column(row, source.prompt_column, "prompt_column", where)
    for column in PROMPT_COLUMNS:
        if row.get(column) is not None:
            return column
    if "text" in row:
        raise UserError(
            f"{where} holds `text`, which does not say where its prompt ends; "
            f"expected one of {', '.join(PROMPT_COLUMNS)}, or prompt_column: text."
        )
    raise UserError(
        f"{where} has no prompt column; expected one of {', '.join(PROMPT_COLUMNS)}, or "
        f"prompt_column to name one of its own (columns: {', '.join(row) or 'none'})."
    )


def _answer_column(row: Mapping[str, Any], source: PromptSource, where: str) -> str | None:
    if source.answer_column is not None:
        return _named_column(row, source.answer_column, "answer_column", where)
    return next((column for column in ANSWER_COLUMNS if row.get(column) is not None), None)


def _named_column(row: Mapping[str, Any], column: str, key: str, where: str) -> str:
    if column in row:
        return column
    raise UserError(
        f"{where} has no column {column}, which {key} names{nearest(column, row)} "
        f"(columns: {', '.join(row) or 'none'})."
    )


def _messages(value: Any, where: str) -> tuple[Message, ...] | str:
    """The turns up to the last user turn: the student writes what comes after it."""
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        empty = not value or isinstance(value, str)
        shown = "nothing" if empty else f"a {type(value).__name__}"
        raise UserError(f"{where} has {shown} for a prompt, expected text or a list of messages.")
    turns = [_message(turn, where) for turn in value]
    asked = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    if not asked:
        raise UserError(f"{where} has no user turn, expected one for the student to answer.")
    if not turns[asked[-1]]["content"].strip():
        raise UserError(f"{where} has an empty prompt, expected some text.")
    return tuple(turns[: asked[-1] + 1])


def _message(turn: Any, where: str) -> Message:
    turn = turn if isinstance(turn, Mapping) else {}
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(
            f"{where} has a message without text; "
            'expected {"role": ..., "content": ...} or {"from": ..., "value": ...}.'
        )
    return {"role": ROLES.get(role, role), "content": content}
