"""A Hub model's headers: its config.json beside safetensors files without their data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from trb_mlx.config import ModelConfig
from trb_mlx.errors import UserError
from trb_mlx.models.checkpoint_files import weight_files
from trb_mlx.models.loading import resolve

BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
BITS |= {"U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}


def header_folder(config: ModelConfig, place: Path) -> tuple[Path | None, int]:
    """Where a model's headers are, and how many bytes are still to be downloaded.

    Args:
        config: the model.
        place: an empty folder, where a Hub model that is not in the local cache is written to by
            ranged reads of its files' headers.

    Returns:
        None and 0 where its own files are there.

    Raises:
        UserError: it is not on the Hub, or the Hub cannot be reached.
    """
    name = resolve(config.model)
    if Path(name).exists() or _cached(name, config.revision):
        return None, 0
    try:
        metadata = huggingface_hub.get_safetensors_metadata(name, revision=config.revision)
        details = huggingface_hub.hf_hub_download(name, "config.json", revision=config.revision)
        info = huggingface_hub.model_info(name, revision=config.revision, files_metadata=True)
    except (hub_errors.RepositoryNotFoundError, hub_errors.GatedRepoError) as error:
        raise UserError(
            f"model {config.model} is not on the Hub, or is private or gated; check the id, "
            "and log in with `hf auth login` if it needs an account."
        ) from error
    except hub_errors.NotASafetensorsRepoError as error:
        raise UserError(
            f"model {config.model} has no safetensors files, of which alone headers can be read."
        ) from error
    except Exception as error:  # the HTTP client's own, and what a proxy answers
        raise UserError(
            f"model {config.model} is neither a local folder nor in the Hub cache, "
            "and its headers could not be read from the Hub."
        ) from error
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(details, place / "config.json")
    for file, each in metadata.files_metadata.items():
        tensors = {key: (info.dtype, tuple(info.shape)) for key, info in each.tensors.items()}
        write_hollow(place / Path(file).name, tensors, each.metadata)
    wanted = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken")
    sizes = [file.size or 0 for file in info.siblings or () if file.rfilename.endswith(wanted)]
    return place, sum(sizes)


def _cached(name: str, revision: str | None) -> bool:
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
    except (OSError, ValueError, hub_errors.LocalEntryNotFoundError):
        return False
    index = Path(folder) / "model.safetensors.index.json"
    if index.exists():  # a download that was cut off has some of the files
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return all((Path(folder) / name).exists() for name in named)
    return bool(weight_files(Path(folder)))


def write_hollow(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A safetensors file whose header is whole and whose data is a hole that takes no disk.

    Args:
        path: where it goes.
        tensors: name → (type as safetensors writes it, shape).
        metadata: the header's own.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "mlx"})}
    end = 0
    for name, (kind, shape) in tensors.items():
        if kind not in BITS:
            known = ", ".join(BITS)
            raise UserError(f"tensor {name} is of type {kind}, expected one of {known}.")
        count = BITS[kind] // 8
        for extent in shape:
            count *= extent
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
