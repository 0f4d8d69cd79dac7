"""What docs/results.md tells of SmolLM2 is what the recorded runs say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import smollm2_measures
import smollm2_page
import smollm2_prompts


def test_the_page_is_made_of_the_records() -> None:
    text = smollm2_page.PAGE.read_text(encoding="utf-8")
    assert smollm2_page.BEGIN in text
    assert smollm2_page.with_page(text) == text


def test_the_prompts_are_disjoint_and_fixed_by_their_seed() -> None:
    questions = [f"How many is {number} and {number + 1}?" for number in range(900)]
    train, valid = (
        smollm2_prompts.make_rows(held_out, count, 0, questions)
        for held_out, count in ((False, 1000), (True, 116))
    )
    again = smollm2_prompts.make_rows(True, 116, 0, questions)
    assert valid == again
    texts = [{row["prompt"] for row in rows} for rows in (train, valid)]
    assert [len(each) for each in texts] == [1000, 116]
    assert not texts[0] & texts[1]
    share = sum(row["kind"] == "gsm8k" for row in train) / len(train)
    assert share == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("row", "text", "stopped", "right"),
    [
        ({"kind": "copy", "gold": "Ben waits."}, ' "Ben waits." ', True, True),
        ({"kind": "copy", "gold": "Ben waits."}, "Ben waits. He", False, False),
        ({"kind": "sum", "gold": "17"}, "14 + 3 = 17.", True, True),
        ({"kind": "sum", "gold": "17"}, "17 is 14 + 4", True, False),
        ({"kind": "past", "gold": "hid"}, "Ben hid near the house.", True, True),
        ({"kind": "past", "gold": "hid"}, "Ben hides.", True, False),
        ({"kind": "question"}, "Does Ben hide?", True, True),
        ({"kind": "question"}, "Who? Ben?", True, False),
        ({"kind": "capital", "gold": "Oslo"}, "It is Oslo.", True, True),
        ({"kind": "sentence"}, "A clock tells time.", True, True),
        ({"kind": "sentence"}, "A clock. It ticks.", True, False),
        ({"kind": "open"}, "anything", True, None),
    ],
)
def test_answers_are_graded(row: dict, text: str, stopped: bool, right: bool | None) -> None:
    assert smollm2_measures.grade(row, text, stopped) is right


def test_repetition_is_a_share_of_tokens() -> None:
    assert smollm2_measures.repeated([1, 2, 3, 4, 5]) == 0.0
    assert smollm2_measures.repeated([1, 2, 3, 4] * 2) == pytest.approx(1 / 8)
    assert smollm2_measures.repeated([7] * 8) == pytest.approx(4 / 8)
