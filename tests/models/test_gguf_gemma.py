"""Gemma 3 as llama.cpp's converter writes it: names, norms with one added, windows, two bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models.loading import load_model

pytest.importorskip("gguf")
from gguf_gemma import source, write

IDS = mx.array([[(7 * place) % 250 for place in range(24)]])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_source(tied: bool, tmp_path: Path) -> None:
    module = source(tied)
    write(tmp_path / "m.gguf", module)
    model = load_model(ModelConfig(model=str(tmp_path / "m.gguf")))
    np.testing.assert_allclose(
        np.asarray(model.module(IDS)), np.asarray(module(IDS)), atol=1e-3, rtol=1e-3
    )
    kinds = model.config["layer_types"]
    assert [kind == "full_attention" for kind in kinds] == [False] * 5 + [True, False]
    whole = source(tied, sliding_window=512)
    assert np.abs(np.asarray(whole(IDS) - module(IDS))).max() > 0.1  # the window is seen


@pytest.mark.parametrize(
    ("metadata", "config"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, {"factor": 8.0}),
        ({"rope.freq_base_swa": 500.0}, {"rope_local_base_freq": 500.0}),
        ({"attention.sliding_window_pattern": 2}, {"sliding_window_pattern": 2}),
        ({"rope.freq_base": None}, {"rope_theta": 10000.0}),
    ],
)
def test_what_the_metadata_says_is_taken(
    metadata: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    if "factor" in config:
        config = {"rope_scaling": {"rope_type": "linear", **config}}
    module = source(True, **config)
    write(tmp_path / "m.gguf", module, **metadata)
    logits = load_model(ModelConfig(model=str(tmp_path / "m.gguf"))).module(IDS)
    np.testing.assert_allclose(np.asarray(logits), np.asarray(module(IDS)), atol=1e-3, rtol=1e-3)
    assert np.abs(np.asarray(logits - source(True)(IDS))).max() > 0.01


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"attention.sliding_window": None}, "sliding_window is missing"),
        ({"attention.sliding_window_pattern": 9}, "it has 7 blocks, and none of full attention"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is set"),
    ],
)
def test_what_does_not_fit_is_told(metadata: dict[str, Any], expected: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", source(True), **metadata)
    with pytest.raises(UserError, match=expected):
        load_model(ModelConfig(model=str(tmp_path / "m.gguf")))
