"""A process that damages files and runs commands on them, and the one that watches over it.

The worker prints a JSON line before and after each case. Its parent ends it where a case takes too
long and does not heed a signal, and starts another behind that case.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20.0  # of processor time, so that a busy machine does not count
BYTES = 3 * 2**30
PATIENCE = 120  # seconds of silence until a worker counts as hanging


@dataclass(frozen=True)
class Case:
    """What one damaged file led to.

    `fault` is empty where the command succeeded or gave one sentence; `sentence` is that.
    """

    target: str
    number: int
    command: str
    seconds: float
    sentence: str = ""
    fault: str = ""


class TooLong(BaseException):
    """A case took more than its seconds."""


def run_cases(root: Path, seed: int, targets: Sequence[str], count: int) -> Iterator[Case]:
    """Yield `count` cases of each target, whatever happens to the processes that run them."""
    plan = [(name, number) for name in targets for number in range(count)]
    while plan:
        for case in _watch(root, seed, plan):
            yield case
            plan = plan[1:]


def _watch(root: Path, seed: int, plan: Sequence[tuple[str, int]]) -> Iterator[Case]:
    """The cases that one worker got through; the one that ended it is the last."""
    log = root.with_name(f"{root.name}.log")
    with log.open("wb") as errors:
        worker = subprocess.Popen(
            [sys.executable, __file__, str(root), str(seed), json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    going: dict[str, Any] = {}
    done, begun = 0, time.monotonic()
    try:
        for line in _lines(worker):
            going = json.loads(line)
            begun = time.monotonic()
            if "seconds" in going:
                yield Case(**going)
                going, done = {}, done + 1
        if going:
            fault = f"hangs or ends the process ({worker.wait()}): {log.read_text()[-2000:]}"
            yield Case(**going, seconds=time.monotonic() - begun, fault=fault)
        elif done < len(plan):
            raise RuntimeError(f"the worker ended between cases: {log.read_text()[-2000:]}")
    finally:
        worker.kill()
        worker.communicate()


def _lines(worker: subprocess.Popen[str]) -> Iterator[str]:
    """Lines until the worker ends, or is silent for too long (it makes the files first)."""
    assert worker.stdout is not None
    before = signal.signal(signal.SIGALRM, lambda *_: worker.kill())
    try:
        signal.alarm(PATIENCE)
        for line in worker.stdout:
            signal.alarm(PATIENCE)
            yield line
        worker.wait()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Make the files where they are not there yet, and run the cases of the plan."""
    root, seed, plan = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    sys.path[0] = str(Path(__file__).parent.parent)
    home = root / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}
    os.environ |= {"HOME": str(home), "TMPDIR": str(home)}  # for the libraries' caches
    from fuzz.corpus import make_corpus
    from fuzz.targets import TARGETS

    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if not (root / "corpus").exists():
        draft = root / f"draft-{os.getpid()}"
        draft.mkdir()
        os.chdir(draft)
        make_corpus(draft)
        os.chdir(root)
        draft.rename(root / "corpus")
    place = root / f"place-{os.getpid()}"
    signal.signal(signal.SIGPROF, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + BYTES, resource.RLIM_INFINITY))
    for name, number in plan:
        target, rng = TARGETS[name], random.Random(f"{seed} {name} {number}")
        command = rng.choice(target.commands)
        about = {"target": name, "number": number, "command": command}
        print(json.dumps(about), file=report, flush=True)
        shutil.copytree(root / "corpus", place / "case")
        os.chdir(place / "case")
        path = rng.choice(sorted(Path().glob(target.pattern)))
        path.write_bytes(target.mutate(path.read_bytes(), rng))
        found = _run(command)
        os.chdir(root)
        beside = sorted(entry.name for entry in place.iterdir() if entry.name != "case")
        if beside and not found["fault"]:
            found["fault"] = f"wrote {beside} beside the folder it was to work in"
        shutil.rmtree(place)
        print(json.dumps(about | found), file=report, flush=True)


def _run(command: str) -> dict[str, Any]:
    """`seconds`, `sentence` and `fault` of one command in this process."""
    from click.testing import CliRunner

    from trb_mlx.cli import main as trb

    noise, begun = os.fstat(2).st_size, time.process_time()
    fault, sentence = "", ""
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        done = CliRunner().invoke(trb, command.split())
        signal.setitimer(signal.ITIMER_PROF, 0)
        sentence, fault = _judge(done)
        if os.fstat(2).st_size > noise and not fault:
            fault = "a library wrote to standard error past Python"
    except TooLong:
        fault = f"took more than {SECONDS:.0f} s"
    except BaseException:  # pyo3's panics are not Exceptions
        fault = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"seconds": time.process_time() - begun, "sentence": sentence, "fault": fault}


def _judge(done: Any) -> tuple[str, str]:
    """(sentence, fault) of what a command did."""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return "", "".join(traceback.format_exception(*done.exc_info))
    if done.exit_code == 0:
        return "", ""
    lines = done.stderr.splitlines()
    own = [line.removeprefix("trb-mlx: ") for line in lines if line.startswith("trb-mlx: ")]
    sentence = " ".join(own)  # a config may hold several mistakes
    if "Traceback" in done.stderr or "fault in trb-mlx" in sentence:
        return sentence, done.stderr
    if done.exit_code not in (1, 2) or not own or not lines[-1].endswith(own[-1]):
        return sentence, f"exit code {done.exit_code}, {done.stderr!r}"
    if any(len(each) > 1000 for each in own):
        return sentence, f"a sentence of {len(sentence)} characters"
    if "more memory than" in sentence or "alloc" in sentence or "memory is not" in sentence:
        return sentence, f"asked for more than {BYTES >> 30} GiB: {sentence}"
    return sentence, ""


def _too_long(*_: Any) -> None:
    raise TooLong


def _address_space() -> int:
    """Bytes of address space in use (Linux; elsewhere the limit is of no use and left wide)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**40


if __name__ == "__main__":
    main()
