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
    EvalConfig,
    Fraction,
    HorizonConfig,
    LoraConfig,
    ModelConfig,
    NonNegative,
    Place,
    Positive,
    PositiveInt,
    PromptConfig,
    PromptSource,
    QuantizeConfig,
    RolloutConfig,
    RunConfig,
    Section,
    Share,
    StudentConfig,
    TeacherConfig,
    TeacherPromptConfig,
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
    "TeacherConfig",
    "TeacherPromptConfig",
    "TrainConfig",
]

BehaviorKind = Literal["vanilla", "trb", "fixed", "skd", "temperature"]
SELF = "student"  # as `teacher.model`
BEHAVIOR_GROUP = "trb_mlx.behaviors"  # of entry points


def _own_behavior(kind: str) -> str:
    if re.fullmatch(r"[\w.]+:\w+", kind) or kind in entry_points(group=BEHAVIOR_GROUP).names:
        return kind
    raise PydanticCustomError("own_behavior", "package.module:NAME or an installed policy's name")


OwnBehavior = Annotated[str, AfterValidator(_own_behavior)]


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


class Config(Section):
    """A whole run. `teacher.model` and `student.model` have no default."""

    teacher: TeacherConfig
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

    @model_validator(mode="before")
    @classmethod
    def _student_as_teacher(cls, values: Any) -> Any:
        """`teacher.model: student` is the student's model with its settings."""
        if not isinstance(values, dict):
            return values
        student, teacher = values.get("student"), values.get("teacher")
        if isinstance(teacher, ModelConfig) and not isinstance(teacher, TeacherConfig):
            return values | {"teacher": TeacherConfig(**vars(teacher))}
        if not (isinstance(student, dict) and isinstance(teacher, dict)):
            return values
        if teacher.get("model") != SELF:
            return values
        given = sorted({*teacher} & ({*ModelConfig.model_fields} - {"model"}))
        if any(teacher[key] not in (None, False) for key in given):
            raise PydanticCustomError(
                "contradiction",
                "teacher.model is student, which has the student's settings, and teacher.{key} is "
                "given too; leave it out.",
                {"key": given[0]},
            )
        shared = {key: student[key] for key in ModelConfig.model_fields if key in student}
        start = {"adapter": "start"} if student.get("adapter") else {}
        return values | {"teacher": start | teacher | shared}

    @model_validator(mode="after")
    def _adapter_of_a_self_teacher(self) -> Self:
        chosen = self.teacher.adapter
        if chosen == "start" and not (self.is_self_taught and self.student.adapter):
            raise PydanticCustomError(
                "contradiction",
                "teacher.adapter is start, which needs teacher.model: student and a "
                "student.adapter; expected it left out.",
            )
        return self

    @property
    def is_self_taught(self) -> bool:
        """Whether both models are one: the same weights with the same settings."""
        student, teacher = (
            {key: getattr(section, key) for key in ModelConfig.model_fields}
            for section in (self.student, self.teacher)
        )
        return student == teacher

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
