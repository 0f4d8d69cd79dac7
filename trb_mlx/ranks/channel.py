"""TCP between rank 0 and every other rank: what the hosts tell each other, and who is alive.

MLX's collectives block where a rank is missing, and nothing can interrupt them. Ranks therefore
meet here first. Every connection carries a beat a second: one that is closed or silent ends all
ranks, each in a sentence that names the lost one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from trb_mlx.errors import RunError, UserError
from trb_mlx.interrupts import Interrupted, Stopped, stop_main

BEAT_S = 1.0
LEAVING_S = 5.0  # for the last frames
# So many timeouts may the others wait for a rank that is alive: machines differ in speed.
MOST_LATE = 30
# So many timeouts may a rank take to save and end once it was told to.
STUCK = 3
_POLL_S = 0.2
_HEAD = struct.Struct(">cQ")  # a frame's kind and length
_BEAT, _DATA, _STOP, _LEAVE = b".", b"d", b"s", b"l"


class Peer:
    """The connection to one rank: frames in both directions."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        """Take over a connected socket; a frame that makes no way for `timeout` seconds fails."""
        self.inbox: SimpleQueue[bytes] = SimpleQueue()
        self.left = False  # it said so before it closed
        self.socket = connection
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = struct.pack("ll", int(timeout), 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def begin(self) -> None:
        """Begin to send, a beat where there is nothing else."""
        self._writer.start()

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Have one frame sent, whole: a signal that is raised meanwhile cuts none in two."""
        self._outbox.put(_HEAD.pack(kind, len(content)) + content)

    def _write(self) -> None:
        with suppress(OSError):  # a connection that is gone is the reader's to notice
            while True:
                try:
                    frame = self._outbox.get(timeout=BEAT_S)
                except Empty:
                    frame = _HEAD.pack(_BEAT, 0)
                if frame is None:
                    return
                self.socket.sendall(frame)

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this machine."""
        return bool(self.socket.getpeername()[0] == self.socket.getsockname()[0])

    def close(self) -> None:
        """Say goodbye, once what was to be sent is."""
        self.send(_LEAVE)
        self._outbox.put(None)
        self._writer.join(LEAVING_S)
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Channel:
    """All connections of a rank: to every other at rank 0, to rank 0 elsewhere.

    Attributes:
        rank: this one's.
        names: for each rank its machine and process, in words.
        hosts: for each rank its machine's name.
        error: what ended the group, or None.
        failed: set with `error`.
    """

    def __init__(self, rank: int, connections: dict[int, socket.socket], timeout: float) -> None:
        """Begin to beat, and to listen for beats; `timeout` in seconds."""
        self.rank = rank
        self.names = [f"rank {each}" for each in range(max(rank, *connections) + 1)]
        self.error: Interrupted | None = None
        self.failed = threading.Event()
        self._timeout = timeout
        self._peers = {each: Peer(taken, timeout) for each, taken in sorted(connections.items())}
        self._pids: list[int] = []
        self._closed = False
        self._last_resort: threading.Timer | None = None
        self._lock = threading.Lock()
        for each, peer in self._peers.items():
            peer.begin()
            threading.Thread(target=self._listen, args=(each,), daemon=True).start()
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        everyone = [json.loads(each) for each in self.gather("hello", json.dumps(me).encode())]
        self._pids = [each["pid"] for each in everyone]
        self.hosts = [each["host"] for each in everyone]
        self.names = [
            f"rank {number} (process {each['pid']} on {each['host']})"
            for number, each in enumerate(everyone)
        ]

    def gather(self, what: str, content: bytes) -> list[bytes]:
        """What every rank gives at the same meeting, in order of rank.

        Raises:
            Interrupted: another rank has ended, or was lost.
            RunError: another is at another meeting, or keeps all waiting.
        """
        label = what.encode() + b"\0"
        if self.rank:
            self._peers[0].send(_DATA, label + content)
            return _unpack(self._receive(0, what))
        parts = [content]
        for rank in self._peers:
            name, _, part = self._receive(rank, what).partition(b"\0")
            if name != label[:-1]:
                raise RunError(
                    f"{self.names[rank]} is at {name.decode()}, and this one at {what}: the ranks "
                    "do not do the same."
                )
            parts.append(part)
        packed = _pack(parts)
        for peer in self._peers.values():
            peer.send(_DATA, packed)
        return parts

    def _receive(self, rank: int, what: str) -> bytes:
        peer, begun = self._peers[rank], time.monotonic()
        while True:
            with suppress(Empty):
                return peer.inbox.get(timeout=_POLL_S)
            self.check()
            # Rank 0 waits for the late one, and all others for rank 0: it is to be the first.
            if time.monotonic() - begun > (2 if self.rank else 1) * MOST_LATE * self._timeout:
                raise RunError(self.late(rank, what))

    def check(self) -> None:
        """Raise what ended the group, if anything did.

        Raises:
            RunError: a rank left without a word of why.
        """
        if self.error is not None:
            raise self.error
        for rank, peer in self._peers.items():
            if peer.left and peer.inbox.empty():
                raise RunError(f"{self.names[rank]} left before the end.")

    def late(self, rank: int, what: str) -> str:
        """The sentence on a rank that beats, and does not come to a meeting."""
        return (
            f"{self.names[rank]} has kept the others waiting at {what} for "
            f"{MOST_LATE * self._timeout:.0f} s."
        )

    def watch(self, wait: Callable[[float], bool], what: str) -> None:
        """Return once `wait`, which takes seconds, says that what happens elsewhere is done.

        Raises:
            Interrupted: another rank has ended, or was lost.
            RunError: it takes too long.
        """
        begun = time.monotonic()
        while not wait(_POLL_S):
            self.check()
            if time.monotonic() - begun > MOST_LATE * self._timeout:
                raise RunError(f"{what} did not end within {MOST_LATE * self._timeout:.0f} s.")

    def stop(self, error: BaseException) -> None:
        """Tell all others that this rank ends of an error of its own, if it is one."""
        if self.error is not None or self._closed:
            return
        who, code = self.names[self.rank], 2 if isinstance(error, UserError) else 1
        if isinstance(error, Interrupted):
            sentence = f"stopped by {signal.Signals(error.signum).name} on {who}"
            code = error.code
        else:
            reason = " ".join((str(error) or type(error).__name__).split())
            sentence = f"{who} stopped: {reason.rstrip('.')}"
        self._tell(sentence, code)

    def close(self) -> None:
        """Leave; what the others do from here on is not of this one's concern."""
        self._closed = True
        if self._last_resort is not None:
            self._last_resort.cancel()
        for peer in self._peers.values():
            peer.close()

    def _tell(self, sentence: str, code: int, but: int | None = None) -> None:
        notice = json.dumps({"sentence": sentence, "code": code}).encode()
        for rank, peer in self._peers.items():
            if rank != but:
                peer.send(_STOP, notice)

    def _fail(self, sentence: str, code: int, source: int) -> None:
        """End this rank, and tell the others, who know of one another through rank 0 alone."""
        with self._lock:
            if self._closed or self.error is not None:
                return
            self.error = Stopped(sentence, code)
        self._tell(sentence, code, but=source)
        self.failed.set()
        # Where the main thread hangs in MLX it hears of nothing, and a launcher waits for it.
        self._last_resort = threading.Timer(STUCK * self._timeout, os._exit, (code,))
        self._last_resort.daemon = True
        self._last_resort.start()
        stop_main(self.error)

    def _listen(self, rank: int) -> None:
        peer, buffer, silent = self._peers[rank], bytearray(), 0.0
        while not self._closed and not peer.left:
            try:
                # Waits are counted, and no clock is asked: this process may have been stopped too.
                if not select.select([peer.socket], [], [], BEAT_S)[0]:
                    silent += BEAT_S
                    if silent >= self._timeout:
                        self._give_up(rank)
                        return
                    continue
                piece = peer.socket.recv(1 << 20)
            except (OSError, ValueError):  # closed here, or reset there
                piece = b""
            if not piece:
                who = self.names[rank]
                self._fail(f"{who} has ended without a word: killed, or crashed", 1, rank)
                return
            silent = 0.0
            buffer += piece
            while len(buffer) >= _HEAD.size:
                kind, length = _HEAD.unpack_from(buffer)
                end = _HEAD.size + length
                if len(buffer) < end:
                    break
                self._take(rank, kind, bytes(buffer[_HEAD.size : end]))
                del buffer[:end]

    def _take(self, rank: int, kind: bytes, content: bytes) -> None:
        peer = self._peers[rank]
        if kind == _DATA:
            peer.inbox.put(content)
        elif kind == _LEAVE:
            peer.left = True
        elif kind == _STOP:
            notice = json.loads(content)
            self._fail(notice["sentence"], notice["code"], rank)

    def _give_up(self, rank: int) -> None:
        """Lose a silent rank; on this machine it must not go on holding its memory."""
        if self._pids and self._peers[rank].is_local:
            with suppress(OSError):
                os.kill(self._pids[rank], signal.SIGKILL)
        self._fail(
            f"{self.names[rank]} has not been heard of for {self._timeout:.0f} s: it hangs, or its "
            "network is gone",
            1,
            rank,
        )


def _pack(parts: list[bytes]) -> bytes:
    lengths = json.dumps([len(part) for part in parts]).encode()
    return b"\0".join([lengths, b"".join(parts)])


def _unpack(packed: bytes) -> list[bytes]:
    lengths, _, joined = packed.partition(b"\0")
    parts, start = [], 0
    for length in json.loads(lengths):
        parts.append(joined[start : start + length])
        start += length
    return parts
