"""A run's method in words: only the keys that its kind reads."""

from __future__ import annotations

from trb_mlx.config import READ_WITH, Config


def behavior_words(config: Config) -> str:
    """`trb, budget 0.02, warmup_steps 50`."""
    behavior = config.behavior
    read = [
        key
        for key in type(behavior).model_fields
        if behavior.kind in READ_WITH.get(f"behavior.{key}", ("", ()))[1]
    ]
    return ", ".join([behavior.kind, *(f"{key} {getattr(behavior, key)}" for key in read)])


def divergence_words(config: Config) -> str:
    """`reverse KL`, `forward KL` or the generalised Jensen-Shannon divergence with its β."""
    loss = config.loss
    if loss.divergence == "jsd":
        return f"generalised Jensen-Shannon divergence, beta {loss.beta:g}"
    return loss.divergence.replace("_kl", " KL")


def loss_words(config: Config) -> str:
    """The divergence and what it is summed over."""
    if config.loss.mode == "exact":
        return f"{divergence_words(config)}, the whole vocabulary"
    where = f"mode {config.loss.mode} on the student's top {config.loss.top_k}"
    return f"{divergence_words(config)}, {where}"


def target_words(config: Config) -> list[str]:
    """What is matched other than the teacher itself, one phrase each."""
    target, words = config.target, []
    if target.kind == "veto":
        words.append(f"target veto, power {target.power}, warmup_steps {target.warmup_steps}")
    if target.corrections != "match":
        words.append(f"corrections {target.corrections}")
    if target.sft_steps:
        words.append(f"sft_steps {target.sft_steps}")
    return words


def jsd_beta(config: Config) -> float:
    """β of the generalised JSD that the divergence is: 1 reverse KL, 0 forward KL."""
    return {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": config.loss.beta}[config.loss.divergence]
