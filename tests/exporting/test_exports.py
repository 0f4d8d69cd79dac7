"""Exports of a run: which base, what falls back, what is refused, and nothing left behind."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml
from exporting.run_folders import make_run
from mlx_lm import load as mlx_lm_load
from tiny import make_model

from trb_mlx.config import QuantizeConfig
from trb_mlx.errors import RunError, UserError
from trb_mlx.exporting.base import card_metadata
from trb_mlx.exporting.hub import check_repo
from trb_mlx.exporting.merged import quantize_config
from trb_mlx.exporting.run import export

IDS = mx.array([[5, 6, 7, 8]])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def front(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def base_in(folder: Path) -> str:
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def quantized(
    folder: Path, base_model: str | None, mode: str = "affine", bits: int = 4, group: int = 32
) -> Path:
    """A folder as mlx-lm converts it, with a card."""
    from mlx_lm.utils import quantize_model, save_config, save_model

    source = make_model(folder.with_name("source"), seed=1)
    module, tokenizer, details = mlx_lm_load(str(source), return_config=True)
    module, details = quantize_model(module, details, group, bits, mode=mode)
    save_model(folder, module)
    save_config(details, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    line = f"base_model: {base_model}\n" if base_model else ""
    (folder / "README.md").write_text(f"---\nlicense: mit\n{line}---\n# x\n")
    return folder


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_lm_loads_its_folder(folders: tuple[Path, Path], run: Path, dora: bool) -> None:
    student = make_run(run, str(folders[0]), [("lora.dora", dora)])
    done = export(run, "mlx-lm")
    assert done.path == run / "export/mlx-lm"
    loaded, _ = mlx_lm_load(str(folders[0]), adapter_path=str(done.path))
    np.testing.assert_allclose(np.asarray(loaded(IDS)), np.asarray(student.module(IDS)), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("store", [None, "dense", "packed"])
@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_the_trained_student(
    folders: tuple[Path, Path], run: Path, dtype: str, store: str | None, dora: bool
) -> None:
    changes: list[tuple[str, Any]] = [("lora.dora", dora), ("student.dtype", dtype)]
    if store:
        changes.append(("student.quantize", {"bits": 4, "group_size": 32, "store": store}))
    student = make_run(run, str(folders[0]), changes)
    done = export(run, "merged")
    merged, tokenizer = mlx_lm_load(str(done.path))
    assert merged.layers[0].mlp.up_proj.weight.dtype == getattr(mx, dtype)
    assert "quantization" not in json.loads((done.path / "config.json").read_text())
    expected, logits = (np.asarray(m(IDS).astype(mx.float32)) for m in (student.module, merged))
    np.testing.assert_allclose(logits, expected, atol=1e-4 if dtype == "float32" else 0.1)
    assert tokenizer.encode("a b") == student.tokenizer.encode("a b")


@pytest.mark.parametrize(("mode", "bits", "group"), [("mxfp4", 4, 32), ("nvfp4", 4, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_students_of_small_floats_are_merged_in_their_own_type(
    tmp_path: Path, run: Path, mode: str, bits: int, group: int, dtype: str
) -> None:
    model = quantized(tmp_path / "packed", None, mode, bits, group)
    student = make_run(run, str(model), [("student.dtype", dtype)])
    merged, _ = mlx_lm_load(str(export(run, "merged").path))
    assert merged.layers[0].mlp.up_proj.weight.dtype == getattr(mx, dtype)
    expected, logits = (np.asarray(m(IDS).astype(mx.float32)) for m in (student.module, merged))
    np.testing.assert_allclose(logits, expected, atol=1e-4 if dtype == "float32" else 0.1)


def test_tokenizers_open_in_either_transformers(tmp_path: Path, run: Path) -> None:
    """Files of the source stay what they are; class names of version 5 alone become older ones."""
    model = make_model(tmp_path / "model", template="{{ messages[0].content }}")
    (model / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    make_run(run, str(model))
    out = export(run, "merged").path
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    assert [(out / n).read_bytes() for n in names] == [(model / n).read_bytes() for n in names]
    details = json.loads((model / "tokenizer_config.json").read_text())
    newer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_end|>"]}
    (model / "tokenizer_config.json").write_text(json.dumps(details | newer))
    export(run, "merged")
    written = json.loads((out / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|im_end|>"]
    assert "extra_special_tokens" not in written


def test_a_written_base_names_no_class_of_transformers_5_alone(run: Path) -> None:
    make_run(run, "bundled:arithmetic-student")
    (base,) = export(run, "peft").beside
    details = json.loads((base / "tokenizer_config.json").read_text())
    assert details["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_adapters_on_the_attention_of_experts_are_for_peft(tmp_path: Path, run: Path) -> None:
    model = make_model(tmp_path / "experts", "qwen3_moe")
    keys = ["self_attn.q_proj", "self_attn.o_proj"]
    make_run(run, str(model), [("lora.keys", keys)])
    assert export(run, "peft").path.exists()
    # Merged only from files as transformers lays them out (test_source_files.py); not these.
    with pytest.raises(UserError, match="model_type qwen3_moe"):
        export(run, "merged")
    make_run(run.with_name("other"), str(model), [("lora.keys", [*keys, "mlp.gate"])])
    with pytest.raises(UserError, match="is a mixture of experts, and mlx-lm keeps model.layers.0"):
        export(run.with_name("other"), "peft")


def test_merged_can_be_rounded(folders: tuple[Path, Path], run: Path) -> None:
    student = make_run(run, str(folders[0]))
    done = export(run, "merged", quantize=8, group_size=32)
    merged, _ = mlx_lm_load(str(done.path))
    assert merged.layers[0].mlp.up_proj.bits == 8
    np.testing.assert_allclose(np.asarray(merged(IDS)), np.asarray(student.module(IDS)), atol=0.05)
    assert "Rounded after merging to 8 bits" in (done.path / "README.md").read_text()


def test_the_base_of_a_folder_is_the_folder(folders: tuple[Path, Path], run: Path) -> None:
    make_run(run, str(folders[0]))
    done = export(run, "peft")
    assert base_in(done.path) == str(folders[0])
    assert done.beside == []
    assert "base_model" not in front(done.path)  # a path is no name on the Hub
    assert str(folders[0].parent) not in (done.path / "README.md").read_text()


def test_a_quantized_base_is_replaced_by_its_original(tmp_path: Path, run: Path) -> None:
    original = make_model(tmp_path / "original", seed=1)
    make_run(run, str(quantized(tmp_path / "packed", str(original))))
    done = export(run, "peft")
    assert base_in(done.path) == str(original)
    assert "logits differ from the trained student's" in (done.path / "README.md").read_text()
    assert done.notes
    assert front(done.path)["license"] == "mit"


def test_a_quantized_base_without_an_original_is_refused(tmp_path: Path, run: Path) -> None:
    make_run(run, str(quantized(tmp_path / "packed", None)))
    with pytest.raises(UserError, match="name the original with --base"):
        export(run, "peft")
    with pytest.raises(UserError, match="is quantized, expected the original"):
        export(run, "peft", base=str(tmp_path / "packed"))
    assert not (run / "export").exists()
    done = export(run, "peft", base=str(tmp_path / "source"))
    assert base_in(done.path) == str(tmp_path / "source")


def test_a_student_rounded_on_load_is_noted(folders: tuple[Path, Path], run: Path) -> None:
    rounded = {"bits": 4, "group_size": 32, "store": "dense"}
    make_run(run, str(folders[0]), [("student.quantize", rounded)])
    for form in ("peft", "mlx-lm"):
        done = export(run, form)
        assert "rounded to 4 bits" in (done.path / "README.md").read_text()


@pytest.mark.parametrize("changes", [{"hidden_size": 16}, {"num_hidden_layers": 1}])
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_another_base_is_refused(
    folders: tuple[Path, Path], run: Path, tmp_path: Path, form: str, changes: dict[str, int]
) -> None:
    make_run(run, str(folders[0]))
    other = make_model(tmp_path / "other", **changes)
    with pytest.raises(UserError, match="of another base|does not fit") as caught:
        export(run, form, base=str(other))
    assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


def test_a_family_whose_layout_is_not_known_is_refused(run: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "gemma", "gemma2")
    make_run(run, str(model))
    for form in ("peft", "merged"):
        with pytest.raises(UserError, match="model_type gemma2.*known: ernie4_5, gemma3_text"):
            export(run, form)
    assert not (run / "export").exists()
    assert export(run, "mlx-lm").path.exists()


def test_adapters_on_embeddings_are_not_for_peft(folders: tuple[Path, Path], run: Path) -> None:
    make_run(run, str(folders[0]), [("lora.keys", ["model.embed_tokens"])])
    with pytest.raises(UserError, match="on model.embed_tokens has no equal in PEFT"):
        export(run, "peft")
    merged, _ = mlx_lm_load(str(export(run, "merged").path))
    assert merged(IDS).shape[-1] == 259


def test_checkpoints_are_chosen(folders: tuple[Path, Path], run: Path) -> None:
    make_run(run, str(folders[0]))
    weights = {}
    for name in ("final", "best", "2", "3"):
        done = export(run, "mlx-lm", checkpoint=name)
        weights[name] = (done.path / "adapters.safetensors").read_bytes()
        card = (done.path / "README.md").read_text()
        assert ("step 3 of a run" if name in ("final", "3") else "step 2 of a run") in card
    assert weights["final"] == weights["3"] != weights["2"] == weights["best"]


def test_the_card_tells_where_it_comes_from(folders: tuple[Path, Path], run: Path) -> None:
    make_run(run, str(folders[0]), [("behavior.budget", 0.05)])
    done = export(run, "peft", license="cc-by-4.0", checkpoint="2")
    card = (done.path / "README.md").read_text()
    assert front(done.path)["license"] == "cc-by-4.0"
    for expected in (
        "bundled:arithmetic-teacher",
        "TRB, ε 0.05 annealed to 0 over 50 steps",
        "reverse KL, the whole vocabulary",
        "source=generated:arithmetic",
        "| steps | 2 of 100 |",
        "| eval/pass@1 | 0.1 | 0.6 |",
        "Teacher: apache-2.0",
    ):
        assert expected in card


@pytest.mark.parametrize("form", ["peft", "mlx-lm", "merged"])
def test_a_teacher_that_is_gone_is_of_no_known_licence(
    folders: tuple[Path, Path], tmp_path: Path, run: Path, form: str
) -> None:
    make_run(run, str(folders[0]), [("teacher.model", str(tmp_path / "gone/teacher"))])
    card = (export(run, form).path / "README.md").read_text()
    assert "distilled on-policy from teacher by" in card
    assert "Teacher: not known;" in card


def test_commands_in_a_card_are_quoted(tmp_path: Path, run: Path) -> None:
    base = make_model(tmp_path / "my $HOME's base")
    make_run(run, str(base))
    card = (export(run, "mlx-lm").path / "README.md").read_text()
    (line,) = (line for line in card.splitlines() if line.startswith("python -m mlx_lm"))
    assert shlex.split(line)[4:6] == ["--model", base.name]
    card = (export(run, "peft").path / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    names = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert base.name in names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"to": "pefft"}, "--to pefft is no format; did you mean peft? (known: peft, mlx-lm"),
        ({"to": "gguf"}, "--to gguf is no format"),
        ({"checkpoint": "9"}, "expected final, best or one of 2, 3"),
        ({"checkpoint": "newest"}, "--checkpoint newest is not in"),
        ({"run": "nowhere"}, "nowhere is no run folder"),
        ({"base": "./nowhere"}, "model ./nowhere does not exist"),
        ({"to": "mlx-lm", "quantize": 4}, "--quantize is for --to merged"),
        ({"push": "owner/name"}, "needs a base on the Hub"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    folders: tuple[Path, Path], run: Path, values: dict[str, Any], expected: str
) -> None:
    make_run(run, str(folders[0]))
    with pytest.raises(UserError) as caught:
        export(**{"run": run, "to": "peft", **values})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


@pytest.mark.parametrize("damage", ["truncated", "no config", "no adapters", "not finite"])
def test_a_damaged_run_is_one_sentence(folders: tuple[Path, Path], run: Path, damage: str) -> None:
    make_run(run, str(folders[0]))
    weights = run / "adapters/adapters.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:300])
    elif damage == "not finite":
        arrays = mx.load(str(weights))
        arrays[min(arrays)][0, 0] = float("nan")
        mx.save_safetensors(str(weights), arrays)
    elif damage == "no config":
        (run / "adapters/adapter_config.json").unlink()
    else:
        weights.unlink()
    for form in ("peft", "mlx-lm", "merged"):
        with pytest.raises(UserError) as caught:
            export(run, form)
        assert "\n" not in str(caught.value)
    assert not (run / "export").exists()


def test_only_exports_are_replaced(folders: tuple[Path, Path], run: Path) -> None:
    make_run(run, str(folders[0]))
    done = export(run, "peft", checkpoint="2")
    before = (done.path / "adapter_model.safetensors").read_bytes()
    export(run, "peft")
    assert (done.path / "adapter_model.safetensors").read_bytes() != before
    (done.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt, which no export wrote"):
        export(run, "peft")
    assert (done.path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="which no export wrote"):
        export(run, "peft", out=run)  # the run itself


def test_a_full_disk_leaves_the_earlier_export(
    folders: tuple[Path, Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(run, str(folders[0]))
    done = export(run, "peft", checkpoint="2")
    before = {path.name: path.read_bytes() for path in done.path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trb_mlx.exporting.formats.save_arrays", full)
    with pytest.raises(RunError, match="could not be written: No space left on device"):
        export(run, "peft")
    assert {path.name: path.read_bytes() for path in done.path.iterdir()} == before
    assert [path.name for path in (run / "export").iterdir()] == ["peft"]


def test_quantize_options() -> None:
    assert quantize_config(None, None) is None
    assert quantize_config(4, None) == QuantizeConfig(bits=4, group_size=64)
    for bits, group in ((7, None), (4, 48), (None, 64)):
        with pytest.raises(UserError, match="bits|--quantize"):
            quantize_config(bits, group)


@pytest.mark.parametrize("repo", ["name", "a b/c", "a/b/c", "a/b--c", "a/b.git", "/b", "a/"])
def test_a_name_that_the_hub_would_refuse_is_refused_before_the_export(repo: str) -> None:
    check_repo("owner/My-model_1.5")
    with pytest.raises(UserError, match="is no repository name, expected OWNER/NAME"):
        check_repo(repo)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# x\n", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("# x\n", {}),
        ("---\n- mit\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
    ],
)
def test_what_a_card_does_not_say_is_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], card: str, expected: dict[str, str]
) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert card_metadata(str(tmp_path)) == expected
    assert capfd.readouterr() == ("", "")
