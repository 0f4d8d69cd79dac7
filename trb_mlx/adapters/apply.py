"""An adapter put on a model: every matrix of it in its place, and no layer without one."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from trb_mlx.adapters.adapter import CONFIG, Adapter, read_arrays, read_json
from trb_mlx.adapters.mlx_lm import read_mlx_adapter
from trb_mlx.adapters.peft import unwrapped
from trb_mlx.errors import UserError
from trb_mlx.models.loading import LanguageModel
from trb_mlx.models.lora import LEAVES, adapted_modules, make_lora_layers


def load_adapter(model: LanguageModel, folder: Path, weights: Path) -> list[int]:
    """Put mlx-lm adapters on a model in place.

    Args:
        model: the base.
        folder: holds `adapter_config.json` and `adapters.safetensors`.
        weights: the file to use, one of the folder's snapshots perhaps.

    Returns:
        The EOS ids of the pair that trained them (empty for an adapter of another tool).

    Raises:
        UserError: a file is missing or damaged, a value is not finite, or the adapter is of
            another base.
    """
    if not (folder / CONFIG).is_file() or not weights.is_file():
        raise UserError(
            f"adapter {folder} has no {CONFIG} with {weights.name}; "
            "expected a folder as mlx-lm writes it."
        )
    where = f"adapter {folder} does not fit {model.name}"
    if read_json(folder / CONFIG).get("fine_tune_type") == "full":
        arrays = read_arrays(weights)
        _fill(model.module, arrays, {*arrays}, where)
        model.module.eval()
        return []
    adapter = read_mlx_adapter(folder, weights)
    add_adapter(model.module, adapter, where)
    model.module.eval()
    return list(adapter.stop_ids)


def add_adapter(module: nn.Module, adapter: Adapter, where: str) -> None:
    """Make an adapter's layers on a plain model, and fill them.

    The modules are those that the adapter has matrices for: which of a block's layers mlx-lm
    adapts where the config names no keys has changed between its versions.

    Raises:
        UserError: `where` and what does not fit.
    """
    if adapter.keys is not None:
        missing = adapted_modules(module, adapter.keys, adapter.num_layers) - {*adapter.modules}
        if missing:
            raise UserError(f"{where}: it has no matrices for {min(missing)}.")
    parameters = {"rank": adapter.rank, "scale": adapter.scale, "dropout": adapter.dropout}
    try:
        make_lora_layers(module, -1, parameters | {"keys": adapter.modules}, adapter.dora)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    fill_adapter(module, adapter, where)


def fill_adapter(module: nn.Module, adapter: Adapter, where: str) -> None:
    """Give a model's fresh adapter layers the matrices of an adapter.

    A multimodal model's names may be those of its text model alone, as PEFT has them.

    Raises:
        UserError: `where`, and the first matrix that is missing on one side or of another shape.
    """
    layers = {n for n, _ in tree_flatten(module.parameters()) if n.rpartition(".")[2] in LEAVES}
    own = {unwrapped(name): name for name in layers}
    arrays = {own.get(unwrapped(name), name): array for name, array in adapter.arrays.items()}
    _fill(module, arrays, layers | {*arrays}, where)


def _fill(module: nn.Module, arrays: dict[str, mx.array], names: set[str], where: str) -> None:
    """Put `arrays` in a model's own under all of `names`, which both must have in one shape."""
    own = dict(tree_flatten(module.parameters()))
    for name in sorted(names):
        given, kept = arrays.get(name), own.get(name)
        if given is None or kept is None or given.shape != kept.shape:
            raise UserError(
                f"{where}: {name} is {_shape(given)} in it and {_shape(kept)} in the model."
            )
    module.load_weights(list(arrays.items()), strict=False)
    mx.eval(module.parameters())


def _shape(array: mx.array | None) -> str:
    return "absent" if array is None else "×".join(map(str, array.shape))
