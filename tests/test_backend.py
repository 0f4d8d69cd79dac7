"""Without a back end of MLX, one sentence says which extra to install."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['mlx.core'] = None; sys.argv[1:] = ['doctor']; "
SENTENCE = "trb-mlx found no MLX back end"


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_use_names_the_extras() -> None:
    done = run("import trb_mlx; print('imported'); trb_mlx.train")
    assert done.stdout == "imported\n"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {SENTENCE}")
    assert "cpu" in last
    assert "cuda13" in last


def test_the_console_script_prints_the_sentence_alone() -> None:
    done = run("from trb_mlx.__main__ import main; main()")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert SENTENCE in done.stderr
