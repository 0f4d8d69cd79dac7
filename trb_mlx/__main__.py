"""`trb-mlx` and `python -m trb_mlx`: a signal ends in a sentence from the first import on."""

from __future__ import annotations

import signal
import sys

from trb_mlx.interrupts import SIGNALS, Interrupted, watching


def main() -> None:
    """Run the command line."""
    try:
        with watching():
            from trb_mlx.cli import main as command  # most of a start's time

            command()
    except Interrupted as error:
        sys.stderr.write(f"trb-mlx: {error}\n")
        sys.exit(error.code)
    finally:
        for number in SIGNALS:  # nothing is left to lose, and Python's own way is a traceback
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
