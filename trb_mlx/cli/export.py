"""`trb-mlx export`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from trb_mlx.errors import UserError

if TYPE_CHECKING:
    from trb_mlx.exports import Exported, Request


@click.command()
@click.argument("run")
@click.option("--to", help="peft, mlx-lm or merged.")
@click.option("--recipe", help="verl or trl: the run's settings for a cluster, instead of --to.")
@click.option("--checkpoint", default="final", show_default=True, help="final, best or a step.")
@click.option("--out", help="Where it goes (default: RUN/export/FORMAT).")
@click.option("--base", help="The unquantized base: a Hub id or a folder.")
@click.option("--quantize", metavar="BITS", type=int, help="Round a merged model.")
@click.option("--group-size", type=int, help="Weights that share a scale (default: 64).")
@click.option("--license", "licence", help="The licence that the card names (default: the base's).")
@click.option("--push", metavar="REPO", help="Upload to OWNER/NAME on the Hugging Face Hub.")
@click.option("--public", is_flag=True, help="Make a new repository public.")
@click.option("--dry-run", is_flag=True, help="List the files and their sizes; leave nothing.")
def export(
    run: str,
    to: str | None,
    recipe: str | None,
    checkpoint: str,
    out: str | None,
    base: str | None,
    quantize: int | None,
    group_size: int | None,
    licence: str | None,
    push: str | None,
    public: bool,
    dry_run: bool,
) -> None:
    """Write the adapter of RUN for other tools, or its settings for a cluster.

    An earlier export is replaced; other files are not.
    """
    if (to is None) == (recipe is None):
        raise UserError("export needs --to peft, mlx-lm or merged, or --recipe verl or trl.")
    place = Path(out).expanduser() if out else None
    if public and not push:
        raise UserError("--public is of a repository made by --push, which was not given.")
    if recipe is not None:
        _refuse_flags_of_adapters()
        _recipe(run, recipe, place, dry_run)
        return
    from trb_mlx.export.hub import check_repo
    from trb_mlx.export.merged import rounding  # slow to import
    from trb_mlx.exports import Request

    request = Request(
        run=run,
        to=str(to),
        checkpoint=checkpoint,
        out=place,
        base=base,
        quantize=rounding(quantize, group_size),
        licence=licence,
        shared=push is not None,
    )
    if push:
        check_repo(push)
    if dry_run:
        _list(request, push)
        return
    done = _export(request)
    if push:
        from trb_mlx.export.hub import push as upload

        click.echo(f"pushed to {upload(done.path, push, public)}")


def _refuse_flags_of_adapters() -> None:
    """A recipe reads the run's settings alone."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("run", "recipe", "out", "dry_run"):
            raise UserError(f"{option.opts[0]} is for --to; a --recipe takes only --out.")


def _recipe(run: str, stack: str, place: Path | None, dry_run: bool) -> None:
    from trb_mlx.export.recipe import recipe_place, write_recipe

    if not dry_run:
        click.echo(f"wrote {write_recipe(run, stack, place)}")
        return
    recipe_place(run, stack, place)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_recipe(run, stack, Path(scratch) / stack)
        _list_folders([path.parent])
    click.echo("dry run: nothing was kept.")


def _export(request: Request) -> Exported:
    from trb_mlx.exports import export_run

    done = export_run(request)
    for path in [*done.beside, done.path]:
        click.echo(f"wrote {path} ({_size(_bytes(path))})")
    for note in done.notes:
        click.echo(note)
    return done


def _list(request: Request, push: str | None) -> None:
    """Export into a folder that is removed again, and list what it held."""
    from trb_mlx.exports import check_destination, export_run

    check_destination(request)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        done = export_run(replace(request, root=root, out=root / request.to))
        _list_folders([*done.beside, done.path])
    click.echo(f"dry run: nothing was kept{f' or pushed to {push}' if push else ''}.")


def _list_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        click.echo(f"{folder.name}/")
        for file in sorted(folder.iterdir()):
            click.echo(f"  {file.name:<40}{_size(file.stat().st_size):>10}")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
