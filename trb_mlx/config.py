"""What a run is: one typed, strict schema with its defaults, read from YAML plus overrides.

Knows no mlx. Every key is defined here or in `config_sections`, and nowhere else.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from trb_mlx.config_sections import (
    Count,
    DataConfig,
    Fraction,
    LoraConfig,
    ModelConfig,
    NonNegative,
    Place,
    Positive,
    PositiveInt,
    PromptConfig,
    PromptSource,
    QuantizeConfig,
    Section,
    Share,
    StudentConfig,
)

__all__ = [
    "BEHAVIOR_GROUP",
    "BehaviorConfig",
    "BehaviorKind",
    "Config",
    "Count",
    "DataConfig",
    "EvalConfig",
    "Fraction",
    "HorizonConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "NonNegative",
    "OwnBehavior",
    "Place",
    "PositionConfig",
    "Positive",
    "PositiveInt",
    "PromptConfig",
    "PromptSource",
    "QuantizeConfig",
    "RolloutConfig",
    "RunConfig",
    "Section",
    "Share",
    "StudentConfig",
    "TargetConfig",
    "TrainConfig",
]

BehaviorKind = Literal["vanilla", "trb", "fixed", "skd", "temperature"]
BEHAVIOR_GROUP = "trb_mlx.behaviors"  # of entry points


def _own_behavior(kind: str) -> str:
    if re.fullmatch(r"[\w.]+:\w+", kind) or kind in entry_points(group=BEHAVIOR_GROUP).names:
        return kind
    raise PydanticCustomError("own_behavior", "package.module:NAME or an installed policy's name")


OwnBehavior = Annotated[str, AfterValidator(_own_behavior)]


class HorizonConfig(Section):
    """A length limit that grows evenly from `start` tokens, and is full after `steps` steps."""

    start: PositiveInt
    steps: PositiveInt


class RolloutConfig(Section):
    """Sampling: at most `max_tokens` a response, `batch_size` rows decoded at once.

    With a `horizon`, training begins with shorter responses; evaluation never does.

    While the teacher takes part in drawing, the student drafts `draft_length` tokens that the
    teacher verifies in one pass; 1 asks the teacher token by token. The law is the same. `auto`
    follows the acceptance and the seconds of the rounds that are drawn.
    """

    max_tokens: PositiveInt = 256
    rollouts_per_prompt: PositiveInt = 4
    temperature: Positive = 1.0
    horizon: HorizonConfig | None = None
    batch_size: PositiveInt = 64
    draft_length: Literal["auto"] | PositiveInt = "auto"


class BehaviorConfig(Section):
    """Who draws the tokens; each kind reads the keys named with it (docs/math.md, Methods).

    vanilla: the student alone.
    trb: the trust-region blend, its `budget` ε_0 (nats) falling to 0 over `warmup_steps`.
    fixed: the same blend under `budget` for the whole run.
    skd: the student's token if it is in the teacher's `top_k`, else a fresh one of the teacher's
        whole distribution at `teacher_temperature`.
    temperature: the student alone, its temperature rising from `start_temperature` times
        `rollout.temperature` to `rollout.temperature` over `warmup_steps`.
    package.module:NAME, or an entry point of the group `trb_mlx.behaviors`: a policy of one's
        own, made by that function of this section; `options` are for it alone.
    """

    kind: BehaviorKind | OwnBehavior = "trb"
    budget: NonNegative = 0.02
    warmup_steps: Count = 50
    top_k: PositiveInt = 25
    teacher_temperature: Positive = 1.0
    start_temperature: Positive = 0.9
    options: dict[str, Any] = Field(default_factory=dict)


class PositionConfig(Section):
    """Which response tokens are in the loss: the `first` so many of each response."""

    kind: Literal["first"] = "first"
    tokens: PositiveInt


class LossConfig(Section):
    """A divergence on the student's top-k support, or over the whole vocabulary (`exact`).

    `exact` needs the teacher at every token again. `keep_hidden` says whether its last hidden
    states are kept from the rollout (`auto`: where a step's fit in an eighth of the machine's
    memory); where they are not, its body runs once more in the update.

    `beta` leads the generalised Jensen-Shannon divergence (jsd) from forward KL at 0 to reverse
    KL at 1. Forward KL and jsd need the whole vocabulary.

    `position` leaves later tokens of each response out (null: none).
    """

    mode: Literal["tail", "renormalized", "truncated", "exact"] = "exact"
    top_k: PositiveInt = 16
    keep_hidden: Literal["auto", "on", "off"] = "auto"
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    position: PositionConfig | None = None


class TargetConfig(Section):
    """What the student is pulled to at a visited prefix (docs/math.md, Methods).

    kind: the teacher, or Veto's bridge Q ∝ π_T·π_S^b, which needs the whole vocabulary.
    power: b_0 of the bridge, falling to 0 over `warmup_steps`.
    corrections: `match` treats tokens that replaced a student's draft as all others; `top_token`
        trains them towards the teacher's likeliest token by cross-entropy (SAKI).
    sft_steps: in so many first steps the teacher answers the prompts and the student trains on
        its tokens by cross-entropy; behavior, target and loss take over afterwards.
    """

    kind: Literal["teacher", "veto"] = "teacher"
    power: Fraction = 0.4
    warmup_steps: Count = 50
    corrections: Literal["match", "top_token"] = "match"
    sft_steps: Count = 0


class TrainConfig(Section):
    """The optimisation: AdamW, learning-rate warm-up then constant, clipping, guards.

    A step's rollouts pass in micro-batches of at most `micro_batch_tokens` positions (prompt,
    response and padding; one longer row goes alone) and at most `micro_batch_size` rows. The
    update does not depend on either. No array as wide as the vocabulary takes more than
    `vocabulary_mb` MiB of float32 (docs/models.md).

    A run ends after `steps`, or earlier with the step that brings the response tokens in the loss
    to `max_response_tokens` or training to `max_minutes`. All schedules go by steps.

    With `deterministic`, no choice depends on a clock: two runs of one seed are alike to the bit
    also where the rounding of a pass depends on how many tokens it reads.
    """

    steps: PositiveInt = 100
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prompts_per_step: PositiveInt = 16
    learning_rate: Positive = 1e-5
    lr_warmup_steps: Count = 15
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegative = 0.01
    max_grad_norm: Positive = 1.0
    micro_batch_tokens: PositiveInt = 4096
    micro_batch_size: PositiveInt = 8
    vocabulary_mb: PositiveInt = 64
    grad_checkpoint: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    max_bad_steps: PositiveInt = 3
    max_response_tokens: PositiveInt | None = None
    max_minutes: Positive | None = None

    @model_validator(mode="after")
    def _steps_for_the_schedules(self) -> Self:
        ends = [key for key in ("max_response_tokens", "max_minutes") if getattr(self, key)]
        if ends and "steps" not in self.model_fields_set:
            raise PydanticCustomError(
                "contradiction",
                "train.{key} may end a run early, and its schedules go by steps; "
                "give train.steps too.",
                {"key": ends[0]},
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _betas_from_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            return values | {"betas": tuple(values["betas"])}
        return values


class EvalConfig(Section):
    """Held-out evaluation every `every` steps (0: only before and after the run).

    `temperature` 0 takes the likeliest token: all samples are alike, and one is drawn.
    """

    every: Count = 20
    prompts: PositiveInt = 128
    samples: PositiveInt = 1
    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    max_tokens: PositiveInt | None = None
    teacher: bool = True


class RunConfig(Section):
    """Where a run lives and what it leaves there."""

    dir: Place = "runs"
    name: str | None = None
    adapter_path: Place | None = None
    report_every: PositiveInt = 1
    sample_every: PositiveInt = 10
    samples: Count = 4
    save_every: PositiveInt = 20
    keep_checkpoints: PositiveInt = 2
    report_to: str | None = None
    project_name: str | None = None


class Config(Section):
    """A whole run. `teacher.model` and `student.model` have no default."""

    teacher: ModelConfig
    student: StudentConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    behavior: BehaviorConfig = BehaviorConfig()
    target: TargetConfig = TargetConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _horizon_within_the_limit(self) -> Self:
        horizon, limit = self.rollout.horizon, self.rollout.max_tokens
        if horizon is not None and horizon.start > limit:
            raise PydanticCustomError(
                "contradiction",
                "rollout.horizon.start is {start}, above rollout.max_tokens {limit}; "
                "expected 1 to {limit}.",
                {"start": horizon.start, "limit": limit},
            )
        return self

    @model_validator(mode="after")
    def _whole_vocabulary_where_needed(self) -> Self:
        needing = [
            f"{key} {value}"
            for key, value, plain in (
                ("target.kind", self.target.kind, "teacher"),
                ("loss.divergence", self.loss.divergence, "reverse_kl"),
            )
            if value != plain
        ]
        if needing and self.loss.mode != "exact":
            raise PydanticCustomError(
                "contradiction",
                "{method} needs both models' whole distributions, and loss.mode {mode} keeps the "
                "student's top-k only; set loss.mode: exact.",
                {"method": needing[0], "mode": self.loss.mode},
            )
        return self
