"""Shared fixtures: tiny pairs of random-weight models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import make_model

from trb_mlx.config import ModelConfig
from trb_mlx.models.pair import Pair, load_pair


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base-like student and an instruct-like teacher with other EOS ids and padded rows."""
    root = tmp_path_factory.mktemp("models")
    student = make_model(root / "student", "llama", seed=1)
    teacher = make_model(
        root / "teacher", "qwen3", seed=2, eos=["<|im_end|>", "<|endoftext|>"], padding=5
    )
    return student, teacher


@pytest.fixture
def pair(folders: tuple[Path, Path]) -> Pair:
    """The two, loaded afresh (adapters change a model in place)."""
    student, teacher = folders
    return load_pair(ModelConfig(model=str(student)), ModelConfig(model=str(teacher)))
