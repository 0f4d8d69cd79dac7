"""How the ranks find each other: MLX's group first, and through it the channel's connections."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from typing import Any

import mlx.core as mx

from trb_mlx.errors import RunError, UserError, one_line
from trb_mlx.ranks.engine import Engine
from trb_mlx.ranks.launch import TIMEOUT, Launch

_LETTER_BYTES = 1024  # of rank 0's letter to all, which says where it listens
_HELLO_BYTES, _HELLO_S = 40, 2.0
_WATCH = """
import os, select, signal, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    print(f"trb-mlx: {sys.argv[3]}", file=sys.stderr, flush=True)
    os.kill(int(sys.argv[2]), signal.SIGKILL)
"""


def connect(launch: Launch, engine: Engine, timeout: float) -> Any:
    """MLX's group of all ranks.

    Raises:
        UserError: a port is taken, or the group is of another size than the launcher's.
        RunError: the others cannot be reached.

    Where not all come within `timeout` seconds, this process is ended with a sentence.
    """

    def waiting(wait: Callable[[float], bool]) -> None:
        while not wait(0.2):
            pass

    late = _not_found(launch, f"not all came within {timeout:.0f} s")
    try:
        with _ended_after(timeout, late), _ended_by_signals():
            group = engine.connect(launch.backend, waiting)
    except RuntimeError as error:
        text = one_line(str(error))
        if "bind" in text.lower() or "listen" in text.lower():
            raise UserError(
                f"rank {launch.rank} cannot listen at the address that the launcher gave it "
                f"({text}): its port is taken, or the address is another machine's; expected a "
                "free one (mlx.launch --starting-port)."
            ) from error
        raise RunError(_not_found(launch, text)) from error
    if group.size() != launch.size:
        raise UserError(
            f"the launcher started {launch.size} ranks, and MLX's back end {launch.backend} joined "
            f"{group.size()}; expected a back end that fits (mlx.launch --backend)."
        )
    return group


@contextmanager
def _ended_after(seconds: float, sentence: str) -> Iterator[None]:
    """End this process with a sentence where `seconds` pass inside.

    Another process does: MLX's init keeps the interpreter's lock, so that no thread of this one
    could. It ends with this one, whose end it sees by its input.
    """
    command = [sys.executable, "-ISc", _WATCH, str(seconds), str(os.getpid()), sentence]
    with Popen(command, stdin=PIPE, start_new_session=True):  # leaving closes its input
        yield


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end this process at once: there is nothing to save, and no handler would run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_found(launch: Launch, reason: str) -> str:
    return (
        f"rank {launch.rank} of {launch.size} did not find the others over {launch.backend} "
        f"({reason}); do the hostfile's addresses reach every machine, and does each have the "
        f"same trb-mlx? {TIMEOUT} says how long to wait."
    )


def call_hub(
    launch: Launch, engine: Engine, group: Any, timeout: float
) -> dict[int, socket.socket]:
    """Connected sockets: rank 0's to every other by rank, and another's to rank 0.

    Raises:
        RunError: a rank does not call, or cannot reach rank 0, within `timeout` seconds.
    """
    server = _listen() if launch.rank == 0 else None
    letter = b""
    if server is not None:
        # On a ring of cables a rank reaches another address than its neighbour does.
        hosts = list(dict.fromkeys([*([launch.hub] if launch.hub else []), *_own_addresses()]))
        secret = secrets.token_hex(16)
        port = server.getsockname()[1]
        letter = json.dumps({"hosts": hosts, "port": port, "secret": secret}).encode()
    address = json.loads(_broadcast(letter, launch, engine, group, timeout))
    secret = str(address["secret"])
    if server is None:
        return {0: _call(address["hosts"], int(address["port"]), launch, secret, timeout)}
    with server:
        return _answer(server, launch, secret, timeout)


def _broadcast(letter: bytes, launch: Launch, engine: Engine, group: Any, timeout: float) -> bytes:
    """Rank 0's letter on every rank, as a sum to which the others add nothing."""
    padded = letter.ljust(_LETTER_BYTES) if letter else bytes(_LETTER_BYTES)
    array = mx.array(list(padded), dtype=mx.int32)
    begun = time.monotonic()

    def waiting(wait: Callable[[float], bool]) -> None:
        while not wait(0.2):
            if time.monotonic() - begun > timeout:
                raise RunError(_not_found(launch, f"no word from rank 0 within {timeout:.0f} s"))

    total = engine.collect(mx.distributed.all_sum, array, group, launch.backend, waiting)
    return bytes(total.tolist())  # type: ignore[arg-type]


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _own_addresses() -> list[str]:
    name = socket.gethostname()
    with suppress(OSError):
        return [name, *socket.gethostbyname_ex(name)[2], "127.0.0.1"]
    return [name, "127.0.0.1"]


def _call(
    hosts: list[str], port: int, launch: Launch, secret: str, timeout: float
) -> socket.socket:
    reasons = []
    for host in hosts:
        try:
            each = max(2.0, timeout / (len(hosts) + 1))
            connection = socket.create_connection((host, port), timeout=each)
        except OSError as error:
            reasons.append(f"{host}:{port}: {error.strerror or error}")
            continue
        connection.sendall(f"{launch.rank:8d}{secret}".encode())
        return connection
    raise RunError(
        f"rank {launch.rank} cannot reach rank 0 ({'; '.join(reasons)}); does a firewall there "
        "refuse incoming connections of Python?"
    )


def _hello(connection: socket.socket) -> str:
    """What a caller says of itself; a stranger who says nothing is not waited for long."""
    connection.settimeout(_HELLO_S)
    said = b""
    with suppress(OSError):
        while len(said) < _HELLO_BYTES and (more := connection.recv(_HELLO_BYTES - len(said))):
            said += more
    return said.decode(errors="replace")


def _answer(
    server: socket.socket, launch: Launch, secret: str, timeout: float
) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    until = time.monotonic() + timeout
    while len(connections) < launch.size - 1:
        try:
            server.settimeout(max(until - time.monotonic(), 0.01))
            connection, _ = server.accept()
        except OSError as error:
            missing = [str(r) for r in range(1, launch.size) if r not in connections]
            if time.monotonic() < until:
                continue
            raise RunError(
                f"rank {', '.join(missing)} did not call rank 0 within {timeout:.0f} s; does a "
                "firewall here refuse incoming connections of Python?"
            ) from error
        hello = _hello(connection)
        if secrets.compare_digest(hello[8:].encode(), secret.encode()):
            connections[int(hello[:8])] = connection
        else:
            connection.close()
    return connections
