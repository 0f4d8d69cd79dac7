"""A network that is lost, in silence: both sides end, each in a sentence."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time

import pytest

TIMEOUT_S = 2
RANK = """
import socket, sys, time
from trb_mlx.interrupts import Interrupted, stoppable
from trb_mlx.ranks.channel import Channel
rank, port, timeout = (int(each) for each in sys.argv[1:])
with stoppable():
    # From another address than this one's: a peer on one's own machine is killed.
    connection = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0))
    channel = Channel(rank, {1 - rank: connection}, timeout)
    try:
        for step in range(1000):
            channel.gather("work", str(rank).encode())
            print(step, flush=True)
            time.sleep(0.1)
    except Interrupted as error:
        print(error)
        sys.exit(error.code)
"""


def carry(ends: list[socket.socket], until: float) -> None:
    """Pass on what two ranks send to each other."""
    while (left := until - time.monotonic()) > 0:
        for end in select.select(ends, [], [], left)[0]:
            ends[1 - ends.index(end)].sendall(end.recv(1 << 16))


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has one loopback address")
def test_both_sides_of_a_cut_cable_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        ranks, ends = [], []
        for rank in "01":
            command = [sys.executable, "-c", RANK, rank, port, str(TIMEOUT_S)]
            ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            ends.append(server.accept()[0])
        carry(ends, time.monotonic() + 1.5)
        texts = [rank.communicate(timeout=TIMEOUT_S + 10)[0] for rank in ranks]
        for end in ends:
            end.close()
    assert [rank.returncode for rank in ranks] == [1, 1]
    for rank, text in enumerate(texts):
        *met, sentence = text.strip().splitlines()
        assert len(met) >= 3
        assert sentence.startswith(f"rank {1 - rank} (process {ranks[1 - rank].pid} on ")
        assert "has not been heard of for 2 s: it hangs, or its network is gone" in sentence
