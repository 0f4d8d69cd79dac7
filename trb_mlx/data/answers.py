r"""Finding and comparing final answers in text: `\boxed{}`, `####`, `Answer:`, plain numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_BOXED = re.compile(r"\\f?boxed\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are written, not grouping
_MARKED = re.compile(
    r"####[ \t]*(?P<hash>[^\n]+)|\banswer\**[ \t]*:(?P<word>[^\n]+)", re.IGNORECASE
)
_FIRST_NUMBER = re.compile(r"-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?")
_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?(?<=\d)")


def extract_answer(text: str) -> str | None:
    r"""The final answer that a text marks, without its marker, or None where it marks none.

    The last complete `\boxed{...}` wins. Else it is what follows the last `####` or the last
    `Answer:` on its line, whichever stands later: chat models write `####` before headings too.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed
    found = None
    for match in _MARKED.finditer(text):
        found = (match["hash"] or match["word"]).strip().strip("*").strip() or found
    return found


def boxed_answer(text: str) -> str | None:
    r"""What the last `\boxed{...}` that is closed holds, braces nested or not."""
    for match in reversed(list(_BOXED.finditer(text))):
        end = _closing_brace(text, match.end())
        if end is not None:
            return text[match.end() : end].strip()
    return None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for token in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None


def normalize(answer: str) -> str:
    """The answer without dollar signs, thin spaces, a final period and spare blanks."""
    answer = answer.replace("\\$", "").replace("$", "").replace("{,}", ",")
    answer = answer.replace("\N{MINUS SIGN}", "-")
    answer = re.sub(r"\\[!,;]\s*", "", answer)
    return " ".join(answer.split()).removesuffix(".").strip()


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
