"""Exporting as a function: a run in, a folder for other tools out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trb_mlx.errors import UserError
from trb_mlx.exporting.exports import Exported, Request, check_destination, export_run
from trb_mlx.exporting.hub import check_repo
from trb_mlx.exporting.hub import push as upload
from trb_mlx.exporting.merged import rounding


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
    place = Path(out).expanduser() if out else None
    request = Request(
        run=str(run),
        to=to,
        checkpoint=str(checkpoint),
        out=place,
        base=base,
        quantize=rounding(quantize, group_size),
        licence=license,
        shared=push is not None,
    )
    if scratch is not None:
        check_destination(request)
        return export_run(replace(request, root=scratch, out=scratch / to))
    exported = export_run(request)
    return replace(exported, address=upload(exported.path, push, public)) if push else exported
