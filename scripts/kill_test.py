"""Kill a training run at every kind of moment, go on with it, and compare it bit for bit.

    python scripts/kill_test.py --random 8 --seed 0

A run of the bundled pair is ended by SIGKILL, SIGINT, SIGTERM, SIGHUP and SIGINT twice: at aimed
moments (before or after a call of a named function) and at seeded ones by the clock. Then the same
command goes on with --resume. Adapters, checkpoints, samples and digests must be byte for byte
those of an uninterrupted run, metrics apart from clocks and memory. A signal that can be caught has
to end in one sentence and the shell's code. At last two processes train one run at the same time:
the second has to be refused, and the first to end as if alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNALS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}
# name → (module, attribute, the call that is meant, whether the signal comes after it)
AIMS = {
    "start: an import": ("", "trb_mlx.cli.train", 1, False),
    "start: the student loads": ("trb_mlx.training.session", "load_model", 1, True),
    "start: before the config is kept": ("trb_mlx.training.session", "write_config", 1, False),
    "start: after the config is kept": ("trb_mlx.training.session", "write_config", 1, True),
    "evaluation, the first": ("trb_mlx.evaluation.evaluator", "held_out_rollouts", 1, True),
    "evaluation, a later one": ("trb_mlx.evaluation.evaluator", "held_out_rollouts", 3, True),
    "rollout, at its begin": ("trb_mlx.training.rollouts", "sample_blended", 2, False),
    "rollout, amid its rounds": ("trb_mlx.rollout.draft_length", "Adaptive.observe", 9, True),
    "update, before it is applied": ("trb_mlx.training.step", "Stepper._apply", 2, False),
    "update, after it was applied": ("trb_mlx.training.step", "Stepper._apply", 3, True),
    "metrics, before the line": ("trb_mlx.training.callbacks.writers", "append_lines", 4, False),
    "metrics, after the line": ("trb_mlx.training.callbacks.writers", "append_lines", 4, True),
    "save, the first array": ("trb_mlx.runs.checkpoint", "save_arrays", 1, True),
    "save, a later array": ("trb_mlx.runs.checkpoint", "save_arrays", 4, True),
    "save, between its two parts": (
        "trb_mlx.training.callbacks.checkpoints",
        "save_adapters",
        1,
        False,
    ),
    "save, between the adapters": ("trb_mlx.adapters.mlx_lm", "save_arrays", 2, True),
    "save, old ones go": ("trb_mlx.runs.checkpoint", "checkpoints", 2, True),
    "rename, before it": ("os", "replace", 6, False),
    "rename, after it": ("os", "replace", 6, True),
    "flush, before a rename": ("trb_mlx.files", "sync", 9, False),
}
CONFIG = """
teacher: {model: bundled:arithmetic-teacher}
student: {model: bundled:arithmetic-student}
data: {train: {limit: 24}}
rollout: {max_tokens: 12, rollouts_per_prompt: 2}
behavior: {budget: 0.3, warmup_steps: 4}
train: {steps: 4, prompts_per_step: 2, learning_rate: 0.0005, deterministic: true}
eval: {every: 2, prompts: 4, teacher: false}
run: {save_every: 1, sample_every: 1}
"""
TRAIN = ["train", "-c", "run.yaml"]
Finished = subprocess.CompletedProcess[str]
VARYING = ("time/", "memory/", "tokens_per_second", "cost/minutes", "cost/cpu_seconds")
# Runs `trb-mlx` with a signal to itself before or after a call, or after some seconds.
DRIVER = """
import importlib, json, os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs this may ignore it, as nohup does
aim, seconds, numbers, gap, arguments = json.loads(sys.argv[1])
def send():
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(gap)
def wrap(call, wanted, after):
    count = 0
    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == wanted and not after:
            send()
        result = call(*args, **kwargs)
        if count == wanted and after:
            send()
        return result
    return wrapped
class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == aim[1]:
            send()
from trb_mlx.__main__ import main
sys.argv = ["trb-mlx", *arguments]
if seconds is not None:
    threading.Thread(target=lambda: (time.sleep(seconds), send()), daemon=True).start()
elif aim and not aim[0]:
    sys.meta_path.insert(0, Importing())
elif aim:
    owner = importlib.import_module(aim[0])
    *outer, name = aim[1].split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, wrap(getattr(owner, name), *aim[2:]))
main()
"""


@dataclass(frozen=True)
class Kill:
    """One way to end a run: `signals` of SIGNALS at an aim of AIMS, or after some seconds."""

    signals: str
    aim: str | None = None
    seconds: float | None = None
    gap: float = 0.0  # seconds between two signals

    @property
    def where(self) -> str:
        """The moment in words."""
        return self.aim or "by the clock"


def aimed(seed: int) -> list[Kill]:
    """Every aim once with SIGKILL and once with a signal that is caught, chosen by the seed."""
    draw = random.Random(seed)
    caught = [name for name in SIGNALS if name != "SIGKILL"]
    return [
        Kill(signals, aim, gap=draw.choice([0.0, 0.2]))
        for aim in AIMS
        for signals in ("SIGKILL", draw.choice(caught))
    ]


def timed(seed: int, count: int, longest: float) -> list[Kill]:
    """`count` moments of the clock for each kind of signal, up to `longest` seconds."""
    draw = random.Random(seed)
    return [
        Kill(signals, seconds=draw.uniform(0.0, longest), gap=draw.uniform(0.0, 0.7))
        for signals in SIGNALS
        for _ in range(count)
    ]


def make_reference(root: Path) -> float:
    """Train without an interruption in `root/reference`; give the seconds it took."""
    folder = root / "reference"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(CONFIG)
    begun = time.monotonic()
    done = trb(folder, TRAIN)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - begun


def trb(folder: Path, arguments: Sequence[str], kill: Kill | None = None) -> Finished:
    """Run `trb-mlx` in a folder, with a signal to itself where one is asked for."""
    aim = None if kill is None or kill.aim is None else AIMS[kill.aim]
    numbers = [] if kill is None else [int(number) for number in SIGNALS[kill.signals]]
    told = [aim, kill and kill.seconds, numbers, kill.gap if kill else 0, list(arguments)]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(told)],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def try_kill(kill: Kill, root: Path) -> str | None:
    """What went wrong when a run was ended so and gone on with, or None."""
    with tempfile.TemporaryDirectory(dir=root) as place:
        folder = Path(place)
        shutil.copy(root / "reference/run.yaml", folder)
        done = trb(folder, TRAIN, kill)
        number = SIGNALS[kill.signals][0]
        ended = -number if number == signal.SIGKILL else 128 + number
        # By the clock, a signal may also come behind the end of the run.
        if done.returncode != ended and (kill.aim or done.returncode not in (0, -number)):
            return f"exit code {done.returncode}, expected {ended}: {done.stderr[-300:]}"
        if done.returncode == ended > 0:
            lines = done.stderr.strip().splitlines()
            if len(lines) != 1 or not lines[0].startswith("trb-mlx: stopped by"):
                return f"more or less than one sentence: {done.stderr[-300:]}"
        begun = (folder / "runs/run/config.yaml").exists()
        if done.returncode == ended > 0 and not begun and (folder / "runs/run").exists():
            return "a run that never began left its folder"
        again = trb(folder, [*TRAIN, "--resume"] if begun else TRAIN)
        if again.returncode:
            return f"it could not go on: {again.stderr[-300:]}"
        return difference(root / "reference/runs/run", folder / "runs/run")


def difference(whole: Path, resumed: Path) -> str | None:
    """The first file in which a resumed run differs from an uninterrupted one, or None."""
    names = [sorted(files(folder)) for folder in (whole, resumed)]
    if names[0] != names[1]:
        return f"files differ: {sorted(set(names[0]) ^ set(names[1]))}"
    for name in names[0]:
        first, second = ((folder / name).read_bytes() for folder in (whole, resumed))
        if name == "metrics.jsonl":
            first, second = steady(first), steady(second)
        elif name.endswith("state.json"):
            first, second = steady_state(first), steady_state(second)
        if first != second:
            return f"{name} differs"
    return None


def files(folder: Path) -> Iterator[str]:
    """The files of a run, but for its lock (which a killed process leaves)."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            yield path.relative_to(folder).as_posix()


def steady(content: bytes) -> bytes:
    """Metrics without what a clock or the memory decides."""
    lines = [json.loads(line) for line in content.decode().split("\n") if line]
    kept = [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines]
    return json.dumps(kept).encode()


def steady_state(content: bytes) -> bytes:
    """A checkpoint's counters without the costs that a clock decides."""
    state = json.loads(content)
    cost = {k: v for k, v in state["cost"].items() if k not in ("minutes", "cpu_seconds")}
    return json.dumps(state | {"cost": cost}).encode()


def try_two(root: Path) -> str | None:
    """What went wrong when two processes trained one run, or None."""
    with tempfile.TemporaryDirectory(dir=root) as place:
        folder = Path(place)
        shutil.copy(root / "reference/run.yaml", folder)
        aim = AIMS["rollout, amid its rounds"]
        told = json.dumps([aim, None, [int(signal.SIGSTOP)], 0, TRAIN])
        first = subprocess.Popen(
            [sys.executable, "-c", DRIVER, told], cwd=folder, stdout=subprocess.DEVNULL
        )
        os.waitpid(first.pid, os.WUNTRACED)  # it waits amid a step
        try:
            others = [trb(folder, [*TRAIN, *more]) for more in ([], ["--resume"])]
        finally:
            first.send_signal(signal.SIGCONT)
            first.wait(timeout=600)
        if "exists already" not in others[0].stderr or "another process" not in others[1].stderr:
            return f"the others were not refused: {[other.stderr[-300:] for other in others]}"
        return difference(root / "reference/runs/run", folder / "runs/run")


def main() -> int:
    """Try every kill, print what failed, and a table for docs/robustness.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=8, help="moments of the clock a signal")
    arguments = parser.parse_args()
    failed: list[str] = []
    tried: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        longest = make_reference(root)
        for kill in aimed(arguments.seed) + timed(arguments.seed, arguments.random, longest):
            trouble = try_kill(kill, root)
            tried[kill.where, kill.signals] += 1
            print(f"{trouble or 'same bits'}: {kill}", flush=True)
            failed += [f"{kill}: {trouble}"] if trouble else []
        trouble = try_two(root)
        print(f"two processes: {trouble or 'the second was refused'}")
        failed += [f"two processes: {trouble}"] if trouble else []
    print(table(tried))
    print(f"{sum(tried.values())} kills, {len(failed)} failures")
    print("\n".join(failed))
    return 1 if failed else 0


def table(tried: Counter[tuple[str, str]]) -> str:
    """Markdown: how many kills of each signal came at each moment."""
    rows = [f"| moment | {' | '.join(SIGNALS)} |", f"| --- |{' ---: |' * len(SIGNALS)}"]
    for where in dict.fromkeys(where for where, _ in tried):
        counts = [str(tried[where, signals] or "") for signals in SIGNALS]
        rows.append(f"| {where} | {' | '.join(counts)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
