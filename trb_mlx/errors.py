"""The two ways a command may fail, and the boundary at which a library's exception becomes one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What a library raises where a file holds something that it did not expect: its message speaks of
# the library's code, so the sentence says that first.
_SURPRISES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


class UserError(Exception):
    """A mistake in what the user gave: the sentence says what, where and what was expected.

    Commands end with exit code 2 and print the sentence alone.
    """


class RunError(Exception):
    """A run that could not go on for a reason outside the user's input (exit code 1)."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no choice is near.

    >>> did_you_mean("trian", ["train", "eval"])
    '; did you mean train?'
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around every library that is given a user's file: whatever it raises becomes one sentence.

    No list of exceptions would be complete: libraries raise what their code happens to hit. Our
    own errors pass, as do interruptions.

    Args:
        what: names the file and begins the sentence, such as `model X` or `data.jsonl:3`.

    Raises:
        UserError: `WHAT cannot be read: REASON.`
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise UserError(f"{what} cannot be read: {reason_of(error)}.") from error


def reason_of(error: BaseException) -> str:
    """A library's exception as a clause of a sentence: one line, no final stop."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg} at line {error.lineno}, column {error.colno})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(str(error))
    if "int_max_str_digits" in text:
        return "it holds a number of thousands of digits"
    if isinstance(error, KeyError):
        return f"it has no {text}"
    if isinstance(error, _SURPRISES) or _is_panic(error):
        kind, text = type(error).__name__, one_line(text, 120)
        return f"it holds something unexpected ({f'{kind}: {text}' if text else kind})"
    return text or type(error).__name__


def one_line(text: str, longest: int = 300) -> str:
    """A text fit for a sentence: printable, on one line, without final stop, not endless."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "�" for letter in line)
    return (line if len(line) <= longest else f"{line[:longest]}…").rstrip(" .")


def _is_panic(error: BaseException) -> bool:
    """Whether Rust code gave up: pyo3 raises a BaseException that no module exports."""
    return type(error).__name__ == "PanicException"
