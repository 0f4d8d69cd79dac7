"""`trb-mlx doctor`."""

from __future__ import annotations

import click
from rich.console import Console

from trb_mlx.errors import UserError
from trb_mlx.files import json_text


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plain", is_flag=True, help="Print plain lines, ready for a bug report.")
def doctor(as_json: bool, plain: bool) -> None:
    """Examine this machine: what MLX runs on, and whether training is right on it.

    Losses, the trust region, draws, decoding and updates are checked on the device that trains.
    Needs no network and shows no names or paths; exit code 1 where a check fails.
    """
    if as_json and plain:
        raise UserError("--json and --plain were both given; choose one.")
    from trb_mlx.doctor import table  # seconds of imports
    from trb_mlx.doctor.examination import examine

    with Console(stderr=True).status("looking at the machine") as status:
        examination = examine(begin=lambda name: status.update(f"checking: {name}"))
    if as_json:
        click.echo(json_text(table.as_json(examination)))
    elif plain:
        click.echo(table.as_text(examination))
    else:
        Console().print(table.as_table(examination))
    if examination.failed:
        click.get_current_context().exit(1)
