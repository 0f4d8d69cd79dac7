"""`student.adapter`: training that starts from an adapter made elsewhere."""

from __future__ import annotations

from pathlib import Path

import mlx.nn as nn

from trb_mlx.adapters.adapter import Adapter
from trb_mlx.adapters.apply import fill_adapter
from trb_mlx.adapters.mlx_lm import WEIGHTS, read_mlx_adapter
from trb_mlx.adapters.peft import PEFT_WEIGHTS, read_peft_adapter, shared_suffixes
from trb_mlx.config import Config, LoraConfig
from trb_mlx.errors import UserError
from trb_mlx.models.lora import add_lora


def read_adapter(folder: Path) -> Adapter:
    """An adapter folder of PEFT's or mlx-lm's kind, by the weights file that it holds.

    Raises:
        UserError: it is neither, or it cannot be used.
    """
    if (folder / PEFT_WEIGHTS).is_file():
        return read_peft_adapter(folder)
    if (folder / WEIGHTS).is_file():
        return read_mlx_adapter(folder)
    raise UserError(
        f"student.adapter {folder} holds neither {PEFT_WEIGHTS} (PEFT) nor {WEIGHTS} (mlx-lm)."
    )


def with_initial_lora(config: Config) -> Config:
    """The config with its `lora` section taken from `student.adapter`, where there is one.

    Raises:
        UserError: the adapter cannot be read, or a `lora` key that was given says otherwise.
    """
    if config.student.adapter is None:
        return config
    adapter = read_adapter(Path(config.student.adapter).expanduser())
    taken = {
        "rank": adapter.rank,
        "scale": adapter.scale,
        "keys": None if adapter.keys is None else list(adapter.keys),
        "num_layers": adapter.num_layers,
        "dora": adapter.dora,
    }
    given = config.lora.model_fields_set
    # Keys relative to a block may name the modules that the adapter names in full.
    shared = shared_suffixes(adapter.keys or ())
    if "keys" in given and shared and sorted(config.lora.keys or ()) == shared[1]:
        taken["keys"] = config.lora.keys
    for key, value in taken.items():
        asked = getattr(config.lora, key)
        is_same = asked == value
        if isinstance(asked, list) and isinstance(value, list):
            is_same = {*asked} == {*value}
        if key in given and not is_same:
            raise UserError(
                f"lora.{key} is {asked!r}, and student.adapter {config.student.adapter} has "
                f"{value!r}; leave lora.{key} out."
            )
    if "dropout" not in given:
        taken["dropout"] = adapter.dropout
    lora = LoraConfig.model_validate(config.lora.model_dump() | taken)
    return config.model_copy(update={"lora": lora})


def add_initial_adapter(module: nn.Module, config: Config) -> None:
    """Put `student.adapter` on a model in place, ready to be trained on.

    Raises:
        UserError: the adapter is of another base.
    """
    folder = Path(str(config.student.adapter)).expanduser()
    adapter = read_adapter(folder)
    where = f"student.adapter {folder} is of another base than {config.student.model}"
    try:
        add_lora(module, config.lora, config.train.seed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    fill_adapter(module, adapter, where)


def add_frozen_adapter(module: nn.Module, config: Config) -> None:
    """Put `student.adapter` on a self-teacher in place, never to be trained.

    Raises:
        UserError: the adapter is of another base.
    """
    add_initial_adapter(module, config)
    module.freeze()
