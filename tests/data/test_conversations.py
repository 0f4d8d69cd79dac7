"""Conversations as data sets write them: as text, with tools, without text, in parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import PromptSource
from trb_mlx.data.conversations import BadRow, read_messages
from trb_mlx.data.examples import Example, example_of

USER = {"role": "user", "content": "1+1?"}
REPLY = {"role": "assistant", "content": "2"}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def example(**row: Any) -> Example:
    return example_of(row, PromptSource(), "d.jsonl:4")


def complaint(**row: Any) -> str:
    with pytest.raises(BadRow) as caught:
        example(**row)
    assert str(caught.value).startswith("d.jsonl:4 ")
    return str(caught.value)


# Conversations as text


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
@pytest.mark.parametrize("written", [json.dumps, str, lambda turns: f"\n {json.dumps(turns)} "])
def test_a_conversation_as_text_is_the_conversation(column: str, written: Any) -> None:
    assert example(**{column: written([USER, REPLY])}).messages == (USER,)


def test_sharegpts_turns_as_text() -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "the gold reply"}]
    assert example(conversations=json.dumps(turns)).text == "Q"


@pytest.mark.parametrize(
    "text", ["[1, 2] reversed?", "[1, 2]", '["a"]', '[{"a": 1}]', "[USER]: hello", "[", "[]"]
)
def test_text_in_brackets_is_text(text: str) -> None:
    assert example(prompt=text).messages == text


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "cut o',
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",  # numpy's
    ],
)
def test_a_list_of_messages_that_cannot_be_read_is_refused(text: str) -> None:
    assert "neither JSON nor a Python list" in complaint(messages=text)


@given(st.text(max_size=30))
def test_a_question_survives_being_written_down(text: str) -> None:
    if text.strip():
        turns = [{"role": "user", "content": text}, REPLY]
        assert read_messages(json.dumps(turns), "")[0]["content"] == text


# Tool calls, reasoning, system texts


@pytest.mark.parametrize("content", [None, 3, [{"type": "image"}]])
def test_what_stands_behind_the_last_user_turn_is_not_read(content: Any) -> None:
    turns = [USER, {"role": "assistant", "content": content, "tool_calls": [CALL]}]
    assert example(messages=turns).messages == (USER,)


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_before_the_last_user_turn_is_kept(content: str | None) -> None:
    call = {"role": "assistant", "content": content, "tool_calls": [CALL], "name": None}
    result = {"role": "tool", "content": "2", "tool_call_id": "1"}
    row = example(messages=[USER, call, result, USER], tools=json.dumps(TOOLS))
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert row.messages == (USER, called, result, USER)
    assert row.tools == tuple(TOOLS)
    assert row.text == "1+1?\n\n2\n\n1+1?"


def test_reasoning_is_kept() -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    assert example(messages=[USER, thought, USER]).messages[1] == thought | {"content": ""}


def test_silence_that_says_nothing_is_refused() -> None:
    silent = {"role": "assistant", "content": None}
    assert "has a message without text" in complaint(messages=[USER, silent, USER])


def test_tools_that_are_no_list_are_refused() -> None:
    assert "has a str for `tools`" in complaint(prompt="Q", tools="a hammer")
    assert "has a dict for `tools`" in complaint(prompt="Q", tools={"name": "hammer"})
    assert example(prompt="Q", tools=None).tools == example(prompt="Q", tools=[]).tools == ()


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "1+1?"}],
        ["1+1?"],
        [{"text": "1+1?"}],
    ],
)
def test_parts_of_text_are_read(parts: Any) -> None:
    assert example(messages=[{"role": "user", "content": parts}]).messages == (USER,)


def test_several_parts_are_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert example(messages=[{"role": "user", "content": parts}]).text == "a\nb"


def test_a_part_that_is_no_text_is_refused() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]
    turn = {"role": "user", "content": parts}
    assert "has a part of type image_url" in complaint(messages=[turn])


def test_a_system_column_goes_in_front() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert example(prompt="1+1?", system="Be brief.").messages == (system, USER)
    assert example(messages=[USER, REPLY], System="Be brief.").messages == (system, USER)
    assert example(prompt="1+1?", system="").messages == "1+1?"
    both = example(messages=[system, USER], system="Be long.")
    assert both.messages == (system, USER)
    assert both.unused == ("a column system beside a system message",)
    assert example(messages=[system, USER], system="Be brief.").unused == ()


# Columns


def test_alpacas_input_stands_behind_its_instruction() -> None:
    assert example(instruction="Add.", input="1, 1", output="2").text == "Add.\n\n1, 1"
    assert example(instruction="Add.", input="").text == "Add."
    assert example(instruction="Add.", input=None).text == "Add."
    assert example(question="Q", input="no").text == "Q"


def test_capitals_do_not_hide_a_column() -> None:
    assert example(Question="Q", ANSWER=3) == Example("Q", "3")
    assert example(Question="Q", question="q").text == "q"


def test_an_empty_column_is_a_bad_row_and_a_missing_one_is_not() -> None:
    assert "has nothing in its column Question" in complaint(Question=None, answer="1")
    with pytest.raises(Exception, match=r"did you mean prompt_column: qestion\?") as caught:
        example(qestion="x", answer="1")
    assert not isinstance(caught.value, BadRow)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "smile \ud83d"},
        {"question": "Q", "answer": "\udc00"},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"x": "\ud83d"}]}, USER]},
        {"question": "Q", "tools": [{"name": "\ud83d"}]},
    ],
)
def test_half_a_surrogate_pair_is_named(row: dict[str, Any]) -> None:
    assert "half of a surrogate pair" in complaint(**row)


@pytest.mark.parametrize("column", ["answer", "tools", "messages"])
@pytest.mark.parametrize("opening", ["[", '{"a": '])
def test_deep_nesting_is_named(column: str, opening: str) -> None:
    depth = 30_000  # past what JSON's writer and Python's own recursion take
    value: Any = "x"
    for _ in range(depth):
        value = [value] if opening == "[" else {"a": value}
    row = {"question": "Q", column: value}
    if column == "messages":
        row = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": value}, USER]}
    complaint(**row)


def test_an_object_is_no_answer() -> None:
    assert "has an object in its column answer" in complaint(question="Q", answer={"value": 3})
