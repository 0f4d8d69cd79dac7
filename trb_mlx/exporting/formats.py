"""A run's checkpoint in other tools' formats: PEFT's adapter, mlx-lm's adapter, a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from trb_mlx.adapters.adapter import CONFIG, read_json
from trb_mlx.adapters.apply import load_adapter
from trb_mlx.adapters.mlx_lm import WEIGHTS
from trb_mlx.adapters.peft import PEFT_WEIGHTS, peft_arrays, peft_config
from trb_mlx.config import ModelConfig, QuantizeConfig
from trb_mlx.errors import UserError
from trb_mlx.exporting.base import (
    base_notes,
    check_family,
    check_shapes,
    find_base,
    folder_shapes,
    is_portable,
)
from trb_mlx.exporting.card import is_local, write_card
from trb_mlx.exporting.folder import writing_export
from trb_mlx.exporting.merged import merge, write_model
from trb_mlx.exporting.source import Source
from trb_mlx.exporting.source_files import keeps_files, take_stored_weights, write_source_model
from trb_mlx.files import json_text
from trb_mlx.models import mlxlm
from trb_mlx.models.arrays import save_arrays
from trb_mlx.models.loading import LanguageModel, load_model
from trb_mlx.models.mlx_lm_note import mlx_lm_note
from trb_mlx.models.model_config import text_config


@dataclass(frozen=True)
class Exported:
    """The folder that was written, those written beside it, and what its reader has to know.

    `address` is where it was pushed to, if it was.
    """

    path: Path
    beside: Sequence[Path] = ()
    notes: Sequence[str] = ()
    address: str | None = None


def export_peft(
    source: Source, out: Path, base_out: Path, base: str | None, license: str | None, shared: bool
) -> Exported:
    """Write a checkpoint as PEFT's adapter of an unquantized base.

    Args:
        source: the checkpoint.
        out: the folder to write.
        base_out: where the base goes if other tools could not find it under its name.
        base: the base's folder or Hub id; the student's own by default.
        license: what the card names.
        shared: refuse a base that is not on the Hub.

    Raises:
        UserError: the base cannot be found, or PEFT lays such weights out otherwise.
        RunError: the disk is full or cannot be written.
    """
    arrays = peft_arrays(source.adapter)
    student = source.config.student
    original = find_base(student, base)
    if shared:
        _check_on_hub(original.model, student)
    if original.model is None:
        model = _load_base(student, base)
        name, base_config = model.name, model.config
        shapes = {key: array.shape for key, array in tree_flatten(model.module.parameters())}
    else:
        model, name, base_config = None, original.model, original.config
        shapes = folder_shapes(name)
    check_family(base_config, name, source.adapter.modules)
    check_shapes(source.adapter, shapes, name)
    if model is not None:
        name = _write_base(source, base_out, model, license)
    blocks = int((text_config(base_config) or base_config)["num_hidden_layers"])
    config = peft_config(source.adapter, _absolute(name), original.revision, blocks)
    notes = [original.note] if original.note else []
    with writing_export(out, _contents("peft", source)) as draft:
        save_arrays(draft / PEFT_WEIGHTS, arrays, framework="pt")
        _write_json(draft / CONFIG, config)
        write_card(draft, "peft", source, name, license, notes)
    return Exported(out, [] if model is None else [base_out], notes)


def export_mlx_lm(
    source: Source, out: Path, base_out: Path, base: str | None, license: str | None, shared: bool
) -> Exported:
    """Write a checkpoint as mlx-lm's adapter; arguments and errors as of `export_peft`."""
    student = source.config.student
    name = base or student.model
    is_named = is_portable(name)
    if shared:
        _check_on_hub(name if is_named else None, student)
    if not is_named:
        name = _write_base(source, base_out, _load_base(student, base), license)
    notes = []
    if student.quantize is not None:
        notes.append(
            f"The student was trained on the base rounded to {student.quantize.bits} bits on load, "
            "which mlx-lm does not do: its logits differ from the trained student's."
        )
    notes += base_notes(name)
    config = read_json(source.folder / CONFIG) | {"model": _absolute(name)}
    with writing_export(out, _contents("mlx-lm", source)) as draft:
        save_arrays(draft / WEIGHTS, source.adapter.arrays)
        _write_json(draft / CONFIG, config)
        write_card(draft, "mlx-lm", source, name, license, notes)
    return Exported(out, [] if is_named else [base_out], notes)


def export_merged(
    source: Source,
    out: Path,
    base: str | None,
    license: str | None,
    quantize: QuantizeConfig | None,
) -> Exported:
    """Write a checkpoint as a whole model, rounded where `quantize` says so.

    Raises:
        UserError: the base cannot be loaded, or transformers lays such weights out otherwise.
        RunError: the disk is full or cannot be written.
    """
    student, notes = source.config.student, []
    if base and base != student.model:
        notes.append(
            f"The adapter was trained on {student.model} and is merged into {base}: "
            "logits differ from the trained student's where these two do."
        )
    if base:
        student = student.model_copy(update={"model": base, "revision": None, "quantize": None})
    model, modules, origin = load_model(student), source.adapter.modules, None
    if quantize is None and keeps_files(model):
        origin, types = take_stored_weights(model, student, modules)
        notes += types
    elif quantize is None:
        check_family(model.config, model.name)
    else:
        notes.append(
            f"Rounded after merging to {quantize.bits} bits in groups of {quantize.group_size}; "
            "for mlx-lm only."
        )
    note = mlx_lm_note(model.config)
    notes += [note] if note else []
    load_adapter(model, source.folder, source.weights)
    merge(model.module)
    with writing_export(out, _contents("merged", source)) as draft:
        if origin is None:
            write_model(draft, model, quantize, student.revision)
        else:
            write_source_model(draft, model, origin, modules, student.revision)
        write_card(draft, "merged", source, student.model, license, notes)
    return Exported(out, notes=notes)


def _check_on_hub(base: str | None, student: ModelConfig) -> None:
    """Refuse to share an adapter whose base others cannot load."""
    if base is None or is_local(base):
        raise UserError(
            f"--push of an adapter needs a base on the Hub, and {base or student.model} "
            "is not there; push --to merged, or name the Hub's copy with --base."
        )


def _load_base(student: ModelConfig, base: str | None) -> LanguageModel:
    """The unrounded, unpacked base in the type that it was trained in."""
    model = load_model(ModelConfig(model=base or student.model, dtype=student.dtype))
    return replace(model, module=mlxlm.dequantize_model(model.module))


def _write_base(source: Source, out: Path, model: LanguageModel, license: str | None) -> str:
    """Write the base as a folder that other tools load, and give its path."""
    with writing_export(out, {"format": "base", "model": model.name}) as draft:
        write_model(draft, model)
        write_card(draft, "base", source, model.name, license, [])
    return str(out)


def _absolute(model: str) -> str:
    """A folder's full path; a Hub id as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.is_dir() else model


def _contents(kind: str, source: Source) -> dict[str, Any]:
    """What an export's marker says of it."""
    return {"format": kind, "run": source.run, "step": source.step}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json_text(values) + "\n", encoding="utf-8")
