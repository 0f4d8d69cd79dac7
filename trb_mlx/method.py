"""A run's method in words: who draws the tokens, what they are pulled to, by which divergence."""

from __future__ import annotations

from typing import Any, get_args

from trb_mlx.config import BehaviorKind, Config
from trb_mlx.config_file import load_config

# key → (the key that decides whether it is read, the values with which it is). A policy of one's
# own may read any key of its section.
READ_WITH = {
    "behavior.budget": ("behavior.kind", {"trb", "fixed"}),
    "behavior.warmup_steps": ("behavior.kind", {"trb", "temperature"}),
    "behavior.top_k": ("behavior.kind", {"skd"}),
    "behavior.teacher_temperature": ("behavior.kind", {"skd"}),
    "behavior.start_temperature": ("behavior.kind", {"temperature"}),
    "behavior.options": ("behavior.kind", set()),
    "target.power": ("target.kind", {"veto"}),
    "target.warmup_steps": ("target.kind", {"veto"}),
    "target.corrections": ("behavior.kind", {"trb", "fixed", "skd"}),
    "loss.beta": ("loss.divergence", {"jsd"}),
}


def unread_keys(config: Config) -> list[str]:
    """One sentence for each key that was changed but that the chosen methods do not read."""
    plain = load_config({"teacher.model": "", "student.model": ""})
    return [
        f"{key} is {_value(config, key)!r}, but {decider} {chosen} does not use it."
        for key, (decider, values) in READ_WITH.items()
        if (chosen := _value(config, decider)) not in values
        and not (decider == "behavior.kind" and is_own(config))
        and _value(config, key) != _value(plain, key)
    ]


def _value(config: Config, dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return getattr(getattr(config, section), key)


def is_own(config: Config) -> bool:
    """Whether the behavior policy is a user's own."""
    return config.behavior.kind not in get_args(BehaviorKind)


def method_name(config: Config) -> str:
    """A method's name in `configs/methods/`; a policy of one's own goes by its kind."""
    target = config.target
    marks = {
        "sft": target.sft_steps > 0,
        "veto": target.kind == "veto",
        "saki": target.corrections == "top_token",
        "horizon": config.rollout.horizon is not None,
        "position": config.loss.position is not None,
        "gkd": config.loss.divergence != "reverse_kl",
    }
    return next((name for name, marked in marks.items() if marked), config.behavior.kind)


def describe_method(config: Config) -> str:
    """The behavior policy under its schedule, then whatever differs from plain reverse KL."""
    parts = [describe_behavior(config), *describe_lengths(config), *describe_target(config)]
    if config.loss.divergence != "reverse_kl":
        parts.append(describe_divergence(config))
    return ", ".join(parts)


def describe_behavior(config: Config) -> str:
    """Who draws the tokens, with the keys that this kind reads and no others."""
    behavior = config.behavior
    over = f"over {behavior.warmup_steps} steps"
    temperature = behavior.teacher_temperature
    words = {
        "trb": f"TRB, ε {behavior.budget:g} annealed to 0 {over}",
        "fixed": f"fixed-ε blending, ε {behavior.budget:g} throughout",
        "vanilla": "vanilla, the student alone",
        "skd": f"SKD, the teacher's top {behavior.top_k}"
        + (f" at temperature {temperature:g}" if temperature != 1.0 else ""),
        "temperature": f"temperature warm-up from {behavior.start_temperature:g} {over}",
    }
    own = ", ".join([behavior.kind, *(f"{key} {value}" for key, value in behavior.options.items())])
    return words.get(behavior.kind, own)


def describe_lengths(config: Config) -> list[str]:
    """Shortened responses, and responses of which a part only is in the loss, one phrase each."""
    rollout, position = config.rollout, config.loss.position
    phrases = []
    if rollout.horizon is not None:
        grown = f"from {rollout.horizon.start} to {rollout.max_tokens} tokens"
        phrases.append(f"responses {grown} over {rollout.horizon.steps} steps")
    if position is not None:
        phrases.append(f"the first {position.tokens} tokens of each in the loss")
    return phrases


def describe_target(config: Config) -> list[str]:
    """What is matched other than the teacher itself, one phrase each."""
    target, own, phrases = config.target, config.teacher.prompt, []
    if own is not None:
        keys = [key for key, value in own.model_dump().items() if value is not None]
        if own.context_column is None:
            keys.remove("context")
        phrases.append(f"a teacher with a prompt of its own ({', '.join(keys)})")
    if target.kind == "veto":
        phrases.append(f"Veto's bridge from {target.power:g} over {target.warmup_steps} steps")
    if target.corrections != "match":
        phrases.append(f"corrections towards the teacher's {target.corrections.replace('_', ' ')}")
    if target.sft_steps:
        phrases.append(f"after {target.sft_steps} steps of SFT")
    return phrases


def describe_divergence(config: Config) -> str:
    """`reverse KL`, `forward KL` or the generalised Jensen-Shannon divergence with its β."""
    loss = config.loss
    if loss.divergence == "jsd":
        return f"generalised Jensen-Shannon divergence, β {loss.beta:g}"
    return loss.divergence.replace("_kl", " KL")


def describe_loss(config: Config) -> str:
    """The divergence and what it is summed over."""
    if config.loss.mode == "exact":
        return f"{describe_divergence(config)}, the whole vocabulary"
    where = f"mode {config.loss.mode} on the student's top {config.loss.top_k}"
    return f"{describe_divergence(config)}, {where}"
