"""Pushing by the real Hub client to a stand-in of the Hub: refused, failing, interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.conftest import script
from exporting.hub_stand_in import TOKEN, Hub, serving
from exporting.run_folders import make_run

PUSH = ["--to", "merged", "--push", "owner/name"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", "bundled:arithmetic-student")
    return tmp_path / "run"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(hub: Hub, run: Path, tmp_path: Path) -> Start:
    """`trb-mlx export RUN ...` against the stand-in, with or without a token."""

    def start_export(*args: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
        # A shell's background job ignores SIGINT, and so would a child of these tests there.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        home = tmp_path / "home"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env = {**clean, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HOME": str(home)}
        return subprocess.Popen(
            [script(), "export", str(run), *args],
            env=env | ({"HF_TOKEN": token} if token else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_export


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=200)
    assert TOKEN not in output + errors
    assert "Traceback" not in errors
    return process.returncode, output, errors


def test_a_push_makes_a_private_repository_with_every_file(
    start: Start, hub: Hub, run: Path
) -> None:
    code, output, errors = ended(start(*PUSH))
    assert code == 0, errors
    assert f"pushed to {hub.url}/owner/name" in output
    assert hub.is_private("owner/name")
    folder = run / "export/merged"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "license: apache-2.0" in hub.files["README.md"].decode()
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    code, output, errors = ended(start(*PUSH))  # the repository is there already
    assert code == 0, errors


def test_public_is_asked_for(start: Start, hub: Hub) -> None:
    assert ended(start(*PUSH, "--public"))[0] == 0
    assert not hub.is_private("owner/name")


@pytest.mark.parametrize("token", [None, "hf_" + "wrong" * 6])
def test_a_missing_or_wrong_token_is_one_sentence(
    start: Start, hub: Hub, run: Path, token: str | None
) -> None:
    code, _, errors = ended(start(*PUSH, token=token))
    assert code == 1
    (sentence,) = errors.strip().splitlines()
    assert "was refused for want of a valid token (`hf auth login`, or HF_TOKEN)" in sentence
    assert f"the export in {run / 'export/merged'} is whole" in sentence
    assert token is None or token not in errors
    assert (run / "export/merged/model.safetensors").exists()
    assert not hub.files


@pytest.mark.parametrize(
    ("part", "status", "expected"),
    [
        ("/api/repos/create", 500, "the Hub answered 500"),
        ("/preupload/", 403, "the token may not write there"),
        ("/commit/", 501, "the Hub answered 501"),  # 500 is tried again for half a minute
    ],
)
def test_a_failing_hub_is_one_sentence(
    start: Start, hub: Hub, run: Path, part: str, status: int, expected: str
) -> None:
    hub.failing[part] = status
    code, _, errors = ended(start(*PUSH))
    assert code == 1
    (sentence,) = errors.strip().splitlines()
    assert expected in sentence
    assert "is whole: give the same command again" in sentence
    marker = json.loads((run / "export/merged/export.json").read_text())
    assert all((run / "export/merged" / name).exists() for name in marker["files"])


def test_an_interrupted_push_is_one_sentence(start: Start, hub: Hub, run: Path) -> None:
    hub.hanging = "/commit/"
    process = start(*PUSH)
    assert hub.reached.wait(120)
    process.send_signal(signal.SIGINT)
    code, _, errors = ended(process)
    assert code == 128 + signal.SIGINT
    (sentence,) = errors.strip().splitlines()
    assert "the push to owner/name was interrupted; the export in" in sentence
    assert (run / "export/merged/model.safetensors").exists()


def test_a_dry_run_reaches_nothing(start: Start, hub: Hub, run: Path) -> None:
    code, output, errors = ended(start(*PUSH, "--dry-run"))
    assert code == 0, errors
    assert "model.safetensors" in output
    assert "nothing was kept or pushed to owner/name" in output
    assert not hub.repos
    assert not (run / "export").exists()


def test_an_adapter_whose_base_is_not_on_the_hub_is_not_pushed(
    start: Start, hub: Hub, run: Path
) -> None:
    code, _, errors = ended(start("--to", "peft", "--push", "owner/name"))
    assert code == 2
    assert "needs a base on the Hub" in errors
    assert not hub.repos
    assert not (run / "export").exists()
