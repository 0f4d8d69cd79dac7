"""The command line: one short file a command, each parses and delegates."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from trb_mlx import __version__
from trb_mlx.backend import require_backend
from trb_mlx.cli.failures import ending_plainly, quiet_libraries, use_any_encoding
from trb_mlx.errors import RunError, UserError
from trb_mlx.ranks.launch import launched

# command → its function in the module of the command's name
COMMANDS = {
    "train": "train",
    "plan": "plan",
    "generate": "generate",
    "eval": "evaluate",
    "export": "export",
    "report": "report",
    "compare": "compare",
    "doctor": "doctor",
}

RANKED = ("train", "eval")  # the work of several processes under mlx.launch


class Commands(click.Group):
    """Commands that are imported when they are called, within the net that catches failures."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's, with output that no encoding stops."""
        use_any_encoding()
        quiet_libraries()
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, of text alone: Python hands on other bytes as halves of surrogate pairs."""
        with ending_plainly():
            for argument in args:
                if any("\ud800" <= letter <= "\udfff" for letter in argument):
                    raise UserError(
                        f"the argument {argument!a} is not text in this terminal's encoding; "
                        "expected UTF-8."
                    )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, ending in a sentence whatever happens."""
        with ending_plainly():
            try:
                require_backend()
            except ImportError as error:
                raise RunError(str(error)) from error
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; the commands that know no ranks are refused to several."""
        name, command, rest = super().resolve_command(ctx, args)
        if launched().size > 1 and name not in RANKED and not {"-h", "--help"} & {*rest}:
            raise UserError(
                f"{name} runs in one process; expected {' or '.join(RANKED)} under mlx.launch, or "
                f"trb-mlx {name} without it."
            )
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, the one that a user needs first at the front."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"trb_mlx.cli.{cmd_name}")
        command: click.Command = getattr(module, COMMANDS[cmd_name])
        return command


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="trb-mlx")
def main() -> None:
    """On-policy distillation with trust-region behavior blending, on MLX.

    Train a small student on its own rollouts while a stronger teacher supervises every token;
    try `trb-mlx train --config small`, which needs no network.
    """
