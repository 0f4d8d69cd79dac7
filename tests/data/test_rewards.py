"""What counts as a right answer, and a verifier that neither hangs nor breaks."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

from trb_mlx.data import rewards
from trb_mlx.data.arithmetic import problems
from trb_mlx.data.rewards import MATH_VERIFY, REASONING_GYM, WORKER, Verifier
from trb_mlx.errors import UserError

# A worker that says it is ready, then sleeps at the word `slow`, dies at `die`, and else says yes.
STUB = """
import json, os, sys, time
print("true", flush=True)
for line in sys.stdin:
    text = json.loads(line)["candidates"][0]
    if "slow" in text: time.sleep(600)
    if "die" in text: os._exit(1)
    print("true", flush=True)
"""


def score_all(verifier: Verifier, items: Sequence[tuple[str, str]]) -> list[float]:
    return [verifier.score(*item) for item in items]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as verifier:
        yield verifier


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Verifier]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    with Verifier(timeout_s=0.5, script=script) as verifier:
        yield verifier


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Verifier:
    """A verifier that fails the test should it start its worker."""

    def refuse(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(rewards, "_Worker", refuse)
    return Verifier()


# Verdicts without a worker


def test_worked_solutions_of_the_generator_are_right(idle: Verifier) -> None:
    pairs = [(problem.solution, problem.answer) for problem in problems("train", 50, seed=1)]
    assert score_all(idle, pairs) == [1.0] * 50


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("Answer: 17", "17", 1.0),
        ("Answer: 18", "17", 0.0),
        ("17\nAnswer: 18", "17", 0.0),
        ("\\boxed{1,234.50}", "1234.5", 1.0),
        ("#### 1{,}200", "1200", 1.0),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}", 1.0),
        ("Answer: 17", "17 * 1 = 17\n#### 17", 1.0),
        ("no idea at all", "17", 0.0),
        ("", "17", 0.0),
        ("<think>", "x", 0.0),
        ("I think so.\nYes.", "yes", 1.0),
        ("Answer: \\text{true}", "True", 1.0),
        ("\\boxed{18\\text{ dollars}}", "18", 1.0),
        ("Answer: 18", "18 dollars", 1.0),
        ("\\boxed{45°}", "45^{\\circ}", 1.0),
        ("\\boxed{-2½}", "-\\frac{5}{2}", 1.0),
        ("\\boxed{3\\frac{1}{4}}", "3.25", 1.0),
        ("\\boxed{x²}", "x^{2}", 1.0),
        ("\\boxed{0.5}", "1/2", 1.0),
    ],
)
def test_numbers_and_equal_texts_need_no_worker(
    idle: Verifier, response: str, answer: str, expected: float
) -> None:
    assert idle.score(response, answer) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>it is \\boxed{7}</think>\nThe answer is 8.", 0.0),
        ("<think>it is \\boxed{7}, or is it", 0.0),
        ("<think>#### 7</think>Answer: 8", 0.0),
        ("it was \\boxed{7}</think> so 8", 0.0),
        ("<think>it is \\boxed{8}</think>Answer: 7", 1.0),
        ("<think>a</think>b<think>\\boxed{8}</think>\\boxed{7}", 1.0),
        ("Answer: 7\n<think>or \\boxed{8}", 1.0),
    ],
)
def test_thoughts_do_not_answer(verifier: Verifier, response: str, expected: float) -> None:
    assert verifier.score(response, "7") == expected


# Verdicts of math-verify


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("\\boxed{0.5}", "\\frac{1}{2}", 1.0),
        ("\\boxed{x+1}", "1 + x", 1.0),
        ("\\boxed{x-1}", "1 + x", 0.0),
        ("\\boxed{3, 1}", "1, 3", 1.0),
        ("\\boxed{(1, 2)}", "(2, 1)", 0.0),
        ("Answer: \\frac{2}{4}", "0.5", 1.0),
        ("#### 18 dollars", "18", 1.0),
        ("so it is 17", "17", 1.0),
        ("so it is 18", "17", 0.0),
        ("hence the limit is $\\pi$", "\\pi", 1.0),
        ("\\boxed{)(}{", "1", 0.0),
        ("\\boxed{x² + 1}", "x^2+1", 1.0),
        ("\\boxed{2 1/2}", "1", 0.0),
        ("Answer: 18 million", "18", 0.0),
        ("Answer: 17 or 18", "17", 0.0),
        ("\\boxed{" + "1+" * 5000 + "1}", "5001", 0.0),
        ("\ud800 \x00 1", "2", 0.0),
    ],
)
def test_mathematics_is_compared_as_mathematics(
    verifier: Verifier, response: str, answer: str, expected: float
) -> None:
    assert verifier.score(response, answer) == expected


def test_it_works_outside_the_main_thread(verifier: Verifier) -> None:
    scores: list[float] = []
    pairs = [("\\boxed{0.5}", "1/2"), ("\\boxed{0.6}", "1/2")]
    threads = [
        threading.Thread(target=lambda: scores.extend(score_all(verifier, pairs))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scores) == [0.0] * 4 + [1.0] * 4


def test_a_tower_of_powers_does_not_stop_the_run() -> None:
    with Verifier(timeout_s=2.0) as verifier:
        assert score_all(verifier, [("\\boxed{9^{9^{9}}}", "1"), ("\\boxed{0.5}", "1/2")]) == [0, 1]
        assert verifier.timeouts == 1


# The worker's life


def test_a_hanging_item_scores_zero_and_the_run_goes_on(stub: Verifier) -> None:
    started = time.monotonic()
    pairs = [("\\boxed{a}", "x"), ("\\boxed{slow}", "x"), ("\\boxed{b}", "x")]
    assert score_all(stub, pairs) == [1.0, 0.0, 1.0]
    assert stub.timeouts == 1
    assert time.monotonic() - started < 20


def test_an_item_that_hung_once_is_not_waited_for_again(stub: Verifier) -> None:
    started = time.monotonic()
    assert score_all(stub, [("\\boxed{slow}", "x")] * 100 + [("\\boxed{b}", "x")]) == [
        0.0
    ] * 100 + [1]
    assert stub.timeouts == 100
    assert time.monotonic() - started < 25, "100 items of 0.5 s are 50 s"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux limits memory")
@pytest.mark.parametrize("library", [MATH_VERIFY, REASONING_GYM])
def test_a_worker_refuses_memory_beyond_its_limit(library: str) -> None:
    if library == REASONING_GYM:
        pytest.importorskip("reasoning_gym")
    code = (
        f"import runpy; worker = runpy.run_path({str(WORKER)!r}, run_name='worker')\n"
        f"worker['SCORERS'][{library!r}](); worker['_limit_memory']()\n"
        "small = bytearray(2**28)\n"
        "try: bytearray(2**31)\n"
        "except MemoryError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr


def test_a_dead_worker_is_replaced_and_is_no_timeout(stub: Verifier) -> None:
    assert score_all(stub, [("\\boxed{die}", "x"), ("\\boxed{b}", "x")]) == [0.0, 1.0]
    assert stub.timeouts == 0


def test_a_worker_killed_between_items_costs_nothing(stub: Verifier) -> None:
    assert stub.score("\\boxed{a}", "x") == 1.0
    (worker,) = stub._workers.values()
    worker._process.kill()
    worker._process.wait()
    assert stub.score("\\boxed{a}", "x") == 1.0


def test_one_worker_serves_all_items_and_ends_on_close(stub: Verifier) -> None:
    stub.score("\\boxed{a}", "x")
    (first,) = stub._workers.values()
    stub.score("\\boxed{b}", "x")
    assert list(stub._workers.values()) == [first]
    stub.close()
    stub.close()
    assert not first.alive()
    assert stub.score("\\boxed{a}", "x") == 1.0, "a closed verifier may be used again"


def test_the_worker_ends_with_its_parents_pipe_and_ignores_ctrl_c() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-P", str(WORKER), MATH_VERIFY, "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"true\n"
    worker.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert worker.poll() is None
    worker.communicate(timeout=10)
    assert worker.returncode == 0


def test_a_worker_without_its_parent_gives_up_even_inside_one_long_multiplication() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-P", str(WORKER), MATH_VERIFY, "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    worker.communicate(b'{"gold": "$1$", "candidates": ["$9^{9^{9}}$"]}\n', timeout=30)
    assert worker.returncode == -signal.SIGALRM


def test_the_worker_loads_no_mlx(tmp_path: Path) -> None:
    code = (
        f"import runpy, sys, io; sys.argv = ['w', {MATH_VERIFY!r}, '5']; sys.stdin = io.StringIO()"
        "\n"
        f"runpy.run_path({str(WORKER)!r}, run_name='__main__')\n"
        "sys.exit(any(name.split('.')[0] in ('mlx', 'trb_mlx') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_math_verify_numbers_are_scored_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "missing.py"
    script.write_text('print("false")')
    with Verifier(script=script) as verifier:
        pairs = [("\\boxed{x+1}", "1+x"), ("\\boxed{1/2}", "1/2"), ("\\boxed{x}", "1/2")]
        assert score_all(verifier, [*pairs, ("Answer: 17", "17")]) == [0.0, 1.0, 0.0, 1.0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pip install math-verify" in caplog.text


def test_among_ranks_a_library_that_is_installed_has_to_start(tmp_path: Path) -> None:
    """One rank alone would score otherwise; where none has the library, all score alike."""
    script = tmp_path / "broken.py"
    script.write_text('print("false")')
    with Verifier(script=script, strict=True) as verifier:
        assert verifier.score("Answer: 17", "17") == 1.0
        with pytest.raises(UserError, match="math-verify is installed here and did not start"):
            verifier.score("\\boxed{x+1}", "1+x")
    absent = patch.object(rewards, "_is_installed", lambda library: False)
    with absent, Verifier(script=script, strict=True) as verifier:
        assert verifier.score("\\boxed{x+1}", "1+x") == 0.0


def test_a_marked_gold_asks_for_a_marked_answer() -> None:
    with Verifier() as verifier:
        assert verifier.score("5+12=17\nAnswer: 17", "Answer: 17") == 1.0
        assert verifier.score("5+12=17", "Answer: 17") == 0.0
        assert verifier.score("5+12=17\nAnswer: 18", "Answer: 17") == 0.0
