"""Chat templates, which come with models and data: rendered within a time limit, or refused."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2

from trb_mlx.data.conversations import Message
from trb_mlx.errors import UserError, one_line

LIMIT_S = 5.0  # a template takes a millisecond, its first rendering a tenth of a second
LIMIT_BYTES = 2**30  # beyond what the process has, where the system heeds it


class TemplateTimeout(UserError):
    """A chat template beyond its time or memory: no row's fault, and so no reason to skip one."""


class _TimeIsUp(Exception):
    pass


def template_source(tokenizer: Any, template: str | None) -> str:
    """The text of the template that is used, or of all there are; empty where it is no Jinja."""
    used = template or getattr(tokenizer, "chat_template", None)
    if isinstance(used, Mapping):  # several by name, such as `default` and `tool_use`
        return "\n".join(map(str, used.values()))
    return used if isinstance(used, str) else ""


def check_template(source: str) -> None:
    """Refuse powers, which Jinja computes where nothing can interrupt it: `9 ** 9 ** 9`.

    Raises:
        UserError: the template holds one.
    """
    try:
        tokens = jinja2.Environment().lex(source)
        powers = [line for line, kind, text in tokens if kind == "operator" and text == "**"]
    except Exception:  # its rendering says what is wrong with it
        return
    if powers:
        raise UserError(f"the chat template computes a power (**) at line {powers[0]}, not taken.")


def render(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """The prompt's text by the chat template.

    Raises:
        TemplateTimeout: it took longer than `LIMIT_S`, or more than `LIMIT_BYTES`.
        UserError: the template refused the messages, or is broken.
    """
    try:
        with _time_limit(LIMIT_S), _memory_limit(LIMIT_BYTES):
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except MemoryError as error:
        raise TemplateTimeout("the chat template needs too much memory for one prompt.") from error
    except _TimeIsUp as error:
        raise TemplateTimeout(
            f"the chat template did not end within {LIMIT_S:g} s on one prompt."
        ) from error
    except Exception as error:  # a template may do anything: add an int, divide by zero, recurse
        reason = one_line(str(error), 200) or type(error).__name__
        raise UserError(f"the chat template refused a prompt: {reason}.") from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` inside after so many seconds; signals do that in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit(count: int) -> Iterator[None]:
    """Raise MemoryError inside after so many bytes more; Linux heeds it, macOS does not."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + count, before[1]))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
