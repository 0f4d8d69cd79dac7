"""`trb-mlx generate`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("target")
@click.option("-p", "--prompt", required=True, help="The prompt ('-' reads standard input).")
@click.option("--adapter-path", help="A folder with mlx-lm adapters (for a run: its own).")
@click.option("--checkpoint", default="final", show_default=True, help="final, best or a step.")
@click.option("-m", "--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--temp",
    "--temperature",
    "temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--system-prompt", help="A system prompt, for chat templates.")
@click.option("--max-prompt-tokens", type=click.IntRange(1), help="The longest prompt accepted.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def generate(
    target: str,
    prompt: str,
    adapter_path: str | None,
    checkpoint: str,
    max_tokens: int,
    temperature: float,
    system_prompt: str | None,
    max_prompt_tokens: int | None,
    seed: int,
) -> None:
    """Answer one prompt with TARGET: a run folder, or a model with or without an adapter."""
    from trb_mlx.evaluation.run import generate as answer  # slow to import

    text = sys.stdin.read() if prompt == "-" else prompt
    click.echo(
        answer(
            target,
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            system_prompt=system_prompt,
            adapter_path=adapter_path,
            checkpoint=checkpoint,
            max_prompt_tokens=max_prompt_tokens,
            say=lambda sentence: click.echo(f"note: {sentence}", err=True),
        )
    )
