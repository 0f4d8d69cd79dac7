"""Running the installed console script, as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from trb_mlx.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]
# A run of seconds: the bundled pair, three steps, the last one without a budget.
SHORT = (
    "--iters=3 --batch-size=2 --steps-per-eval=2 --save-every=1 --set behavior.budget=0.1 "
    "--set behavior.warmup_steps=2 --set eval.prompts=6 --set rollout.max_tokens=16 "
    "--set rollout.rollouts_per_prompt=2 --set data.train.limit=40 --set run.sample_every=1 "
    "--set run.keep_checkpoints=3 --set train.deterministic=true"
).split()


def script() -> str:
    """The `trb-mlx` beside this Python."""
    found = shutil.which("trb-mlx", path=str(Path(sys.executable).parent))
    assert found, "trb-mlx is not installed: pip install '.[cpu,test]'"
    return found


@pytest.fixture
def trb(tmp_path: Path) -> Run:
    """Run `trb-mlx ARGS` in an empty folder, without a network."""

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script(), *args],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def wait_for(seen: Callable[[], bool], seconds: float = 300.0) -> None:
    """Look twenty times a second until something is seen."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def assert_one_sentence(arguments: list[str], expected: str) -> None:
    """Exit code 2 and one sentence on standard error, in this process."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, (done.output, done.exception)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert expected in lines[0]
