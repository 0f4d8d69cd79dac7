"""A run put into other tools' formats: which checkpoint, onto which base, into which folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trb_mlx.adapters.adapter import CONFIG, Adapter, read_json
from trb_mlx.adapters.apply import load_adapter
from trb_mlx.adapters.mlx_lm import WEIGHTS, read_mlx_adapter
from trb_mlx.adapters.peft import PEFT_WEIGHTS, peft_arrays, peft_config
from trb_mlx.config import Config, ModelConfig, QuantizeConfig
from trb_mlx.config_file import load_config, nearest
from trb_mlx.errors import UserError
from trb_mlx.evaluation.target import adapter_file
from trb_mlx.exporting.base import (
    base_notes,
    check_family,
    check_shapes,
    find_base,
    folder_shapes,
    front_matter,
    is_portable,
)
from trb_mlx.exporting.card import Provenance, is_local, make_card
from trb_mlx.exporting.folder import check_replaceable, writing_export
from trb_mlx.exporting.merged import merge, module_shapes, write_model
from trb_mlx.files import json_text, read_metrics
from trb_mlx.models import mlxlm
from trb_mlx.models.arrays import save_arrays
from trb_mlx.models.loading import LanguageModel, load_model, prepare_backend, resolve
from trb_mlx.models.mlx_lm_note import mlx_lm_note
from trb_mlx.runs.folder import RunFolder, find_run, nearest_run


@dataclass(frozen=True)
class Request:
    """What is asked for: a run's checkpoint in one format, in `out` (default: RUN/export/FORMAT).

    `root` holds what an export needs beside it (default: RUN/export). `shared` means that others
    will load it, so that an adapter's base has to be on the Hub.
    """

    run: str
    to: str
    checkpoint: str = "final"
    out: Path | None = None
    root: Path | None = None
    base: str | None = None
    quantize: QuantizeConfig | None = None
    licence: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Exported:
    """The folder that was written, those written beside it, and what its reader has to know.

    `address` is where it was pushed to, if it was.
    """

    path: Path
    beside: Sequence[Path] = ()
    notes: Sequence[str] = field(default=())
    address: str | None = None


@dataclass(frozen=True)
class _Job:
    """A request with everything looked up that every format needs."""

    request: Request
    folder: RunFolder
    config: Config
    weights: Path
    adapter: Adapter
    out: Path
    root: Path


def export_run(request: Request) -> Exported:
    """Write one checkpoint of a run in another tool's format.

    Raises:
        UserError: no such run, format or checkpoint, a base that cannot be found or laid out, or
            a destination that holds other files. Nothing is left behind.
        RunError: the disk is full or cannot be written.
    """
    if request.to not in FORMATS:
        raise UserError(
            f"--to {request.to} is no format{nearest(request.to, FORMATS)} "
            f"(known: {', '.join(FORMATS)})."
        )
    if request.quantize is not None and request.to != "merged":
        raise UserError(f"--quantize is for --to merged, not --to {request.to}.")
    prepare_backend()
    folder = open_run_folder(request.run)
    weights = adapter_file(folder, request.checkpoint)
    root, out = _destination(request, folder)
    check_replaceable(out)
    adapter = read_mlx_adapter(folder.adapter_path, weights)
    config = load_config(str(folder.config))
    return FORMATS[request.to](_Job(request, folder, config, weights, adapter, out, root))


def check_destination(request: Request) -> None:
    """Refuse what `export_run` would refuse to replace, before anything is made.

    Raises:
        UserError: no such run, or a folder that holds files of others.
    """
    _, out = _destination(request, open_run_folder(request.run))
    check_replaceable(out)


def _destination(request: Request, folder: RunFolder) -> tuple[Path, Path]:
    """Where what an export needs beside it goes, and where itself."""
    root = (request.root or folder.path / "export").expanduser().absolute()
    return root, (request.out or root / request.to).expanduser().absolute()


def open_run_folder(run: str) -> RunFolder:
    """The run that a path names.

    Raises:
        UserError: it is no run folder, or has no adapters yet.
    """
    folder = find_run(run)
    if folder is None:
        raise UserError(f"{run} is no run folder (it has no config.yaml){nearest_run(run)}.")
    if not (folder.adapter_path / CONFIG).is_file():
        raise UserError(f"run {run} has no adapters yet; it was stopped before its first save.")
    return folder


def _peft(job: _Job) -> Exported:
    arrays = peft_arrays(job.adapter)
    base = find_base(job.config.student, job.request.base)
    _check_shared(job, base.model)
    if base.model is None:
        loaded = _load_base(job)
        details = loaded.config
        check_family(details, loaded.name, job.adapter.modules)
        check_shapes(job.adapter, module_shapes(loaded.module), loaded.name)
        name, beside = _write_base(job, loaded)
    else:
        details, name, beside = base.details, base.model, []
        check_family(details, name, job.adapter.modules)
        check_shapes(job.adapter, folder_shapes(name), name)
    blocks = int(details["num_hidden_layers"])
    config = peft_config(job.adapter, _place(name), base.revision, blocks)
    notes = [base.note] if base.note else []
    with writing_export(job.out, _facts(job)) as draft:
        save_arrays(draft / PEFT_WEIGHTS, arrays, framework="pt")
        _write_json(draft / CONFIG, config)
        _write_card(draft, job, "peft", name, notes)
    return Exported(job.out, beside, notes)


def _mlx(job: _Job) -> Exported:
    student = job.config.student
    name = job.request.base or student.model
    beside: list[Path] = []
    _check_shared(job, name if is_portable(name) else None)
    if not is_portable(name):
        name, beside = _write_base(job, _load_base(job))
    notes = []
    if student.quantize is not None:
        notes.append(
            f"The student was trained on the base rounded to {student.quantize.bits} bits on load, "
            "which mlx-lm does not do: its logits differ from the trained student's."
        )
    notes += base_notes(name)
    details = read_json(job.folder.adapter_path / CONFIG)
    with writing_export(job.out, _facts(job)) as draft:
        save_arrays(draft / WEIGHTS, job.adapter.arrays)
        _write_json(draft / CONFIG, details | {"model": _place(name)})
        _write_card(draft, job, "mlx-lm", name, notes)
    return Exported(job.out, beside, notes)


def _merged(job: _Job) -> Exported:
    student, given = job.config.student, job.request.base
    if given:
        student = student.model_copy(update={"model": given, "revision": None, "quantize": None})
    model = load_model(student)
    if job.request.quantize is None:
        check_family(model.config, model.name)
    load_adapter(model, job.folder.adapter_path, job.weights)
    merge(model.module)
    notes = [*_merged_notes(job, given), *filter(None, [mlx_lm_note(model.config)])]
    with writing_export(job.out, _facts(job)) as draft:
        write_model(draft, model, job.request.quantize, student.revision)
        _write_card(draft, job, "merged", student.model, notes)
    return Exported(job.out, [], notes)


def _merged_notes(job: _Job, given: str | None) -> list[str]:
    rounding = job.request.quantize
    notes = []
    if given and given != job.config.student.model:
        notes.append(
            f"The adapter was trained on {job.config.student.model} and is merged into {given}: "
            "logits differ from the trained student's where these two do."
        )
    if rounding is not None:
        notes.append(
            f"Rounded after merging to {rounding.bits} bits in groups of {rounding.group_size}; "
            "for mlx-lm only."
        )
    return notes


FORMATS: Mapping[str, Callable[[_Job], Exported]] = {
    "peft": _peft,
    "mlx-lm": _mlx,
    "merged": _merged,
}


def _check_shared(job: _Job, base: str | None) -> None:
    """Refuse to share an adapter whose base others cannot load."""
    if job.request.shared and (base is None or is_local(base)):
        raise UserError(
            f"--push of an adapter needs a base on the Hub, and {base or job.config.student.model} "
            "is not there; push --to merged, or name the Hub's copy with --base."
        )


def _load_base(job: _Job) -> LanguageModel:
    """The unrounded, unpacked base in the type that it was trained in."""
    student = job.config.student
    model = job.request.base or student.model
    loaded = load_model(ModelConfig(model=model, dtype=student.dtype))
    return replace(loaded, module=mlxlm.dequantize_model(loaded.module))


def _write_base(job: _Job, model: LanguageModel) -> tuple[str, list[Path]]:
    """The base as a folder that other tools load, beside the export."""
    path = job.root / "base"
    with writing_export(path, {"format": "base", "model": model.name}) as draft:
        write_model(draft, model)
        _write_card(draft, job, "base", model.name, [])
    return str(path), [path]


def _place(name: str) -> str:
    """A folder's full path, else the name."""
    return str(Path(name).expanduser().absolute()) if Path(name).expanduser().is_dir() else name


def _facts(job: _Job) -> dict[str, Any]:
    return {"format": job.request.to, "run": job.folder.path.absolute().name, "step": _step(job)}


def _step(job: _Job) -> int:
    """The step that the weights are of; `final` is the newest snapshot."""
    snapshots = sorted(job.folder.adapter_path.glob(f"*_{WEIGHTS}"))
    name = snapshots[-1].name if job.weights.name == WEIGHTS and snapshots else job.weights.name
    return int(name.partition("_")[0]) if name != WEIGHTS else job.config.train.steps


def _write_card(draft: Path, job: _Job, kind: str, base: str, notes: Sequence[str]) -> None:
    step, metrics = _step(job), job.folder.metrics
    lines = (
        [line for line in read_metrics(metrics) if line["step"] <= step] if metrics.exists() else []
    )
    facts = Provenance(
        run=job.folder.path.absolute().name,
        config=job.config,
        step=step,
        lines=lines,
        base=base,
        licence=job.request.licence or _licence(job.request.base or job.config.student.model),
        teacher_licence=_licence(job.config.teacher.model),
        notes=notes,
    )
    (draft / "README.md").write_text(make_card(kind, facts), encoding="utf-8")


def _licence(model: str) -> str | None:
    place = resolve(model)
    if Path(place).is_file():
        return None
    found = front_matter(place).get("license")
    return found if isinstance(found, str) else None


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json_text(values) + "\n", encoding="utf-8")
