"""How a command ends: a sentence on standard error and an exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from trb_mlx.errors import RunError, UserError, one_line
from trb_mlx.interrupts import Interrupted, watching

USER_MISTAKE, FAILURE = 2, 1
LONGEST = 900  # letters of a sentence that are shown
SHOW = "TRB_MLX_TRACEBACK"  # set to anything, it shows where a failure came from


@contextmanager
def ending_plainly() -> Iterator[None]:
    """Exit 2 for a user's mistake, 1 for another failure, 128 + signal for an interruption."""
    try:
        with watching():
            yield
    except UserError as error:
        _end(str(error), USER_MISTAKE)
    except RunError as error:
        _end(str(error), FAILURE)
    except Interrupted as error:
        _end(str(error), error.code)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # whoever read the output has gone: click ends quietly
        _end(_unforeseen(error), FAILURE)


@contextmanager
def resumable() -> Iterator[None]:
    """Say after an interruption inside that the same command, given again, goes on from there."""
    try:
        yield
    except Interrupted as error:
        error.advice = "the same command goes on from here"
        raise


def use_any_encoding() -> None:
    """Print a replacement where the output's encoding lacks a character, as ASCII lacks `←`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """Keep the libraries' own chatter and progress bars out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    warnings.filterwarnings("ignore", module="(transformers|huggingface_hub|datasets)")


def _unforeseen(error: Exception) -> str:
    """The last net: what nobody foresaw, as a sentence that helps whoever looks into it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    text = one_line(str(error))
    if isinstance(error, MemoryError) or "alloc" in text:
        return f"the memory is not enough ({text or 'MemoryError'}); README.md says what saves it."
    with tempfile.NamedTemporaryFile(
        "w", prefix="trb-mlx-", suffix=".txt", encoding="utf-8", errors="replace", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    kind = type(error).__name__
    return (
        f"this is a fault in trb-mlx ({f'{kind}: {text}' if text else kind}); "
        f"please report it with {file.name} ({SHOW}=1 shows it here)."
    )


def _end(sentence: str, code: int) -> NoReturn:
    if os.environ.get(SHOW):
        traceback.print_exc()
    for line in sentence.split("\n"):  # a config may hold several mistakes
        # Parts of it, which a file may have given, neither steer a terminal nor fill it.
        line = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
        line = "".join(letter if letter.isprintable() else "�" for letter in line)
        click.echo(f"trb-mlx: {line}", err=True)
    sys.exit(code)
