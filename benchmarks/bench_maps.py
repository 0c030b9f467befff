"""exp_map0, log_map0 and lorentz_inner beside plain torch and geoopt: time and peak memory.

# M = 32,768 points, D = 512; N points that they meet in lorentz_inner

geoopt's points carry their time component, and its k is 1/c: points are (rows, 1 + D), time first, and tangent
vectors at the origin have time 0. They are given to it in that form, and that is not timed. Its inner product takes
pairs of rows: all pairs are their broadcast, (M, N, 1 + D) numbers, possible for few N only.

Gradients are those of features and curvature for one random gradient of the result. Every way's values are compared
with plain torch's in float64, in the benchmark itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from peers import OURS, meru_exp_map0
from recording import Call, difference, name, record
from torch import Tensor

from bioclip_hc.kernels import exp_map0, log_map0, lorentz_inner

M, D = 32_768, 512
CURVATURE = 1.3  # not 1, where a wrong power of it would go unnoticed
MAPS = ("exp_map0", "log_map0")
MANY, FEW = 1024, 8
ROUNDS = 3
TOLERANCE = 1e-4  # of the largest value; geoopt takes acosh of the time component, which is flat at the origin


@dataclass(frozen=True)
class Way:
    """One way to compute an operation: its inputs from ours, its result, and the part of it that is ours."""

    inputs: Callable[[Tensor, ...], tuple[Tensor, ...]]
    work: Callable[..., Tensor]
    ours: Callable[[Tensor], Tensor] = lambda result: result


# -- plain torch ----------------------------------------------------------------------------------------------


def torch_log_map0(x: Tensor, curv: Tensor) -> Tensor:
    """x asinh(s)/s with s = sqrt(c)|x|, clamped below as MERU's exp_map0 is."""
    s = curv.sqrt() * x.norm(dim=1, keepdim=True)
    return x * s.asinh() / s.clamp_min(1e-8)


def torch_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    """Space product less the product of times."""
    x0, y0 = ((1 / curv + p.square().sum(1, keepdim=True)).sqrt() for p in (x, y))
    return x @ y.T - x0 @ y0.T


PLAIN: dict[str, Callable[..., Tensor]] = {
    "exp_map0": meru_exp_map0,
    "log_map0": torch_log_map0,
    "lorentz_inner": torch_inner,
}
FUSED: dict[str, Callable[..., Tensor]] = {
    "exp_map0": exp_map0,
    "log_map0": log_map0,
    "lorentz_inner": lorentz_inner,
}


# -- geoopt ---------------------------------------------------------------------------------------------------


def with_time(points: Tensor, time: Tensor) -> Tensor:
    """(rows, 1 + D) a time component, (rows, 1), before the space components."""
    return torch.cat([time, points], 1)


def time_of(points: Tensor, curv: Tensor) -> Tensor:
    """(rows, 1) sqrt(1/c + |x|^2)."""
    return (1 / curv + points.square().sum(1, keepdim=True)).sqrt()


def geoopt_way(op: str) -> Way:
    """geoopt's Lorentz manifold, its curvature a parameter."""
    import geoopt

    # the manifold's k must be the very tensor that is differentiated by
    def on(k: Tensor) -> Any:
        manifold = geoopt.Lorentz(learnable=True)
        del manifold.k
        manifold.k = k
        return manifold

    if op == "lorentz_inner":
        return Way(
            lambda x, y, c: tuple(with_time(p, time_of(p, c)) for p in (x, y)),  # curvature is in the times
            lambda x, y: geoopt.Lorentz().inner(None, x[:, None], y[None]),
        )
    if op == "exp_map0":
        return Way(
            lambda v, c: (with_time(v, torch.zeros_like(v[:, :1])), 1 / c),
            lambda v, k: on(k).expmap0(v),
            lambda result: result[:, 1:],
        )
    return Way(
        lambda x, c: (with_time(x, time_of(x, c)), 1 / c),
        lambda x, k: on(k).logmap0(x),
        lambda result: result[:, 1:],
    )


def way_of(op: str, way: str) -> Way:
    """That operation by that way."""
    if way == "geoopt":
        return geoopt_way(op)
    return Way(lambda *inputs: inputs, (FUSED if way == OURS else PLAIN)[op])


# -- the benchmarks -------------------------------------------------------------------------------------------


@cache
def points(rows: int, op: str) -> Tensor:
    """(rows, D) tangent vectors of radius 1/2 to 3/2; for other operations than exp_map0 where they lead."""
    generator = torch.Generator().manual_seed(rows)
    n = torch.nn.functional.normalize(torch.randn(rows, D, generator=generator), dim=1)
    v = n * torch.linspace(0.5, 1.5, rows)[:, None] / math.sqrt(CURVATURE)
    return v if op == "exp_map0" else meru_exp_map0(v, torch.tensor(CURVATURE))


def step(way: Way, inputs: tuple[Tensor, ...], backward: bool) -> Call:
    """The operation, or the operation and the gradients of all its inputs."""
    leaves = [x.detach().requires_grad_() for x in way.inputs(*inputs)]
    with torch.no_grad():
        shape = way.work(*leaves).shape
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if backward else None

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (way.work(*leaves),)

    def both() -> tuple[Tensor, ...]:
        result = way.work(*leaves)
        return (result.detach(), *torch.autograd.grad(result, leaves, gradient))

    return both if backward else forward


def checked(way: Way, op: str, inputs: tuple[Tensor, ...]) -> None:
    """Assert that a way computes the operation, on some of the rows."""
    some = [x[:256].double() if x.ndim else x.double() for x in inputs]
    got = way.ours(way.work(*way.inputs(*(x.float() for x in some))))
    found = difference([got], [PLAIN[op](*some)])
    assert found < TOLERANCE, f"differs from float64 by {found:.1e} of the largest value"


def in_check(way: str, backward: bool, **others: Any) -> bool:
    """What make bench-check measures again: the maps with their gradients, ours and the base."""
    return backward and "op" in others and way != "geoopt"


@pytest.mark.parametrize("way", ["torch", OURS, "geoopt"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("op", MAPS)
def test_map(benchmark: Any, op: str, backward: bool, way: str) -> None:
    """exp_map0 and log_map0 of (M, D)."""
    name(benchmark, f"{op}, {M} x {D}, forward{' + backward' * backward}", way, base=way == "torch")
    measure(benchmark, op, way, (points(M, op), torch.tensor(CURVATURE)), backward)


@pytest.mark.parametrize("way", ["torch", OURS, "geoopt"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("n", [MANY, FEW])
def test_inner(benchmark: Any, n: int, backward: bool, way: str) -> None:
    """lorentz_inner of all pairs of (M, D) and (N, D)."""
    op = "lorentz_inner"
    name(benchmark, f"{op}, {M} x {n}, D = {D}, forward{' + backward' * backward}", way, base=way == "torch")
    if way == "geoopt" and n != FEW:
        pytest.skip(f"its inner takes pairs: all of them are {M * n * (D + 1) * 4 / 2**30:.0f} GiB at once")
    measure(benchmark, op, way, (points(M, op), points(n, op), torch.tensor(CURVATURE)), backward)


def measure(benchmark: Any, op: str, way: str, inputs: tuple[Tensor, ...], backward: bool) -> None:
    """Check a way's values, then record it."""
    if way == "geoopt":
        pytest.importorskip("geoopt", reason="not installed; pip install -e '.[bench]'")
    computed = way_of(op, way)
    checked(computed, op, inputs)
    call = step(computed, inputs, backward)
    call()
    record(benchmark, call, ROUNDS)
