"""The teacher's own prompts: what it reads, from which columns, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trb_mlx.config import DataConfig, PromptConfig, PromptSource, TeacherPromptConfig
from trb_mlx.data.context import fit_context
from trb_mlx.data.prompts import PromptSet, load_prompts
from trb_mlx.data.teacher_prompts import TeacherPrompts
from trb_mlx.errors import UserError
from trb_mlx.types import say_nothing

ROWS = [
    {"prompt": "2+2?", "answer": "4", "worked": "Two and two are {prompt} four."},
    {"prompt": "3+3?", "answer": "6", "worked": ""},
    {"prompt": "4+4?", "answer": "8", "worked": "Eight."},
]


def loaded(
    tmp_path: Path, tokenizer: Any, own: TeacherPromptConfig, source: str | None = None
) -> PromptSet:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    student = PromptConfig(format="plain", plain="Q: {prompt}\n", system="Be brief.")
    teacher = TeacherPrompts(own, student, tokenizer)
    where = PromptSource(source=source or str(path), limit=3)
    return load_prompts(where, DataConfig(), student, tokenizer, 0, None, teacher)


def test_what_is_not_given_is_as_the_students(tmp_path: Path, chat: Any) -> None:
    kept = loaded(tmp_path, chat, TeacherPromptConfig(system="Be long.")).prompts
    assert [prompt.text for prompt in kept[:1]] == ["Q: Be brief.\n\n2+2?\n"]
    assert kept[0].teacher_text == "Q: Be long.\n\n2+2?\n"
    assert kept[0].teacher_tokens == tuple(chat.encode(kept[0].teacher_text))
    assert kept[0].tokens_for(teacher=True) != kept[0].tokens_for(teacher=False)


def test_a_teacher_may_have_its_chat_template_beside_a_plain_student(
    tmp_path: Path, chat: Any
) -> None:
    (prompt, *_) = loaded(tmp_path, chat, TeacherPromptConfig(format="chat")).prompts
    assert prompt.text.startswith("Q: ")
    expected = chat.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert prompt.teacher_text == expected


def test_a_context_is_read_by_the_teacher_alone(tmp_path: Path, chat: Any) -> None:
    """And only what the column holds is filled in; a row without it is left out, and counted."""
    own = TeacherPromptConfig(context_column="worked", context="{prompt} ({context})")
    kept = loaded(tmp_path, chat, own)
    assert [prompt.teacher_text for prompt in kept.prompts] == [
        "Q: Be brief.\n\n2+2? (Two and two are {prompt} four.)\n",
        "Q: Be brief.\n\n4+4? (Eight.)\n",
    ]
    assert all("(" not in prompt.text for prompt in kept.prompts)
    assert kept.bad_rows == 1
    assert "rows.jsonl:2 has no text in its column worked" in kept.first_bad


def test_generated_problems_have_their_answers_as_context(tmp_path: Path, chat: Any) -> None:
    own = TeacherPromptConfig(context_column="answer")
    (prompt, *_) = loaded(tmp_path, chat, own, "generated:arithmetic").prompts
    assert prompt.teacher_text is not None
    assert f"{prompt.answer}\n\nCompute" in prompt.teacher_text


@pytest.mark.parametrize(
    ("own", "source", "sentence"),
    [
        (
            {"context_column": "workd"},
            None,
            r"rows.jsonl:1 has no column workd, which teacher.prompt.context_column names.*worked",
        ),
        (
            {"context_column": "worked"},
            "generated:arithmetic",
            "context_column is worked, and generated:arithmetic has no columns; expected answer",
        ),
        (
            {"context_column": "worked", "context": "{context}"},
            None,
            r"teacher.prompt.context is '\{context\}', expected a text with \{prompt\}",
        ),
        (
            {"format": "chat", "chat_template": "{{ raise_exception('no') }}"},
            None,
            r"rows.jsonl:1: teacher.prompt: the chat template refused a prompt: no",
        ),
        ({"plain": "Q"}, None, r"teacher.prompt: prompt.plain is 'Q', expected a text with"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, chat: Any, own: dict[str, Any], source: str | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        loaded(tmp_path, chat, TeacherPromptConfig(**own), source)
    assert "\n" not in str(caught.value)


def test_a_teachers_prompt_beyond_the_context_is_left_out(tmp_path: Path, chat: Any) -> None:
    own = TeacherPromptConfig(context_column="worked")
    kept = loaded(tmp_path, chat, own).prompts
    short = len(kept[1].teacher_tokens or ())
    said: list[str] = []
    fitted, _ = fit_context(kept, short + 8, 8, 4, "training", said.append)
    assert [prompt.index for prompt in fitted] == [1]
    assert "left out 1 of 2 training prompts over" in said[0]
    with pytest.raises(UserError, match="no training prompt is left: all 2 are over"):
        fit_context(kept, 9, 8, 4, "training", say_nothing)
