"""What the pytest-benchmark suites share: who computes what, and its time and peak memory.

A suite names each problem by `benchmark.group` and each way to compute it by extra_info["way"]; one way of a group
is its base, to which ratios are taken. conftest.py keeps why a way was skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from memory import peak_beyond_results
from torch import Tensor

Call = Callable[[], Sequence[Tensor]]


def name(benchmark: Any, group: str, way: str, base: bool = False) -> None:
    """Say what a benchmark measures; first of all, so that it is known of a skipped one too."""
    benchmark.group = group
    benchmark.extra_info["way"] = way
    if base:
        benchmark.extra_info["base"] = True


def record(benchmark: Any, call: Call, rounds: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Time and peak memory of a call: first a call for memory, which also warms up, then the timed rounds.

    Args:
        call: the work; returns its results.
        rounds: timed calls; 0: so long a call that the one for memory is the one that is timed.

    Returns:
        The results of the first and of the last call, which are one call where rounds is 0.
    """
    first: Sequence[Tensor] = ()

    def counted() -> int:
        nonlocal first
        first = call() if rounds else benchmark.pedantic(call, rounds=1, iterations=1)
        return sum(x.nbytes for x in first)

    benchmark.extra_info["peak_mib"] = round(peak_beyond_results(counted), 1)
    return first, (benchmark.pedantic(call, rounds=rounds, iterations=1) if rounds else first)


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether results are bitwise the same."""
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest difference of results, relative to the largest value of the tensor it lies in."""
    pairs = [(x.double(), y.double()) for x, y in zip(first, second, strict=True)]
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-300)) for x, y in pairs)


def thread_difference(call: Call) -> float:
    """The largest relative difference of results between one thread and two."""
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(call())
    return difference(*results)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads of torch, inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
