"""`trb-mlx generate`: the answer on standard output, what was done to the prompt on the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import CHATML, make_model

from trb_mlx.cli import main

REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "system", "expected"),
    [
        (
            REFUSES + CHATML,
            "Be brief.",
            "note: the chat template takes no system text, so it stands before the first user "
            "turn\n",
        ),
        (REFUSES + CHATML, "", ""),
        (CHATML, "Be brief.", ""),
    ],
)
def test_a_moved_system_text_is_said_once_on_standard_error(
    template: str, system: str, expected: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", template=template)
    arguments = ["generate", str(model), "-p", "Q", "-m", "1", "--system-prompt", system]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr) == (0, expected)
    assert "system" not in result.stdout
