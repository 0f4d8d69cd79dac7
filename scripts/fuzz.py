"""The full fuzz test: damaged files of every kind, each read by the commands that read it.

`python scripts/fuzz.py` damages each kind of file 150 times and prints a table of what happened;
the last one is in docs/robustness.md. `--only KIND` and `--seed N` narrow or vary it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fuzz.targets import TARGETS
from fuzz.worker import Case, run_cases


def main() -> None:
    """Fuzz, print what went wrong and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(TARGETS))
    parser.add_argument("--sentences", action="store_true", help="print every sentence")
    options = parser.parse_args()
    begun, rows, faults = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only or TARGETS:
            cases = []
            for case in run_cases(Path(scratch) / "fuzz", options.seed, [name], options.count):
                cases.append(case)
                if case.fault:
                    print(f"FAULT {name} {case.number}: {case.command}\n{case.fault}", flush=True)
                elif options.sentences and case.sentence:
                    print(f"{name} {case.number}: {case.sentence}", flush=True)
            rows.append(row(name, cases))
            faults += sum(bool(case.fault) for case in cases)
            print(rows[-1], flush=True)
    print(
        "| file | damaged | read | one sentence | faults | slowest |\n| --- " + "| --- " * 5 + "|"
    )
    print("\n".join(rows))
    print(f"{faults} faults, {time.monotonic() - begun:.0f} s, seed {options.seed}")
    sys.exit(bool(faults))


def row(name: str, cases: list[Case]) -> str:
    """One line of the table."""
    kinds = Counter("fault" if c.fault else "told" if c.sentence else "read" for c in cases)
    slowest = max(case.seconds for case in cases)
    return (
        f"| {name} | {len(cases)} | {kinds['read']} | {kinds['told']} | {kinds['fault']} "
        f"| {slowest:.1f} s |"
    )


if __name__ == "__main__":
    main()
