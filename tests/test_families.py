"""Every family of models through the whole loop: load, adapt, roll out, learn, save, load.

The pairs are unequal on purpose: the teacher is wider, has other padded rows, and stops with
<|im_end|> where the base student stops with <|endoftext|>.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import EXTRAS, make_model

from trb_mlx.adapters.apply import load_adapter
from trb_mlx.adapters.mlx_lm import WEIGHTS, adapter_config, save_adapters
from trb_mlx.config import BehaviorConfig, LoraConfig, LossConfig, ModelConfig, TrainConfig
from trb_mlx.models.loading import load_model
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair, load_pair
from trb_mlx.rollout.behavior import make_behavior
from trb_mlx.rollout.cache_trial import make_decoder
from trb_mlx.rollout.draft_length import Fixed
from trb_mlx.rollout.sampler import sample, sample_blended
from trb_mlx.rollout.scoring import score
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

TEXTS = ["a", "Compute 12+7.", "the quick brown fox jumps over it"]
SAMPLING = Sampling(max_tokens=10, batch_size=8, support=8)
LORA = LoraConfig(rank=4)
# The teacher's width; phi3 shares it out among its heads, mamba2 makes its heads from it.
WIDE = {"hidden_size": 48, "block_dim": 48}
WIDE_BY_FAMILY = {
    "phi3": {"hidden_size": 64},
    "mamba2": {"hidden_size": 48, "num_heads": 6},
}


def jobs() -> list[Job]:
    return [
        Job(Prompt(i, text, tuple(text.encode())), RolloutKey(0, 0, i, n))
        for i, text in enumerate(TEXTS)
        for n in range(2)
    ]


@pytest.fixture(scope="module", params=EXTRAS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of a base student and an instruct teacher of one family."""
    kind, root = request.param, tmp_path_factory.mktemp(request.param)
    wide = WIDE_BY_FAMILY.get(kind, WIDE)
    eos = ["<|im_end|>", "<|endoftext|>"]
    return [
        make_model(root / kind, kind, seed=1, padding=2),
        make_model(root / "teacher", kind, seed=2, eos=eos, padding=5, **wide),
    ]


@pytest.fixture
def pair(family: list[Path]) -> Pair:
    student, teacher = family
    return load_pair(ModelConfig(model=str(student)), ModelConfig(model=str(teacher)))


def blended(pair: Pair, length: int) -> Rollout:
    behavior = make_behavior(BehaviorConfig(kind="fixed", budget=0.05))
    return sample_blended(pair, jobs(), SAMPLING, behavior, 0.05, Fixed(length))


def test_drafted_blocks_draw_what_single_tokens_draw(pair: Pair) -> None:
    """Drafted or token by token, the draws are the same, within the budget, of shared tokens."""
    rollout, drafted = blended(pair, 1), blended(pair, 4)
    np.testing.assert_array_equal(rollout.tokens, drafted.tokens)
    assert rollout.records is not None
    spent = rollout.records.kl_behavior[rollout.mask]
    assert 0 < spent.max() <= 0.05 * 1.001
    assert rollout.tokens.max() < 259  # no padded row is drawn
    assert not (rollout.tokens == 258).any()  # nor the teacher's own stop


def test_a_step_learns_and_its_adapters_travel(
    family: list[Path], pair: Pair, tmp_path: Path
) -> None:
    student = pair.student.model
    add_lora(student.module, LORA, seed=0)
    before = np.asarray(student.module(mx.array([[5, 6, 7]])))
    objective = Objective(LossConfig(mode="exact"), pair)
    stepper = Stepper(student.module, objective, TrainConfig(learning_rate=0.01))
    rollout = sample(pair.student, jobs(), SAMPLING)
    score(pair.teacher, rollout, (8, 1000))
    first = stepper.update(rollout, 0.01)
    assert first["logprob_gap"] < 1e-3  # drawing with a cache and training without one agree
    for _ in range(8):
        last = stepper.update(rollout, 0.01)
    assert last["loss"] < 0.95 * first["loss"]
    details = adapter_config(student.module, LORA, student.name, [256, 258])
    save_adapters(tmp_path, student.module, details, 4)
    after = np.asarray(student.module(mx.array([[5, 6, 7]])))
    fresh = load_model(ModelConfig(model=str(family[0])))
    assert load_adapter(fresh, tmp_path, tmp_path / WEIGHTS) == [256, 258]
    np.testing.assert_allclose(np.asarray(fresh.module(mx.array([[5, 6, 7]]))), after, atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


def test_adapters_reach_every_block(pair: Pair) -> None:
    add_lora(pair.student.model.module, LORA, seed=0)
    names = [name for name, _ in tree_flatten(pair.student.model.module.trainable_parameters())]
    blocks = {name.split(".layers.")[1].split(".")[0] for name in names}
    assert len(blocks) == len(pair.student.model.module.layers)


def test_every_family_is_drafted_in_blocks(pair: Pair) -> None:
    for scorer in (pair.student, pair.teacher):
        assert make_decoder(scorer).is_trimmable
