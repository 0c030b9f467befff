"""The row-wise passes around the products, Triton's beside csrc/cuda's, in one run on a GPU: time, bytes a second.

    python csrc/cuda/build.py && python benchmarks/bench_prepare.py [--rows 32768 ...] [--ordered] [--resume]

prepare turns features into unit rows and polar scalars, to_inputs brings gradients back. Bytes are those that must
cross the memory's bus if everything is read and written once, so that the rate says how near a pass is to the bus;
"copy" is torch's copy of as many bytes, what the bus gives. Rows are read and written anew by every call, from
inputs too many for the cache. Both ways must agree on their results, or the row says so and the command fails.

Times are of CUDA graphs of many calls, without Python; `host_us` is what a call costs Python. A full run has 432
rows of a tenth of a second, and takes two minutes, an estimate. --smoke tries everything out on tiny inputs, where
Triton is interpreted and there is a twin of the library for the host: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine_card, require_gpu, results_path
from timing import graph_of, measure
from torch import Tensor

from bioclip_hc.kernels import cuda, triton_infonce, triton_tiles

ROWS = (4096, 8192, 16384, 32768, 65536, 131072)
WIDTHS = (512, 768, 1024)
DTYPES = {  # of features and product, and whether rows are rounded to TF32
    "fp16": (torch.float16, torch.float16, False),
    "bf16": (torch.bfloat16, torch.float16, False),
    "fp32": (torch.float32, torch.float32, False),
    "tf32": (torch.float32, torch.float32, True),
}
SPACE = triton_tiles.SPACES["tangent"]  # whose scalars are the most
CALLS = 20  # of one graph
CACHE = 128 << 20  # bytes: more than twice the second cache of an H100, 50 MB

Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    op: str
    way: str
    dtype: str
    rows: int
    width: int
    ordered: bool


class Inputs:
    """One call's features, and gradients of what `prepare` makes of them."""

    def __init__(self, cell: Cell, device: torch.device, seed: int) -> None:
        dtype, self.product, self.tf32 = DTYPES[cell.dtype]
        g = torch.Generator(device).manual_seed(seed)
        self.v = torch.randn(cell.rows, cell.width, generator=g, device=device).div_(cell.width**0.5).to(dtype)
        self.order = None
        if cell.ordered:
            self.order = torch.randperm(cell.rows, generator=g, device=device).int()
        self.curv = self.factor = torch.ones((), device=device)
        if cell.op == "to_inputs":
            self.dn = torch.randn(cell.rows, cell.width, generator=g, device=device)
            self.dr = torch.randn(cell.rows, generator=g, device=device)
            self.side = triton_tiles.prepare(*self.prepare_arguments())

    def prepare_arguments(self) -> tuple[Any, ...]:
        return self.v, self.order, self.curv, SPACE, self.product, self.v.shape[1], self.tf32


def triton_prepare(x: Inputs) -> tuple[Tensor, ...]:
    side = triton_tiles.prepare(*x.prepare_arguments())
    return side.n, side.polar


def cuda_prepare(x: Inputs) -> tuple[Tensor, ...]:
    return cuda.prepare(*x.prepare_arguments())


def triton_to_inputs(x: Inputs) -> tuple[Tensor, ...]:
    return (triton_infonce._to_inputs(x.v, x.order, x.dn, x.dr, x.side, x.factor, x.curv, SPACE),)


def cuda_to_inputs(x: Inputs) -> tuple[Tensor, ...]:
    return (cuda.to_inputs(x.v, x.order, x.dn, x.dr, x.side.polar, x.factor, x.curv, SPACE),)


WAYS: dict[str, dict[str, Callable[[Inputs], tuple[Tensor, ...]]]] = {
    "prepare": {"triton": triton_prepare, "cuda": cuda_prepare},
    "to_inputs": {"triton": triton_to_inputs, "cuda": cuda_to_inputs},
}


def bytes_of(x: Inputs, op: str, results: tuple[Tensor, ...]) -> int:
    """What a call must read and write."""
    read = [x.v] + ([] if x.order is None else [x.order])
    if op == "to_inputs":
        read += [x.dn, x.dr, x.side.polar]
    return sum(t.nbytes for t in (*read, *results))


def bench_cell(cell: Cell, device: torch.device, budget_ms: float) -> dict[str, Any]:
    """Time of a way, its rate, and whether it agrees with Triton's."""
    first = Inputs(cell, device, seed=0)
    reference = WAYS[cell.op]["triton"](first)
    size = bytes_of(first, cell.op, reference)
    inputs = [first] + [Inputs(cell, device, seed) for seed in range(1, min(CALLS, math.ceil(CACHE / size)))]
    agrees = True
    if cell.way == "copy":
        half = [torch.zeros(size // 2, dtype=torch.uint8, device=device) for _ in inputs]
        calls: list[Callable[[], object]] = [lambda x=x: x.clone() for x in half]
    else:
        way = WAYS[cell.op][cell.way]
        agrees = agree(way(first), reference, first.tf32)
        calls = [lambda x=x: way(x) for x in inputs]

    def all_calls() -> None:
        for k in range(CALLS):
            calls[k % len(calls)]()

    all_calls()
    _wait(device)
    start = time.perf_counter()
    all_calls()
    host_us = (time.perf_counter() - start) / CALLS * 1e6
    _wait(device)
    spread = measure(graph_of(all_calls).replay if device.type == "cuda" else all_calls, budget_ms)
    ms = {name: asdict(spread)[name] / CALLS for name in ("p20", "p50", "p80")} | {"repeats": spread.repeats}
    return {
        "ms": ms, "bytes": size, "gb_per_s": size / ms["p50"] / 1e6, "host_us": host_us, "inputs": len(inputs),
        "agrees": agrees,
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def agree(results: tuple[Tensor, ...], reference: tuple[Tensor, ...], tf32: bool) -> bool:
    """Whether results are the same by norm, up to a place of what they were rounded to."""
    fp32 = 2.0**-10 if tf32 else 1e-5
    return all(
        got.dtype == other.dtype
        and float((got.double() - other.double()).norm())
        <= max(torch.finfo(got.dtype).eps, fp32) * float(other.double().norm())
        for got, other in zip(results, reference, strict=True)
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each op, dtype and shape, with both ways and what a copy reaches."""
    lines = [
        "| | dtype | rows | width | triton us | cuda us | triton / cuda | triton GB/s | cuda GB/s | copy GB/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, ways in by_shape(rows).items():
        us, rate = ({way: row[name] for way, row in ways.items()} for name in ("us", "gb_per_s"))
        cells = [
            f"{us['triton']:.1f}", f"{us['cuda']:.1f}", f"{us['triton'] / us['cuda']:.2f}",
            *(f"{rate[way]:.0f}" for way in ("triton", "cuda", "copy")),
        ]  # fmt: skip
        lines.append("| " + " | ".join([*(str(part) for part in key), *cells]) + " |")
    return "\n".join(lines)


def by_shape(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """(op, dtype, rows, width) of shapes that all ways have been measured at, to the rows of the ways."""
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = f"{row['op']}{', ordered' if row['ordered'] else ''}", row["dtype"], row["rows"], row["width"]
        found.setdefault(key, {})[row["way"]] = row | {"us": row["ms"]["p50"] * 1000}
    return {key: ways for key, ways in found.items() if len(ways) == 3}


def speedups(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Triton's time over csrc/cuda's, by op: the geometric mean over shapes."""
    logs: dict[str, list[float]] = {}
    for (op, *_), ways in by_shape(rows).items():
        logs.setdefault(op, []).append(math.log(ways["triton"]["us"] / ways["cuda"]["us"]))
    return {op: math.exp(sum(values) / len(values)) for op, values in logs.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--ordered", action="store_true", help="rows taken in a random order, as sorted texts are")
    parser.add_argument("--budget-ms", type=float, default=100.0, help="of one row's measurement")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/prepare-GPU.json")
    parser.add_argument("--resume", action="store_true", help="keep what the output has")
    parser.add_argument("--smoke", action="store_true", help="tiny inputs, on a CPU too")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.rows, options.widths, options.budget_ms = (8,), (64,), 0.0
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 1 where the ways disagree."""
    options = parse(arguments)
    if not options.smoke:
        require_gpu()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if not options.smoke and (reason := cuda.why_not(device)):
        raise SystemExit(f"This compares with the kernels of csrc/cuda: {reason}. Nothing was run.")
    card = machine_card()
    path = options.output or results_path(card["gpu"]).with_name(
        results_path(card["gpu"]).name.replace("kernels", "prepare", 1)
    )
    content: dict[str, Any] = {"card": card, "smoke": options.smoke, "rows": []}
    if options.resume and path.exists():
        content = resumed(json.loads(path.read_text(encoding="utf-8")), content, path)
    for cell in cells(options):
        if any(all(row[name] == value for name, value in asdict(cell).items()) for row in content["rows"]):
            continue
        content["rows"].append(asdict(cell) | bench_cell(cell, device, options.budget_ms))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(content["rows"]))
    for op, ratio in speedups(content["rows"]).items():
        print(f"{op}: Triton's time over csrc/cuda's, geometric mean: {ratio:.2f}")
    wrong = [row for row in content["rows"] if not row["agrees"]]
    for row in wrong:
        print(f"does not agree with Triton's: {row['op']} of {row['dtype']}, {row['rows']} x {row['width']}")
    print(f"{len(content['rows'])} rows", path)
    return 1 if wrong else 0


def resumed(before: dict[str, Any], new: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a run begun before has, if it was of the same machine."""
    differing = [
        key for key in ("gpu", "driver", "torch", "triton") if before["card"].get(key) != new["card"].get(key)
    ]
    if differing:
        raise SystemExit(f"{path} is of another {', '.join(differing)}; run without --resume")
    return before


def cells(options: argparse.Namespace) -> list[Cell]:
    """The rows of a run; a shape's ways follow each other."""
    return [
        Cell(op, way, dtype, rows, width, options.ordered)
        for op in options.ops
        for dtype in options.dtypes
        for width in options.widths
        for rows in options.rows
        for way in (*WAYS[op], "copy")
    ]


if __name__ == "__main__":
    raise SystemExit(main())
