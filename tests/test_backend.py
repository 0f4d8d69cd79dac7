"""Without a back end of MLX, one sentence says which extra to install."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['mlx.core'] = None; sys.argv[0] = {name!r}; import trb_mlx"


def run(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(name=name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_import_names_the_extras() -> None:
    done = run("script.py")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: trb-mlx found no MLX back end")
    assert "cpu" in last
    assert "cuda13" in last


def test_the_console_script_prints_the_sentence_alone() -> None:
    done = run("/somewhere/bin/trb-mlx")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
