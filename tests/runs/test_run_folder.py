"""A run's folder: one process at a time, others' files stay, a kept config finds its own run."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import RunError, UserError
from trb_mlx.files import locked
from trb_mlx.interrupts import Interrupted
from trb_mlx.runs.folder import MEMORY_KEYS, RunFolder, find_run, holding_run, locate, write_config

MODELS = [("teacher.model", "t"), ("student.model", "s")]


def make(**changes: object) -> Config:
    """A config whose models are never loaded; `a__b` is a.b."""
    return load_config(None, [*MODELS, *((k.replace("__", "."), v) for k, v in changes.items())])


def folder_of(root: Path) -> RunFolder:
    return RunFolder(root / "runs/a", root / "runs/a/adapters")


def begun(root: Path, config: Config) -> RunFolder:
    folder = folder_of(root)
    with holding_run(folder, config, resume=False):
        write_config(folder, config)
    return folder


def test_a_second_process_is_refused_and_takes_nothing_with_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with holding_run(folder, make(), resume=False):
        with pytest.raises(RunError, match=rf"another process \({os.getpid()}\)"):
            with holding_run(folder, make(), resume=False):
                raise AssertionError("two hold it")
        assert folder.path.is_dir()
        write_config(folder, make())
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]
    with holding_run(folder, make(), resume=True):
        with pytest.raises(RunError), holding_run(folder, make(), resume=True):
            raise AssertionError("two hold it")
    with holding_run(folder, make(), resume=True):
        pass


def test_two_runs_do_not_share_adapters(tmp_path: Path) -> None:
    shared = tmp_path / "adapters"
    first, second = (RunFolder(tmp_path / f"runs/{name}", shared) for name in "ab")
    with holding_run(first, make(), resume=False):
        with pytest.raises(RunError, match="another process"):
            with holding_run(second, make(), resume=False):
                raise AssertionError("two hold it")


def test_the_system_frees_a_lock(tmp_path: Path) -> None:
    """Of a process that was killed; the file stays and stops nobody."""
    program = (
        "import os, pathlib, signal\nfrom trb_mlx.files import locked\n"
        f"with locked(pathlib.Path({str(tmp_path / 'lock')!r}), 'x'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert (tmp_path / "lock").exists()
    with locked(tmp_path / "lock", "x"):
        pass
    assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "lock", "x"):
        pass


def test_what_was_made_for_a_run_that_never_began_is_removed(tmp_path: Path) -> None:
    for existed in (False, True):
        folder = RunFolder(tmp_path / "runs/a", tmp_path / "elsewhere")
        if existed:
            folder.path.mkdir(parents=True)
            (folder.path / "notes.txt").write_text("mine")
        with pytest.raises(Interrupted) as caught, holding_run(folder, make(), resume=False):
            raise Interrupted(signal.SIGINT)
        assert caught.value.advice == ""
        assert not folder.adapter_path.exists()
        assert folder.path.exists() == existed
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]


def test_a_run_that_began_is_kept_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(Interrupted) as caught, holding_run(folder, make(), resume=False):
        write_config(folder, make())
        raise Interrupted(signal.SIGINT)
    assert folder.config.exists()
    assert caught.value.advice == "--resume goes on from here"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *zip(MEMORY_KEYS, (3, 2, 1, 128, 8, True), strict=True),
        ("train.steps", 7),
        ("train.learning_rate", 1e-7),
        ("run.save_every", 3),
    ],
)
def test_a_resumed_run_may_hold_less_in_memory(tmp_path: Path, key: str, value: object) -> None:
    folder = begun(tmp_path, make())
    with holding_run(folder, make(**{key.replace(".", "__"): value}), resume=True):
        pass


@pytest.mark.parametrize(
    ("key", "value"), [("lora.rank", 4), ("train.seed", 1), ("rollout.max_tokens", 9)]
)
def test_a_resumed_run_may_not_become_another(tmp_path: Path, key: str, value: object) -> None:
    folder = begun(tmp_path, make())
    with pytest.raises(UserError, match=f"was started with {key}"):
        with holding_run(folder, make(**{key.replace(".", "__"): value}), resume=True):
            pass


def test_a_section_does_not_go_unnoticed(tmp_path: Path) -> None:
    """A section that was there and is no more, and one that comes."""
    sections = {"data.eval.source": "e.jsonl"}, {"student.quantize.bits": 4}
    for place, section in enumerate(sections):
        filled = load_config(None, [*MODELS, *section.items()])
        for which, (first, second) in enumerate(((make(), filled), (filled, make()))):
            folder = begun(tmp_path / f"{place}{which}", first)
            folder.data.write_text("{}")
            with pytest.raises(UserError, match="was started with"):
                with holding_run(folder, second, resume=True):
                    pass


def test_data_may_move_where_its_digest_can_be_compared(tmp_path: Path) -> None:
    folder = begun(tmp_path, make(data__train__source="a.jsonl"))
    moved = make(data__train__source="b.jsonl")
    with pytest.raises(UserError, match="data.train.source"):
        with holding_run(folder, moved, resume=True):
            pass
    folder.data.write_text("{}")
    with holding_run(folder, moved, resume=True):
        pass


def test_a_kept_config_finds_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make(run__dir="runs")
    folder = locate(config, "small")
    assert folder.path == Path("runs/small")
    with holding_run(folder, config, resume=False):
        write_config(folder, config)
    kept = folder.config
    assert locate(config, "config", kept).path == Path("runs/config")  # no run, but a YAML file
    folder.metrics.write_text('{"step": 0}\n')
    assert locate(config, "config", kept).path == folder.path
    folder.path.rename("moved")
    assert locate(config, "config", Path("moved/config.yaml")) == find_run("moved")
    for elsewhere in (make(run__name="b"), make(run__dir="other")):
        assert locate(elsewhere, "config", Path("moved/config.yaml")).path != Path("moved")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("run.dir", "run.adapter_path", "student.model", "student.adapter", "data.train.source")
    config = load_config(
        None, [("teacher.model", "~/t"), ("student.model", "s"), *((key, "~/x") for key in keys)]
    )
    inside = str(tmp_path / "x")
    assert (config.run.dir, config.run.adapter_path) == (inside, inside)
    assert (config.student.model, config.student.adapter) == (inside, inside)
    assert config.teacher.model == str(tmp_path / "t")
    assert config.data.train.source == inside
    (tmp_path / "x").mkdir()
    write_config(RunFolder(tmp_path / "x", tmp_path), config)
    folder = find_run("~/x")
    assert folder is not None
    assert folder.path == tmp_path / "x"
