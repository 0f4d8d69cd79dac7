"""The prompts that a teacher reads instead of the student's, before the shared response."""

from __future__ import annotations

from typing import Any

from trb_mlx.config import Config, PromptConfig, TeacherPromptConfig
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import make_formatter
from trb_mlx.data.templates import TemplateTimeout
from trb_mlx.errors import UserError


class TeacherPrompts:
    """From an example to the teacher's prompt."""

    def __init__(self, config: TeacherPromptConfig, student: PromptConfig, tokenizer: Any) -> None:
        """`tokenizer` is the teacher's.

        Raises:
            UserError: the format needs a template that is not there, or lacks its place.
        """
        if config.context_column is not None and "{prompt}" not in config.context:
            raise UserError(
                f"teacher.prompt.context is {config.context!r}, expected a text with {{prompt}} in "
                "it, and {context} where the column's text goes."
            )
        self.context_column = config.context_column
        self._context = config.context
        try:
            self._format = make_formatter(_merged(config, student), tokenizer)
        except UserError as error:
            raise UserError(f"teacher.prompt: {error}") from error

    def __call__(self, example: Example) -> tuple[str, tuple[int, ...]]:
        """The prompt's text and ids.

        Raises:
            UserError: the template refuses the example.
        """
        if self.context_column is not None:
            example = example.with_context(self._context)
        try:
            return self._format(example)
        except TemplateTimeout:
            raise
        except UserError as error:
            raise UserError(f"teacher.prompt: {error}") from error

    def lines(self) -> list[str]:
        """What is said of all prompts, a line each."""
        return [f"the teacher's prompts: {line}" for line in self._format.notes.lines()]


def make_teacher_prompts(config: Config, tokenizer: Any) -> TeacherPrompts | None:
    """The teacher's prompts of a run, or None where it reads the student's.

    Raises:
        UserError: as `TeacherPrompts`.
    """
    own = config.teacher.prompt
    return None if own is None else TeacherPrompts(own, config.prompt, tokenizer)


def _merged(config: TeacherPromptConfig, student: PromptConfig) -> PromptConfig:
    """The student's keys, where the teacher's own are null."""
    own = config.model_dump(exclude_none=True, exclude={"context_column", "context"})
    return student.model_copy(update=own)
