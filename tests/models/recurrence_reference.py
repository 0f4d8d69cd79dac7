"""The gated delta rule token by token in float64, with its gradient by hand."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def recurrence(
    corrects: bool, inputs: Arrays, by_output: np.ndarray, by_state: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """Outputs, last state, and gradients by each input of Σ output·by_output + state·by_state.

    `inputs` are q, k, v, log_decay, beta and state, in the shapes of `models.gated_delta`.
    """
    given = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    groups = given["v"].shape[2] // given["k"].shape[2]
    q, k = (np.repeat(given[name], groups, axis=2) for name in ("q", "k"))
    v, beta, state = given["v"], given["beta"], given["state"]
    logs = given["log_decay"]
    decay = np.exp(logs if logs.ndim == 4 else logs[..., None])[..., None, :]  # [B, T, Hv, 1, c]
    times = range(v.shape[1])
    outputs, before, errors = [], [], []
    for t in times:
        decayed = state * decay[:, t]
        error = v[:, t] - (decayed * k[:, t, :, None]).sum(-1) * corrects
        before.append(state)
        errors.append(error)
        state = decayed + (beta[:, t, :, None] * error)[..., None] * k[:, t, :, None]
        outputs.append((state * q[:, t, :, None]).sum(-1))
    after = [*before[1:], state]
    grads = {name: np.zeros_like(x) for name, x in (("q", q), ("k", k), ("v", v), ("beta", beta))}
    by_logs = np.zeros_like(logs)
    by = np.asarray(by_state, np.float64)
    for t in reversed(times):
        key, strength, decayed = k[:, t, :, None], beta[:, t, :, None], before[t] * decay[:, t]
        by_y = np.asarray(by_output[:, t], np.float64)[..., None]
        grads["q"][:, t] = (after[t] * by_y).sum(-2)
        by = by + by_y * q[:, t, :, None]
        by_write = (by * key).sum(-1)
        by_error = strength * by_write
        grads["k"][:, t] = (by * (strength * errors[t])[..., None]).sum(-2)
        grads["beta"][:, t] = (by_write * errors[t]).sum(-1)
        grads["v"][:, t] = by_error
        if corrects:
            grads["k"][:, t] -= (decayed * by_error[..., None]).sum(-2)
            by = by - by_error[..., None] * key
        by_gate = (by * decayed).sum(-2)
        by_logs[:, t] = by_gate if logs.ndim == 4 else by_gate.sum(-1)
        by = by * decay[:, t]
    heads = given["k"].shape[2]
    for name in ("q", "k"):
        shape = (*grads[name].shape[:2], heads, groups, -1)
        grads[name] = grads[name].reshape(shape).sum(3)
    return np.stack(outputs, axis=1), state, grads | {"log_decay": by_logs, "state": by}
