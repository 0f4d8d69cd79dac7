r"""Finding and comparing final answers in text: `\boxed{}`, `####`, `Answer:`, numbers, words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Any number of backslashes is written before a box; the bound keeps the search linear.
_BRACES = re.compile(r"(?P<box>\\{1,4}f?boxed\s*\{)|\\.|[{}]", re.DOTALL)
_MARKED = re.compile(
    r"####[ \t]*(?P<hash>[^\n]+)|\banswer\**[ \t]*:(?P<word>[^\n]+)", re.IGNORECASE
)
_FIRST_NUMBER = re.compile(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?(?<=\d)")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUPERSCRIPT = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8",
    "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_FRACTION = re.compile(r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MIXED = re.compile(r"([-+]?)(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d{1,3}")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\s*(\^\s*\{?\s*\\circ\s*\}?|\\degree|°)")
_UNIT = re.compile(r"(?P<value>.*[\d}])\s*(?P<unit>%|\\%|[^\W\d_]{2,}(?:[ -][^\W\d_]{2,})*)\.?")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '’-][^\W\d_]+)*")
# Words behind a number that make another number of it, or are no unit at all.
_NO_UNITS = frozenset(
    {"hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third"}
    | {"thirds", "quarter", "quarters", "squared", "cubed", "factorial", "pi", "or", "and", "to"}
    | {"mod", "times", "plus", "minus", "over"}
)
LONGEST_VALUE = 200  # characters; longer answers are compared as they are written


def final_text(text: str) -> str:
    """What a response says outside its thoughts: behind `</think>`, and before an open `<think>`.

    A response that never ends its thoughts says nothing.
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def gold_answer(value: Any) -> str | None:
    r"""The gold answer of a cell: after `####` (GSM8K), inside `\boxed{}`, or the text itself.

    Numbers and booleans become what a person writes (0.00001, true), and lose the commas between
    thousands; NaN is no answer. A list (OlympiadBench) becomes its answers with commas between,
    which math-verify reads as a set.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        golds = [gold_answer(part) for part in value]
        return ", ".join(gold for gold in golds if gold) or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        number = Decimal(repr(value)) if isinstance(value, float) else value
        if number.is_finite():
            return f"{number:f}"  # without an exponent
        return None if number.is_nan() else ("-" if number < 0 else "") + "\\infty"
    text = str(value).strip()
    text = (extract_answer(final_text(text)) or text).strip()
    if len(text) > 1 and text.count("$") == 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return (text if plain_number(text) is None else text.replace(",", "")) or None


def extract_answer(text: str) -> str | None:
    r"""The final answer that a text marks, without its marker, or None where it marks none.

    The last complete `\boxed{...}` wins. Else it is what follows the last `####` or the last
    `Answer:` on its line, whichever stands later: chat models write `####` before headings too.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    answer = None
    for match in _MARKED.finditer(text):
        answer = (match["hash"] or match["word"]).strip().strip("*").strip() or answer
    return answer


def boxed_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` that is closed holds, braces nested or not, in linear time."""
    opened: list[tuple[bool, int]] = []  # (is it a box's, where its content begins)
    last = (-1, -1)
    for token in _BRACES.finditer(text):
        if token["box"] or token[0] == "{":
            opened.append((token["box"] is not None, token.end()))
        elif token[0] == "}" and opened:
            is_box, start = opened.pop()
            if is_box:
                last = max(last, (start, token.start()))
    return text[last[0] : last[1]].strip() if last[0] >= 0 else None


def normalize(answer: str) -> str:
    """The answer in ASCII signs, without dollar signs, thin spaces, a final period, spare blanks.

    Superscripts and single-character fractions are written out: x² as x^{2}, 2½ as 2 1/2.
    """
    answer = answer.replace("\\$", "").replace("$", "").replace("{,}", ",")
    answer = answer.replace("\N{MINUS SIGN}", "-").replace("\N{FRACTION SLASH}", "/")
    for sign, fraction in _VULGAR.items():
        answer = answer.replace(sign, f" {fraction}")
    answer = _SUPERSCRIPT.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", answer)
    answer = re.sub(r"\\[!,;]\s*", "", answer)
    return " ".join(answer.split()).removesuffix(".").strip()


def as_latex(answer: str) -> str:
    r"""The answer normalized for LaTeX, where `2 1/2` would be a product: 2\frac{1}{2}."""
    text = normalize(answer)
    mixed = _MIXED.fullmatch(text)
    if mixed is None or mixed[2] is None:
        return text
    return f"{mixed[1]}{mixed[2]}\\frac{{{mixed[3]}}}{{{mixed[4]}}}"


def plain_number(answer: str) -> Decimal | None:
    """The value of an integer or decimal, exactly, or None for anything else.

    Commas count only between groups of three digits, so that the pair `1,2` is not 12.
    """
    text = normalize(answer)
    match = _NUMBER.fullmatch(text)
    return Decimal(text.replace(",", "")) if match and text else None


def first_number(text: str) -> Decimal | None:
    """The first number that stands in a text, with its sign, or None."""
    match = _FIRST_NUMBER.search(normalize(text))
    return Decimal(match[0].replace(",", "")) if match else None


def same_answer(answer: str, gold: str) -> bool:
    """Whether two answers are alike as people write them.

    Equal texts, equal words whatever their case (`Yes.` for `yes`), or numbers of one exact
    value, fractions and mixed numbers among them. A unit may be left out of either, but not be
    another one. Where this says no, mathematics may still find them equal.
    """
    if normalize(answer) == normalize(gold):
        return True
    if max(len(answer), len(gold)) > LONGEST_VALUE:
        return False
    words = _words(gold)
    if words is not None:
        return _words(answer) == words
    (value, unit), (gold_value, gold_unit) = _quantity(answer), _quantity(gold)
    alike = not unit or not gold_unit or unit == gold_unit
    return value is not None and value == gold_value and alike


def is_scaled(answer: str) -> bool:
    """Whether a word behind the number changes it, as in `18 million`."""
    text = normalize(_TEXT.sub(r" \1", answer[:LONGEST_VALUE]))
    match = _UNIT.fullmatch(text)
    return match is not None and not _NO_UNITS.isdisjoint(match["unit"].casefold().split())


def _words(answer: str) -> str | None:
    """A text of words alone, for comparing; single letters are symbols, whose case matters."""
    text = normalize(_TEXT.sub(r"\1", answer)).strip(" .!*\"'")
    return text.casefold() if _WORDS.fullmatch(text) else None


def _quantity(answer: str) -> tuple[Fraction | None, str]:
    """The exact value and the unit (singular, perhaps empty) of a number as a person writes it."""
    text = normalize(_DEGREES.sub(" degrees", _TEXT.sub(r" \1", answer)))
    match = _UNIT.fullmatch(text)
    if match is None:
        return _value(text), ""
    unit = match["unit"].casefold().removeprefix("\\")
    if not _NO_UNITS.isdisjoint(unit.split()):
        return None, ""
    unit = {"%": "percent", "dollars": "dollar"}.get(unit, unit.removesuffix("s"))
    return _value(match["value"].strip()), unit


def _value(text: str) -> Fraction | None:
    """An integer, decimal, fraction or mixed number, exactly."""
    number = plain_number(text)
    if number is not None:
        return Fraction(number)
    if _SCIENTIFIC.fullmatch(text):
        return Fraction(text)
    parts = _FRACTION.sub(lambda m: f"{m[1]} {m[2] or m[3]}/{m[4] or m[5]}", text)
    match = _MIXED.fullmatch(parts.replace("- ", "-").replace("+ ", "+").strip())
    if match is None or not int(match[4]):
        return None
    value = int(match[2] or 0) + Fraction(int(match[3]), int(match[4]))
    return -value if match[1] == "-" else value
