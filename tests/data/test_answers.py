"""Final answers found in text, and numbers however they are written."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.data.answers import (
    boxed_answer,
    extract_answer,
    first_number,
    gold_answer,
    plain_number,
    same_answer,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so \\boxed{42}.", "42"),
        ("\\boxed{1} or rather \\boxed{ \\frac{1}{2} }", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("\\boxed{7} and then \\boxed{cut off", "7"),
        ("\\boxed{5} Answer: 6", "5"),
        ("48/2 = 24\n#### 72", "72"),
        ("#### 1\n#### 2\n", "2"),
        ("Answer: 17", "17"),
        ("Answer: 17\nAnswer: 18\nbye", "18"),
        ("**Answer:** 17", "17"),
        ("**Final answer**: $x$", "$x$"),
        ("#### Step 1\nadd\n\nAnswer: 17", "17"),
        ("Answer:\n17", None),
        ("it is 17", None),
        ("", None),
    ],
)
def test_the_marked_answer_is_found(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


@given(
    st.recursive(
        st.text("ab1 ", max_size=4),
        lambda inner: st.tuples(inner, inner).map(lambda pair: f"{pair[0]}{{{pair[1]}}}"),
    )
)
def test_balanced_braces_survive_the_box(content: str) -> None:
    assert boxed_answer(f"thus \\boxed{{{content}}} }}") == content.strip()


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_itself_however_it_is_dressed(number: int) -> None:
    dressed = [f"{number:,}", f"${number}$", f"{number}.", f"{number}.00", f" \\${number:,}. "]
    assert {plain_number(text) for text in dressed} == {number}


@pytest.mark.parametrize("text", ["1,2", "1/2", "2x", "", ".", "-", "1.2.3", "1e5", "\\frac12"])
def test_what_is_not_a_plain_number(text: str) -> None:
    assert plain_number(text) is None


# Gold cells


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (0.00001, "0.00001"),
        (1e16, "10000000000000000"),
        (27.0, "27.0"),
        (-2.5e-7, "-0.00000025"),
        (Decimal("1E+3"), "1000"),
        (True, "true"),
        (False, "false"),
        (float("nan"), None),
        (Decimal("NaN"), None),
        (float("-inf"), "-\\infty"),
        ([1e16, True, float("nan")], "10000000000000000, true"),
        (7, "7"),
        ("1e16", "1e16"),
        ("", None),
        ("<think>\\boxed{1}</think>#### 2", "2"),
    ],
)
def test_a_gold_cell_reads_as_a_person_writes_it(cell: Any, expected: str | None) -> None:
    assert gold_answer(cell) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_gold_float_is_exact_and_equals_itself(value: float) -> None:
    gold = gold_answer(value)
    assert gold is not None
    assert "e" not in gold.lower()
    assert float(gold) == value
    assert plain_number(gold) == Decimal(repr(value))


# Answers compared


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Yes.", "yes"),
        ("\\text{No}", "no"),
        ("New York", "new york"),
        ("18 dollars", "18"),
        ("$18", "18 dollars"),
        ("18 Dollars.", "18 dollar"),
        ("50\\%", "50 percent"),
        ("90^\\circ", "90 degrees"),
        ("2 1/2", "2.5"),
        ("2½", "\\frac{5}{2}"),
        ("-2\\frac12", "-2.5"),
        ("¾ cup", "0.75"),
        ("x² + y³", "x^{2} + y^{3}"),
        ("1e-5", "0.00001"),
    ],
)
def test_answers_alike_as_people_write_them(answer: str, gold: str) -> None:
    assert same_answer(answer, gold)
    assert same_answer(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("yes", "no"),
        ("a", "A"),
        ("18 dollars", "19"),
        ("18 dollars", "18 cents"),
        ("18 million", "18"),
        ("18 x", "18"),
        ("2 1/2", "21/2"),
        ("2½", "21/2"),
        ("1/0", "0"),
        ("x²", "x2"),
        ("18 or 19", "18"),
    ],
)
def test_answers_that_differ(answer: str, gold: str) -> None:
    assert not same_answer(answer, gold)
    assert not same_answer(gold, answer)


@pytest.mark.parametrize(
    "part",
    [
        "\\boxed{",
        "\\",
        "{",
        "}",
        "\\boxed ",
        "#### ",
        "answer***",
        "1,111",
        "<think>",
        "½",
        "²",
        "1 ",
    ],
)
def test_time_is_linear_in_a_text_that_repeats_itself(part: str) -> None:
    """Quadratic searches took minutes on 100,000 characters; a linear one takes 0.1 s."""
    text = part * (100_000 // len(part))
    begun = time.process_time()
    for read in (extract_answer, plain_number, first_number, gold_answer):
        read(text)
    same_answer(text, "1")
    assert time.process_time() - begun < 5
