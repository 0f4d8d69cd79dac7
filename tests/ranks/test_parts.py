"""What ranks are made of, in one process: the launcher's words, dealing, differences."""

from __future__ import annotations

import errno
import gc
import io
import json
import time
import weakref
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from trb_mlx.errors import RunError, UserError
from trb_mlx.ranks.agreement import agree
from trb_mlx.ranks.engine import Engine
from trb_mlx.ranks.folders import shared_folder
from trb_mlx.ranks.group import Group, deal
from trb_mlx.ranks.launch import Launch, launched, rank_timeout


def hostfile(folder: Path, addresses: list[str]) -> str:
    path = folder / "hosts.json"
    path.write_text(json.dumps([[address] for address in addresses]))
    return str(path)


def test_without_a_launcher_a_process_is_by_itself() -> None:
    assert launched({}) == Launch()


def test_the_launchers_variables(tmp_path: Path) -> None:
    hosts = hostfile(tmp_path, ["10.0.0.1:5000", "10.0.0.2:5000"])
    ring = launched({"MLX_RANK": "1", "MLX_HOSTFILE": hosts})
    assert ring == Launch(1, 2, "ring", "10.0.0.1")
    nccl = {"MLX_WORLD_SIZE": "4", "MLX_RANK": "3", "NCCL_HOST_IP": "10.0.0.1"}
    assert launched(nccl) == Launch(3, 4, "nccl", "10.0.0.1")
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    assert launched(mpi) == Launch(0, 2, "mpi", None)
    with pytest.raises(UserError, match="MLX_"):
        launched({"MLX_RANK": "2", "MLX_HOSTFILE": hosts})


@pytest.mark.parametrize("text", ["soon", "1", "inf", "nan"])
def test_a_timeout_is_seconds(text: str) -> None:
    with pytest.raises(UserError, match="TRB_MLX_RANK_TIMEOUT"):
        rank_timeout({"TRB_MLX_RANK_TIMEOUT": text})


@pytest.mark.parametrize("hands", [1, 2, 3, 7])
def test_all_is_dealt_once_and_evenly(hands: int) -> None:
    costs = [9.0, 1.0, 4.0, 4.0, 2.0]
    dealt = deal(costs, hands)
    assert sorted(item for hand in dealt for item in hand) == [0, 1, 2, 3, 4]
    loads = [sum(costs[item] for item in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(costs)


class Two(Group):
    """Rank 0 of two, the other of which has `other`."""

    size = 2

    def __init__(self, other: dict[str, Any]) -> None:
        super().__init__()
        self.other = other

    def gather(self, what: str, value: Any) -> list[Any]:
        return [value, self.other]


class Second(Group):
    """Rank 1 of two, to which rank 0 sends a folder."""

    rank, size = 1, 2

    def gather(self, what: str, value: Any) -> list[Any]:
        return ["run", value]

    def gather_bytes(self, what: str, content: bytes) -> list[bytes]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("config.yaml", "")
        return [buffer.getvalue(), content]


def test_a_copy_that_finds_no_room_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it, without a name

    with shared_folder(Second(), None) as place:
        assert place is not None
        assert (place.name, (place / "config.yaml").exists()) == ("run", True)
    assert not place.exists()
    monkeypatch.setattr(zipfile.ZipFile, "extractall", fail)
    with (
        pytest.raises(RunError, match="rank 1's copy of rank 0's run in .*: No space left"),
        shared_folder(Second(), None),
    ):
        pass


def test_the_engine_lets_go_of_the_group() -> None:
    """MPI is told of a process's end when its group ends, which a thread must not hold."""

    class Joined:
        """In place of MLX's group."""

    def twice(array: mx.array, group: Joined, stream: mx.Stream) -> mx.array:
        return 2 * array

    group = Joined()
    kept = weakref.ref(group)
    result = Engine().collect(twice, mx.ones(3), group, "ring", lambda wait: [wait(5.0)])
    assert result.tolist() == [2.0, 2.0, 2.0]
    del group
    until = time.monotonic() + 5.0
    while kept() is not None and time.monotonic() < until:
        gc.collect()
    assert kept() is None


def test_each_difference_is_a_sentence() -> None:
    agree(Two({"a": 1, "b": 2}), {"a": 1, "b": 2})
    with pytest.raises(UserError) as caught:
        agree(Two({"a": 1, "b": 3, "c": 4}), {"a": 1, "b": 2})
    lines = str(caught.value).splitlines()
    assert [line.split(" is ")[0] for line in lines] == ["b", "c"]
    assert "2 on rank 0 and 3 on rank 1" in lines[0]
