"""Adapters read from disk: what is taken, and what is refused in one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from exporting.run_folders import make_run

from trb_mlx.adapters.initial import read_adapter
from trb_mlx.adapters.peft import PEFT_WEIGHTS
from trb_mlx.errors import UserError
from trb_mlx.exporting.run import export

CONFIG = "adapter_config.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run's adapter in both formats."""
    run = tmp_path_factory.mktemp("record") / "run"
    make_run(run, "bundled:arithmetic-student")
    return {kind: export(run, kind).path for kind in ("peft", "mlx-lm")}


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
    peft, mlx_lm = (read_adapter(exported[kind]) for kind in ("peft", "mlx-lm"))
    assert (peft.rank, peft.scale, peft.dora) == (mlx_lm.rank, mlx_lm.scale, mlx_lm.dora)
    assert peft.modules == mlx_lm.modules
    for name, array in mlx_lm.arrays.items():
        assert bool((peft.arrays[name] == array).all())


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
        ({"use_dora": "yes"}, "use_dora is 'yes', expected true or false"),
        ({"lora_dropout": 1.5}, "dropout is 1.5, expected 0 or more and below 1"),
        ({"lora_dropout": "some"}, "dropout is 'some'"),
        ({"r": True}, "r is True"),
        ({"r": 10**400}, "expected a positive whole number"),
        ({"r": "9" * 5000}, "r is '999"),
        ({"lora_alpha": 10**400}, "expected a positive number"),
        ({"peft_type": "9" * 5000}, "of PEFT's type 999"),
    ],
)
def test_what_mlx_lm_cannot_hold_is_refused(
    copy: Callable[[str], Path], values: dict[str, object], expected: str
) -> None:
    folder = copy("peft")
    change(folder, **values)
    refused(folder, expected)


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "new"]
)
def test_initialisations_that_change_the_base_are_refused(
    copy: Callable[[str], Path], start: str
) -> None:
    folder = copy("peft")
    change(folder, init_lora_weights=start)
    refused(folder, f"has init_lora_weights = {start!r}, which changes the weights of the base")


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "mica", None])
def test_initialisations_that_leave_the_base_alone_are_taken(
    copy: Callable[[str], Path], start: object
) -> None:
    folder = copy("peft")
    change(folder, init_lora_weights=start)
    assert read_adapter(folder).rank == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [3, 4]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("velora_config", {"rank": 1}),
        ("monteclora_config", {"num_samples": 4}),
        ("kasa_config", {"beta": 0.1}),
        ("arrow_config", {"top_k": 2}),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("trainable_token_indices", {"embed_tokens": [1]}),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("lora_bias", True),
        ("alpha_pattern", {"q_proj": 3}),
        ("ensure_weight_tying", True),
        ("invented_in_2031", "much"),
    ],
)
def test_any_key_that_is_not_known_has_to_be_at_its_default(
    copy: Callable[[str], Path], key: str, value: object
) -> None:
    folder = copy("peft")
    change(folder, **{key: value})
    refused(folder, f"has {key} = ")
    for default in (None, False, [], {}, ""):
        change(folder, **{key: default})
        assert read_adapter(folder).rank == 4


def test_an_old_config_that_lacks_later_keys_is_read(copy: Callable[[str], Path]) -> None:
    folder = copy("peft")
    kept = ("peft_type", "r", "lora_alpha", "target_modules")
    details = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({key: details[key] for key in kept}))
    assert read_adapter(folder).scale == 2.0


@pytest.mark.parametrize(
    ("extra", "scale"),
    [({}, 20.0), ({"use_dora": False}, 10.0), ({"lora_layers": 1, "num_layers": 2}, 10.0)],
)
def test_old_mlx_lm_configs_are_read_as_their_mlx_lm_did(
    copy: Callable[[str], Path], extra: dict[str, object], scale: float
) -> None:
    """Before 0.14.3 alpha over rank multiplied the scale; `num_layers`, if there, says new."""
    folder = copy("mlx-lm")
    details = json.loads((folder / CONFIG).read_text())
    for key in ("num_layers", "fine_tune_type"):
        del details[key]
    parameters = {"rank": 4, "alpha": 8, "dropout": 0.0, "scale": 10.0}
    details |= {"lora_layers": 2, "lora_parameters": parameters} | extra
    (folder / CONFIG).write_text(json.dumps(details))
    adapter = read_adapter(folder)
    assert adapter.scale == scale
    assert adapter.keys is None or set(adapter.keys) == set(adapter.modules)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lora_parameters": {"rank": 4}}, "lacks or garbles 'scale'"),
        ({"lora_parameters": 3}, "lacks or garbles"),
        ({"num_layers": "all"}, "lacks or garbles"),
        ({"stop_ids": 3}, "lacks or garbles"),
        ({"fine_tune_type": "9" * 5000}, "is a '999"),
        ({"lora_parameters": {"rank": 4, "scale": "nan"}}, "are not both positive"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0, "keys": 3}}, "lacks or garbles"),
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
    refused(folder, "cannot be read: ")


def test_every_truncation_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("peft")
    whole = (folder / PEFT_WEIGHTS).read_bytes()
    for length in (1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (folder / PEFT_WEIGHTS).write_bytes(whole[:length])
        refused(folder, "cannot be read: ")


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["peft", "mlx-lm"])
def test_values_that_are_not_finite_are_refused_by_their_tensor(
    copy: Callable[[str], Path], kind: str, value: float
) -> None:
    folder = copy(kind)
    (path,) = folder.glob("*.safetensors")
    arrays = mx.load(str(path))
    name = max(arrays)
    arrays[name][0, 0] = value
    mx.save_safetensors(str(path), arrays)
    refused(folder, f"{name} holds values that are not finite")
