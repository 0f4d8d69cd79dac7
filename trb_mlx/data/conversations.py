"""Conversations as data sets write them, as the turns that a chat template reads."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trb_mlx.errors import UserError

# {"role": "user", "content": "..."}, and what else a turn brings (`tool_calls`, …), as it came.
Message = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names, as OpenThoughts3 has them
_TURN_KEYS = ("role", "from", "content", "value")
_LIST_OF_TURNS = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
# An assistant's turn with one of these may be without text.
_SPEAKING = ("tool_calls", "function_call", "reasoning_content")


class BadRow(UserError):
    """A row that cannot be used, where others of its data set may."""


def read_messages(value: Any, where: str) -> tuple[Message, ...] | str:
    """The turns up to the last user turn, or the text of one: the student writes what follows.

    A conversation may stand as text, as JSON or as Python writes it. What stands behind the last
    user turn is not looked at.

    Raises:
        BadRow: an empty prompt, no user turn, or a turn that cannot be read.
    """
    if isinstance(value, str) and value.strip():
        turns = _written_turns(value, where)
        if turns is None:
            return value
        value = turns
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        empty = not value or isinstance(value, str)
        shown = "nothing" if empty else f"a {type(value).__name__}"
        raise BadRow(f"{where} has {shown} for a prompt, expected text or a list of messages.")
    roles = [_role(turn, where) for turn in value]
    if "user" not in roles:
        raise BadRow(f"{where} has no user turn, expected one for the student to answer.")
    last = len(roles) - 1 - roles[::-1].index("user")
    messages = tuple(_message(turn, where) for turn in value[: last + 1])
    if not messages[last]["content"].strip():
        raise BadRow(f"{where} has an empty prompt, expected some text.")
    return messages


def read_tools(value: Any, where: str) -> tuple[Any, ...]:
    """The tools that a row describes, as JSON or as text that holds it.

    Raises:
        BadRow: it is neither a list nor text that holds one.
    """
    tools = _from_json(value)
    if not tools:
        return ()
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise BadRow(f"{where} has a {type(tools).__name__} for `tools`, expected a list of them.")
    return tuple(tools)


def check_unicode(values: Any, what: str) -> None:
    """Refuse text that no file and no tokenizer takes.

    Raises:
        BadRow: a text in the values holds half of a surrogate pair.
    """
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise BadRow(f"{what} holds {half}, half of a surrogate pair and no character.") from error


def _written_turns(text: str, where: str) -> list[Any] | None:
    """The conversation that a text holds, or None where it is simply text."""
    if not text.lstrip().startswith("["):
        return None
    turns = _from_json(text)
    if isinstance(turns, str) and _LIST_OF_TURNS.match(text):
        try:
            turns = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise BadRow(
                f"{where} has a list of messages as text that is neither JSON nor a Python list."
            ) from error
    if not isinstance(turns, list) or not turns:
        return None
    are_turns = all(
        isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns
    )
    return turns if are_turns else None


def _from_json(value: Any) -> Any:
    """What a text of JSON holds; anything else is itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value.strip()


def _role(turn: Any, where: str) -> str:
    role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
    if not isinstance(role, str):
        raise _without_text(where)
    return ROLES.get(role, role)


def _message(turn: Mapping[str, Any], where: str) -> Message:
    more = {
        key: value
        for key, value in turn.items()
        if key not in _TURN_KEYS and value is not None and value not in ("", [], {})
    }
    if "tool_calls" in more:
        more["tool_calls"] = _from_json(more["tool_calls"])
    content = _text(turn.get("content", turn.get("value")), where)
    if content is None:
        if not any(key in more for key in _SPEAKING):
            raise _without_text(where)
        content = ""
    return {"role": _role(turn, where), "content": content, **more}


def _text(content: Any, where: str) -> str | None:
    """A turn's text, from itself or from OpenAI's content parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _without_text(where)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in (None, "text", "input_text") or not isinstance(text, str):
            raise BadRow(f"{where} has a part of type {kind} in a message, expected text alone.")
        texts.append(text)
    return "\n".join(texts)


def _without_text(where: str) -> BadRow:
    return BadRow(
        f"{where} has a message without text; "
        'expected {"role": ..., "content": ...} or {"from": ..., "value": ...}.'
    )
