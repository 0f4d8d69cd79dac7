"""Truncated, hostile and foreign GGUF files: one sentence each, and no memory or crash."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models import gguf_tensors
from trb_mlx.models.gguf_reader import BlockType, GgufError, read_gguf
from trb_mlx.models.gguf_tensors import NATIVE
from trb_mlx.models.loading import load_model

U32, F32_VALUE, STRING, ARRAY, U64 = 4, 6, 8, 9, 10
HUGE = 2**63 - 1


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + dims + struct.pack("<IQ", kind, offset)


HOSTILE = {
    "empty": (b"", "no GGUF file"),
    "three bytes": (b"GGU", "no GGUF file"),
    "another magic": (b"PK\x03\x04" * 20, "no GGUF file"),
    "magic alone": (b"GGUF", "ends within its header"),
    "version 1": (head(version=1), "of GGUF version 1"),
    "big-endian": (head(version=3 << 24), "of GGUF version 50331648"),
    "tensors without end": (head(tensors=HUGE), "ends within its header"),
    "values without end": (head(values=HUGE), "ends within its header"),
    "a key without end": (head(values=1) + struct.pack("<Q", HUGE), "ends within its header"),
    "a text without end": (
        head(values=1) + text("k") + struct.pack("<IQ", STRING, HUGE),
        "ends within its header",
    ),
    "an array without end": (
        head(values=1) + text("k") + struct.pack("<IIQ", ARRAY, U64, HUGE),
        f"array of {HUGE} entries",
    ),
    "an array beyond the file": (
        head(values=1) + text("k") + struct.pack("<IIQ", ARRAY, U64, 9_000_000),
        "ends within its header",
    ),
    "texts beyond the file": (
        head(values=1) + text("k") + struct.pack("<IIQ", ARRAY, STRING, 9_000_000),
        "ends within its header",
    ),
    "arrays of arrays": (
        head(values=1) + text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 10_000,
        "entries of type 9",
    ),
    "an unknown value": (
        head(values=1) + text("k") + struct.pack("<I", 77),
        "value of unknown type 77",
    ),
    "not UTF-8": (head(values=1) + struct.pack("<Q", 2) + b"\xff\xfe", "not UTF-8"),
    "a key twice": (
        head(values=2) + (text("k") + struct.pack("<II", U32, 1)) * 2,
        "gives k twice",
    ),
    "many dimensions": (
        head(tensors=1) + text("t") + struct.pack("<I", 2**31),
        "has 2147483648 dimensions",
    ),
    "a huge shape": (head(1) + entry("t", (2**62, 2**62, 2**62, 2**62)), "lies beyond its end"),
    "an empty shape": (head(1) + entry("t", (4, 0)), "has shape"),
    "half a block": (head(1) + entry("t", (4, 33), 2), "which Q4_0 cannot hold"),
    "an offset outside": (head(1) + entry("t", (4,), 0, 2**60) + bytes(64), "lies beyond its end"),
    "an unknown type": (head(1) + entry("t", (4,), 99), "of type number 99, expected one of F32"),
    "a tensor twice": (head(2) + entry("t", (4,)) * 2 + bytes(64), "tensor t twice"),
    "one place for all": (
        head(9) + b"".join(entry(f"t{i}", (64,)) for i in range(9)) + bytes(300),
        "its tensors overlap",
    ),
    "an alignment of 0": (
        head(0, 1) + text("general.alignment") + struct.pack("<II", U32, 0),
        "expected a power of two",
    ),
    "part of several": (
        head(0, 1) + text("split.count") + struct.pack("<II", U32, 3),
        "one part of several",
    ),
    "no architecture": (head(), "its architecture is missing, expected one of llama, qwen2, qwen3"),
    "an architecture that is a list": (
        head(0, 1) + text("general.architecture") + struct.pack("<IIQI", ARRAY, U32, 1, 7),
        "its architecture is a list of 1, expected",
    ),
    "another architecture": (
        head(0, 1) + text("general.architecture") + struct.pack("<I", STRING) + text("mamba"),
        "its architecture is mamba, expected one of llama, qwen2, qwen3",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_one_sentence_and_little_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tensors, "_gguf_package", lambda: None)
    content, expected = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(model=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert expected in message
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message
    assert peak < 4e6


def test_without_the_package_its_types_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_tensors, "_gguf_package", lambda: None)
    path = tmp_path / "k.gguf"
    path.write_bytes(head(1) + entry("blk.0.attn_q.weight", (1, 256), 14) + bytes(400))
    with pytest.raises(
        UserError, match=r"attn_q.weight is of type Q6_K, expected one of F32.*trb-mlx.gguf"
    ):
        load_model(ModelConfig(model=str(path)))


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Cut anywhere, or with any bytes changed, a file reads as another or is refused."""
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    whole = tmp_path / "whole.gguf"
    write_gguf(whole)
    content = whole.read_bytes()
    header = content.index(b"output_norm.weight") + 60
    rng = np.random.default_rng(0)
    sentences: list[str] = []
    path = tmp_path / "bad.gguf"
    for trial in range(400):
        damaged = bytearray(content[:header] + bytes(len(content) - header))
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(damaged))]
        else:
            for place in rng.integers(0, header, size=rng.integers(1, 4)):
                damaged[place] = rng.choice([0, 1, 2, 127, 128, 255, rng.integers(256)])
        path.write_bytes(damaged)
        try:
            load_model(ModelConfig(model=str(path)))
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 200
    assert not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.block_count": 2**31}, "announces 2147483648 blocks and holds 2"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.embedding_length": 2**31}, "expected"),
        ({"llama.feed_forward_length": 2**31}, "ffn_up.weight has shape (96, 64)"),
        ({"llama.attention.head_count": 2**31}, "key_length is 0"),
        ({"llama.attention.head_count": 8}, "has shape"),
        (
            {"llama.attention.head_count": [4, 4]},
            "head_count is a list of 2, expected",
        ),
        ({"llama.attention.key_length": 7}, "of 7 dimensions"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"llama.rope.freq_base": 0.0}, "freq_base is 0.0"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary frequencies are scaled"),
        ({"llama.rope.scaling.factor": -4.0}, "scaling.factor is -4.0, expected a positive"),
        ({"llama.rope.scale_linear": "4"}, "scale_linear is 4, expected a positive"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 dimensions of a head are rotated"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"tokenizer.ggml.eos_token_id": list(range(999))}, "is a list of 999, which is no id"),
        ({"tokenizer.ggml.pre": "two\nlines"}, "pre-tokenizer is two lines, expected"),
        ({"general.alignment": 48}, "expected a power of two"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer is of kind bert, expected gpt2 or llama"),
        ({"tokenizer.ggml.model": None}, "tokenizer is of kind missing"),
        (
            {"tokenizer.ggml.pre": "tekken"},
            "pre-tokenizer is tekken, expected one of gpt-2, smollm",
        ),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer is missing"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 3}, "does not fit"),
        ({"tokenizer.ggml.merges": None}, "no tokenizer.ggml.merges"),
        (
            {"tokenizer.ggml.merges": ["a zebra"]},
            "merges 'a zebra', which is not in its vocabulary",
        ),
        ({"tokenizer.ggml.eos_token_id": None}, "no tokenizer.ggml.eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": 2**31}, "which is no id of its tokenizer"),
        ({"tokenizer.ggml.padding_token_id": 262}, "which is no id of its tokenizer"),
    ],
)
def test_metadata_that_does_not_fit_is_told(changes: dict, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    path = tmp_path / "m.gguf"
    write_gguf(path, changes=changes)
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(model=str(path)))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scales_that_overflow_are_told(tmp_path: Path) -> None:
    block = np.float16(600).tobytes() + bytes(32)
    info = read_gguf(written(tmp_path, block), NATIVE).tensors["t"]
    with pytest.raises(GgufError, match="not finite in float16"):
        gguf_tensors.unpack_tensor(info)


def written(folder: Path, block: bytes) -> Path:
    header = head(1) + entry("t", (1, 32), gguf_tensors.Q8_0)
    path = folder / "t.gguf"
    path.write_bytes(header + bytes(-len(header) % 32) + block)
    return path


def test_block_types_state_their_sizes() -> None:
    gguf = pytest.importorskip("gguf")
    for kind, block in NATIVE.items():
        values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        assert block == BlockType(gguf.GGMLQuantizationType(kind).name, values, nbytes)
