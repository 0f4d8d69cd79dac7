"""`trb-mlx eval`, end to end through the console script."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from cli.conftest import Run, assert_one_sentence, script, wait_for
from tiny import make_model

STUDENT, TEACHER = "bundled:arithmetic-student", "bundled:arithmetic-teacher"
EVAL = ["eval", STUDENT, "--teacher", TEACHER, "--data=arithmetic", "--limit=16", "-n", "2"]
EVAL += ["-m", "40", "--pass-k", "1,2", "--out", "kept", "--set", "rollout.batch_size=4"]


def kept(root: Path) -> dict[str, str]:
    """Every file of the one evaluation under a folder."""
    (folder,) = (root / "kept").iterdir()
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nothing interrupts."""
    root = tmp_path_factory.mktemp("whole")
    done = subprocess.run([script(), *EVAL], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (root / "output.txt").write_text(done.stdout)
    return root


def test_it_prints_a_table_and_keeps_lines_and_result(whole: Path) -> None:
    output = (whole / "output.txt").read_text()
    files = kept(whole)
    assert set(files) == {"settings.json", "problems.jsonl", "result.json"}
    result = json.loads(files["result.json"])
    lines = [json.loads(line) for line in files["problems.jsonl"].splitlines()]
    assert [line["problem"] for line in lines] == list(range(16))
    rewards = [reward for line in lines for reward in line["rewards"]]
    assert result["pass@1"] == sum(rewards) / len(rewards)
    assert result["pass@2"] == sum(any(line["rewards"]) for line in lines) / 16
    for name in ("pass@1", "pass@2", "mean_length", "reverse_kl", "forward_kl", "topk_overlap"):
        low, high = result["intervals"][name]
        assert low <= result[name] <= high
        assert name in output
    assert result["reverse_kl"] > 1.0  # the student drifts off what its teacher does


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_and_given_again_equals_uninterrupted(
    whole: Path, trb: Run, tmp_path: Path, number: int
) -> None:
    process = subprocess.Popen([script(), *EVAL], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def lines() -> list[Path]:
        return list(tmp_path.glob("kept/*/problems.jsonl"))

    wait_for(lambda: any(path.read_text().count("\n") >= 4 for path in lines()))
    found = lines()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert "stopped by SIGINT; the same command goes on from here." in errors
        assert "Traceback" not in errors
    done = found[0].read_text().count("\n")
    assert 4 <= done < 16
    assert not (found[0].parent / "result.json").exists()
    with found[0].open("a") as file:
        file.write('{"problem": 5, "rew')  # a line that the disk got half of
    again = trb(*EVAL)
    assert again.returncode == 0, again.stderr
    assert kept(tmp_path) == kept(whole)
    assert again.stdout == (whole / "output.txt").read_text()


def test_other_settings_never_mix_and_equal_ones_are_reused(whole: Path, trb: Run) -> None:
    before = kept(whole)
    for arguments in ([], ["--top-p=0.5"], ["--seed=1"]):
        done = trb(*EVAL, "--limit=4", "--out", str(whole / "others"), *arguments)
        assert done.returncode == 0, done.stderr
    assert len(list((whole / "others").iterdir())) == 3
    assert trb(*EVAL, "--out", str(whole / "kept")).returncode == 0
    assert kept(whole) == before


def test_top_p_near_zero_takes_the_likeliest_token(trb: Run) -> None:
    """The student is right nine times in ten where nothing is left to chance."""
    arguments = ["--data=arithmetic", "--limit=40", "-m", "48", "--json"]
    chance, greedy = (
        json.loads(trb("eval", STUDENT, *arguments, *more).stdout)["pass@1"]
        for more in ([], ["--top-p=0.000001"])
    )
    assert greedy >= 0.7 > chance


def test_files_and_generated_families(trb: Run, tmp_path: Path) -> None:
    rows = [{"question": f"Compute {n}+1.", "answer": f"... #### {n + 1}"} for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = str(make_model(tmp_path / "model"))
    for data in ("mine.jsonl", "generated:gym/chain_sum"):
        done = trb("eval", model, "--data", data, "--limit=3", "-m", "4", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["problems"], found["pass@1"]) == (3, 0.0)
        assert found["intervals"]["pass@1"][1] > 0.5  # three failures say little
    done = trb("eval", model, "--data", "mine.jsonl", "--max-tokens=9000", "--json")
    assert "answers end after" in done.stderr


def test_at_temperature_0_there_is_one_answer_a_problem(trb: Run) -> None:
    done = trb(
        "eval", STUDENT, "--data=arithmetic", "--limit=4", "-m4", "--temp=0", "-n8", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["temperature"], found["samples"], found["problems"]) == (0.0, 1, 4)
    assert "temperature 0: one answer a problem, for all 8 would be alike" in done.stderr
    assert "warning: 100% of the rollouts were cut at 4 tokens" in done.stderr
    assert "warning: no answer was right" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "gsm9k"], "gsm9k"),
        (["--data", "bare.jsonl"], "bare.jsonl:1 has no prompt column"),
        (["--data", "bare.jsonl", "--set", "data.eval.prompt_column=word"], "did you mean words?"),
        (["--data", "plain.jsonl"], "no gold answers"),
        (["--data", "arithmetic", "--pass-k", "1,x"], "--pass-k 1,x: expected whole numbers"),
        (["--data", "arithmetic", "--pass-k", "4"], "needs at least 4 samples a problem"),
        (["--data", "arithmetic", "--temp", "0", "-n", "8", "--pass-k", "4"], "all are alike"),
        (["--data", "arithmetic", "--distribution"], "--distribution needs --teacher MODEL"),
        (["--data", "arithmetic", "--out", "a-file/x"], "cannot be read: Not a directory"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a-file").write_text("")
    (tmp_path / "bare.jsonl").write_text('{"words": "x", "other": 1}\n')
    (tmp_path / "plain.jsonl").write_text('{"prompt": "Compute 1+2."}\n')
    assert_one_sentence(["eval", STUDENT, "-m", "4", *arguments], expected)
