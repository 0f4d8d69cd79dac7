"""Without a back end of MLX, one sentence says which extra to install; else what it computes on."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import pytest

from trb_mlx.backend import METAL_ENVIRONMENT, on_metal
from trb_mlx.doctor.machine import back_end
from trb_mlx.models.memory import machine_memory, wired_memory

WITHOUT = "import sys; sys.modules['mlx.core'] = None; sys.argv[1:] = ['doctor']; "
SENTENCE = "trb-mlx found no MLX back end"


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_use_names_the_extras() -> None:
    done = run("import trb_mlx; print('imported'); trb_mlx.train")
    assert done.stdout == "imported\n"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {SENTENCE}")
    assert "cpu" in last
    assert "cuda13" in last


def test_the_console_script_prints_the_sentence_alone() -> None:
    done = run("from trb_mlx.__main__ import main; main()")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert SENTENCE in done.stderr


METAL = """
import os, sys
sys.platform = "darwin"
os.environ["MLX_MAX_MB_PER_BUFFER"] = "25"
import trb_mlx
from trb_mlx.backend import METAL_ENVIRONMENT
assert "mlx.core" not in sys.modules
trb_mlx.blend_logprobs
print({name: os.environ.get(name) for name in METAL_ENVIRONMENT})
"""


@pytest.mark.parametrize("system", ["darwin", "linux"])
def test_metals_environment_is_set_on_a_mac_before_it_starts(system: str) -> None:
    code = METAL.replace("darwin", system)
    command = [sys.executable, "-c", code]
    environment = {n: v for n, v in os.environ.items() if n not in METAL_ENVIRONMENT}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    values = METAL_ENVIRONMENT if system == "darwin" else dict.fromkeys(METAL_ENVIRONMENT)
    assert done.stdout == f"{values | {'MLX_MAX_MB_PER_BUFFER': '25'}}\n"


def test_a_mac_that_computes_on_its_cpu_is_asked_for_nothing_of_metals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "arm64"})
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.append(limit) or 0)
    with wired_memory():
        pass
    assert limits == []
    assert back_end() == "CPU"
    assert machine_memory() > 2**28


def test_on_metal_memory_is_wired_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 7})
    monkeypatch.setattr(mx, "synchronize", lambda: None)
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.append(limit) or 3)
    assert on_metal()
    with wired_memory():
        assert limits == [5]  # 85% of it
    assert limits == [5, 3]
