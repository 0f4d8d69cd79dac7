"""The update where the teacher reads another prompt: loss and gradients against plain passes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from trb_mlx.config import LoraConfig, LossConfig, TrainConfig
from trb_mlx.models.lora import add_lora
from trb_mlx.models.pair import Pair
from trb_mlx.rollout.sampler import sample
from trb_mlx.rollout.scoring import score
from trb_mlx.training.objective import Objective
from trb_mlx.training.step import Stepper
from trb_mlx.types import Job, Prompt, Rollout, RolloutKey, Sampling

PROMPTS = [
    ("Compute 1+2.", "Think of 3, which is what the answer is.\nCompute 1+2?"),
    ("a longer prompt than the teacher's own", "b"),
    ("same", None),
    ("c", "c!"),
]


def rollouts(pair: Pair, keep_hidden: bool) -> Rollout:
    jobs = [
        Job(
            Prompt(i, text, tuple(text.encode()), None, None, own, own and tuple(own.encode())),
            RolloutKey(0, 0, i, 0),
        )
        for i, (text, own) in enumerate(PROMPTS)
    ]
    rollout = sample(pair.student, jobs, Sampling(max_tokens=9, support=8))
    score(pair.teacher, rollout, (8, 1000), keep_hidden)
    return rollout


def plain_loss(pair: Pair, rollout: Rollout) -> mx.array:
    """KL(π_S‖π_T) over the whole vocabulary, row by row, each model behind its own prompt.

    What the shared vocabulary masks has −1e9, so that 0 · −∞ does not come up.
    """
    total = mx.array(0.0)
    for row, job in enumerate(rollout.jobs):
        response, prompt = rollout.response(row), job.prompt
        student, teacher = (
            scorer.logits(mx.array([[*tokens, *response]]))[0, len(tokens) - 1 : -1]
            for scorer, tokens in (
                (pair.student, prompt.tokens),
                (pair.teacher, prompt.teacher_tokens or prompt.tokens),
            )
        )
        student = mx.maximum(student, -1e9) - mx.logsumexp(student, axis=-1, keepdims=True)
        teacher = mx.stop_gradient(
            mx.maximum(teacher, -1e9) - mx.logsumexp(teacher, axis=-1, keepdims=True)
        )
        total = total + (mx.exp(student) * (student - teacher)).sum()
    return total / int(rollout.lengths.sum())


@pytest.mark.parametrize("keep_hidden", [True, False])
@pytest.mark.parametrize("limits", [{}, {"micro_batch_tokens": 60}, {"micro_batch_size": 1}])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_loss_and_gradients_are_those_of_plain_passes(
    pair: Pair, keep_hidden: bool, limits: dict[str, int], compiled: str
) -> None:
    module = pair.student.model.module
    add_lora(module, LoraConfig(rank=4), seed=0)
    rollout = rollouts(pair, keep_hidden)
    expected, grads = nn.value_and_grad(module, lambda: plain_loss(pair, rollout))()
    config = TrainConfig.model_validate({"compile": compiled, **limits})
    stepper = Stepper(module, Objective(LossConfig(), pair), config)
    (loss, _), actual = stepper._accumulate(rollout)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    flat = dict(tree_flatten(actual))
    for name, grad in tree_flatten(grads):
        size = float(mx.abs(grad).max())
        np.testing.assert_allclose(
            np.asarray(flat[name]), np.asarray(grad), atol=1e-3 * max(size, 1e-4), err_msg=name
        )
