"""The commands that a finished run prints can be given to a shell as they are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tiny import CHATML, make_model

from trb_mlx.config_file import load_config
from trb_mlx.models.loading import load_model
from trb_mlx.runs.folder import RunFolder
from trb_mlx.training.announcement import next_commands


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("name", ["plain", "my run's $HOME; `x`"])
def test_every_command_names_its_run(name: str, template: str | None, tmp_path: Path) -> None:
    model = make_model(tmp_path / f"model of {name}", template=template)
    config = load_config(None, [("student.model", str(model)), ("teacher.model", str(model))])
    folder = RunFolder(tmp_path / name, tmp_path / name / "adapters")
    lines = next_commands(config, folder, load_model(config.student))
    words = [shlex.split(line) for line in lines[1:]]
    run = str(folder.path)
    assert words[:4] == [
        ["trb-mlx", "generate", run, "--prompt", "…"],
        ["trb-mlx", "eval", run],
        ["trb-mlx", "report", run],
        ["trb-mlx", "export", run, "--to", "peft"],
    ]
    prompt = "…" if template else "…\\n"
    assert words[4][5:] == [str(model), "--adapter-path", f"{run}/adapters", "--prompt", prompt]


def test_mlx_lm_is_left_out_where_it_computes_otherwise(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "mistral", sliding_window=5)
    config = load_config(None, [("student.model", str(model)), ("teacher.model", str(model))])
    student = load_model(config.student)
    assert student.note is not None
    lines = next_commands(config, RunFolder(tmp_path, tmp_path / "adapters"), student)
    assert [shlex.split(line)[0] for line in lines[1:]] == ["trb-mlx"] * 4
