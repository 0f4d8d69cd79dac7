"""Killed at seeded and aimed moments, and gone on with to the same bits (scripts/kill_test.py)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts/kill_test.py"
    spec = importlib.util.spec_from_file_location("kill_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


kill_test = load_script()
KILLS = [
    kill_test.Kill("SIGKILL", "save, between its two parts"),
    kill_test.Kill("SIGINT twice", "save, a later array", gap=0.2),
    kill_test.Kill("SIGHUP", "rollout, amid its rounds"),
    kill_test.Kill("SIGTERM", "start: before the config is kept"),
    *kill_test.timed(seed=1, count=1, longest=6.0)[:1],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kill")
    kill_test.make_reference(made)
    return made


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill.signals} {kill.where}")
def test_killed_and_gone_on_with_to_the_same_bits(root: Path, kill: object) -> None:
    assert kill_test.try_kill(kill, root) is None


def test_a_second_process_is_refused(root: Path) -> None:
    assert kill_test.try_two(root) is None
