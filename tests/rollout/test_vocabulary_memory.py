"""At 151,936 ids what is held at once follows one number, and not the rows, tokens or blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx import bounds
from trb_mlx.bounds import bounded
from trb_mlx.config import BehaviorConfig, LoraConfig, LossConfig, TrainConfig
from trb_mlx.doctor.tiny import tiny_pair
from trb_mlx.evaluation.distances import distance_sums
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.generator import ModelGenerator
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import score
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

VOCAB, ROWS, LENGTH = 151_936, 64, 2
MEBIBYTES = 16  # 27 rows of 151,936
# Of that size, held at once: on a CPU, and where groups are as large as the bound (docs/models.md).
ARRAYS, GROUPED_ARRAYS = 6.5, 22
JOBS = [Job(Prompt(0, "", (1, 2, 3)), RolloutKey(1, 0, 0, number)) for number in range(ROWS)]
SAMPLING = Sampling(LENGTH, ROWS, support=16)


@pytest.fixture(scope="module")
def pair() -> Pair:
    pair = tiny_pair(VOCAB, 0.35)
    for scorer in (pair.student, pair.teacher):
        make_decoder(scorer)
    return pair


@pytest.fixture(autouse=True)
def _small_bound() -> Iterator[None]:
    with bounded(MEBIBYTES):
        yield


@pytest.fixture(scope="module")
def rollout(pair: Pair) -> Rollout:
    rollout = sample(pair.student, JOBS, SAMPLING)
    score(pair.teacher, rollout, (8, 4096))
    return rollout


def held(work: Callable[[], object]) -> float:
    """The most that MLX holds at once beside what was there before, in arrays of the bound."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    return (mx.get_peak_memory() - before) / (MEBIBYTES * 2**20)


def test_vanilla_rollouts(pair: Pair) -> None:
    assert held(lambda: sample(pair.student, JOBS, SAMPLING)) < ARRAYS


def test_a_look_of_many_tokens(pair: Pair) -> None:
    """Eight tokens of 27 rows between two checks for stops are not 216 rows at once."""
    generator = ModelGenerator(pair.student, SAMPLING)
    rows, length = 27, 8
    generator.decoders[0].prefill([(1, 2, 3)] * rows)
    uniforms = mx.random.uniform(shape=(rows, length, 2))
    last = mx.array([[3] * rows])

    def look() -> None:
        block = generator.generate(last, uniforms, uniforms)
        mx.eval(block.tokens, block.records.of_first(np.full(rows, length)))

    assert held(look) < ARRAYS


@pytest.mark.parametrize("block", [1, 4])
def test_blended_rollouts(pair: Pair, block: int) -> None:
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.1))
    jobs = JOBS[:32]

    def draw() -> Rollout:
        return sample_blended(pair, jobs, SAMPLING, behavior, 0.1, Fixed(block))

    assert held(draw) < ARRAYS


def test_blended_rollouts_in_a_gpu_s_groups(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CPU_ENTRIES", bounds.MOST_ENTRIES)
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.1))
    sampling = Sampling(1, ROWS, support=16)
    arrays = held(lambda: sample_blended(pair, JOBS[:27], sampling, behavior, 0.1, Fixed(1)))
    assert 2 * ARRAYS < arrays < GROUPED_ARRAYS


def test_scoring(pair: Pair, rollout: Rollout) -> None:
    assert held(lambda: score(pair.teacher, rollout, (64, 4096))) < ARRAYS


def test_distances(pair: Pair, rollout: Rollout) -> None:
    part = Rollout(JOBS[:32], rollout.tokens[:32], rollout.lengths[:32], rollout.stopped[:32])
    assert held(lambda: distance_sums(pair, part, 32, 16)) < ARRAYS


@pytest.mark.parametrize("mode", ["exact", "tail"])
def test_an_update(mode: str, rollout: Rollout) -> None:
    pair = tiny_pair(VOCAB, 0.35)
    add_lora(pair.student.model.module, LoraConfig(rank=4), seed=0)
    objective = Objective(LossConfig.model_validate({"mode": mode}), pair)
    stepper = Stepper(pair.student.model.module, objective, TrainConfig(micro_batch_size=64))
    assert held(lambda: stepper.update(rollout, 0.001)) < ARRAYS
