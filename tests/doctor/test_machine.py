"""Facts of the machine, and advice that follows from them alone."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest

from trb_mlx.doctor import machine


def told(**changes: object) -> str:
    usual = {
        "back end": "CPU",
        "float32 products (GFLOP/s)": 100.0,
        "C++ compiler": "g++",
        "memory (GiB)": 16.0,
    }
    names = {"gflops": "float32 products (GFLOP/s)", "compiler": "C++ compiler"}
    given = {names.get(name, name.replace("_", " ")): value for name, value in changes.items()}
    return "\n".join(machine.advice({**usual, **given}))


def test_facts_name_no_one() -> None:
    found = machine.facts()
    text = str(found)
    assert found["float32 products (GFLOP/s)"] > 0
    assert found["mlx"].startswith("0.")
    assert str(Path.home()) not in text
    assert socket.gethostname() not in {str(value) for value in found.values()}
    assert getpass.getuser() not in {str(value) for value in found.values()}


def test_slow_products_on_linux_mean_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert told() == ""
    assert "LD_PRELOAD=" in told(gflops=3.0)
    monkeypatch.setattr(machine, "LIBRARIES", ("/nowhere", "*.so"))
    assert "libopenblas0-pthread" in told(gflops=3.0)
    monkeypatch.setenv("LD_PRELOAD", "/x/libopenblas.so.0")
    assert "busy" in told(gflops=3.0)
    assert told(gflops=3.0, back_end="CUDA") == ""
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    assert told(gflops=3.0) == ""


def test_no_compiler_matters_on_a_cpu() -> None:
    assert "train.compile" in told(compiler="none")
    assert told(compiler="none", back_end="CUDA") == ""


def test_the_working_set_is_metals_alone() -> None:
    limit = {"recommended working set (GiB)": 10.7}
    assert "iogpu.wired_limit_mb" in "\n".join(
        machine.advice({"back end": "Metal", "memory (GiB)": 16.0, "C++ compiler": "none", **limit})
    )
    assert "iogpu" not in told(**limit)


def test_how_metal_was_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "40")
    monkeypatch.setenv("MLX_MAX_MB_PER_BUFFER", "25")
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    settings = machine.metal_settings()
    assert settings == {"command buffers": "40 operations, 25 MB", "GPU watchdog": "relaxed"}
    assert "display" not in told(**settings)
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "0")
    watchdog = machine.metal_settings()["GPU watchdog"]
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT" in told(GPU_watchdog=watchdog)


def test_tf32_is_named_where_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._many_rows() == "float32, as those of one row"
    monkeypatch.setattr(machine, "product_rounding", lambda: 1e-4)
    assert machine._many_rows() == "TF32 (10 bits), those of one row too"
    monkeypatch.setattr(machine, "row_gap", lambda dtype: 1e-4)
    assert machine._many_rows() == "TF32 (10 bits), those of one row not"
    named = {"float32 products of many rows": machine._many_rows()}
    assert "MLX_ENABLE_TF32=0" in told(**named)
