"""Where a resumed run goes on: from its newest checkpoint, from the start, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.runs.folder import RunFolder, write_config
from trb_mlx.training.resuming import newest_checkpoint, resume_notes


def make(**changes: object) -> Config:
    models = [("teacher.model", "t"), ("student.model", "s")]
    keys = {"train.steps": 9, "eval.every": 0, "run.save_every": 4}
    keys |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, [*models, *keys.items()])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path, tmp_path / "adapters")
    write_config(folder, make())
    return folder


def trained(folder: RunFolder, steps: int) -> None:
    lines = [json.dumps({"step": step}) + "\n" for step in range(steps + 1)]
    folder.metrics.write_text("".join(lines))


@pytest.mark.parametrize("steps", [0, 3, 4])
def test_a_run_that_saved_nothing_yet_begins_again(folder: RunFolder, steps: int) -> None:
    """After the line of its first save's step, too: the save may have been cut off."""
    trained(folder, steps)
    (folder.checkpoints / ".0000004.tmp").mkdir(parents=True)
    assert newest_checkpoint(folder) is None


@pytest.mark.parametrize("steps", [5, 9])
def test_a_run_whose_checkpoints_are_gone_is_not_overwritten(folder: RunFolder, steps: int) -> None:
    trained(folder, steps)
    with pytest.raises(UserError, match="has been trained, and nothing is in .*checkpoints"):
        newest_checkpoint(folder)


def test_nor_one_whose_adapters_are_there(folder: RunFolder) -> None:
    folder.adapter_path.mkdir()
    (folder.adapter_path / "adapters.safetensors").write_text("")
    with pytest.raises(UserError, match="another --name"):
        newest_checkpoint(folder)


def test_the_newest_checkpoint_is_taken(folder: RunFolder) -> None:
    trained(folder, 9)
    for name in ("0000004", "0000008", ".0000009.tmp"):
        (folder.checkpoints / name).mkdir(parents=True)
    assert newest_checkpoint(folder) == folder.checkpoints / "0000008"


def test_other_batches_with_dropout_are_said_to_draw_other_masks(folder: RunFolder) -> None:
    write_config(folder, make(lora__dropout=0.1))
    assert len(list(resume_notes(folder, make(lora__dropout=0.1), 4))) == 1
    smaller = make(lora__dropout=0.1, train__micro_batch_size=1)
    first, second = resume_notes(folder, smaller, 4)
    assert first == "going on after step 4"
    assert "train.micro_batch_size changed, so the masks of lora.dropout" in second
    write_config(folder, make())
    assert len(list(resume_notes(folder, make(train__micro_batch_size=1), 4))) == 1
