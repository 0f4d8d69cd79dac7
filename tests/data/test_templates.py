"""Chat templates of all manners: without a system role, without an end, of their own mind."""

from __future__ import annotations

import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from trb_mlx.config import PromptConfig
from trb_mlx.data import templates
from trb_mlx.data.examples import Example
from trb_mlx.data.formats import make_formatter
from trb_mlx.errors import UserError

TURNS = "{% for m in messages %}[{{ m.role }}: {{ m.content | trim }}]{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
DROPS = TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")


def text_of(tokenizer: Any, template: str, example: Example, **keys: Any) -> tuple[str, list[str]]:
    format_example = make_formatter(PromptConfig(chat_template=template, **keys), tokenizer)
    return format_example(example)[0], format_example.notes.lines()


# Templates without a system role


@pytest.mark.parametrize("template", [REFUSES + TURNS, DROPS])
def test_a_system_text_goes_before_the_first_user_turn(base: Any, template: str) -> None:
    config = PromptConfig(chat_template=template, system="Be brief.")
    format_example = make_formatter(config, base)
    assert format_example(Example("1+1?", where="d:1"))[0] == "[user: Be brief.\n\n1+1?]"
    own = ({"role": "system", "content": "Mine."}, {"role": "user", "content": "Q"})
    assert format_example(Example(own))[0] == "[user: Mine.\n\nQ]"
    assert format_example.notes.lines() == [
        "the chat template takes no system text, so it stands before the first user turn "
        "(2 prompts, the first: d:1)"
    ]


def test_a_template_with_a_system_role_keeps_it(base: Any) -> None:
    text, notes = text_of(base, TURNS, Example("Q"), system="Be brief.")
    assert (text, notes) == ("[system: Be brief.][user: Q]", [])


def test_the_first_refusal_is_the_one_that_is_told(base: Any) -> None:
    twice = REFUSES + "{{ raise_exception('No user either') }}"
    with pytest.raises(UserError, match="refused a prompt: No system"):
        text_of(base, twice, Example("Q"), system="Be brief.")


# What a template is given


def test_tools_and_calls_reach_the_template_or_are_said_to_be_unused(base: Any) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    user = {"role": "user", "content": "Q"}
    example = Example((user, call, user), tools=({"name": "add"},), where="d:1")
    template = (
        "{{ tools | length }}{% for m in messages %}{% if m.tool_calls %}"
        "({{ m.tool_calls[0].name }}){% endif %}{{ m.content }}{% endfor %}"
    )
    assert text_of(base, template, example) == ("1Q(add)Q", [])
    assert text_of(base, TURNS, example)[1] == [
        "the chat template does not show tool_calls (1 prompt, the first: d:1)",
        "the chat template does not show tools (1 prompt, the first: d:1)",
    ]
    plain = make_formatter(PromptConfig(format="plain"), base)
    assert plain(example)[0] == "Q\n\nQ\n"
    assert len(plain.notes.lines()) == 2


def test_template_kwargs_are_variables_of_the_template(base: Any) -> None:
    template = "{{ mood }} {{ enable_thinking }} {{ messages[0].content }}"
    given = {"mood": "calm", "enable_thinking": True}
    assert text_of(base, template, Example("Q"), template_kwargs=given)[0] == "calm True Q"
    assert text_of(base, template, Example("Q"))[0] == " False Q"


# Templates that fail


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + 1 }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10 ** 1) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ ''.join(3) }}",
        "{{ nothing() }}",
    ],
)
def test_whatever_a_template_raises_is_one_sentence(base: Any, template: str) -> None:
    with pytest.raises(UserError) as caught:
        text_of(base, template, Example("Q"))
    assert str(caught.value).startswith("the chat template ")
    assert "\n" not in str(caught.value)


def test_a_template_that_does_not_end_is_stopped(base: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(templates, "LIMIT_S", 0.3)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    before, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(templates.TemplateTimeout, match=r"did not end within 0\.3 s"):
        text_of(base, loops, Example("Q"))
    assert time.monotonic() - begun < 10
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux limits memory")
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 99999999999 }}",
        "{% set s = namespace(x='abc') %}"
        "{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    ],
)
def test_a_template_that_grows_without_bounds_is_stopped(
    base: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "LIMIT_BYTES", 2**27)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(templates.TemplateTimeout, match="needs too much memory"):
        text_of(base, template, Example("Q"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 ** 9 }}", "{% set x = 9**m %}"])
def test_powers_are_refused_before_anything_computes_them(base: Any, template: str) -> None:
    with pytest.raises(UserError, match=r"computes a power \(\*\*\) at line 1"):
        make_formatter(PromptConfig(chat_template=template), base)


def test_stars_in_the_text_are_no_powers(base: Any) -> None:
    assert text_of(base, "2**3 {{ '**' }}", Example("Q"))[0] == "2**3 **"


def test_templates_are_rendered_outside_the_main_thread_too(base: Any) -> None:
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(text_of(base, TURNS, Example("Q"))[0]))
    thread.start()
    thread.join()
    assert texts == ["[user: Q]"]


def test_text_that_is_no_unicode_is_refused(base: Any) -> None:
    for config in (PromptConfig(chat_template=TURNS), PromptConfig(format="plain")):
        with pytest.raises(UserError, match=r"holds U\+DCE9, half of a surrogate pair"):
            make_formatter(config, base)(Example("caf\udce9"))


def test_what_a_tokenizer_raises_is_one_sentence(
    base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    format_example = make_formatter(PromptConfig(chat_template=TURNS), base)

    def refuse(*_: Any, **__: Any) -> None:
        raise Exception("unk token\nis out of range")

    monkeypatch.setattr(format_example, "_tokenizer", Refusing(base, refuse))
    with pytest.raises(
        UserError, match="the tokenizer refused a prompt: unk token is out of range"
    ):
        format_example(Example("Q"))


class Refusing:
    """A tokenizer whose template works, and whose encoder does not."""

    def __init__(self, tokenizer: Any, encode: Any) -> None:
        self.apply_chat_template = tokenizer.apply_chat_template
        self.encode = encode
