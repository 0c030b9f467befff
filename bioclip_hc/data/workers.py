"""The data workers of one process: what each is reading, in memory that they share, and how they end.

A worker that dies or hangs cannot say so itself; the process that waits for it reads here what it was about.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

IDLE = -1  # in place of a sample: the worker waits for work, or hands over what it has done
PR_SET_PDEATHSIG = 1  # prctl(2)


_asking = threading.Lock()  # of two threads that ask for an exit code at once, one would be told nothing


class Sight(NamedTuple):
    """What a worker was seen doing: any difference between two sights is progress."""

    moves: int
    """Samples begun and batches ended so far."""
    step: int
    """The step whose batch it makes, or made last, from 0; -1 before the first."""
    sample: int
    """Global index of the sample it reads, or IDLE."""


class Workers:
    """The loader's workers from step `start` on; without any, the process itself takes the place of one.

    Args:
        count: worker processes; 0: batches are made in the process itself.
        start: the first step they make a batch for; they take the steps in turn.
    """

    def __init__(self, count: int = 0, start: int = 0) -> None:
        self.count, self.start = count, start
        self._parent = os.getpid()
        self._rows = torch.tensor([[0, -1, IDLE]] * max(1, count)).share_memory_()  # each written by one worker
        self._processes: list[BaseProcess] = []
        self._died: list[tuple[int, int]] | None = None  # set when the workers are let go

    # -- in a worker

    def begin(self, worker: int) -> None:
        """Called in a worker as it starts: it ends with its process, however that ends, and not before it."""
        parent = self._parent
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended in between
            os._exit(1)
        _heed_alone(parent)

    def reading(self, step: int, sample: int) -> None:
        """A sample is about to be read."""
        self._note(step, sample)

    def done(self, step: int) -> None:
        """The batch is whole, or cannot be made."""
        self._note(step, IDLE)

    def _note(self, step: int, sample: int) -> None:
        info = get_worker_info()
        row = self._rows.numpy()[info.id if info else 0]
        row[:] = row[0] + 1, step, sample

    # -- in the process that they work for

    def attend(self, batches: Iterator[Any]) -> None:
        """Know the processes behind a DataLoader's iterator."""
        self._processes = list(getattr(batches, "_workers", ()))
        atexit.register(self._kill)  # before Python waits for them, also for one that is stopped

    def sights(self) -> list[Sight]:
        """What each worker does now."""
        return [Sight(*row) for row in self._rows.tolist()]

    def pid(self, worker: int) -> int:
        """The process of a worker."""
        return self._processes[worker].pid or 0 if self.count else self._parent

    def maker_of(self, step: int) -> int:
        """The worker that makes the batch of a step: the DataLoader gives them the steps in turn."""
        return (step - self.start) % max(1, self.count)

    def died(self) -> list[tuple[int, int]]:
        """(worker, exit code) of those that ended before they were let go; -N: by signal N."""
        if self._died is not None:
            return self._died
        with _asking:
            codes = [process.exitcode for process in self._processes]
        return [(worker, code) for worker, code in enumerate(codes) if code]

    def expect_a_death(self, seconds: float = 1.0) -> None:
        """Wait for it to show: a dying worker closes its lines, an error for their reader, before it is dead."""
        end = time.monotonic() + seconds
        while not self.died() and time.monotonic() < end:
            time.sleep(0.01)

    def let_go(self, batches: Iterator[Any]) -> None:
        """End them in bounded time, those that are stopped or hang too."""
        self._died = self.died()
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        self._kill()
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        for process in self._processes:
            if process.exitcode is None:
                process.kill()


def _heed_alone(parent: int) -> None:
    """Pass over signals that are not this process' own.

    Schedulers send the signal that announces the end of a job to all its processes. The training process answers
    it with a checkpoint, for which it finishes its step: a worker that died of it would take that away.
    """
    heeded = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, heeded)

    def wait() -> None:
        while signal.sigwaitinfo(heeded).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
