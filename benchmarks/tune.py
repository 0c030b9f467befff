"""Measure tiles of level_infonce's kernels on the GPU at hand, and print the table entry to paste into configs.py.

    make tune      or      python benchmarks/tune.py [--precisions 16] [--kernels forward backward product chunk]

Each kernel is tried with the others at the table's value, on the dense and the rank-sorted problem of 32,768 x 512
for each geometry; a candidate's score is the geometric mean of its times over the table's. Candidates that spill
registers, ask for more shared memory than there is, or compute something else than the table's are left out. One
precision takes about six minutes, mostly compilation (an estimate); measurements are saved kernel by kernel.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bench_kernels import attempted
from machine import RESULTS, machine_card, require_gpu, results_path
from problems import GEOMETRIES, Problem, make_problem
from timing import measure
from torch import Tensor

from bioclip_hc.kernels import triton_infonce
from bioclip_hc.kernels.configs import Config, Tile, config_for
from bioclip_hc.kernels.objective import make_objective

PRECISIONS = {"16": (torch.float16, False), "tf32": (torch.float32, True), "ieee": (torch.float32, False)}
LARGEST_DIFFERENCE = 1e-2  # in 16 bit; a wrong tile is off by far more
CHUNKS = (4, 8, 16, 32, 64)
WIDE = (
    Tile(128, 128, 64, 8, 3),
    Tile(128, 128, 64, 8, 2),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 64, 8, 2, 2),
    Tile(128, 128, 64, 8, 3, 2),
    Tile(128, 128, 32, 8, 4),
    Tile(128, 128, 32, 8, 4, 2),
    Tile(128, 128, 128, 8, 2),
    Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 64, 4, 3, 2),
    Tile(128, 256, 64, 8, 3),
    Tile(256, 128, 64, 8, 3),
    Tile(128, 64, 64, 4, 3, 2),
    Tile(128, 64, 64, 4, 4, 3),
    Tile(128, 64, 64, 8, 3, 2),
    Tile(64, 128, 64, 4, 3, 2),
    Tile(64, 128, 64, 4, 4, 3),
    Tile(64, 256, 64, 8, 3),
    Tile(64, 64, 64, 4, 4, 4),
)
NARROW = (  # exact fp32 has no tensor cores: its sums live in registers
    Tile(64, 64, 16, 8, 2, 2),
    Tile(64, 64, 16, 4, 2, 2),
    Tile(64, 64, 32, 8, 2, 2),
    Tile(64, 64, 32, 4, 2, 2),
    Tile(64, 64, 16, 4, 3, 3),
    Tile(128, 64, 16, 8, 2, 1),
    Tile(64, 128, 16, 8, 2, 1),
    Tile(128, 128, 16, 8, 2, 1),
    Tile(32, 64, 32, 4, 2, 4),
)


@dataclass(frozen=True)
class Case:
    """One pass over one problem, and what the first of its results should be."""

    name: str
    work: Callable[[Config], tuple[Tensor, ...]]
    expected: tuple[Tensor, ...]

    def differs(self, results: tuple[Tensor, ...]) -> float:
        """The largest difference by norm, over what is expected; infinite for one that is not a number."""
        pairs = [(x.double(), y.double()) for x, y in zip(results, self.expected, strict=False)]
        differences = [float((x - y).norm() / y.norm().clamp_min(1e-30)) for x, y in pairs]
        return max(d if math.isfinite(d) else math.inf for d in differences)


# -- candidates -----------------------------------------------------------------------------------------------


def candidates(kernel: str, precision: str, base: Config) -> Iterator[Config]:
    """The table's value, then others that differ from it in one kernel."""
    yield base
    for config in _variants(kernel, precision, base):
        if config != base:
            yield config


def _variants(kernel: str, precision: str, base: Config) -> Iterator[Config]:
    if kernel == "chunk":
        yield from (replace(base, chunk=chunk) for chunk in CHUNKS)
    elif kernel == "product":
        for tile in _product_tiles(precision):
            if base.backward.rows % tile.depth == base.backward.cols % tile.depth == 0:  # it runs along either side
                yield replace(base, product=tile)
    else:
        for tile in dict.fromkeys(_logit_tiles(precision, resident=kernel == "forward")):
            if kernel == "forward":
                yield replace(base, forward=tile)
            elif tile.rows % base.product.depth == tile.cols % base.product.depth == 0:
                yield replace(base, backward=tile)


def _logit_tiles(precision: str, resident: bool) -> Iterator[Tile]:
    """Tiles of logits. Only the forward kernel stays resident; for the others per_sm means nothing."""
    for tile in NARROW if precision == "ieee" else WIDE:
        depth = tile.depth // 2 if precision == "tf32" else tile.depth  # fp32 fills memory twice as fast
        yield replace(tile, depth=depth, per_sm=tile.per_sm if resident else 1)


def _product_tiles(precision: str) -> Iterator[Tile]:
    depths = {"16": (32, 64), "tf32": (16, 32), "ieee": (16, 32)}[precision]
    stages = (2,) if precision == "ieee" else (3, 4)
    for cols in (64, 128) if precision == "ieee" else (64, 128, 256):
        for depth in depths:
            for warps in (4, 8):
                for stage in stages:
                    yield Tile(128, cols, depth, warps, stage)


# -- measurement ----------------------------------------------------------------------------------------------


def make_cases(p: Problem, base: Config) -> tuple[Case, Case]:
    """The forward and the backward pass of a problem, as functions of the config."""
    objective = make_objective(
        p.image, p.text, p.image_taxa, p.text_rank, p.text_taxon,
        geometry=p.geometry, space="unit" if p.geometry == "euclidean" else "tangent", targets="multi_positive",
        pair=None, text_bias=None, restrict=True,
    )  # fmt: skip
    image, text, scale, curv = (x.detach() for x in (p.image, p.text, p.scale, p.curv))

    def forward(config: Config) -> tuple[Tensor, ...]:
        return triton_infonce.forward(image, text, scale, curv, objective, config=config)

    nll_image, nll_text, row_lse, col_lse = forward(base)  # the last two hold anything where there is no positive
    grad_image, grad_text = (torch.full_like(nll, 0.5 / len(p.image)) for nll in (nll_image, nll_text))
    gradients = grad_image, grad_text, torch.zeros_like(col_lse)

    def backward(config: Config) -> tuple[Tensor, ...]:
        return triton_infonce.backward(
            image, text, scale, curv, objective, row_lse, col_lse, *gradients, config=config
        )

    name = f"{p.mode} {p.geometry}"
    return Case(name, forward, (nll_image, nll_text)), Case(name, backward, backward(base)[:2])


def measure_config(config: Config, cases: list[Case], spills: int, budget_ms: float) -> dict[str, Any]:
    """Milliseconds of every case, or why the config is left out. spills: the most that its kernels may spill."""
    forget_kernels(triton_infonce)
    found = {}
    for case in cases:
        difference = case.differs(case.work(config))
        spilled = most_spills(triton_infonce)
        if spilled > spills:
            return {"ms": None, "note": f"spills {spilled}"}
        if difference > LARGEST_DIFFERENCE:
            return {"ms": None, "note": f"differs from the table's results by {difference:.1e}"}
        found[case.name] = measure(lambda: case.work(config), budget_ms).p50  # noqa: B023
    return {"ms": found, "spills": most_spills(triton_infonce)}


def compiled_kernels(module: ModuleType) -> Iterator[Any]:
    """Kernels that a module's functions have been compiled to so far; none in the interpreter."""
    for function in vars(module).values():
        for caches in getattr(function, "device_caches", {}).values():
            yield from caches[0].values()


def most_spills(module: ModuleType) -> int:
    """The most that any of a module's compiled kernels spills."""
    return max((getattr(kernel, "n_spills", None) or 0 for kernel in compiled_kernels(module)), default=0)


def forget_kernels(module: ModuleType) -> None:
    """Drop compiled kernels from memory (not from disk), so that those seen next are the next config's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for function in vars(module).values():
        if hasattr(function, "device_caches"):
            function.device_caches.clear()


def score(row: dict[str, Any], base: dict[str, Any]) -> float:
    """Geometric mean of the row's times over the table's; infinite where it was left out."""
    if row["ms"] is None:
        return math.inf
    logs = [math.log(ms / base["ms"][case]) for case, ms in row["ms"].items()]
    return math.exp(sum(logs) / len(logs))


def tune(
    kernel: str, precision: str, base: Config, cases: list[Case], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measurements of every candidate for one kernel, the table's value first."""
    rows: list[dict[str, Any]] = []
    for config in candidates(kernel, precision, base):
        if options.most is not None and len(rows) >= options.most:
            break
        if rows and (rows[0]["ms"] is None or time.monotonic() > options.ends):
            break
        allowed = rows[0]["spills"] if rows else 2**30
        row = {"kernel": kernel, "precision": precision, "config": asdict(config)}
        row |= attempted(lambda: measure_config(config, cases, allowed, options.budget_ms))  # noqa: B023
        rows.append(row | {"score": score(row, rows[0] if rows else row)})
        print(
            f"{precision} {kernel:8} {rows[-1]['score']:.3f} {_part(config, kernel)} {row.get('note', '')}",
            flush=True,
        )
    return rows


# -- the entry ------------------------------------------------------------------------------------------------


def best(rows: list[dict[str, Any]], kernel: str, base: Config) -> Config:
    """`base` with the best value found for one kernel."""
    finite = [row for row in rows if row["score"] < math.inf]
    if not finite:
        return base
    part = min(finite, key=lambda row: row["score"])["config"][kernel]
    changed: dict[str, Any] = {kernel: part if kernel == "chunk" else Tile(**part)}
    return replace(base, **changed)


def entry(arch: int, precision: str, geometry: str, config: Config) -> str:
    """A line of configs.TABLE."""
    tiles = ", ".join(show(tile) for tile in (config.forward, config.backward, config.product))
    default = Config(config.forward, config.backward, config.product)
    others = ("chunk", "group", "share", "panel", "rows")
    extra = [f"{n}={getattr(config, n)!r}" for n in others if getattr(config, n) != getattr(default, n)]
    return f'    ({arch}, "{precision}", "{geometry}"): Config({", ".join([tiles, *extra])}),'


def show(tile: Tile) -> str:
    """A tile as configs.py writes it."""
    values = list(asdict(tile).values())
    return f"Tile({', '.join(map(str, values if tile.per_sm != 1 else values[:-1]))})"


def _part(config: Config, kernel: str) -> str:
    return str(config.chunk) if kernel == "chunk" else show(getattr(config, kernel))


# -- the command ----------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kernels = ["forward", "backward", "product", "chunk"]
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["16"])
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--kernels", nargs="+", choices=kernels, default=kernels)
    parser.add_argument("--modes", nargs="+", choices=["dense", "sorted"], help="problems that are scored")
    parser.add_argument("--images", type=int)
    parser.add_argument("--width", type=int, help="D")
    parser.add_argument(
        "--most", type=int, help="candidates of a kernel, the table's value among them; all by default"
    )
    parser.add_argument("--budget-ms", type=float, help="time spent on one measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no candidate after that long")
    parser.add_argument("--output", type=Path, help="by default results/tune-<GPU>.json; none for --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny problems, any device, meaningless times")
    options = parser.parse_args(arguments)
    full: dict[str, Any] = {"images": 32768, "width": 512, "budget_ms": 100.0, "modes": ["dense", "sorted"]}
    tiny: dict[str, Any] = {"images": 16, "width": 128, "budget_ms": 0.0, "modes": ["dense"], "most": 2}
    for name, value in (tiny if options.smoke else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.smoke and options.output is not None and options.output.resolve().parent == RESULTS:
        parser.error(f"--smoke measures nothing, and writes nothing into {RESULTS}")
    options.ends = time.monotonic() + 60 * options.minutes
    return options


def main(arguments: list[str] | None = None) -> None:
    """Tune what the options name, and print the table's new lines."""
    options = parse(arguments)
    if not options.smoke:
        require_gpu()
    card = machine_card()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch = int(card.get("capability", "0").replace(".", ""))
    path = options.output
    if path is None and not options.smoke:
        path = results_path(card["gpu"]).with_name(results_path(card["gpu"]).name.replace("kernels-", "tune-", 1))
    measurements: list[dict[str, Any]] = []
    entries = []
    for precision, geometry in itertools.product(options.precisions, options.geometries):
        dtype, tf32 = PRECISIONS[precision]
        torch.backends.cuda.matmul.allow_tf32 = tf32
        base = config_for(device, dtype, tf32, geometry)
        problems = [
            make_problem(mode, geometry, options.images, options.width, dtype, device) for mode in options.modes
        ]
        forward, backward = zip(*(make_cases(p, base) for p in problems), strict=True)
        found = base
        for kernel in options.kernels:
            cases = list(backward if kernel in ("backward", "product") else forward)
            rows = tune(kernel, precision, base, cases, options)
            measurements += rows
            found = best(rows, kernel, found)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                content = {"card": card, "smoke": options.smoke, "measurements": measurements}
                path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        entries.append(entry(arch, precision, geometry, found))
    print(f"measurements in {path}" if path else "a smoke run: its times mean nothing")
    print("for TABLE in bioclip_hc/kernels/configs.py:", *entries, sep="\n")


if __name__ == "__main__":
    main()
