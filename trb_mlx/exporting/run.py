"""Exporting as a function: a run in, a folder for other tools out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trb_mlx.backend import prepare_backend
from trb_mlx.errors import UserError, did_you_mean
from trb_mlx.exporting.base import license_of
from trb_mlx.exporting.folder import check_replaceable
from trb_mlx.exporting.formats import Exported, export_merged, export_mlx_lm, export_peft
from trb_mlx.exporting.hub import check_repo
from trb_mlx.exporting.hub import push as upload
from trb_mlx.exporting.merged import quantize_config
from trb_mlx.exporting.source import open_run, read_source

FORMATS = ("peft", "mlx-lm", "merged")


def export(
    run: str | Path,
    to: str = "peft",
    *,
    checkpoint: str | int = "final",
    out: str | Path | None = None,
    base: str | None = None,
    quantize: int | None = None,
    group_size: int | None = None,
    license: str | None = None,
    push: str | None = None,
    public: bool = False,
    scratch: Path | None = None,
) -> Exported:
    """Write the adapter of a run for other tools; an earlier export is replaced.

    >>> run = train("small", overrides={"train.steps": 1, "eval.prompts": 2, "run.name": "made"})
    >>> print(export(run.path, "mlx-lm", out="for_mlx_lm").path.name)
    for_mlx_lm

    Args:
        run: a run folder.
        to: `peft`, `mlx-lm` or `merged`.
        checkpoint: `final`, `best` (held out) or a step.
        out: where it goes (default: RUN/export/FORMAT).
        base: the unquantized base: a Hub id or a folder.
        quantize: bits to which a merged model is rounded.
        group_size: weights that share a scale (default: 64).
        license: what the card names (default: the base's).
        push: upload to this OWNER/NAME on the Hugging Face Hub, as private unless `public`.
        public: make a new repository public.
        scratch: of a dry run: check what is asked for, but write in here and push nothing.

    Raises:
        UserError: no such run, format or checkpoint, a base that cannot be found or laid out, or
            a destination that holds other files. Nothing is left behind.
        RunError: the disk is full, or the Hub refused; then the export is whole.
    """
    if public and not push:
        raise UserError("--public is of a repository made by --push, which was not given.")
    if push:
        check_repo(push)
    rounding = quantize_config(quantize, group_size)
    if to not in FORMATS:
        raise UserError(
            f"--to {to} is no format{did_you_mean(to, FORMATS)} (known: {', '.join(FORMATS)})."
        )
    if rounding is not None and to != "merged":
        raise UserError(f"--quantize is for --to merged, not --to {to}.")
    folder = open_run(str(run))
    exports = folder.path.absolute() / "export"
    place = Path(out).expanduser().absolute() if out else exports / to
    check_replaceable(place)
    if scratch is not None:
        exports, place = scratch, scratch / to
    prepare_backend()
    source = read_source(folder, str(checkpoint))
    license = license or license_of(base or source.config.student.model)
    if to == "merged":
        exported = export_merged(source, place, base, license, rounding)
    else:
        write = export_peft if to == "peft" else export_mlx_lm
        exported = write(source, place, exports / "base", base, license, shared=push is not None)
    if push and scratch is None:
        exported = replace(exported, address=upload(exported.path, push, public))
    return exported
