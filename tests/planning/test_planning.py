"""A run's plan: from headers alone, near what a run takes, and kept to."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from plan_check import is_good, measure, setting
from plan_table import with_headers
from published_models import header_files

from trb_mlx import backend
from trb_mlx.config import ModelConfig
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model, outline_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.memory import limited_memory
from trb_mlx.planning.advice import savings
from trb_mlx.planning.machine import memory_size, other_mac, this_machine
from trb_mlx.planning.passes import block_passes, cache_bytes
from trb_mlx.planning.run import Planner, check_fits, plan_config
from trb_mlx.planning.shapes import adapter_bytes

# Config → the Mac that it is for, GiB, and the highest peak of its plan, MiB.
SHIPPED = {
    "qwen3-0.6b-16gb": (16, 8283),
    "qwen3-0.6b": (32, 12525),
    "qwen3-1.7b": (32, 13002),
    "qwen3-1.7b-64gb": (64, 25729),
    "qwen3.5-0.8b": (16, 6027),
    "qwen3.5-0.8b-from-9b": (16, 8575),
    "small": (8, 392),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_fits_the_mac_that_it_is_for(name: str, tmp_path: Path) -> None:
    memory, expected = SHIPPED[name]
    config = load_config(name) if name == "small" else with_headers(name, tmp_path)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    plan = plan_config(config, other_mac(memory * 2**30))
    assert plan.fits, plan.sentence()
    assert plan.memory.peak_bytes / 2**20 == pytest.approx(expected, rel=0.01)
    assert mx.get_peak_memory() - before < 20 * 2**20  # of GiBs of weights, none was made


def test_an_outline_counts_what_a_loaded_model_holds() -> None:
    section = ModelConfig(model="bundled:arithmetic-teacher")
    outline, model = outline_model(section), load_model(section)
    assert outline.nbytes() == model.nbytes()
    config = load_config("small")
    count = adapter_bytes(outline.module, config.lora)
    add_lora(model.module, config.lora, 0)
    assert count == model.nbytes() - outline.nbytes()
    assert mx.fast.scaled_dot_product_attention.__module__ == "mlx.core.fast"  # put back


def test_a_pass_is_counted_by_hand() -> None:
    outline = outline_model(ModelConfig(model="bundled:arithmetic-teacher"))
    block = block_passes(outline.module)[0]  # 96 wide, 3 heads of 32, 1 for keys, 224 inside
    # Inputs of norms and projections; queries, keys and values, and what their norms read; gate,
    # up, the gate activated and the product.
    floats = 4 * 96 + 96 + (96 + 2 * 32) + (96 + 32) + 4 * 224
    assert block.kept == 4 * floats
    assert block.score == 3 * 4
    assert cache_bytes(outline.module) == (3 * 2 * 32 * 4, 0.0)


def test_attention_without_a_kernel_holds_its_scores_once() -> None:
    rows, heads, length, width = 2, 4, 1024, 8
    x = mx.random.normal((rows, heads, length, width))
    with mx.stream(mx.cpu):
        mx.eval(x)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0, mask="causal"))
    scores = rows * heads * length * length * 4
    assert scores <= mx.get_peak_memory() - before <= 1.1 * scores


def test_the_plan_is_near_what_a_run_takes(tmp_path: Path) -> None:
    tail = setting("bundled", 300, 24, loss__mode="tail", train__prompts_per_step=2)
    planned, measured = measure(tmp_path, *tail)
    assert is_good(max(planned.values()), max(measured.values())), (planned, measured)


def test_a_size_is_read_or_refused() -> None:
    assert memory_size("16GB") == memory_size(" 16 GiB ") == 16 * 2**30
    with pytest.raises(UserError, match="--memory is 'much', expected a size such as 16GB"):
        memory_size("much")


def test_a_run_that_cannot_fit_is_refused_and_forced() -> None:
    config = load_config("small", [("run.memory_limit_gb", 0.1)])
    said: list[str] = []
    with pytest.raises(UserError, match=r"does not fit .*in evaluations; .*--force"):
        check_fits(config, False, said.append)
    check_fits(config, True, said.append)
    assert said[0].startswith("plan: does not fit this")
    assert len(said) == 2


def test_the_limit_is_set_on_a_gpu_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", lambda limit: limits.append(limit) or 5)
    with limited_memory(None, lambda line: pytest.fail(line)):
        pass
    assert limits == []  # a CPU has none
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 100})
    said: list[str] = []
    with limited_memory(None, said.append):
        assert limits == [85]
    assert limits == [85, 5]
    assert "run.memory_limit_gb" in said[0]
    assert this_machine().limit_bytes == 85


def test_a_mac_is_kept_awake_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "caffeinate"
    command.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/seen\nexec sleep 60\n")
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "platform", "darwin")
    with backend.kept_awake(False):
        assert not (tmp_path / "seen").exists()
    with backend.kept_awake(True):
        while not (tmp_path / "seen").exists() or not (tmp_path / "seen").read_text():
            pass
        assert (tmp_path / "seen").read_text().split() == ["-i", "-m", "-w", str(os.getpid())]


class _Hub(BaseHTTPRequestHandler):
    """One model; whoever reads more of its weights than their header is noted."""

    folder: Path
    read: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        if self.path.startswith("/api/models/"):
            files = [{"rfilename": f.name, "size": f.stat().st_size} for f in self.folder.iterdir()]
            text = json.dumps({"id": "some/model", "sha": "0" * 40, "siblings": files}).encode()
            return self.send(200, text, with_body)
        file = self.folder / self.path.rpartition("/")[2].partition("?")[0]
        if "some/model" not in self.path or not file.exists():
            return self.send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
        span = self.headers.get("Range", "")
        with file.open("rb") as stream:
            if span:
                first, last = map(int, span.removeprefix("bytes=").split("-"))
                stream.seek(first)
                body = stream.read(last - first + 1)
            else:
                body = stream.read(2**20)
        if with_body and file.suffix == ".safetensors":
            self.read.append((file.name, len(body)))
        return self.send(206 if span else 200, body, with_body, headers)

    def send(
        self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[type[_Hub]]:
    folder = header_files("Qwen/Qwen3-0.6B-Base", tmp_path)
    handler = type("Bound", (_Hub,), {"folder": folder, "read": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


PROGRAM = """
from trb_mlx.config_file import load_config
from trb_mlx.planning.machine import other_mac
from trb_mlx.planning.run import plan_config
models = [("student.model", "some/model"), ("teacher.model", "some/model")]
config = load_config(None, [*models, ("teacher.quantize", {"bits": 4})])
plan = plan_config(config, other_mac(2**34))
print(plan.download_bytes, plan.memory.phases["load"].parts["student"])
"""


def test_a_hub_model_is_planned_by_its_header(hub: type[_Hub], tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    download, student = map(int, done.stdout.split())
    assert student == 2 * 596_049_920  # bfloat16
    assert download > student
    assert sum(count for _, count in hub.read) < 200_000


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = [("student.model", "nobody/here"), ("teacher.model", "nobody/here")]
    with pytest.raises(UserError, match="nobody/here is neither a local folder nor in the Hub"):
        plan_config(load_config(None, models), other_mac(2**34))


def test_headers_are_read_once() -> None:
    config = load_config("small")
    with Planner() as planner:
        first = planner.plan(config, other_mac(2**34))
        lower = config.model_copy(
            update={"train": config.train.model_copy(update={"micro_batch_size": 1})}
        )
        second = planner.plan(lower, other_mac(2**34))
    assert first.student is second.student
    phases = [plan.memory.phases["update"].peak_bytes for plan in (first, second)]
    assert phases[1] < phases[0]


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({"eval.max_tokens": 400}, "eval"),
        ({"eval.teacher": True}, "eval"),
        ({"target.sft_steps": 5}, "rollout"),
    ],
)
def test_whoever_draws_is_counted(changes: dict[str, Any], phase: str) -> None:
    """An evaluation's longer answers, the teacher's own there, and those of an SFT warm-up."""
    base = {"behavior.kind": "vanilla", "eval.teacher": False, "teacher.dtype": "float32"}
    base |= {"student.dtype": "float16", "data.max_prompt_tokens": 16}
    without, given = (
        plan_config(load_config("small", list(pairs.items())), other_mac(2**34))
        for pairs in (base, base | changes)
    )
    assert given.memory.phases[phase].peak_bytes > without.memory.phases[phase].peak_bytes


def test_what_other_keys_forbid_is_no_saving() -> None:
    config = load_config(
        "small",
        [("rollout.max_tokens", 256), ("rollout.horizon", {"start": 200, "steps": 5})],
    )
    with Planner() as planner:
        plan = planner.plan(config, other_mac(2**34))
        assert "rollout.max_tokens" not in [each.key for each in savings(planner, plan)]
