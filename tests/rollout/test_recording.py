"""What is kept of the teacher between rollout and update."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from trb_mlx.rollout.recording import from_host, plan_hidden, to_host
from trb_mlx.types import Records


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_hidden_states_keep_their_bits_on_the_host(dtype: mx.Dtype) -> None:
    hidden = (mx.random.normal((3, 5)) * 100).astype(dtype)
    host = to_host(hidden)
    assert host.nbytes == hidden.nbytes
    back = from_host(mx.array(host.copy()))
    assert back.dtype == dtype
    assert mx.array_equal(back, hidden)


def test_records_cut_what_they_hold() -> None:
    records = Records.empty(2, 6, 3)
    assert "teacher_hidden" not in records.arrays()
    assert records.cut(4).teacher_hidden is None
    records.teacher_hidden = np.ones((2, 6, 8), np.float16)
    cut = records.cut(4)
    assert cut.support.shape == (2, 4, 3)
    assert cut.teacher_hidden is not None
    assert cut.teacher_hidden.shape == (2, 4, 8)
    assert cut.arrays().keys() == records.arrays().keys()


def test_hidden_states_are_kept_where_they_fit_or_where_told() -> None:
    step = (32 * 1024, 2560, 2)  # tokens, D, bytes a number: 160 MiB
    assert plan_hidden("auto", *step, memory=16 * 2**30).keep
    assert plan_hidden("auto", *step, memory=1280 * 2**20).keep  # an eighth of it, exactly
    assert not plan_hidden("auto", *step, memory=1279 * 2**20).keep
    assert plan_hidden("on", *step, memory=2**20).keep
    assert not plan_hidden("off", *step, memory=2**40).keep


def test_the_plan_says_why() -> None:
    step = (32 * 1024, 2560, 2)
    assert plan_hidden("auto", *step, memory=2**34).reason == (
        "the teacher's hidden states are kept "
        "(at most 160 MiB for 32,768 tokens, within 2,048 MiB, an eighth of the memory)"
    )
    assert plan_hidden("auto", *step, memory=2**30).reason == (
        "the teacher's hidden states are not kept (at most 160 MiB for 32,768 tokens, above "
        "128 MiB, an eighth of the memory): its body runs again in the update"
    )
    assert "loss.keep_hidden is on" in plan_hidden("on", *step, memory=1).reason
    assert "loss.keep_hidden is off" in plan_hidden("off", *step, memory=1).reason
