"""The fused loss on one GPU beside its peers, in one run: time, peak memory, and the rate of cuBLAS at its shapes.

    make gpu      or      python benchmarks/bench_kernels.py [--sizes 32768 ...] [--minutes 9] [--resume]

level_infonce dense, rank-sorted and with all ranks supervised (problems.py says what these are), D = 512, in both
geometries, beside every way of peers.py that computes the same objective. A row says what was not measured and why:
a peer that is not installed, does not fit into memory, or fails.

Times are CUDA events, not pytest-benchmark's host clock: see timing.py. Steps of a row:

- forward: the loss alone, under no_grad;
- forward_backward: the loss and its gradients by features, scale and (lorentz) curvature;
- backward: the gradients alone (this package's only);
- replay: forward_backward as a CUDA graph, free of Python's time.

A full run is about 570 rows of half a second, and 20 compilations by torch.compile: 8 to 10 minutes on an H100, an
estimate. Rows are saved as they come, fp16 and 32,768 first; a run that --minutes ends goes on with --resume.
--smoke tries everything out on tiny problems, on a CPU too (TRITON_INTERPRET=1): its times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, machine_card, require_gpu, results_path
from peers import OURS, WAYS, Loss, Way, logits, meru_exp_map0
from problems import GEOMETRIES, MODES, Problem, make_problem
from timing import Call, graph_of, measure, peak_mib
from torch import Tensor

from bioclip_hc.kernels import exp_map0, lorentz_inner, rank_topk

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
SIZES = (32768, 8192, 65536, 4096, 131072)  # what matters most first
TF32_LARGEST = 32768
MAP_SIZES = (8192, 32768)
PANEL_BYTES = 64 << 20  # the workspace that the backward's own products read (bioclip_hc.kernels.configs)
STRIPE_BYTES = 2 << 30  # how much of the matrix cuBLAS writes or reads at a time, where nothing bounds it
REPLAYED = (OURS, "torch eager")
GRADIENT_STEPS = ("forward_backward", "replay")


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    op: str
    mode: str
    geometry: str
    dtype: str
    images: int
    way: str
    steps: str


class Results:
    """The rows of one machine, saved after each."""

    def __init__(self, path: Path | None, smoke: bool, resume: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {"card": machine_card(), "smoke": smoke, "products": [], "rows": []}
        if resume and path is not None and path.exists():
            self._take_up(json.loads(path.read_text(encoding="utf-8")))

    def _take_up(self, before: dict[str, Any]) -> None:
        same = ("gpu", "driver", "torch", "triton")
        differing = [key for key in same if before["card"].get(key) != self.content["card"].get(key)]
        if differing:
            raise SystemExit(f"{self.path} is of another {', '.join(differing)}; run without --resume")
        self.content = before

    def has(self, kind: str, key: dict[str, Any]) -> bool:
        """Whether a row of that key is there."""
        return any(all(row[name] == value for name, value in key.items()) for row in self.content[kind])

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Keep a row, print it, save all."""
        self.content[kind].append(row)
        words = [str(value) for value in row.values() if isinstance(value, (str, int)) and value != ""]
        print(*words, f"{row['ms']['p50']:.3f} ms" if row["ms"] else "", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


# -- one row --------------------------------------------------------------------------------------------------


def step(inputs: tuple[Tensor, ...], loss: Callable[[], Tensor], steps: str) -> Call:
    """A call that does those steps of `loss`, and returns what they leave."""
    if steps == "forward":
        return lambda: _forward(loss)
    if steps == "backward":
        value = loss()
        return lambda: torch.autograd.grad(value, inputs, retain_graph=True)
    return lambda: torch.autograd.grad(loss(), inputs)


@torch.no_grad()
def _forward(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    return (loss(),)


def measured(
    inputs: tuple[Tensor, ...], loss: Callable[[], Tensor], cell: Cell, budget_ms: float
) -> dict[str, Any]:
    """Time of a cell, and what else its steps tell: the value, the peak memory, whether gradients repeat."""
    call = step(inputs, loss, cell.steps)
    if cell.steps == "replay":
        return {"ms": asdict(measure(graph_of(call).replay, budget_ms))}
    row: dict[str, Any] = {"ms": asdict(measure(call, budget_ms)), "peak_mib": peak_mib(call)}
    if cell.steps == "forward":
        row["value"] = float(next(iter(call())).double().sum())
    if cell.steps == "forward_backward" and cell.way == OURS:
        row["repeatable"] = all(torch.equal(x, y) for x, y in zip(call(), call(), strict=True))
    return row


def attempted(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` measures, or a note of why it could not. Ends the run where the GPU itself has failed."""
    try:
        return work()
    except ImportError as error:
        note = f"not installed: {error}"
    except torch.OutOfMemoryError:
        note = "out of memory"
    except Exception as error:  # a peer's failure is a finding, and must not cost the other rows
        note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if torch.cuda.is_available():
        gc.collect()
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise SystemExit(f"the GPU cannot go on after: {note}") from error
        torch.cuda.empty_cache()
    return {"ms": None, "note": note}


# -- level_infonce --------------------------------------------------------------------------------------------


def bench_losses(options: argparse.Namespace, results: Results, device: torch.device) -> None:
    """Every way, mode, geometry, dtype and size that the options name."""
    for size, dtype in _sizes(options):
        for mode in options.modes:
            for geometry in options.geometries:
                ways = [
                    way
                    for way in WAYS
                    if way.applies(mode, geometry)
                    and way.name in options.ways
                    and (way.name == OURS or dtype in options.peer_dtypes)
                ]
                cells = [
                    (way, cell)
                    for way in ways
                    for steps in _steps(way, device)
                    if not results.has(
                        "rows", asdict(cell := Cell("level_infonce", mode, geometry, dtype, size, way.name, steps))
                    )
                ]
                if cells and in_time(options):
                    p = make_problem(mode, geometry, size, options.width, DTYPES[dtype], device)
                    bench_problem(p, cells, options, results)
                    del p


def _sizes(options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    for size in options.sizes:
        for dtype in options.dtypes:
            if dtype != "tf32" or size <= TF32_LARGEST:
                yield size, dtype


def _steps(way: Way, device: torch.device) -> tuple[str, ...]:
    steps = ("forward", "forward_backward") + (("backward",) if way.name == OURS else ())
    return (*steps, "replay") if way.name in REPLAYED and device.type == "cuda" else steps


def bench_problem(p: Problem, cells: list[tuple[Way, Cell]], options: argparse.Namespace, results: Results) -> None:
    """One problem by every way; graphs last, as a capture that fails may leave its stream in disorder."""
    torch.compiler.reset()  # else the eighth shape falls back to eager, in silence
    shape = {"texts": len(p.text), "width": p.image.shape[1], "product_flops": 2 * p.pairs * p.image.shape[1]}
    for way, cell in sorted(cells, key=lambda pair: pair[1].steps == "replay"):
        if in_time(options):
            found = attempted(lambda: measured(p.inputs, _bound(way.loss, p), cell, options.budget_ms))  # noqa: B023
            results.add("rows", asdict(cell) | shape | found)


def _bound(loss: Loss, p: Problem) -> Callable[[], Tensor]:
    return lambda: loss(p)


# -- what cuBLAS does at these shapes -------------------------------------------------------------------------


def bench_products(options: argparse.Namespace, results: Results, device: torch.device) -> None:
    """The rate of the forward's product, and of the backward's two, of the dense problem of each size."""
    for size, dtype in _sizes(options):
        for name in PRODUCTS:
            key = {"product": name, "images": size, "dtype": dtype}
            if not results.has("products", key) and in_time(options):
                found = attempted(lambda: _product_rate(name, size, dtype, options, device))  # noqa: B023
                results.add("products", key | found)


def _product_rate(
    name: str, size: int, dtype: str, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    call = PRODUCTS[name](size, options.width, DTYPES[dtype], device)
    spread = measure(call, options.budget_ms)
    return {"ms": asdict(spread), "tflops": 2 * size * size * options.width / spread.p50 / 1e9}


def logits_product(n: int, d: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """image @ text.T, at most STRIPE_BYTES of it at a time."""
    image, text = (torch.randn(n, d, device=device, dtype=dtype) for _ in range(2))
    out = image.new_empty(_rows_in(STRIPE_BYTES, n, image), n)

    def call() -> None:
        for rows in image.split(len(out)):
            torch.mm(rows, text.T, out=out[: len(rows)])

    return call


def gradient_product(
    n: int, d: int, dtype: torch.dtype, device: torch.device, transposed: bool, stripe_bytes: int
) -> Callable[[], None]:
    """dS @ text, or dS.T @ image summed over stripes, dS waiting in that many bytes."""
    features = torch.randn(n, d, device=device, dtype=dtype)
    stripe = torch.randn(_rows_in(stripe_bytes, n, features), n, device=device, dtype=dtype)
    out = torch.zeros_like(features)

    def call() -> None:
        for k, (at, rows) in enumerate(zip(out.split(len(stripe)), features.split(len(stripe)), strict=True)):
            if transposed:
                torch.addmm(out, stripe[: len(rows)].T, rows, beta=min(k, 1), out=out)
            else:
                torch.mm(stripe[: len(at)], features, out=at)

    return call


def _rows_in(size: int, columns: int, like: Tensor) -> int:
    return max(1, min(columns, size // (columns * like.element_size())))


def _gradient(transposed: bool, stripe_bytes: int) -> Callable[..., Callable[[], None]]:
    return lambda n, d, dtype, device: gradient_product(n, d, dtype, device, transposed, stripe_bytes)


PRODUCTS: dict[str, Callable[..., Callable[[], None]]] = {
    "logits": logits_product,
    "image_gradient": _gradient(False, STRIPE_BYTES),
    "text_gradient": _gradient(True, STRIPE_BYTES),
    "image_gradient_panel": _gradient(False, PANEL_BYTES),
    "text_gradient_panel": _gradient(True, PANEL_BYTES),
}


# -- the small operations -------------------------------------------------------------------------------------


def bench_maps(options: argparse.Namespace, results: Results, device: torch.device) -> None:
    """exp_map0, lorentz_inner and rank_topk beside plain torch, on the first dtype's all-ranks problem."""
    dtype = options.dtypes[0]
    for size in options.map_sizes:
        cells = [
            cell
            for op, ways in MAPS.items()
            for way in ways
            for steps in (("forward",) if op == "rank_topk" else ("forward", "forward_backward"))
            if not results.has("rows", asdict(cell := Cell(op, "", "lorentz", dtype, size, way, steps)))
        ]
        if not cells or not in_time(options):
            continue
        p = make_problem("all_ranks", "lorentz", size, options.width, DTYPES[dtype], device)
        shape = {"texts": len(p.text), "width": options.width}
        for cell in cells:
            if in_time(options):
                function = MAPS[cell.op][cell.way]
                found = attempted(
                    lambda: measured(p.inputs[:1], lambda: function(p).sum(), cell, options.budget_ms)  # noqa: B023
                )
                results.add("rows", asdict(cell) | shape | found)


def torch_inner(p: Problem) -> Tensor:
    """Lorentz inner products by two matrix products, in fp32."""
    x, y = p.image.to(p.curv.dtype), p.text.to(p.curv.dtype)
    x0, y0 = ((1 / p.curv + v.square().sum(1, keepdim=True)).sqrt() for v in (x, y))
    return x @ y.T - x0 @ y0.T


def torch_topk(p: Problem) -> Tensor:
    """The best text of every rank from the matrix of logits."""
    l = logits(p, p.image, p.text)
    return torch.stack([l[:, texts].topk(1).values[:, 0] for _, texts in p.ranks], 1)


MAPS: dict[str, dict[str, Loss]] = {
    "exp_map0": {OURS: lambda p: exp_map0(p.image, p.curv), "torch": lambda p: meru_exp_map0(p.image, p.curv)},
    "lorentz_inner": {OURS: lambda p: lorentz_inner(p.image, p.text, p.curv), "torch": torch_inner},
    "rank_topk": {
        OURS: lambda p: rank_topk(
            p.image, p.text, p.text_rank, p.scale, p.curv, geometry=p.geometry, ranks=len(p.ranks)
        )[0],
        "torch": torch_topk,
    },
}


# -- the command ----------------------------------------------------------------------------------------------


def in_time(options: argparse.Namespace) -> bool:
    """Whether the run may begin another row."""
    return time.monotonic() < options.ends


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a run; --smoke sets what was not given to tiny values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [way.name for way in WAYS]
    parser.add_argument("--sizes", type=int, nargs="+", help="images of a batch")
    parser.add_argument("--map-sizes", type=int, nargs="*", help="images for exp_map0, lorentz_inner and rank_topk")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--peer-dtypes", nargs="*", choices=DTYPES, default=["fp16"], help="dtypes peers run in too"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--geometries", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES))
    parser.add_argument("--ways", nargs="+", choices=names)
    parser.add_argument("--width", type=int, help="D")
    parser.add_argument("--budget-ms", type=float, help="time spent on one measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no row after that long")
    parser.add_argument("--output", type=Path, help="by default results/kernels-<GPU>.json; none for --smoke")
    parser.add_argument("--resume", action="store_true", help="measure what the output file lacks")
    parser.add_argument("--smoke", action="store_true", help="tiny problems, any device, meaningless times")
    options = parser.parse_args(arguments)
    full = {"sizes": SIZES, "map_sizes": MAP_SIZES, "width": 512, "budget_ms": 400.0, "ways": names}
    tiny = {"sizes": (24,), "map_sizes": (24,), "width": 16, "budget_ms": 0.0}
    tiny["ways"] = [name for name in names if name != "torch.compile"]  # a compiler's time is no smoke test's
    for name, value in (tiny if options.smoke else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.smoke and options.output is not None and options.output.resolve().parent == RESULTS:
        parser.error(f"--smoke measures nothing, and writes nothing into {RESULTS}")
    options.ends = time.monotonic() + 60 * options.minutes
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; 1 where a row of this package failed."""
    options = parse(arguments)
    if not options.smoke:
        require_gpu()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    default = None if options.smoke else results_path(machine_card()["gpu"])
    results = Results(options.output or default, options.smoke, options.resume)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        bench_all(options, results, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    if not in_time(options):
        print(f"stopped after {options.minutes:g} minutes; --resume measures the rest")
    failed = [row for row in results.content["rows"] if row["way"] == OURS and row["ms"] is None]
    print(f"{len(results.content['rows'])} rows, {len(failed)} of {OURS} failed", results.path or "")
    return 1 if failed else 0


def bench_all(options: argparse.Namespace, results: Results, device: torch.device) -> None:
    """Products and losses of one size after the other, then the small operations."""
    everything = vars(options)
    for dtype in options.dtypes:
        # 16-bit runs leave MERU's fp32 exact, torch's default; a tf32 run gives everyone's fp32 the tensor cores
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        one = argparse.Namespace(**(everything | {"dtypes": [dtype]}))
        bench_products(one, results, device)
        bench_losses(one, results, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    bench_maps(options, results, device)


if __name__ == "__main__":
    raise SystemExit(main())
