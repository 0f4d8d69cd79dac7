"""`trb-mlx export`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from trb_mlx.errors import UserError
from trb_mlx.text import file_size


@click.command()
@click.argument("run")
@click.option("--to", help="peft, mlx-lm or merged.")
@click.option("--recipe", help="verl or trl: the run's settings for a cluster, instead of --to.")
@click.option("--checkpoint", default="final", show_default=True, help="final, best or a step.")
@click.option("--out", help="Where it goes (default: RUN/export/FORMAT).")
@click.option("--base", help="The unquantized base: a Hub id or a folder.")
@click.option("--quantize", metavar="BITS", type=int, help="Round a merged model.")
@click.option("--group-size", type=int, help="Weights that share a scale (default: 64).")
@click.option("--license", help="The licence that the card names (default: the base's).")
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
    license: str | None,
    push: str | None,
    public: bool,
    dry_run: bool,
) -> None:
    """Write the adapter of RUN for other tools, or its settings for a cluster.

    An earlier export is replaced; other files are not.
    """
    if (to is None) == (recipe is None):
        raise UserError("export needs --to peft, mlx-lm or merged, or --recipe verl or trl.")
    if recipe is not None:
        _refuse_flags_of_adapters()
        _recipe(run, recipe, Path(out).expanduser() if out else None, dry_run)
        return
    from trb_mlx.exporting.run import export as export_run  # slow to import

    write = partial(
        export_run,
        run,
        str(to),
        checkpoint=checkpoint,
        out=out,
        base=base,
        quantize=quantize,
        group_size=group_size,
        license=license,
        push=push,
        public=public,
    )
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            exported = write(scratch=Path(scratch))
            _list_folders([*exported.beside, exported.path])
        click.echo(f"dry run: nothing was kept{f' or pushed to {push}' if push else ''}.")
        return
    exported = write()
    for path in [*exported.beside, exported.path]:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        click.echo(f"wrote {path} ({file_size(size)})")
    for note in exported.notes:
        click.echo(note)
    if exported.address:
        click.echo(f"pushed to {exported.address}")


def _refuse_flags_of_adapters() -> None:
    """A recipe reads the run's settings alone."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("run", "recipe", "out", "dry_run"):
            raise UserError(f"{option.opts[0]} is for --to; a --recipe takes only --out.")


def _recipe(run: str, stack: str, place: Path | None, dry_run: bool) -> None:
    from trb_mlx.exporting.recipe import recipe_place, write_recipe

    if not dry_run:
        click.echo(f"wrote {write_recipe(run, stack, place)}")
        return
    recipe_place(run, stack, place)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_recipe(run, stack, Path(scratch) / stack)
        _list_folders([path.parent])
    click.echo("dry run: nothing was kept.")


def _list_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        click.echo(f"{folder.name}/")
        for file in sorted(folder.iterdir()):
            click.echo(f"  {file.name:<40}{file_size(file.stat().st_size):>10}")
