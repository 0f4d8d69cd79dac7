"""Final answers found in text, and numbers however they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trb_mlx.data.answers import boxed_answer, extract_answer, plain_number


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
