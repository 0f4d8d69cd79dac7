"""The command line: one short file a command, each parses and delegates."""

from __future__ import annotations

import click

from trb_mlx import __version__
from trb_mlx.cli.compare import compare
from trb_mlx.cli.doctor import doctor
from trb_mlx.cli.eval import evaluate
from trb_mlx.cli.export import export
from trb_mlx.cli.generate import generate
from trb_mlx.cli.report import report
from trb_mlx.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trb-mlx")
def main() -> None:
    """On-policy distillation with trust-region behavior blending, on MLX.

    Train a small student on its own rollouts while a stronger teacher supervises every token;
    try `trb-mlx train --config small`, which needs no network.
    """


main.add_command(train)
main.add_command(generate)
main.add_command(evaluate)
main.add_command(export)
main.add_command(report)
main.add_command(compare)
main.add_command(doctor)
