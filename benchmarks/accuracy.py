"""Errors against float64, beside MERU's formula in fp32: the tables of docs/accuracy.md.

    python benchmarks/accuracy.py            print them
    python benchmarks/accuracy.py --write    put them into docs/accuracy.md
    TRITON_INTERPRET=1 python benchmarks/accuracy.py --write    and measure Triton's kernels without a GPU

# P pairs, D embed. Curvature -1; every method starts from the same fp32 tangent vectors, as does float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bioclip_hc.kernels import epilogue, level_infonce, panel
from bioclip_hc.kernels.backends import why_not
from bioclip_hc.kernels.reference import exp_map0, log_map0, u_floor

DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy.md"
P, D, SCALE = 1024, 512, 100.0
ONE = torch.ones(())  # the curvature
DISTANCES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RADII = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0)
NEAR_ORIGIN = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)


def pairs(distance: float | Tensor, radius: float | Tensor, count: int = P, seed: int = 0) -> tuple[Tensor, Tensor]:
    """fp32 tangent vectors (count, D) of points at the radius, and of points at the distance from them.

    Both directions are drawn at random: the first point's, and the angle at which the geodesic leaves the radius.
    """
    g = torch.Generator().manual_seed(seed)
    n, across = torch.nn.functional.normalize(torch.randn(2, count, D, generator=g, dtype=torch.float64), dim=2)
    across = torch.nn.functional.normalize(across - (across * n).sum(1, keepdim=True) * n, dim=1)
    turn = torch.rand(count, 1, generator=g, dtype=torch.float64) * torch.pi
    r, d = (torch.as_tensor(x, dtype=torch.float64) for x in (radius, distance))
    onward = turn.cos() * r.cosh() * n + turn.sin() * across
    return (r * n).float(), log_map0(d.cosh() * r.sinh() * n + d.sinh() * onward, ONE.double()).float()


# -- one pair: its logit, and the gradients of its two vectors --------------------------------------------------


class Answer(NamedTuple):
    """Logits (P,), and their gradients by both vectors, side by side: (P, 2 D)."""

    logits: Tensor
    gradient: Tensor


def differentiated(v: Tensor, w: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """What autograd makes of a formula of the distance."""
    v, w = (x.clone().requires_grad_() for x in (v, w))
    logits = -SCALE * distance(v, w)
    return Answer(logits.detach(), torch.cat(torch.autograd.grad(logits.sum(), (v, w)), 1))


def truth(v: Tensor, w: Tensor) -> Answer:
    """float64, without a cancellation: 2 asinh sqrt(u / 2), u from differences. No gradient at distance 0."""

    def distance(v: Tensor, w: Tensor) -> Tensor:
        r, q = (x.norm(dim=1) for x in (v, w))
        apart = (v / r[:, None] - w / q[:, None]).square().sum(1)
        half_u = ((r - q) / 2).sinh().square() + r.sinh() * q.sinh() * apart / 4
        return 2 * half_u.sqrt().asinh()

    return differentiated(v.double(), w.double(), distance)


def meru(v: Tensor, w: Tensor, product: torch.dtype = torch.float32, ties: bool = False) -> Answer:
    """MERU's: exp_map0, x_time y_time - <x, y>, acosh under its clamp. The product may be rounded, time is not.

    ties: a value equal to the clamp's bound passes its gradient, as torch.clamp did when MERU was written.
    """

    def distance(v: Tensor, w: Tensor) -> Tensor:
        x, y = exp_map0(v, ONE), exp_map0(w, ONE)
        x_time, y_time = (torch.sqrt(1 + z.square().sum(1)) for z in (x, y))
        # a library product, as MERU's: its sums run in another order than those of the times
        cosh = x_time * y_time - (x.to(product).float() @ y.to(product).float().T).diagonal()
        least = torch.tensor(1 + 1e-8)  # 1 in fp32
        return torch.acosh(torch.where(cosh >= least, cosh, least) if ties else torch.clamp(cosh, min=1 + 1e-8))

    return differentiated(v, w, distance)


def polar(v: Tensor, w: Tensor, rounding: Callable[[Tensor], Tensor]) -> Answer:
    """The tiled backend's tile and its way back, on unit rows rounded first, as the kernels round them."""
    everyone, nothing = torch.arange(len(v)), torch.empty(0, dtype=torch.int32)
    sides = [panel.prepare(x, ONE, "lorentz", "tangent") for x in (v, w)]
    (n, x), (m, y) = (_rounded(side, everyone, rounding) for side in sides)
    tile = epilogue.Tile(n @ m.T, x, y, nothing, nothing, None, None, 0, None, -SCALE, u_floor(n.dtype))
    u, gap = epilogue._cosh_minus_one(tile)
    logits = epilogue._similarity(tile, u) * tile.factor
    radii = torch.zeros(2, len(v))
    dS = epilogue._lorentz_backward(tile, torch.eye(len(v)) * -SCALE, u, gap, *radii)
    gradients = []
    for side, dn, dr in zip(sides, (dS @ m, dS.T @ n), radii, strict=True):
        gradients.append(torch.empty_like(side.v))
        panel._to_inputs(dn, side, everyone, dr, ONE, "tangent", panel.TORCH, gradients[-1])
    return Answer(logits.diagonal(), torch.cat(gradients, 1))


def _rounded(side: panel.Side, rows: Tensor, rounding: Callable[[Tensor], Tensor]) -> tuple[Tensor, epilogue.Polar]:
    block, scalars = panel.Block(len(rows), side.v, panel.TORCH), side.polar(rows)
    assert scalars is not None  # it is Lorentz
    n = rounding(block.take(side, rows)[0])
    return n, scalars.rows(slice(None), n.square().sum(1) / 2)


def tf32(x: Tensor) -> Tensor:
    """x (fp32) rounded to ten bits of mantissa."""
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


METHODS: dict[str, Callable[[Tensor, Tensor], Answer]] = {
    "polar, fp32": lambda v, w: polar(v, w, lambda n: n),
    "polar, TF32 rows": lambda v, w: polar(v, w, tf32),
    "polar, fp16 rows": lambda v, w: polar(v, w, lambda n: n.half().float()),
    "polar, bf16 rows": lambda v, w: polar(v, w, lambda n: n.bfloat16().float()),
    "MERU, fp32": meru,
    "MERU, fp32, ties pass": lambda v, w: meru(v, w, ties=True),
    "MERU, bf16 product": lambda v, w: meru(v, w, torch.bfloat16),
}


class Cell(NamedTuple):
    """Errors of one method at one distance and radius; of gradients only those that are finite."""

    logit_mean: float
    logit_max: float
    gradient_mean: float
    gradient_max: float
    broken: int  # pairs with a gradient that is not finite


def compare(method: str, v: Tensor, w: Tensor) -> Cell:
    """Absolute errors of logits; of gradients the norm of the error over the norm of the gradient."""
    parts = zip(v.split(256), w.split(256), strict=True)  # a method may hold a matrix
    answers = [(METHODS[method](*part), truth(*part)) for part in parts]
    got, exact = (Answer(*(torch.cat(x) for x in zip(*side, strict=True))) for side in zip(*answers, strict=True))
    logit = (got.logits - exact.logits).abs()
    whole = got.gradient.isfinite().all(1)
    error = (got.gradient - exact.gradient).norm(dim=1) / exact.gradient.norm(dim=1)
    error = error[whole] if bool(whole.any()) else error.new_full((1,), torch.nan)
    return Cell(
        float(logit.mean()), float(logit.max()), float(error.mean()), float(error.max()), int((~whole).sum())
    )


def measure(method: str, distance: float, radius: float) -> Cell:
    """Errors at a distance and a radius."""
    return compare(method, *pairs(distance, radius))


def near_origin(method: str, radius: float) -> Cell:
    """Errors of pairs of a point at radius 1 with one at a small radius, in directions drawn at random."""
    return compare(method, pairs(0.0, 1.0)[0], pairs(0.0, radius, seed=1)[0])


# -- a batch: nll and its gradients -----------------------------------------------------------------------------


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs within the contract: radius of the images 0.1 to 1, positives 0.1 to 1 away, the others farther."""
    g = torch.Generator().manual_seed(seed + 1)
    distance, radius = 0.1 + 0.9 * torch.rand(2, count, 1, generator=g, dtype=torch.float64)
    return pairs(distance, radius, count, seed)


class BatchError(NamedTuple):
    """nll: largest error over max(1, scale * d_max); the others relative, by norm."""

    nll: float
    features: float
    scale: float
    curv: float


def nll_and_gradients(image: Tensor, text: Tensor, scale: float, backend: str) -> tuple[Tensor, list[Tensor]]:
    """Rows of both directions, and the gradients of their mean by image, text, scale and curvature."""
    image, text = (x.detach().clone().requires_grad_() for x in (image, text))
    scalars = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (scale, 1.0)]
    own = torch.arange(len(image))
    nll_image, nll_text = level_infonce(
        image, text, own[:, None], torch.zeros_like(own), own, *scalars, backend=backend
    )
    nll = torch.cat([nll_image[:, 0], nll_text])
    return nll.detach(), [x.double() for x in torch.autograd.grad(nll.mean(), (image, text, *scalars))]


def batch_error(scale: float, backend: str, dtype: torch.dtype = torch.float32, count: int = 64) -> BatchError:
    """Error of level_infonce against float64 on the same (rounded) features."""
    image, text = (x.to(dtype) for x in batch(count))
    nll, gradients = nll_and_gradients(image, text, scale, backend)
    exact, true = nll_and_gradients(image.double(), text.double(), scale, "reference")
    d_max = farthest(image.double(), text.double())
    by_norm = [float((g - t).norm() / t.norm()) for g, t in zip(gradients, true, strict=True)]
    return BatchError(
        float((nll - exact).abs().max()) / max(1.0, scale * d_max), max(by_norm[:2]), by_norm[2], by_norm[3]
    )


def farthest(image: Tensor, text: Tensor) -> float:
    """The largest distance of an image to a text, from their tangent vectors."""
    x, y = (exp_map0(v, ONE.double()) for v in (image, text))
    return float(torch.acosh(torch.outer(*((1 + z.square().sum(1)).sqrt() for z in (x, y))) - x @ y.T).max())


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether fp32 products may round to TF32, inside."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# -- the document -------------------------------------------------------------------------------------------------


def pair_table(cells: dict[tuple[str, float, float], Cell], show: Callable[[Cell], str]) -> str:
    """Rows: radius and method; columns: distance."""
    lines = ["| r | method | " + " | ".join(f"d = {d:g}" for d in DISTANCES) + " |", "|---" * 8 + "|"]
    for r in RADII:
        lines += [
            f"| {r:g} | {method} | " + " | ".join(show(cells[method, d, r]) for d in DISTANCES) + " |"
            for method in METHODS
        ]
    return "\n".join(lines)


def show_logit(cell: Cell) -> str:
    return f"{cell.logit_mean:.1e} / {cell.logit_max:.1e}"


def show_gradient(cell: Cell) -> str:
    """At d = 0 there is no gradient to compare with: only whether what comes is finite."""
    broken = f"{cell.broken} not finite" if cell.broken else ""
    if cell.gradient_mean != cell.gradient_mean:
        return broken or "finite"
    return f"{cell.gradient_mean:.1e} / {cell.gradient_max:.1e}" + (f", {broken}" if broken else "")


def where_worse(cells: dict[tuple[str, float, float], Cell]) -> str:
    """Where the polar form's mean error in fp32 is more than a tenth above MERU's, or its largest above twice."""
    worse = []
    for r in RADII:
        for d in DISTANCES:
            ours, theirs = cells["polar, fp32", d, r], cells["MERU, fp32", d, r]
            for field in ("logit_mean", "logit_max", "gradient_mean", "gradient_max"):
                a, b = getattr(ours, field), getattr(theirs, field)
                if a > b * (1.1 if field.endswith("mean") else 2):
                    worse.append(f"| {r:g} | {d:g} | {field.replace('_', ', ')} | {a:.1e} | {b:.1e} |")
    head = ["| r | d | error | polar, fp32 | MERU, fp32 |", "|---" * 5 + "|"]
    return "\n".join(head + worse) if worse else "Nowhere."


def origin_table() -> str:
    """Rows: method; columns: radius of the second point."""
    lines = ["| method | " + " | ".join(f"r = {r:g}" for r in NEAR_ORIGIN) + " |", "|---" * 7 + "|"]
    for method in ("polar, fp32", "MERU, fp32"):
        shown = (show_gradient(near_origin(method, r)) for r in NEAR_ORIGIN)
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def batch_table() -> str:
    """Rows: what runs; columns: scale and what is compared."""
    cases = [("tiled, fp32", "tiled", torch.float32, False)]
    if why_not("cpu", torch.device("cpu")) is None:
        cases += [("cpu, fp32", "cpu", torch.float32, False), ("cpu, bf16", "cpu", torch.bfloat16, False)]
    if why_not("triton", torch.device("cpu")) is None:
        cases += [
            ("triton, fp32", "triton", torch.float32, False),
            ("triton, fp32 as TF32", "triton", torch.float32, True),
            ("triton, fp16", "triton", torch.float16, False),
            ("triton, bf16", "triton", torch.bfloat16, False),
        ]
    lines = ["| runs | at scale | nll / max(1, scale d_max) | features | scale | curv |", "|---" * 6 + "|"]
    for name, backend, dtype, allowed in cases:
        for scale in (1.0, 10.0, 100.0):
            with tensor_cores(allowed):
                error = batch_error(scale, backend, dtype)
            lines.append(f"| {name} | {scale:g} | " + " | ".join(f"{x:.1e}" for x in error) + " |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every table of the document by its name."""
    cells = {(m, d, r): measure(m, d, r) for m in METHODS for d in DISTANCES for r in RADII}
    return {
        "logits": pair_table(cells, show_logit),
        "gradients": pair_table(cells, show_gradient),
        "worse": where_worse(cells),
        "origin": origin_table(),
        "batch": batch_table(),
    }


def write(document: str, tables: dict[str, str]) -> str:
    """The document with each table between its markers, <!-- name --> and <!-- end of name -->."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if document.count(start) != 1 or document.count(end) != 1:
            raise ValueError(f"{DOCUMENT} must hold {start} and {end} once each")
        before, rest = document.split(start)
        document = f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    options = parser.parse_args()
    found = tables()
    if options.write:
        DOCUMENT.write_text(write(DOCUMENT.read_text(encoding="utf-8"), found), encoding="utf-8")
    else:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in found.items()))


if __name__ == "__main__":
    main()
