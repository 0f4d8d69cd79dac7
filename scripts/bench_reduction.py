"""What one step's reduction costs between ranks: the sum of a flat float32 array, by its size.

    mlx.launch --hostfile hosts.json -- python scripts/bench_reduction.py

Seconds are rank 0's, medians: a meeting of the hosts, then MLX's sum.
"""

from __future__ import annotations

import statistics
import time

import click
import mlx.core as mx

from trb_mlx.ranks.group import joined


@click.command()
@click.option("--mb", default=[0.25, 4, 40], multiple=True, show_default=True, help="Arrays.")
@click.option("--repeats", default=7, show_default=True)
def main(mb: tuple[float, ...], repeats: int) -> None:
    """Print a line a size."""
    with joined() as group:
        for size in mb:
            array = mx.ones(int(size * 1e6 / 4))
            seconds, waits = [], []
            for _ in range(repeats + 1):
                group.take_seconds()
                begun = time.perf_counter()
                mx.eval(group.sum(array))
                seconds.append(time.perf_counter() - begun)
                waits.append(group.take_seconds()["wait"])
            if group.leads:
                whole, wait = (statistics.median(x[1:]) for x in (seconds, waits))
                click.echo(
                    f"{group.size} ranks, {size:g} MB: {1e3 * whole:.1f} ms, {1e3 * wait:.1f} of "
                    "them until all had come"
                )


if __name__ == "__main__":
    main()
