"""Time and memory of a call on a GPU, as the GPU saw them. Without one, a stand-in for trying the scripts out."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], Iterable[Tensor]]
LEAST, MOST = 3, 100  # timed calls of one measurement


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one call: the median of `repeats` calls, and the quantiles around it."""

    p20: float
    p50: float
    p80: float
    repeats: int


def measure(call: Callable[[], object], budget_ms: float = 400.0) -> Spread:
    """Time of a call after warming up: as many calls as the budget allows, 3 to 100. Without a budget, of one call.

    Inputs stay where the last call left them, in cache where they fit, as features are that an encoder has just
    written. Calls are queued one after the other: where the GPU is faster than Python launches its kernels, this is
    Python's time, and a replayed graph shows the GPU's.
    """
    if not budget_ms:
        only = _times(call, 1)[0]
        return Spread(only, only, only, 1)
    for _ in range(2):
        call()
    expected = _times(call, 1)[0]
    times = _times(call, max(LEAST, min(MOST, round(budget_ms / max(expected, 1e-3)))))
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Spread(quantiles[0], statistics.median(times), quantiles[3], len(times))


def _times(call: Callable[[], object], repeats: int) -> list[float]:
    if not torch.cuda.is_available():
        return [_host_time(call) for _ in range(repeats)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _host_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def peak_mib(call: Call) -> float | None:
    """MiB that a call held at its peak beyond what it found allocated and what it returns; None without a GPU.

    Call it once before, so that libraries have taken their own memory.
    """
    if not torch.cuda.is_available():
        return None
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = sum(x.nbytes for x in call())
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - results) / 2**20


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The call as a CUDA graph. Raises RuntimeError where it waits for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture refuses what a first call allocates or compiles
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
