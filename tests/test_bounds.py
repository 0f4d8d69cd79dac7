"""One number bounds every array as wide as the vocabulary."""

from __future__ import annotations

import mlx.core as mx
import pytest

from trb_mlx import bounds
from trb_mlx.bounds import bounded, chunk_tokens, most_rows, rows_at_once


def test_a_chunk_fills_its_bytes() -> None:
    assert chunk_tokens(1024, chunk_bytes=2**20) == 256
    assert chunk_tokens(1024, models=2, chunk_bytes=2**20) == 128
    assert chunk_tokens(10**9, chunk_bytes=2**20) == 1


def test_a_cpu_takes_fewer_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CPU_ENTRIES", 1000)
    assert [rows_at_once(vocab) for vocab in (100, 333, 1001, 10**6)] == [10, 3, 1, 1]
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert rows_at_once(151_936) == most_rows(151_936) == 110


@pytest.mark.parametrize("device", [mx.cpu, mx.gpu])
def test_nothing_is_above_the_number(
    device: mx.DeviceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    for vocab in (448, 49_152, 151_936, 262_144):
        for mebibytes in (64, 16, 1.5):
            with bounded(mebibytes):
                for rows in (most_rows(vocab), rows_at_once(vocab), 2 * chunk_tokens(vocab, 2)):
                    assert rows * vocab <= max(mebibytes * 2**18, 2 * vocab)
    assert most_rows(1) == bounds.MOST_ENTRIES
