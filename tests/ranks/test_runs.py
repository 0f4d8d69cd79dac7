"""Whole runs in several processes: what they learn, and what ends them."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

from trb_mlx.files import read_metrics
from trb_mlx.models.loading import resolve


def load_script() -> ModuleType:
    path = Path(__file__).parent.parent.parent / "scripts/rank_faults.py"
    spec = importlib.util.spec_from_file_location("rank_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


faults = load_script()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    learnt: bytes = faults.finish(tmp_path_factory.mktemp("alone"), 1)
    return learnt


def test_two_ranks_learn_the_bits_of_one(tmp_path: Path, reference: bytes) -> None:
    assert faults.finish(tmp_path, 2) == reference
    last = list(read_metrics(tmp_path / "run/metrics.jsonl"))[-1]
    drawn = [last["ranks/0_tokens"], last["ranks/1_tokens"]]
    assert min(drawn) > 0


def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path: Path, reference: bytes) -> None:
    """The adapter of the reference, to the bit."""
    faults.finish(tmp_path, 2, settings=["train.steps=2"])
    faults.finish(tmp_path, 1, resume=True, settings=["train.steps=4"])
    assert faults.finish(tmp_path, 4, resume=True) == reference


def test_a_rank_needs_no_folder_and_no_job(tmp_path: Path) -> None:
    """One rollout a step for two ranks, each with a place of its own, as two machines have."""
    places = [tmp_path / "first", tmp_path / "second"]
    few = ["train.deterministic=false", "train.prompts_per_step=1", "train.steps=2"]
    few.append("rollout.rollouts_per_prompt=1")
    ended = faults.Run(tmp_path, 2, few, own=[[f"run.dir={place}"] for place in places]).end(100)
    assert [each.code for each in ended] == [0, 0], ended
    assert (places[0] / "run/adapters").exists()
    assert not places[1].exists()


def test_an_interrupt_of_one_rank_saves_all(tmp_path: Path, reference: bytes) -> None:
    run = faults.Run(tmp_path, 2)
    run.wait_for("step 1 begins")
    run.processes[1].send_signal(signal.SIGINT)
    ended = run.end()
    assert all(each.code == 130 for each in ended), ended
    assert "stopped by SIGINT on rank 1" in " ".join(ended[0].output.split())
    assert faults.finish(tmp_path, 2, resume=True) == reference


@pytest.mark.parametrize(
    ("rank", "delay", "by"), [(0, 0.0, "SIGKILL"), (1, 0.4, "SIGKILL"), (1, 0.0, "SIGSTOP")]
)
def test_a_lost_rank_ends_the_other(
    tmp_path: Path, reference: bytes, rank: int, delay: float, by: str
) -> None:
    faults.kill(tmp_path, rank, delay, reference, signal.Signals[by])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a Mac limits no other process")
def test_a_full_disk_ends_all(tmp_path: Path, reference: bytes) -> None:
    """A limit on the size of files stands for it: rank 0 can write no further checkpoint."""
    run = faults.Run(tmp_path, 2)
    run.wait_for("step 1/6")
    resource.prlimit(run.processes[0].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    ended = run.end()
    assert [each.code for each in ended] == [1, 1], ended
    for each in ended:
        assert "could not be written" in " ".join(each.output.split())
    assert "rank 0 (process" in ended[1].output
    assert faults.finish(tmp_path, 1, resume=True) == reference


def relay(server: socket.socket, port: int, ends: list[socket.socket]) -> None:
    """Pass on what one connection to `server` and the rank at `port` send to each other."""
    source = server.accept()[0]
    while True:
        with suppress(ConnectionRefusedError):  # it does not listen yet
            sink = socket.create_connection(("127.0.0.1", port))
            break
        time.sleep(0.05)
    ends += [source, sink]
    threading.Thread(target=pump, args=(sink, source), daemon=True).start()
    pump(source, sink)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)


def test_a_lost_ring_ends_all(
    tmp_path: Path, reference: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX's connections break, and no other: sums fail on ranks that hear of each other."""
    monkeypatch.setattr(faults, "TIMEOUT_S", 4)  # so long word of a lost rank is waited for
    ports, ends = faults.free_ports(2), []
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in ports]
        for server, port in zip(servers, ports, strict=True):
            threading.Thread(target=relay, args=(server, port, ends), daemon=True).start()
        reached = [server.getsockname()[1] for server in servers]
        run = faults.Run(tmp_path, 2, ports=ports, reached=reached)
        run.wait_for("step 1/6")
        assert len(ends) == 4
        for end in ends:
            end.shutdown(socket.SHUT_RDWR)
        ended = run.end()
        for end in ends:
            end.close()
    assert [each.code for each in ended] == [1, 1], ended
    for each in ended:
        assert "the reduction over ring failed" in " ".join(each.output.split())
    assert faults.finish(tmp_path, 1, resume=True) == reference


def test_another_config_is_a_sentence(tmp_path: Path) -> None:
    run = faults.Run(tmp_path, 2, own=([], ["train.seed=5"]))
    ended = run.end(100)
    assert [each.code for each in ended] == [2, 2]
    assert "train.seed is" in " ".join(ended[0].output.split())
    assert not (tmp_path / "run").exists()


def test_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1], *faults.free_ports(1)]
        ended = faults.Run(tmp_path, 2, ports=ports).end(100)
    assert ended[0].code == 2
    assert "its port is taken" in " ".join(ended[0].output.split())
    assert ended[1].code != 0
    assert "rank 1 of 2 did not find the others" in " ".join(ended[1].output.split())


def test_other_data_and_weights_are_sentences(tmp_path: Path) -> None:
    """Where they lie may differ, what lies there may not."""
    student = tmp_path / "student"
    shutil.copytree(resolve("bundled:arithmetic-student"), student)
    weights = student / "model.safetensors"
    arrays = dict(mx.load(str(weights)))
    name = next(name for name in arrays if name.endswith("q_proj.weight"))
    mx.save_safetensors(str(weights), arrays | {name: 2 * arrays[name]}, {"format": "mlx"})
    settings = []
    for rank, end in enumerate("?!"):
        rows = [{"question": f"Compute {each}+1{end}"} for each in range(40)]
        path = tmp_path / f"train{rank}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = student if rank else "bundled:arithmetic-student"
        settings.append([f"data.train.source={path}", f"student.model={model}"])
    ended = faults.Run(tmp_path, 2, own=settings).end(100)
    assert [each.code for each in ended] == [2, 2], ended
    text = " ".join(ended[0].output.split())
    assert "the digest of the training prompts is" in text
    assert "the digest of the student's weights is" in text
    assert "teacher's weights" not in text


@pytest.mark.parametrize("problems", [1, 3])
def test_an_evaluation_is_that_of_one_process(tmp_path: Path, problems: int) -> None:
    """Under `mlx.launch` as users call it; of one problem, so that a rank has nothing to do."""
    evaluation = f"trb-mlx eval bundled:arithmetic-student --data arithmetic --limit {problems}"
    evaluation += " --teacher bundled:arithmetic-teacher -m 8 --json --set rollout.batch_size=2"
    found = []
    for launcher in ("", "mlx.launch -n 2 -- "):
        command = f"{launcher}{evaluation} --out {tmp_path / str(len(found))}".split()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout[ended.stdout.index("{") :]))
    alone, together = ({k: v for k, v in each.items() if k != "path"} for each in found)
    assert together == alone
