"""Ends ranks of small runs on this machine in many ways, and holds what the others then do.

    python scripts/rank_faults.py --kills 20 --seed 0

Each rank is a process with the environment that mlx.launch gives it. After a fault every rank has
to end within the deadline, rank 0 in a sentence, and `--resume` has to reach the bits of a run
that nothing befell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 10  # TRB_MLX_RANK_TIMEOUT of these runs
# Ending takes a beat, the step's saved state and the interpreter's own end besides.
DEADLINE_S = TIMEOUT_S + 30
SETTINGS = (
    "train.steps=6",
    "train.deterministic=true",
    "train.prompts_per_step=2",
    "train.micro_batch_size=1",
    "lora.dropout=0.1",
    "rollout.max_tokens=8",
    "rollout.rollouts_per_prompt=2",
    "eval.every=0",
    "eval.prompts=4",
    "run.save_every=1",
)


@dataclass
class Ended:
    """How a rank ended: its exit code, and what it wrote."""

    code: int
    output: str


class Run:
    """The ranks of one run."""

    def __init__(
        self,
        folder: Path,
        size: int,
        settings: Sequence[str] = (),
        own: Sequence[Sequence[str]] = (),
        resume: bool = False,
        ports: Sequence[int] = (),
        reached: Sequence[int] = (),
    ) -> None:
        """Start `size` ranks of a run in `folder`; `own` are settings of each rank alone.

        MLX's ranks listen at `ports`; the others reach them at `reached`, the same as a rule.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ports = ports or free_ports(size)
        self.outputs = [folder / f"rank{rank}.txt" for rank in range(size)]
        self.processes = []
        for rank in range(size):
            given = [*SETTINGS, f"run.dir={folder}", *settings, *(own[rank] if own else ())]
            command = [sys.executable, "-m", "trb_mlx", "train", "-c", "small", "--name", "run"]
            command += [part for each in given for part in ("--set", each)]
            known = [*(reached or ports)]
            known[rank] = ports[rank]
            hosts = folder / f"hosts{rank}.json"
            hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in known]))
            launcher = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if size > 1 else {}
            with self.outputs[rank].open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        command + ["--resume"] * resume,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=os.environ | launcher | {"TRB_MLX_RANK_TIMEOUT": str(TIMEOUT_S)},
                    )
                )

    def wait_for(self, text: str, timeout: float = 120.0) -> None:
        """Return once rank 0 has written `text`.

        Raises:
            AssertionError: it ended without, or takes too long.
        """
        until = time.monotonic() + timeout
        while text not in self.outputs[0].read_text():
            assert self.processes[0].poll() is None, self.outputs[0].read_text()
            assert time.monotonic() < until, self.outputs[0].read_text()
            time.sleep(0.02)

    def end(self, timeout: float = DEADLINE_S) -> list[Ended]:
        """Wait for all ranks.

        Raises:
            AssertionError: one is still there after `timeout` seconds; it is killed.
        """
        until, late = time.monotonic() + timeout, []
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late.append(rank)
        outputs = [output.read_text() for output in self.outputs]
        assert not late, f"ranks {late} were still there after {timeout:.0f} s: {outputs}"
        return [Ended(p.returncode, o) for p, o in zip(self.processes, outputs, strict=True)]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def adapter(folder: Path) -> bytes:
    """What a run has learnt."""
    return (folder / "run/adapters/adapters.safetensors").read_bytes()


def finish(folder: Path, size: int, resume: bool = False, settings: Sequence[str] = ()) -> bytes:
    """Run to the end; what was learnt."""
    for ended in Run(folder, size, settings, resume=resume).end(300):
        assert ended.code == 0, ended.output
    return adapter(folder)


def kill(folder: Path, rank: int, delay: float, reference: bytes, by: int = signal.SIGKILL) -> str:
    """Send a signal to a rank some seconds after the first step began; resume on one rank.

    Returns:
        Rank 0's last line, or its exit code where it was the one.

    Raises:
        AssertionError: a rank hangs, says nothing, or the resumed run has other bits.
    """
    run = Run(folder, 2)
    run.wait_for("step 1 begins")
    time.sleep(delay)
    over = run.processes[rank].poll() is not None
    run.processes[rank].send_signal(by)
    ended = run.end()
    survivor = ended[1 - rank]
    if survivor.code == 0:  # the other was killed on its way out
        assert adapter(folder) == reference, "a rank ended well before the run was over"
    elif not over and ended[rank].code != 0:
        assert survivor.code != -signal.SIGKILL, survivor
        assert f"rank {rank} (process" in survivor.output, survivor.output
    assert finish(folder, 1, resume=True) == reference, "the resumed run has other bits"
    return " ".join(survivor.output.split())[-160:]


def main() -> None:
    """Kill at seeded moments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds after the first step")
    given = parser.parse_args()
    draws = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        reference = finish(root / "reference", 1)
        for number in range(given.kills):
            rank, delay = number % 2, draws.uniform(0.0, given.longest)
            last = kill(root / str(number), rank, delay, reference)
            print(f"{number + 1:3d}: rank {rank} after {delay:.2f} s: {last}", flush=True)


if __name__ == "__main__":
    main()
