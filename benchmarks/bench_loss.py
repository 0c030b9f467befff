"""The loss beside its peers on a CPU, in one run: time, peak memory, and the matrix products it cannot do without.

    make bench      or      BENCH_MAX_N=4096 python -m pytest benchmarks/bench_loss.py --benchmark-json out.json

N images against N texts, D = 512, N = 1024 to 32,768 (BENCH_MAX_N bounds it): CLIP's problem and the
Lorentz one, dense and spread over seven ranks (problems.py), the loss alone and with its gradients. The floor of a
problem is the time of its products and nothing else: one for the loss, four with gradients (the logits again, and
both gradients).

All is fp32 but ours on features in bf16, which are problems of their own: plain torch loses the loss in bf16.
Every way must find the loss that the first way of its problem found, else its benchmark fails.

Every row in fp32 holds `floor_s`, the floor in seconds. Ours also say whether two runs were bitwise equal
(`repeatable`), and up to N = 4096 in fp32 the largest relative difference between one thread and two
(`thread_difference`). A way that would take too long or too much memory is skipped, and the report says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from memory import available_gib
from peers import CPU_WAYS, OURS, Loss, level_loss
from probe import best_of
from problems import GEOMETRIES, Problem, make_problem
from recording import Call, equal, name, record, thread_difference
from torch import Tensor

D = 512
SIZES = tuple(1024 << i for i in range(6))
MAX_N = int(os.environ.get("BENCH_MAX_N", SIZES[-1]))
CHECKED_N = 4096  # what make bench-check measures again
MODES = ("dense", "sorted")
STEPS = {"forward": 1, "forward + backward": 4}  # and how many products they need
TITLES = {"euclidean": "CLIP", "lorentz": "Lorentz"}
TILES = ((1024, 1024), (512, 4096), (2048, 2048), (4096, 512))  # of which the floor takes the best
MEMORY_GIB = min(16.0, available_gib())  # of a dense way
BASES = {"dense": "torch eager", "sorted": "torch by rank"}

OWN_WAYS: dict[str, Loss] = {
    OURS: lambda p: level_loss(p, None),
    f"{OURS}, bf16": lambda p: level_loss(p, None),
    f"{OURS}, tiled": lambda p: level_loss(p, "tiled"),  # what runs where nothing was compiled
}
PEERS = {way.name: way for way in CPU_WAYS}

# (N, N) fp32 matrices held at the peak, by the loss alone and with gradients: measured at N = 4096, rounded up.
MATRICES = {
    ("torch eager", "euclidean"): (3, 4),
    ("torch eager", "lorentz"): (5, 9),
    ("torch.compile", "euclidean"): (1, 2),
    ("torch.compile", "lorentz"): (2, 4),
    ("open_clip", "euclidean"): (3, 4),
    ("meru", "lorentz"): (6, 16),
    ("torch masked", "euclidean"): (5, 7),
    ("torch masked", "lorentz"): (6, 12),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the loss, relative
# The largest N, likewise, for which one call stays within about twenty seconds on two cores.
LARGEST = {
    f"{OURS}, bf16": (16384, 16384),
    f"{OURS}, tiled": (8192, 8192),
    "torch eager": (32768, 16384),
    "torch.compile": (32768, 16384),
    "open_clip": (8192, 8192),
    "inf-cl's algorithm in torch": (4096, 4096),
    "meru": (8192, 8192),
    "torch masked": (4096, 4096),
    "torch by rank": (16384, 16384),
}
SLOWER_LORENTZ = {"torch eager": (16384, 8192), "torch.compile": (8192, 8192), "torch by rank": (8192, 8192)}


class Case(NamedTuple):
    """One benchmark."""

    n: int
    mode: str
    geometry: str
    steps: str
    way: str

    @property
    def group(self) -> str:
        bf16 = ", bf16" * (self.dtype == torch.bfloat16)
        return f"{TITLES[self.geometry]} {self.mode}, N = {self.n}, {self.steps}{bf16}"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.way.endswith(", bf16") else torch.float32

    @property
    def own(self) -> bool:
        return self.way in OWN_WAYS


def cases() -> list[Case]:
    """Every case up to MAX_N, those of one problem beside each other."""
    return [
        Case(n, mode, geometry, steps, way)
        for n in SIZES
        if n <= MAX_N
        for mode in MODES
        for geometry in GEOMETRIES
        for steps in STEPS
        for way in (*OWN_WAYS, *(way.name for way in CPU_WAYS if way.applies(mode, geometry)))
    ]


def in_check(case: Case) -> bool:
    """What make bench-check measures again: all of ours, and their base."""
    return case.n == CHECKED_N and case.steps != "forward" and (case.own or case.way == BASES[case.mode])


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.group}, {case.way}")
def test_loss(benchmark: Any, case: Case) -> None:
    """Time and peak memory beyond inputs and results of one way."""
    name(benchmark, case.group, case.way, base=case.way == BASES[case.mode])
    reason = why_not(case)
    if reason is not None:
        pytest.skip(reason)
    loss = OWN_WAYS[case.way] if case.own else PEERS[case.way].loss
    if case.dtype == torch.float32:  # the floor's products are
        benchmark.extra_info["floor_s"] = floor(case.mode, case.n, case.steps)
    warm_up = make_problem(case.mode, case.geometry, 280, D, case.dtype, torch.device("cpu"))
    step(warm_up, loss, case.steps)()
    call = step(problem(case.mode, case.geometry, case.n, case.dtype), loss, case.steps)
    first, last = record(benchmark, call, rounds(case))
    benchmark.extra_info["loss"] = float(last[0])
    agree(case, float(last[0]))
    if not case.own:
        return
    if first is not last:
        benchmark.extra_info["repeatable"] = equal(first, last)
    if case.way == OURS and case.n <= CHECKED_N:
        benchmark.extra_info["thread_difference"] = thread_difference(call)


_first: dict[tuple[str, str, int], tuple[str, float]] = {}  # of a problem the first way and its loss


def agree(case: Case, loss: float) -> None:
    """Assert that a way finds the loss that the first way of this run found for the same problem."""
    way, expected = _first.setdefault((case.mode, case.geometry, case.n), (case.way, loss))
    close = math.isclose(loss, expected, rel_tol=TOLERANCE[case.dtype], abs_tol=1e-6)
    assert close, f"the loss is {loss:.6g}, that of {way} {expected:.6g}"


def why_not(case: Case) -> str | None:
    """Why a case is not measured; None where it is."""
    if case.way == "inf-cl":
        return "a Triton package: its kernels need an NVIDIA GPU"
    both = case.steps != "forward"
    matrices = MATRICES.get((case.way, case.geometry), (0, 0))[both]
    gib = matrices * 4 * case.n**2 / 2**30
    if gib > MEMORY_GIB:
        return f"would hold {gib:.0f} GiB at once ({MEMORY_GIB:.0f} allowed)"
    limits = LARGEST.get(case.way, (SIZES[-1],) * 2)[both]
    if case.geometry == "lorentz":
        limits = min(limits, SLOWER_LORENTZ.get(case.way, (SIZES[-1],) * 2)[both])
    return None if case.n <= limits else f"takes too long above N = {limits} for a bounded run"


def rounds(case: Case) -> int:
    """Timed calls: more of what ratios are made of; 0 where the call that measures memory is timed as well."""
    if case.way in (OURS, BASES[case.mode]):
        return {1024: 9, 2048: 7, 4096: 5, 8192: 3}.get(case.n, 0)
    least = 1 if case.n <= 8192 or case.way == "torch.compile" else 0  # it compiles anew beyond some sizes
    return {1024: 5, 2048: 3}.get(case.n, least)


@lru_cache(maxsize=2)
def problem(mode: str, geometry: str, n: int, dtype: torch.dtype) -> Problem:
    """The batch that all ways of a group share."""
    return make_problem(mode, geometry, n, D, dtype, torch.device("cpu"))


def step(p: Problem, loss: Loss, steps: str) -> Call:
    """A call that computes the loss, or the loss and its gradients by features and scalars."""

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (loss(p),)

    def both() -> tuple[Tensor, ...]:
        value = loss(p)
        return (value.detach(), *torch.autograd.grad(value, p.inputs))

    return forward if steps == "forward" else both


# -- the floor ------------------------------------------------------------------------------------------------


@cache
def floor(mode: str, n: int, steps: str) -> float:
    """Seconds that the products of a problem take by themselves, in the best of a few tile shapes.

    The shape is chosen at N = 4096 where N is larger.
    """
    count = STEPS[steps]
    if n <= 4096:
        return min(floor_of_tiles(mode, n, count).values())
    at_4096 = floor_of_tiles(mode, 4096, count)
    call = multiply(products(mode, n), count, min(at_4096, key=at_4096.__getitem__))
    return best_of(call, 3) if n <= 8192 else best_of(call, 2, warm_up=False)


@cache
def floor_of_tiles(mode: str, n: int, count: int) -> dict[tuple[int, int], float]:
    """Seconds of the products in each tile shape."""
    blocks = products(mode, n)
    return {tile: best_of(multiply(blocks, count, tile), 3) for tile in TILES}


def products(mode: str, n: int) -> list[tuple[Tensor, Tensor]]:
    """The images and texts that meet: all with all, or rank by rank."""
    p = problem(mode, "euclidean", n, torch.float32)
    return [(p.image.detach()[images], p.text.detach()[texts]) for images, texts in p.ranks]


def multiply(blocks: list[tuple[Tensor, Tensor]], count: int, tile: tuple[int, int]) -> Callable[[], None]:
    """One product of each block, or four: the logits again, and what they give to images and to texts."""
    grads = [(torch.zeros_like(x), torch.zeros_like(y)) for x, y in blocks]
    room = torch.empty(tile[0] * tile[1])

    def call() -> None:
        for (x, y), (dx, dy) in zip(blocks, grads, strict=True):
            for rows, to_rows in zip(x.split(tile[0]), dx.split(tile[0]), strict=True):
                for columns, to_columns in zip(y.split(tile[1]), dy.split(tile[1]), strict=True):
                    l = room[: len(rows) * len(columns)].view(len(rows), len(columns))
                    torch.mm(rows, columns.T, out=l)
                    if count == 1:
                        continue
                    torch.mm(rows, columns.T, out=l)
                    to_rows.addmm_(l, columns)
                    to_columns.addmm_(l.T, rows)

    return call
