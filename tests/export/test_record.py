"""Adapters read from disk: what is taken, and what is refused in one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from export.making import make_run

from trb_mlx.errors import UserError
from trb_mlx.export.peft import PEFT_WEIGHTS
from trb_mlx.export.starting import read_adapter
from trb_mlx.exports import Request, export_run

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run's adapter in both formats."""
    run = tmp_path_factory.mktemp("record") / "run"
    make_run(run, "bundled:arithmetic-student")
    return {kind: export_run(Request(str(run), kind)).path for kind in ("peft", "mlx-lm")}


@pytest.fixture
def copy(exported: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        for path in exported[kind].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return make


def change(folder: Path, **values: object) -> None:
    details = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(details | values))


def refused(folder: Path, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_adapter(folder)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_both_formats_hold_the_same_adapter(exported: dict[str, Path]) -> None:
    theirs, ours = (read_adapter(exported[kind]) for kind in ("peft", "mlx-lm"))
    assert (theirs.rank, theirs.scale, theirs.dora) == (ours.rank, ours.scale, ours.dora)
    assert theirs.modules == ours.modules
    for name, array in ours.arrays.items():
        assert bool((theirs.arrays[name] == array).all())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"r": 8}, "expected rank 8"),
        ({"r": "4"}, "r is '4'"),
        ({"lora_alpha": -1}, "lora_alpha is -1, expected a positive number"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"peft_type": "IA3"}, "of PEFT's type IA3, expected LORA"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern ="),
        ({"bias": "all"}, "has bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save ="),
        ({"use_dora": True}, "expected lora_a, lora_b, m"),
    ],
)
def test_what_mlx_lm_cannot_hold_is_refused(
    copy: Callable[[str], Path], values: dict[str, object], expected: str
) -> None:
    folder = copy("peft")
    change(folder, **values)
    refused(folder, expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lora_parameters": {"rank": 4}}, "lacks or garbles 'scale'"),
        ({"lora_parameters": 3}, "lacks or garbles"),
        ({"num_layers": "all"}, "lacks or garbles"),
        ({"fine_tune_type": "full"}, "is a 'full' fine-tune"),
    ],
)
def test_a_garbled_mlx_lm_config_is_refused(
    copy: Callable[[str], Path], values: dict[str, object], expected: str
) -> None:
    folder = copy("mlx-lm")
    change(folder, **values)
    refused(folder, expected)


@pytest.mark.parametrize("kind", ["peft", "mlx-lm"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_is_no_object_is_refused(
    copy: Callable[[str], Path], kind: str, text: str
) -> None:
    folder = copy(kind)
    (folder / CONFIG).write_text(text)
    refused(folder, CONFIG)


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds neither adapter_model.safetensors (PEFT) nor adapters.safetensors")


def header(offsets: list[int], shape: list[int], kind: str = "F32") -> bytes:
    values = {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets}}
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


HOSTILE = {
    "empty": b"",
    "huge header": struct.pack("<Q", 2**62) + b"{}",
    "negative offset": header([-8, 56], [4, 4]),
    "beyond the file": header([0, 4096], [32, 32]),
    "shape larger than its bytes": header([0, 64], [2**20, 2**20]),
    "unknown type": header([0, 64], [4, 4], "X99"),
    "not JSON": struct.pack("<Q", 4) + b"nope",
    "a pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors_are_refused(copy: Callable[[str], Path], content: bytes) -> None:
    folder = copy("peft")
    (folder / PEFT_WEIGHTS).write_bytes(content)
    refused(folder, "is no whole safetensors file")


def test_every_truncation_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("peft")
    whole = (folder / PEFT_WEIGHTS).read_bytes()
    for length in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (folder / PEFT_WEIGHTS).write_bytes(whole[:length])
        refused(folder, "is no whole safetensors file")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", mx.zeros((4, 9)), "is no LoRA"),
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            mx.full((4, 96), float("nan")),
            "not finite",
        ),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", mx.zeros((4,)), "matrices"),
        ("weight", mx.zeros((4, 9)), "is no LoRA matrix"),
    ],
)
def test_strange_tensors_are_refused(
    copy: Callable[[str], Path], name: str, value: mx.array, expected: str
) -> None:
    folder = copy("peft")
    arrays = mx.load(str(folder / PEFT_WEIGHTS))
    mx.save_safetensors(str(folder / PEFT_WEIGHTS), {**arrays, name: value})
    refused(folder, expected)
