"""A small part of scripts/fuzz.py: a command reads a damaged file, or says one sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.mutations import mutate_bytes, mutate_json, mutate_text, mutate_yaml
from fuzz.targets import TARGETS
from fuzz.worker import run_cases

SEED, CASES = 1, 5  # of each kind of file; the script's default is 150


def test_damaged_files_are_read_or_told_in_a_sentence(tmp_path: Path) -> None:
    """Within 20 s of processor time and 3 GiB, and nothing is written beside the folder."""
    cases = list(run_cases(tmp_path / "fuzz", SEED, list(TARGETS), CASES))
    assert len(cases) == CASES * len(TARGETS)
    faults = [case for case in cases if case.fault]
    assert not faults, "\n\n".join(f"{c.target} {c.number}: {c.command}\n{c.fault}" for c in faults)
    # Damage that nothing notices would show nothing.
    assert sum(bool(case.sentence) for case in cases) > len(cases) / 4


@pytest.mark.parametrize("mutate", [mutate_json, mutate_text, mutate_yaml, mutate_bytes])
def test_a_mutation_is_its_seeds_and_changes_most_files(mutate: object) -> None:
    content = b'{"a": 1, "b": [1, 2],\n "c": {"d": "x"}}\n'
    assert callable(mutate)
    made = [mutate(content, random.Random(seed)) for seed in range(60)]
    assert made == [mutate(content, random.Random(seed)) for seed in range(60)]
    assert sum(result != content for result in made) > 45
