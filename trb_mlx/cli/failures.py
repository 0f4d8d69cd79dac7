"""How a command ends: a sentence on standard error and an exit code, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from trb_mlx.errors import RunError, UserError
from trb_mlx.interrupts import Interrupted, watching

USER_MISTAKE, FAILURE = 2, 1


def told_plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Exit 2 for a user's mistake, 1 for another failure, 128 + signal for an interruption."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        quiet_libraries()
        try:
            with watching():
                return command(*args, **kwargs)
        except UserError as error:
            _end(str(error), USER_MISTAKE)
        except RunError as error:
            _end(str(error), FAILURE)
        except Interrupted as error:
            _end(str(error), error.code)

    return wrapper


@contextmanager
def going_on() -> Iterator[None]:
    """Say after an interruption inside that the same command, given again, goes on from there."""
    try:
        yield
    except Interrupted as error:
        error.advice = "the same command goes on from here"
        raise


def quiet_libraries() -> None:
    """Keep the libraries' own chatter and progress bars out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    warnings.filterwarnings("ignore", module="(transformers|huggingface_hub|datasets)")


def _end(sentence: str, code: int) -> NoReturn:
    click.echo(f"trb-mlx: {sentence}", err=True)
    sys.exit(code)
