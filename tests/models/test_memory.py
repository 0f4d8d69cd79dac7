"""Where the size of the memory comes from."""

from __future__ import annotations

import mlx.core as mx
import pytest

from trb_mlx.models.memory import machine_memory


@pytest.mark.parametrize("name", ["memory_size", "total_memory"])
def test_a_gpu_tells_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {name: 7})
    assert machine_memory() == 7
    monkeypatch.setattr(mx, "device_info", lambda: {})
    assert machine_memory() > 2**28
