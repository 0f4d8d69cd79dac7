"""The boundary at which a library's exception becomes one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from trb_mlx.errors import RunError, UserError, one_line, reading
from trb_mlx.interrupts import Interrupted


class PanicException(BaseException):
    """As pyo3 raises it where Rust code gave up: no module exports the class."""


def sentence_of(error: BaseException) -> str:
    with pytest.raises(UserError) as caught:
        with reading("data.jsonl:3"):
            raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "it asks for more memory than there is."),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply."),
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory."),
        (KeyError("hidden_size"), "it has no 'hidden_size'."),
        (TypeError("bad\n operand"), "it holds something unexpected (TypeError: bad operand)."),
        (ZeroDivisionError(), "it holds something unexpected (ZeroDivisionError)."),
        (PanicException("index 9"), "it holds something unexpected (PanicException: index 9)."),
        (ImportError("No module named 'x'"), "No module named 'x'."),
        (ValueError("wrong\tin\x1b[31m a. "), "wrong in�[31m a."),
        (Exception("x" * 999), f"{'x' * 300}…."),
        (Exception(), "Exception."),
    ],
)
def test_whatever_is_raised_names_the_file_in_one_sentence(
    error: BaseException, expected: str
) -> None:
    assert sentence_of(error) == f"data.jsonl:3 cannot be read: {expected}"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: json.loads('{"a": }'), "it is not JSON (Expecting value at line 1, column 7)"),
        (lambda: json.loads("[" * 100_000), "it is nested too deeply"),
        (lambda: json.loads("9" * 5000), "it holds a number of thousands of digits"),
        (lambda: b"\xff".decode(), "it is not UTF-8 text"),
        (lambda: Tokenizer.from_str('{"model": 3}'), ""),
    ],
)
def test_what_libraries_raise(read: Callable[[], object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        with reading("x.json"):
            read()
    assert str(caught.value).startswith(f"x.json cannot be read: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [UserError("a"), RunError("b")])
def test_own_sentences_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        with reading("x"):
            raise error
    assert caught.value is error


@pytest.mark.parametrize("error", [Interrupted(2), KeyboardInterrupt(), SystemExit(3)])
def test_a_wish_to_stop_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        with reading("x"):
            raise error


@given(st.text())
def test_any_text_is_made_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 301
    assert not line.endswith((" ", "."))
