"""Generated and JSONL sources: the same examples, no more read than asked, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.reading import GSM8K, complaint, read

from trb_mlx.data.arithmetic import problems
from trb_mlx.data.examples import Example


def write_lines(path: Path, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def only(tmp_path: Path, row: Any, **keys: Any) -> Example:
    [example] = read(write_lines(tmp_path / "one.jsonl", row), **keys)
    return example


# Generated problems


def test_generated_examples_are_the_generators_problems() -> None:
    expected = [Example(p.question, f"Answer: {p.answer}") for p in problems("test", 7, seed=0)]
    assert read("generated:arithmetic", 7, split="test") == expected


def test_a_longer_reading_begins_with_the_shorter_one() -> None:
    assert read("generated:arithmetic", 20)[:5] == read("generated:arithmetic", 5)


def test_an_unknown_generator_names_the_nearest() -> None:
    said = complaint("generated:aritmetic")
    assert said.startswith("generated:aritmetic is not known; did you mean arithmetic?")


def test_an_unknown_split_of_a_generator_names_the_splits() -> None:
    assert "split is 'valid', expected 'train' or 'test'" in complaint(
        "generated:arithmetic", split="valid"
    )


# JSONL


def test_a_conversation_is_kept_up_to_its_last_user_turn(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    example = only(tmp_path, {"messages": [*turns, {"role": "assistant", "content": "4"}]})
    assert example.messages == tuple(turns)
    assert (example.system, example.text) == ("Be brief.", "1+1?\n\n2\n\nAnd 2+2?")


def test_sharegpt_turns_get_the_usual_roles(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "H"},
        {"from": "gpt", "value": "\\boxed{9}"},
    ]
    example = only(tmp_path, {"difficulty": 7, "conversations": turns})
    expected = ({"role": "system", "content": "S"}, {"role": "user", "content": "H"})
    assert example == Example(expected, None)


def test_an_example_of_text_is_one_user_turn() -> None:
    assert Example("Hi").turns == ({"role": "user", "content": "Hi"},)
    assert (Example("Hi").system, Example("Hi").text) == (None, "Hi")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "P", "completion": "C"}, Example("P")),
        (
            {"prompt": [{"role": "user", "content": "P"}]},
            Example(({"role": "user", "content": "P"},)),
        ),
        (GSM8K, Example("How many?", "1200")),
        (
            {"problem": "P", "solution": "so \\boxed{1}", "answer": "\\frac{1}{2}"},
            Example("P", "\\frac{1}{2}"),
        ),
        ({"problem": "P", "answer": 204}, Example("P", "204")),
        ({"question": "P", "answer": 27.0}, Example("P", "27.0")),
        ({"question": "P", "answer": None}, Example("P")),
        ({"question": "P", "final_answer": ["$3$", "$\\frac12$"]}, Example("P", "3, \\frac12")),
        ({"question": "P", "answer": "$x=3$"}, Example("P", "x=3")),
        ({"question": "P", "answer": "(1,234)"}, Example("P", "(1,234)")),
    ],
)
def test_known_columns_are_found(tmp_path: Path, row: dict[str, Any], expected: Example) -> None:
    assert only(tmp_path, row) == expected


def test_named_columns_win_over_known_ones(tmp_path: Path) -> None:
    row = {"prompt": "no", "answer": "no", "text": "yes", "solution": "thus \\boxed{\\frac{1}{2}}"}
    example = only(tmp_path, row, prompt_column="text", answer_column="solution")
    assert example == Example("yes", "\\frac{1}{2}")


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('\ufeff{"prompt": "a"}\n\n{"prompt": "b\u2028c"}\n', encoding="utf-8")
    assert [example.text for example in read(str(path))] == ["a", "b\u2028c"]


def test_no_line_behind_the_count_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"}, "not JSON")
    assert [example.text for example in read(path, 2)] == ["a", "b"]


@pytest.mark.parametrize("split", ["valid", "validation"])
def test_a_folder_is_mlx_lms_three_files(tmp_path: Path, split: str) -> None:
    write_lines(tmp_path / "train.jsonl", {"prompt": "t"})
    write_lines(tmp_path / "valid.jsonl", {"prompt": "v"})
    assert read(str(tmp_path)) == [Example("t")]
    assert read(str(tmp_path), split=split) == [Example("v")]


def test_a_missing_split_file_names_those_there_are(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", {"prompt": "t"})
    said = complaint(str(tmp_path), split="trian")
    assert "has no split trian; did you mean train? (splits: train)." in said


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", {"prompt": "t"})
    said = complaint(str(tmp_path / "promts.jsonl"))
    assert said.endswith("promts.jsonl does not exist; did you mean prompts.jsonl?")


def test_a_missing_folder_is_told_apart_from_a_missing_file(tmp_path: Path) -> None:
    assert "neither does its folder" in complaint(str(tmp_path / "none" / "p.jsonl"))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("hello")
    assert "is not a .jsonl file" in complaint(str(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{oops", ":2 is not JSON: "),
        ("[1, 2]", ":2 holds a list, expected an object with columns."),
        ({"text": "plain"}, ":2 holds `text`, which does not say where its prompt ends"),
        ({"qestion": "x"}, "(columns: qestion)."),
        ({"prompt": 3}, ":2 has a int for a prompt, expected text or a list of messages."),
        ({"prompt": " "}, ":2 has nothing for a prompt"),
        ({"messages": []}, ":2 has nothing for a prompt"),
        ({"messages": [{"role": "user"}]}, ":2 has a message without text"),
        ({"messages": [{"role": "user", "content": ""}]}, ":2 has an empty prompt"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, ":2 has no user turn"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: Any, expected: str) -> None:
    said = complaint(write_lines(tmp_path / "p.jsonl", {"prompt": "good"}, line))
    assert "p.jsonl:2" in said
    assert expected in said


@pytest.mark.parametrize("key", ["prompt_column", "answer_column"])
def test_a_missing_named_column_names_the_nearest(tmp_path: Path, key: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"problem": "P", "anwser": "A"})
    said = complaint(path, **{key: "answer"})
    assert f"has no column answer, which {key} names; did you mean anwser?" in said
    assert said.endswith("(columns: problem, anwser).")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.touch()
    assert complaint(str(path)) == f"{path} is empty, expected at least one prompt."


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in complaint(str(path))
