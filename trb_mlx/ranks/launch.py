"""What a launcher, `mlx.launch` as a rule, tells a process of its group."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from trb_mlx.errors import UserError

TIMEOUT = "TRB_MLX_RANK_TIMEOUT"  # an environment variable: seconds
DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Launch:
    """A process's place in its group.

    Attributes:
        rank: from 0.
        size: of the group.
        backend: MLX's: ring, jaccl, nccl or mpi; empty for a process of its own.
        hub: an address at which the others reach rank 0, where the launcher says one.
    """

    rank: int = 0
    size: int = 1
    backend: str = ""
    hub: str | None = None


def launched(environ: Mapping[str, str] | None = None) -> Launch:
    """What the environment says of this process; without a launcher it is a group of one.

    Raises:
        UserError: a variable of the launcher's holds what no launcher writes.
    """
    values = os.environ if environ is None else environ
    try:
        if "MLX_WORLD_SIZE" in values:
            hub = values.get("NCCL_HOST_IP")
            return _launch(values["MLX_RANK"], int(values["MLX_WORLD_SIZE"]), "nccl", hub)
        if "MLX_IBV_DEVICES" in values:
            size, hub = len(_json_file(values["MLX_IBV_DEVICES"])), values["MLX_JACCL_COORDINATOR"]
            return _launch(values["MLX_RANK"], size, "jaccl", _host(hub))
        if "MLX_HOSTFILE" in values:
            hosts = _json_file(values["MLX_HOSTFILE"])  # empty for a group of one
            hub = _host(hosts[0][0]) if hosts else None
            return _launch(values["MLX_RANK"], len(hosts), "ring", hub)
        if "OMPI_COMM_WORLD_SIZE" in values:
            rank, size = values["OMPI_COMM_WORLD_RANK"], int(values["OMPI_COMM_WORLD_SIZE"])
            return _launch(rank, size, "mpi", None)
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the environment's MLX_* variables name no group ({error!r}); expected those that "
            "mlx.launch sets, or none."
        ) from error
    return Launch()


def rank_timeout(environ: Mapping[str, str] | None = None) -> float:
    """Seconds after which a rank that is not heard of is lost (`TRB_MLX_RANK_TIMEOUT`).

    Raises:
        UserError: the variable is no number of at least 2.
    """
    text = (os.environ if environ is None else environ).get(TIMEOUT, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 2.0 <= seconds < float("inf"):
        raise UserError(f"{TIMEOUT} is {text!r}; expected seconds, at least 2.")
    return seconds


def _launch(rank: str, size: int, backend: str, hub: str | None) -> Launch:
    if size <= 1:
        return Launch()
    if not 0 <= int(rank) < size:
        raise ValueError(f"rank {rank} of {size}")
    return Launch(int(rank), size, backend, hub or None)


def _json_file(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8") as file:
        values = json.loads(file.read().strip() or "[]")
    if not isinstance(values, list):
        raise TypeError(f"{path} holds no list")
    return values


def _host(address: str) -> str:
    """The host of `HOST:PORT`, an IPv6 one without its brackets."""
    return address.rpartition(":")[0].strip("[]")
