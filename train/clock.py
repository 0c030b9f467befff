"""Where the time of a run goes: samples a second, and the share of it spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

DATA_BOUND = 0.2  # of the time waiting for data: from here on it is worth saying
SETTLED = 3  # laps before that is said of the last one: the first has the workers' start, the second its backlog


class Clock:
    """Measured from the first batch on, for the wait for that one is the start of the workers.

    Times are this process' own; the share of waiting is that of the process that waited most, for the others wait
    for it.
    """

    def __init__(self) -> None:
        self.begun = False
        self.laps = 0
        self.seconds, self.waited = 0.0, 0.0  # of the laps that are over
        self._restart()

    def _restart(self) -> None:
        self.start, self.waited_now, self.samples = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a batch is waited for."""
        before = time.perf_counter()
        yield
        if self.begun:
            self.waited_now += time.perf_counter() - before
        else:
            self.begun = True
            self.start = time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """Samples a second and share of waiting since the last lap; all processes call it."""
        elapsed = time.perf_counter() - self.start
        most = torch.tensor([self.waited_now], dtype=torch.float64)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        waited = min(most.item(), elapsed)
        speed = self.samples / elapsed
        self.laps, self.seconds, self.waited = self.laps + 1, self.seconds + elapsed, self.waited + waited
        self._restart()
        return speed, waited / elapsed

    @property
    def share(self) -> float:
        """Share of waiting over all laps."""
        return self.waited / self.seconds if self.seconds else 0.0


def advice(share: float, workers: int, processes: int, cores: int) -> str:
    """What to do about a share of waiting; "" where it is small.

    Args:
        workers: of each process' loader. processes, cores: of this machine.
    """
    if share < DATA_BOUND:
        return ""
    here = f"data.workers, now {workers} for each of {processes} on {cores} cores"
    if processes * (1 + workers) <= cores:
        return f"raise {here}"
    return (
        f"{here}, can hardly be raised: give the run more cores, a quicker disk, or photographs nearer to the size "
        "that the model reads (bioclip-hc shards build --max-side)"
    )
