"""Prompts filtered and counted, and an order that needs no state."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.config import DataConfig, PromptConfig, PromptSource
from trb_mlx.data import sources, templates
from trb_mlx.data.prompts import MOST_BAD_ROWS, PromptSet, load_prompts, order
from trb_mlx.errors import UserError


def jsonl(tmp_path: Path, *texts: str) -> PromptSource:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "answer": 7}) + "\n" for text in texts))
    return PromptSource(source=str(path))


def loaded(
    source: PromptSource, tokenizer: Any, count: int | None = None, **data: Any
) -> PromptSet:
    config = DataConfig(**{"max_prompt_tokens": 50, **data})
    return load_prompts(source, config, PromptConfig(plain="{prompt}"), tokenizer, 0, count)


# The order


@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**63),
    per_step=st.integers(1, 100),
    epochs=st.integers(1, 3),
)
def test_every_epoch_visits_every_prompt_once(
    count: int, seed: int, per_step: int, epochs: int
) -> None:
    steps = -(-count * epochs // per_step)
    visited = [index for step in range(steps) for index in order(count, seed, step, per_step)]
    for epoch in range(epochs):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_step_has_its_size_even_if_it_is_larger_than_the_set() -> None:
    assert Counter(order(3, 0, 5, 9)) == {0: 3, 1: 3, 2: 3}


def test_the_order_depends_on_the_seed_and_changes_with_the_epoch() -> None:
    first, second = order(50, 1, 0, 50), order(50, 1, 1, 50)
    assert first != second
    assert first == order(50, 1, 0, 50)
    assert first != order(50, 2, 0, 50)
    assert order(50, 1, 3, 10) == first[30:40], "the step's size only cuts the same line"


# The set


def test_dropped_prompts_are_counted_and_the_rest_numbered(tmp_path: Path, base: Any) -> None:
    source = jsonl(tmp_path, "one", "x" * 60, "two", " one\n", "x" * 60, "One")
    kept = loaded(source, base)
    assert [prompt.text for prompt in kept.prompts] == ["one", "two", "One"]
    assert [prompt.index for prompt in kept.prompts] == [0, 1, 2]
    assert {prompt.answer for prompt in kept.prompts} == {"7"}
    assert (kept.too_long, kept.duplicates) == (1, 2)


def test_the_limit_is_inclusive_and_counts_the_formatted_prompt(tmp_path: Path, base: Any) -> None:
    source = jsonl(tmp_path, "abc", "abcd")
    kept = loaded(source, base, max_prompt_tokens=4)  # BOS and three bytes
    assert [prompt.text for prompt in kept.prompts] == ["abc"]
    assert kept.too_long == 1


def test_repeated_prompts_stay_if_asked(tmp_path: Path, base: Any) -> None:
    kept = loaded(jsonl(tmp_path, "a", "a"), base, deduplicate=False)
    assert (len(kept.prompts), kept.duplicates) == (2, 0)


def test_the_count_is_of_prompts_kept(tmp_path: Path, base: Any) -> None:
    source = jsonl(tmp_path, "a", "a", "x" * 60, "b", "c", "d")
    assert [prompt.text for prompt in loaded(source, base, 3).prompts] == ["a", "b", "c"]
    limited = source.model_copy(update={"limit": 2})
    assert [prompt.text for prompt in loaded(limited, base).prompts] == ["a", "b"]
    assert len(loaded(limited, base, 4).prompts) == 4, "the caller's count goes before the limit"


def test_a_set_without_a_prompt_left_says_why(tmp_path: Path, base: Any) -> None:
    with pytest.raises(UserError) as caught:
        loaded(jsonl(tmp_path, "abcdef", "ghijkl"), base, max_prompt_tokens=3)
    assert "no prompt left: 2 are longer than data.max_prompt_tokens = 3" in str(caught.value)


# Rows that cannot be used


def with_bad_rows(tmp_path: Path) -> PromptSource:
    rows = [{"prompt": "a"}, {"prompt": None}, {"prompt": " "}, {"answer": 1}, {"prompt": "b"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource(source=str(path))


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, base: Any) -> None:
    kept = loaded(with_bad_rows(tmp_path), base)
    assert [(prompt.index, prompt.text) for prompt in kept.prompts] == [(0, "a"), (1, "b")]
    assert kept.bad_rows == 3
    assert kept.left_out(50).startswith("3 rows that cannot be used (the first: ")
    assert "prompts.jsonl:2 has nothing in its column prompt" in kept.first_bad


def test_a_bad_row_ends_the_run_if_asked(tmp_path: Path, base: Any) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl:2 has nothing in its column prompt"):
        loaded(with_bad_rows(tmp_path), base, on_bad_row="error")


def test_a_row_that_the_template_refuses_is_a_bad_one(tmp_path: Path, base: Any) -> None:
    refuses = "{% if 'x' in messages[0].content %}{{ raise_exception('no x') }}{% endif %}ok"
    source, prompt = jsonl(tmp_path, "a", "x", "xx"), PromptConfig(chat_template=refuses)
    kept = load_prompts(source, DataConfig(), prompt, base, 0)
    assert (len(kept.prompts), kept.bad_rows) == (1, 2)
    assert kept.first_bad.endswith("prompts.jsonl:2: the chat template refused a prompt: no x")


def test_where_no_row_is_good_the_first_says_why(tmp_path: Path, base: Any) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl:1 has nothing for a prompt"):
        loaded(jsonl(tmp_path, " ", ""), base)


def test_a_column_that_the_first_row_lacks_is_no_bad_row(tmp_path: Path, base: Any) -> None:
    source = jsonl(tmp_path, "a").model_copy(update={"prompt_column": "problem"})
    with pytest.raises(UserError, match="has no column problem, which prompt_column names"):
        loaded(source, base)


def test_a_stream_of_bad_rows_is_given_up(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def endless(*_: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(10**9):
            taken.append(number)
            yield f"row {number}", {"prompt": None}

    monkeypatch.setattr(sources, "hub_rows", endless)
    with pytest.raises(UserError, match="row 0 has nothing"):
        loaded(PromptSource(source="a/b", streaming=True, limit=3), base)
    assert len(taken) == MOST_BAD_ROWS


def test_a_template_without_an_end_is_no_rows_fault(
    tmp_path: Path, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    prompt = PromptConfig(chat_template=loops)
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: the chat template did not end"):
        load_prompts(jsonl(tmp_path, *"abcdefgh"), DataConfig(), prompt, base, 0)


def test_prompts_that_differ_in_their_calls_alone_are_no_duplicates(
    tmp_path: Path, base: Any
) -> None:
    user = {"role": "user", "content": "Q"}
    turns = [[user, {"role": "assistant", "tool_calls": [name]}, user] for name in "aab"]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps({"messages": part}) + "\n" for part in turns))
    kept = loaded(PromptSource(source=str(path)), base)
    assert (len(kept.prompts), kept.duplicates) == (2, 1)


def test_a_stream_needs_a_limit(base: Any) -> None:
    with pytest.raises(UserError, match="streamed without an end, expected a limit"):
        loaded(PromptSource(source="a/b", streaming=True), base)


def test_generated_prompts_load_as_they_are(base: Any) -> None:
    kept = loaded(PromptSource(), base, 12)
    assert len(kept.prompts) == 12
    assert all(prompt.text.startswith("Compute ") for prompt in kept.prompts)
    assert all(prompt.answer and prompt.answer.startswith("Answer: ") for prompt in kept.prompts)
