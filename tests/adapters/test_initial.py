"""`student.adapter`: training goes on from an adapter, whatever tool wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from exporting.run_folders import make_run
from mlx.utils import tree_flatten
from tiny import make_model

from trb_mlx.adapters.initial import add_initial_adapter, with_initial_lora
from trb_mlx.adapters.mlx_lm import adapter_config, save_adapters
from trb_mlx.config import Config
from trb_mlx.config_file import load_config
from trb_mlx.errors import UserError
from trb_mlx.exporting.run import export
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.runs.folder import RunFolder, write_config

IDS = mx.array([[5, 6, 7, 8]])
KINDS = {
    "lora": [],
    "dora": [("lora.dora", True)],
    "last block": [("lora.num_layers", 1)],
    "some keys": [("lora.keys", ["self_attn.q_proj"]), ("lora.scale", 0.3)],
    "full names": [("lora.keys", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"])],
    "first block": [("lora.keys", ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"])],
}


def config(model: Path, adapter: Path, *changes: tuple[str, Any]) -> Config:
    given = [("student.model", str(model)), ("teacher.model", str(model))]
    return load_config(None, [*given, ("student.adapter", str(adapter)), *changes])


def load_student(
    model: Path, adapter: Path, *changes: tuple[str, Any]
) -> tuple[LanguageModel, Config]:
    resolved = with_initial_lora(config(model, adapter, *changes))
    student = load_model(resolved.student)
    add_initial_adapter(student.module, resolved)
    return student, resolved


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_export_import_export_gives_the_same_bytes(
    folders: tuple[Path, Path], tmp_path: Path, form: str, changes: list[tuple[str, Any]]
) -> None:
    before = make_run(tmp_path / "run", str(folders[0]), changes)
    first = export(tmp_path / "run", form).path
    student, resolved = load_student(folders[0], first)
    np.testing.assert_array_equal(np.asarray(student.module(IDS)), np.asarray(before.module(IDS)))
    again = RunFolder(tmp_path / "again", tmp_path / "again/adapters")
    again.path.mkdir()
    write_config(again, resolved)
    details = adapter_config(student.module, resolved.lora, str(folders[0]), student.stop_ids)
    save_adapters(again.adapter_path, student.module, details, 0)
    second = export(again.path, form).path
    (weights,) = (path.name for path in first.glob("*.safetensors"))
    one, two = (mx.load(str(folder / weights)) for folder in (first, second))
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert np.asarray(array).tobytes() == np.asarray(two[name]).tobytes()


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
def test_a_hybrids_adapter_goes_on_under_either_name(tmp_path: Path, form: str) -> None:
    """mlx-lm has language_model.model.…, PEFT the text model's names."""
    model = make_model(tmp_path / "model", "qwen3_5")
    keys = ["mlp.up_proj", "mlp.down_proj"]
    before = make_run(tmp_path / "run", str(model), [("lora.keys", keys)])
    student, _ = load_student(model, export(tmp_path / "run", form).path)
    np.testing.assert_array_equal(np.asarray(student.module(IDS)), np.asarray(before.module(IDS)))


def test_only_adapters_are_trained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    make_run(tmp_path / "run", str(folders[0]))
    student, _ = load_student(folders[0], tmp_path / "run/adapters")
    names = {
        name.rpartition(".")[2] for name, _ in tree_flatten(student.module.trainable_parameters())
    }
    assert names == {"lora_a", "lora_b"}


def test_the_lora_section_comes_from_the_adapter(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "run", str(folders[0]), [("lora.scale", 0.5), ("lora.dropout", 0.1)])
    adapter = tmp_path / "run/adapters"
    lora = with_initial_lora(config(folders[0], adapter)).lora
    assert (lora.rank, lora.scale, lora.dropout) == (4, 0.5, 0.1)
    resolved = with_initial_lora(
        config(folders[0], adapter, ("lora.rank", 4), ("lora.dropout", 0.2))
    )
    assert resolved.lora.dropout == 0.2
    assert with_initial_lora(resolved) == resolved  # as when a run is resumed


@pytest.mark.parametrize(
    ("key", "value"),
    [("rank", 8), ("scale", 1.0), ("dora", True), ("num_layers", 1), ("keys", ["mlp.up_proj"])],
)
def test_a_conflict_with_the_lora_section_is_one_sentence(
    folders: tuple[Path, Path], tmp_path: Path, key: str, value: Any
) -> None:
    make_run(tmp_path / "run", str(folders[0]), [("lora.keys", ["self_attn.q_proj"])])
    with pytest.raises(UserError, match=f"leave lora.{key} out") as caught:
        with_initial_lora(config(folders[0], tmp_path / "run/adapters", (f"lora.{key}", value)))
    assert f"lora.{key} is {value!r}" in str(caught.value)


def test_keys_of_a_run_that_named_modules_by_block_are_kept(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """PEFT may list every block; a config with the short names of all of them says the same."""
    make_run(tmp_path / "run", str(folders[0]), [("lora.keys", ["self_attn.q_proj"])])
    folder = export(tmp_path / "run", "peft").path
    details = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(details | {"layers_to_transform": [0, 1]})
    )
    full = [f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)]
    assert with_initial_lora(config(folders[0], folder)).lora.keys == full
    short = with_initial_lora(config(folders[0], folder, ("lora.keys", ["self_attn.q_proj"])))
    assert short.lora.keys == ["self_attn.q_proj"]
    assert with_initial_lora(short) == short


@pytest.mark.parametrize("form", ["peft", "mlx-lm"])
@pytest.mark.parametrize(
    "changes", [{"hidden_size": 16}, {"num_hidden_layers": 1}, {"num_hidden_layers": 4}]
)
def test_an_adapter_of_another_base_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, form: str, changes: dict[str, int]
) -> None:
    make_run(tmp_path / "run", str(folders[0]))
    adapter = export(tmp_path / "run", form).path
    other = make_model(tmp_path / "other", **changes)
    with pytest.raises(UserError, match="is of another base than") as caught:
        load_student(other, adapter)
    assert "\n" not in str(caught.value)
