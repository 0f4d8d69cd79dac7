"""What is shown of both models' first token, and what is warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.config import ModelConfig
from trb_mlx.models.loading import load_model
from trb_mlx.models.pair import Pair, make_pair
from trb_mlx.models.self_teacher import self_teacher
from trb_mlx.training.preflight import SHOWN, preflight, shown
from trb_mlx.types import Prompt

PROMPT = Prompt(0, "abc", (97, 98, 99))


def lines(pair: Pair, prompt: Prompt = PROMPT) -> list[str]:
    return list(preflight(pair, prompt))


def test_both_prompts_and_the_first_token_are_told(pair: Pair) -> None:
    (read, first, *_) = lines(pair)
    assert read == "preflight: both models read 'abc'"
    ids = mx.array([[97, 98, 99]])
    student, teacher = (
        np.asarray(scorer.logits(ids)[0, -1]).astype(np.float64)
        for scorer in (pair.student, pair.teacher)
    )
    student, teacher = (x - np.logaddexp.reduce(x) for x in (student, teacher))
    known = np.isfinite(student)  # the other model's stop id is masked in both
    expected = (np.exp(student) * (np.where(known, student, 0) - np.where(known, teacher, 0))).sum()
    assert f"KL(student‖teacher) {expected:.3f} nats" in first
    assert f"stop event {np.exp(student[pair.stop_id]):.2g} (student)" in first
    own = replace(PROMPT, teacher_text="xyz", teacher_tokens=(120, 121, 122))
    assert lines(pair, own)[:2] == [
        "preflight: the student reads 'abc'",
        "preflight: the teacher reads 'xyz'",
    ]
    assert lines(pair, own)[2] != first


def test_a_self_teacher_is_at_no_distance(folders: tuple[Path, Path]) -> None:
    student = load_model(ModelConfig(model=str(folders[0])))
    told = lines(make_pair(student, self_teacher(student)))
    assert len(told) == 2
    assert "KL(student‖teacher) 0.000 nats" in told[1]


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        (replace(PROMPT, text="q <think>\n"), "the student's prompt leaves <think> open"),
        (replace(PROMPT, tokens=(97, 256)), "the student's prompt ends with an end of turn"),
        (
            replace(PROMPT, teacher_text="b", teacher_tokens=(98, 256, 10)),
            "the teacher's prompt ends with an end of turn",
        ),
    ],
)
def test_prompts_that_look_wrong_are_warned_of(pair: Pair, prompt: Prompt, warning: str) -> None:
    assert any(line.startswith(f"warning: {warning}") for line in lines(pair, prompt))


def test_bos_twice_is_warned_of(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithBos:
        bos_token_id = 97

        def __getattr__(self, name: str) -> Any:
            return getattr(pair.student.model.tokenizer, name)

    model = replace(pair.student.model, tokenizer=WithBos())  # type: ignore[arg-type]
    with_bos = Pair(replace(pair.student, model=model), pair.teacher)
    told = lines(with_bos, replace(PROMPT, tokens=(97, 97, 98)))
    assert any("the student's prompt begins with BOS twice" in line for line in told)
    assert not any("BOS" in line for line in lines(with_bos))


def test_long_prompts_are_shown_by_their_ends() -> None:
    text = "a" * SHOWN + "b" * SHOWN
    assert shown("a\n") == repr("a\n")
    assert shown(text).startswith("'aaa")
    assert shown(text).endswith("bbb'")
    assert len(shown(text)) < SHOWN + 10
