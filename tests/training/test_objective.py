"""The fused path gives the plain loss, measures and gradients for every form of the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from test_step import rollouts
from tiny import HEADS, make_model

from trb_mlx import bounds
from trb_mlx.config import LoraConfig, LossConfig, ModelConfig
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair, Scorer, load_pair
from trb_mlx.rollout.packing import pack_rollout
from trb_mlx.rollout.recording import to_host
from trb_mlx.training.objective import Objective, token_logprobs
from trb_mlx.types import Rollout

MODES = ["tail", "renormalized", "truncated", "exact"]
TEMPERATURE = 0.8


def without_split(pair: Pair, student: bool = True, teacher: bool = True) -> Pair:
    def change(scorer: Scorer, wanted: bool) -> Scorer:
        return dataclasses.replace(scorer, split=None) if wanted else scorer

    return Pair(change(pair.student, student), change(pair.teacher, teacher))


def result(pair: Pair, mode: str, rollout: Rollout) -> tuple[dict, dict]:
    """Loss and measures, and the gradients of the adapters, of a whole rollout."""
    module = pair.student.model.module
    objective = Objective(LossConfig(mode=mode), pair)
    (packed,) = pack_rollout(rollout, 8)
    batch = objective.batch(rollout, packed, int(rollout.lengths.sum()))
    (loss, measures), grads = nn.value_and_grad(module, objective.loss)(batch)
    values = {"loss": loss} | measures
    return {k: v.item() for k, v in values.items()}, dict(tree_flatten(grads))


def assert_same(one: tuple[dict, dict], other: tuple[dict, dict]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        expected = np.asarray(other[1][name])
        np.testing.assert_allclose(
            np.asarray(grad), expected, atol=1e-4 * max(1e-3, np.abs(expected).max())
        )


def ready(pair: Pair, keys: list[str] | None = None) -> Pair:
    add_lora(pair.student.model.module, LoraConfig(rank=4, keys=keys), seed=0)
    return pair


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens a chunk, so that even tiny models have many."""
    monkeypatch.setattr(bounds.chunk_tokens, "__defaults__", (1, 8 * 259 * 4))


@pytest.mark.parametrize("mode", MODES)
def test_fused_equals_plain(pair: Pair, mode: str, small_chunks: None) -> None:
    rollout = rollouts(ready(pair))
    assert Objective(LossConfig(mode=mode), pair).unfused is None
    expected = result(without_split(pair), mode, rollout)
    assert any(np.abs(np.asarray(grad)).max() > 1e-4 for grad in expected[1].values())
    assert_same(result(pair, mode, rollout), expected)


@pytest.mark.parametrize("kind", [*HEADS, "untied"])
def test_heads_of_other_architectures(tmp_path: Path, kind: str, small_chunks: None) -> None:
    """The teacher has the head in question; the student shows that every head has a backward."""
    changes = {"tie_word_embeddings": False} if kind == "untied" else {}
    kind = "llama" if kind == "untied" else kind
    rollout = None
    for names in (("llama", kind), (kind, "llama")):
        paths = [
            make_model(
                tmp_path / f"{name}{place}{names[0]}", name, seed=place, scale=5.0, **changes
            )
            for place, name in enumerate(names)
        ]
        pair = load_pair(*(ModelConfig(model=str(path)) for path in paths))
        ready(pair)
        rollout = rollout or rollouts(pair)  # any tokens do; not every model decodes in batches
        assert_same(result(pair, "exact", rollout), result(without_split(pair), "exact", rollout))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_kept_hidden_states_stand_for_the_teachers_body(pair: Pair, dtype: mx.Dtype) -> None:
    rollout = rollouts(ready(pair))
    pair.teacher.model.module.set_dtype(dtype)
    expected = result(pair, "exact", rollout)
    keep_hidden(pair, rollout)

    def refuse(*_: object, **__: object) -> mx.array:
        raise AssertionError("the teacher's body ran")

    split = pair.teacher.split
    assert split is not None
    object.__setattr__(pair.teacher, "split", _WithBody(split, refuse))
    assert_same(result(pair, "exact", rollout), expected)
    # The plain path takes them too, where it is the student that cannot be taken apart.
    assert_same(result(without_split(pair, teacher=False), "exact", rollout), expected)


def keep_hidden(pair: Pair, rollout: Rollout) -> None:
    """Fill in what a rollout may keep of the teacher."""
    assert rollout.records is not None
    for packed in pack_rollout(rollout, 2):
        hidden = to_host(packed.pick(pair.teacher.hidden(packed.ids)))
        if rollout.records.teacher_hidden is None:
            shape = (*rollout.tokens.shape, hidden.shape[-1])
            rollout.records.teacher_hidden = np.zeros(shape, hidden.dtype)
        row, position = np.nonzero(packed.mask)
        rollout.records.teacher_hidden[packed.rows[row], position] = hidden


class _WithBody:
    def __init__(self, split: object, body: Callable[..., mx.array]) -> None:
        self.split, self.body = split, body

    def __getattr__(self, name: str) -> object:
        return getattr(self.split, name)


def test_a_trained_head_takes_the_plain_path(pair: Pair) -> None:
    ready(pair, keys=["model.embed_tokens"])
    objective = Objective(LossConfig(), pair)
    assert objective.unfused == f"the head of student {pair.student.model.name} is trained too"
    grads = result(pair, "tail", rollouts(pair))[1]
    assert np.abs(np.asarray(grads["model.embed_tokens.lora_b"])).max() > 0


def test_the_teachers_head_matters_to_the_exact_loss_alone(pair: Pair) -> None:
    ready(pair)
    teacherless = without_split(pair, student=False)
    assert Objective(LossConfig(mode="tail"), teacherless).unfused is None
    reason = Objective(LossConfig(mode="exact"), teacherless).unfused
    assert reason is not None
    assert reason.startswith("teacher ")
    assert reason.endswith("has no head that can be run apart from its body")


def test_log_probs_of_drawn_tokens() -> None:
    logits = mx.array([[1.0, 2.0, -mx.inf], [0.0, 0.0, 3.0]])
    logprobs = np.asarray(token_logprobs(logits, mx.array([1, 2]), mx.array([0.5, 0.5])))
    expected = [4 - np.log(np.exp(2) + np.exp(4)), 6 - np.log(2 + np.exp(6))]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)
