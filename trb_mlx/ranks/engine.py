"""MLX's own collectives, on a thread and a stream that may be left behind."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import mlx.core as mx

Job = Callable[[], Any]
Wait = Callable[[float], bool]  # waits so many seconds; whether it is over
Waiting = Callable[[Wait], None]


class Engine:
    """Runs collectives one after another; whoever waits for one can stop waiting.

    A collective whose other end is gone may never return. It then holds this thread's stream
    alone, so that the main thread can still compute and save; the process ends without waiting.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._busy = False
        self.code = 1  # what a process is left with that cannot wait
        self._stream: Any = None
        threading.Thread(target=self._work, daemon=True).start()
        atexit.register(self._leave)

    def connect(self, backend: str, waiting: Waiting) -> Any:
        """MLX's group, once all ranks are there; `waiting` takes what waits for so many seconds."""
        return self._call(lambda: mx.distributed.init(strict=True, backend=backend), waiting)

    def collect(
        self,
        operation: Callable[..., mx.array],
        array: mx.array,
        group: Any,
        backend: str,
        waiting: Waiting,
    ) -> mx.array:
        """One collective of an array that is evaluated first; its result is evaluated too.

        On the CPU's stream, since a GPU's watchdog ends what waits on it; NCCL knows GPUs only.
        """
        mx.eval(array)

        def job() -> mx.array:
            if self._stream is None:  # streams belong to the thread that made them
                self._stream = mx.new_stream(mx.gpu if backend == "nccl" else mx.cpu)
            result = operation(array, group=group, stream=self._stream)
            mx.eval(result)
            return result

        result: mx.array = self._call(job, waiting)
        return result

    def _call(self, job: Job, waiting: Waiting) -> Any:
        done, outcome = threading.Event(), []

        def run() -> None:
            try:
                outcome.append(job())
            except Exception as error:
                outcome.append(error)
            done.set()

        self._jobs.put(run)
        waiting(done.wait)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            self._busy = True
            job()
            del job  # it holds MLX's group, whose end MPI has to be told at the process's
            self._busy = False

    def _leave(self) -> None:
        """End at once where a collective is stuck: MLX would wait for its stream."""
        if self._busy:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)
