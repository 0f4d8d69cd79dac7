"""How an example becomes the text and ids that a model is given: chat template or plain format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trb_mlx.config import PromptConfig
from trb_mlx.data.conversations import Message, check_unicode
from trb_mlx.data.examples import Example
from trb_mlx.data.templates import TemplateTimeout, check_template, render, template_source
from trb_mlx.errors import UserError, reason_of


class Notes:
    """What is said once about a whole set of prompts, with a count and the first of them."""

    def __init__(self) -> None:
        """Nothing is noted yet."""
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, sentence: str, where: str) -> None:
        """Note it of one prompt."""
        self._counts[sentence] += 1
        self._first.setdefault(sentence, where)

    def sentences(self) -> list[str]:
        """Each thing noted, without its count."""
        return list(self._counts)

    def lines(self) -> list[str]:
        """A line for each thing noted."""
        return [
            f"{sentence} ({count} prompt{'' if count == 1 else 's'}"
            + (f", the first: {first})" if first else ")")
            for (sentence, count), first in zip(
                self._counts.items(), self._first.values(), strict=True
            )
        ]


class Formatter(Protocol):
    """From an example to its prompt's text and ids; `notes` is what that did to them."""

    notes: Notes

    def __call__(self, example: Example) -> tuple[str, tuple[int, ...]]:
        """The prompt's text and ids.

        Raises:
            UserError: the chat template refuses the example, or it is no text.
        """
        ...


def make_formatter(config: PromptConfig, tokenizer: Any) -> Formatter:
    """The function from an example to its prompt's text and ids.

    Args:
        config: `auto` takes a chat template where there is one, else the plain format.
        tokenizer: mlx-lm's TokenizerWrapper.

    Raises:
        UserError: a chat format without a template, or a plain one without `{prompt}`.
    """
    template = _template_text(config.chat_template)
    has_template = template is not None or bool(tokenizer.has_chat_template)
    if config.format == "plain" or (config.format == "auto" and not has_template):
        return _PlainFormatter(config, tokenizer)
    if not has_template:
        raise UserError(
            "prompt.format is chat, but the model has no chat template; "
            "expected prompt.chat_template, or prompt.format: plain."
        )
    return _ChatFormatter(config, tokenizer, template)


def _template_text(template: str | None) -> str | None:
    """A template is its own text if it has Jinja in it, else the path of a file that holds it."""
    if template is None or "{{" in template or "{%" in template:
        return template
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null in the path
        raise UserError(
            f"prompt.chat_template {template} is neither a readable text file nor a Jinja "
            "template, expected one of them."
        ) from error
    if not text.strip():
        raise UserError(f"prompt.chat_template {template} is empty, expected a Jinja template.")
    return text


class _ChatFormatter:
    def __init__(self, config: PromptConfig, tokenizer: Any, template: str | None) -> None:
        self.notes = Notes()
        self._system = config.system
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = {
            "add_generation_prompt": True,
            "enable_thinking": config.enable_thinking,
            **config.template_kwargs,
        }
        if template is not None:
            self._options["chat_template"] = template
        self._source = template_source(tokenizer, template)
        self._takes_system = True
        check_template(self._source)

    def __call__(self, example: Example) -> tuple[str, tuple[int, ...]]:
        options = self._options | ({"tools": list(example.tools)} if example.tools else {})
        messages = list(example.turns)
        if self._system and example.system is None:
            messages.insert(0, {"role": "system", "content": self._system})
        text = self._render(messages, options, example.where)
        for part in [*example.unused, *_parts(example)]:
            if self._source and part not in self._source:
                self.notes.add(f"the chat template does not show {part}", example.where)
        return text, _ids(self._tokenizer, text, add_special_tokens=False)

    def _render(self, messages: list[Message], options: dict[str, Any], where: str) -> str:
        """The text; where the template takes no system message, its text goes to the user's.

        A template may refuse the role, or leave it out without a word.
        """
        if messages[0]["role"] != "system":
            return render(self._tokenizer, messages, options)
        refusal = text = None
        if self._takes_system:
            try:
                text = render(self._tokenizer, messages, options)
            except TemplateTimeout:
                raise
            except UserError as error:
                refusal = error
        system = messages[0]["content"].strip()
        if text is not None and system in text:
            return text
        try:
            merged = render(self._tokenizer, _before_first_user(messages), options)
        except UserError as error:
            raise refusal or error from error
        if text is not None and system not in merged:
            return text  # a template of its own mind
        self._takes_system = False
        self.notes.add(
            "the chat template takes no system text, so it stands before the first user turn", where
        )
        return merged


def _before_first_user(messages: Sequence[Message]) -> list[Message]:
    """The messages with the leading system text before the first user turn's."""
    system, *turns = messages
    place = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
    text = f"{system['content']}\n\n{turns[place]['content']}"
    turns[place] = turns[place] | {"content": text}
    return turns


def _parts(example: Example) -> list[str]:
    """What an example holds besides the text of its turns, by the names templates give it."""
    names = ("tool_calls", "function_call", "reasoning_content")
    parts = [name for name in names if any(name in turn for turn in example.turns)]
    return [*parts, "tools"] if example.tools else parts


class _PlainFormatter:
    def __init__(self, config: PromptConfig, tokenizer: Any) -> None:
        if "{prompt}" not in config.plain:
            raise UserError(
                f"prompt.plain is {config.plain!r}, expected a text with {{prompt}} in it."
            )
        self.notes = Notes()
        self._plain, self._system = config.plain, config.system or ""
        self._tokenizer = tokenizer

    def __call__(self, example: Example) -> tuple[str, tuple[int, ...]]:
        for part in [*example.unused, *_parts(example)]:
            self.notes.add(f"prompt.plain does not show {part}", example.where)
        text = fill_plain(self._plain, example.text, example.system or self._system)
        return text, encode_prompt(self._tokenizer, text)


def fill_plain(plain: str, prompt: str, system: str) -> str:
    """`plain` with {prompt} and {system} filled in; any other brace stays as it is.

    A system text goes in front of the prompt where the format has no place for it.
    """
    if system and "{system}" not in plain:
        prompt = f"{system}\n\n{prompt}"
    values = {"prompt": prompt, "system": system}
    # One pass: a prompt that itself says {system} is left alone.
    return re.sub(r"\{(prompt|system)\}", lambda match: values[match[1]], plain)


def encode_prompt(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The ids of a text with the BOS its model expects, once, and never an EOS added behind."""
    bare = _ids(tokenizer, text, add_special_tokens=False)
    bos = tokenizer.bos_token
    if bos and text.startswith(bos):
        return bare
    full = _ids(tokenizer, text)
    if full and full[-1] in tokenizer.eos_token_ids and bare[-1:] != full[-1:]:
        full = full[:-1]
    return full


def _ids(tokenizer: Any, text: str, **options: Any) -> tuple[int, ...]:
    check_unicode(text, "the prompt")
    try:
        ids = tuple(int(token) for token in tokenizer.encode(text, **options))
    except Exception as error:  # tokenizers raises plain exceptions
        raise UserError(f"the tokenizer refused a prompt: {reason_of(error)}.") from error
    if not ids:
        raise UserError("the prompt has no tokens; expected a template that shows it.")
    return ids
