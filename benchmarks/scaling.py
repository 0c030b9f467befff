"""How time and memory grow with N, and a model of the step on eight A100: what docs/scaling.md shows.

    python benchmarks/scaling.py            print the tables
    python benchmarks/scaling.py --write    put them into docs/scaling.md

The fits are of measurements (results/cpu-*.json). The model is paper: products, special functions, arithmetic,
bytes to memory and bytes between devices, each over a rate, with every rate and assumption a constant below. The
same function predicts the CPU at hand from its measured rates, and is held against what was measured there: what it
misses on the CPU says how far to believe it elsewhere.

# M images, N texts, D embed, W devices
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from documents import table, update
from records import OURS, RESULTS, Record, Row, read

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
FIT_FROM = 2048  # below it fixed costs show
Point = tuple[int, float]


# -- fits -----------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """y = factor * N^exponent; worst: the largest factor by which a point lies off it."""

    exponent: float
    factor: float
    worst: float
    points: int


def fit(points: Sequence[Point], least_n: int = FIT_FROM) -> Fit | None:
    """Least squares of log y over log N for N >= least_n; None with fewer than three points."""
    kept = [(math.log(n), math.log(y)) for n, y in points if n >= least_n and y > 0]
    if len(kept) < 3:
        return None
    x_mean, y_mean = (sum(values) / len(kept) for values in zip(*kept, strict=True))
    slope = sum((x - x_mean) * (y - y_mean) for x, y in kept) / sum((x - x_mean) ** 2 for x, _ in kept)
    off = max(abs(y - y_mean - slope * (x - x_mean)) for x, y in kept)
    return Fit(slope, math.exp(y_mean - slope * x_mean), math.exp(off), len(kept))


def curves(
    record: Record, title: str, mode: str, steps: str, value: Callable[[Row], float | None]
) -> dict[str, list[Point]]:
    """Of each way of the loss, (N, value) by rising N; what is missing or not positive is left out."""
    found: dict[str, list[Point]] = {}
    pattern = re.compile(re.escape(f"{title} {mode}, N = ") + r"(\d+)" + re.escape(f", {steps}"))
    for row in record.rows:
        match = pattern.fullmatch(row.group) if row.suite == "loss" else None
        y = value(row)
        if match and y is not None and y > 0:
            found.setdefault(row.way, []).append((int(match[1]), y))
    return {way: sorted(points) for way, points in found.items()}


def fit_table(record: Record) -> str:
    """Exponents of time and memory of every way."""
    lines = []
    for title in ("CLIP", "Lorentz"):
        for mode in ("dense", "sorted"):
            for steps in ("forward", "forward + backward"):
                times = curves(record, title, mode, steps, lambda row: row.median)
                peaks = curves(record, title, mode, steps, lambda row: row.peak_mib)
                for way, points in times.items():
                    fits = fit(points), fit(peaks.get(way, []))
                    if any(fits):
                        lines.append([f"{title} {mode}, {steps}", way, *_shown(fits[0]), *_shown(fits[1])])
    head = ["problem", "way", "time ~ N^", "worst point off", "memory ~ N^", "worst point off", "up to N"]
    largest = {
        (line[0], line[1]): curves(record, *_split(line[0]), lambda row: row.median)[line[1]][-1][0]
        for line in lines
    }
    return table(head, [[*line, str(largest[line[0], line[1]])] for line in lines])


def _split(problem: str) -> tuple[str, str, str]:
    where, steps = problem.split(", ")
    title, mode = where.split(" ")
    return title, mode, steps


def _shown(found: Fit | None) -> list[str]:
    return ["", ""] if found is None else [f"{found.exponent:.2f}", f"{found.worst - 1:.0%}"]


# -- what a step does -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What one device does, and what passes between devices."""

    flop: float  # matrix products
    special: float  # exp, log, sqrt
    arithmetic: float  # other operations on single numbers
    memory_bytes: float  # beyond caches and registers
    gathered_bytes: float = 0.0  # of the whole result of an all-gather
    scattered_bytes: float = 0.0  # of the whole input of a reduce-scatter
    messages: int = 0  # collectives, each of which waits once around the ring

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


GEOMETRIES = ("euclidean", "lorentz")
STEPS = ("forward", "forward + backward")


def loss_work(pairs: float, width: int, geometry: str, steps: str, tile_bytes: tuple[float, float]) -> Work:
    """Products and epilogue of that many logits, each of which sends tile_bytes to memory, forward and backward.

    The backward pass makes the logits anew.
    """
    both = steps != "forward"
    return Work(
        flop=(assumed("products") if both else 1) * 2.0 * pairs * width,
        special=assumed(f"{geometry}_special") * pairs * (1 + both),
        arithmetic=assumed(f"{geometry}_arithmetic") * pairs * (1 + both),
        memory_bytes=pairs * (tile_bytes[0] + both * tile_bytes[1]),
    )


def transformer_flop(layers: int, width: int, tokens: int) -> float:
    """Forward FLOP of one sequence: 24 T w^2 of projections and MLP, 4 T^2 w of attention, a layer."""
    return layers * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


# -- what devices do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Rates of one device that a real program reaches, and of its links."""

    product_flops: float  # FLOP/s
    special_rate: float  # special functions/s
    arithmetic_rate: float  # other operations/s
    memory_rate: float  # bytes/s
    overlap: float  # share of the smaller of products and epilogue that hides behind the larger
    devices: int = 1
    link_rate: float = math.inf  # bytes/s of each direction
    latency: float = 0.0  # seconds of one collective's way around


class Times(NamedTuple):
    """Seconds of the parts, and of all."""

    products: float
    epilogue: float
    communication: float
    total: float


def predict(work: Work, device: Device) -> Times:
    """Products and epilogue with their overlap; then, overlapping with nothing, what passes between devices.

    Ring collectives: (W - 1)/W of the bytes leave each device once.
    """
    products = work.flop / device.product_flops
    epilogue = (
        work.special / device.special_rate
        + work.arithmetic / device.arithmetic_rate
        + work.memory_bytes / device.memory_rate
    )
    compute = products + epilogue - device.overlap * min(products, epilogue)
    share = (device.devices - 1) / device.devices
    moved = share * (work.gathered_bytes + work.scattered_bytes) / device.link_rate
    communication = moved + work.messages * device.latency
    return Times(products, epilogue, communication, compute + communication)


# -- the CPU at hand ------------------------------------------------------------------------------------------

# Bytes a logit of fp32 sends to memory: forward, the product writes it and the epilogue reads it; backward the
# same, and the epilogue writes dS, which two products read. An upper bound: tiles stay in cache as far as they fit.
CPU_TILE_BYTES = (8.0, 20.0)


def cpu_device(rates: dict[str, float]) -> Device:
    """This machine by the rates that probe.py measured in the run.

    Its cores do one thing after the other, and arithmetic on the lanes that multiply and add for products.
    """
    return Device(
        product_flops=rates["product_gflops"] * 1e9,
        special_rate=rates["special_g_s"] * 1e9,
        arithmetic_rate=rates["product_gflops"] * 1e9 / 2,
        memory_rate=rates["memory_gb_s"] * 1e9,
        overlap=0.0,
    )


def cpu_table(record: Record, width: int = 512) -> str:
    """Predicted and measured times of ours in fp32, problem by problem."""
    device = cpu_device(record.card["rates"])
    lines = []
    for title, geometry in (("CLIP", "euclidean"), ("Lorentz", "lorentz")):
        for mode, share in (("dense", 1.0), ("sorted", 1 / 7)):
            for steps in STEPS:
                for n, seconds in curves(record, title, mode, steps, lambda row: row.median).get(OURS, []):
                    times = predict(loss_work(share * n * n, width, geometry, steps, CPU_TILE_BYTES), device)
                    lines.append(
                        [
                            f"{title} {mode}, {steps}",
                            str(n),
                            _ms(times.products),
                            _ms(times.epilogue),
                            _ms(times.total),
                            _ms(seconds),
                            f"{times.total / seconds:.2f}",
                        ]
                    )
    rates = ", ".join(f"{name} {value:g}" for name, value in record.card["rates"].items())
    head = ["problem", "N", "products ms", "epilogue ms", "predicted ms", "measured ms", "predicted / measured"]
    return (
        f"{record.card['cpu']}, {record.card['threads']} threads; measured rates: {rates}.\n\n{table(head, lines)}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


# -- eight A100 -----------------------------------------------------------------------------------------------


class Assumption(NamedTuple):
    """A number of the model and where it is from."""

    value: float
    unit: str
    source: str


ASSUMED: dict[str, Assumption] = {
    "batch": Assumption(32768, "images", "the published recipe for TreeOfLife-10M (train/configs)"),
    "texts": Assumption(30000, "texts", "unique taxa of a batch over seven ranks, about (benchmarks/problems.py)"),
    "width": Assumption(512, "", "ViT-B/16"),
    "devices": Assumption(8, "GPUs", "the question asked"),
    "tensor_peak": Assumption(312e12, "FLOP/s", "NVIDIA A100 datasheet, dense fp16 or bf16"),
    "product_share": Assumption(0.60, "of peak", "ASSUMPTION: a fused kernel's share; to be measured (make gpu)"),
    "library_share": Assumption(0.80, "of peak", "ASSUMPTION: a library's large product, where matrices are held"),
    "tower_share": Assumption(0.45, "of peak", "ASSUMPTION: a ViT-B/16 in training; to be measured"),
    "sms": Assumption(108, "", "NVIDIA A100 datasheet"),
    "clock": Assumption(1.41e9, "Hz", "NVIDIA A100 whitepaper, boost clock"),
    "special_per_clock": Assumption(16, "an SM and clock", "CUDA programming guide, throughput at 8.0"),
    "lanes": Assumption(64, "fp32 an SM and clock", "NVIDIA A100 whitepaper"),
    "memory_rate": Assumption(2.039e12, "bytes/s", "NVIDIA A100 80GB SXM datasheet"),
    "memory_share": Assumption(0.85, "of peak", "ASSUMPTION: a streaming kernel's share"),
    "overlap": Assumption(0.5, "", "ASSUMPTION: half of the epilogue hides; none and all are shown too"),
    "nvlink": Assumption(300e9, "bytes/s a direction", "NVIDIA A100 datasheet: 600 GB/s both directions"),
    "network": Assumption(25e9, "bytes/s a GPU", "HDR InfiniBand, 200 Gb/s, a card a GPU (DGX A100)"),
    "link_share": Assumption(0.75, "of peak", "ASSUMPTION: what NCCL's rings reach with messages of this size"),
    "nvlink_latency": Assumption(25e-6, "s a collective", "ASSUMPTION: small all-reduce of eight GPUs"),
    "network_latency": Assumption(60e-6, "s a collective", "ASSUMPTION: the same through the network"),
    "products": Assumption(4, "of the logits' shape", "made, made anew, and to both gradients; forward alone: 1"),
    "held_products": Assumption(6, "of a tile's shape", "rows and columns apart, each made and to both gradients"),
    "held_passes": Assumption(8, "numbers a logit", "ASSUMPTION: logits, softmax written and read, either pass"),
    "euclidean_special": Assumption(2, "a logit and pass", "an exponential for its row, one for its column"),
    "lorentz_special": Assumption(4, "a logit and pass", "those, a logarithm and a square root"),
    "euclidean_arithmetic": Assumption(12, "a logit and pass", "ASSUMPTION: counted in the formulas, with masks"),
    "lorentz_arithmetic": Assumption(25, "a logit and pass", "ASSUMPTION: counted in the formulas, with masks"),
    "element_bytes": Assumption(2, "bytes", "features and gradients in 16 bit"),
    "panel_bytes": Assumption(6, "bytes a logit", "backward: dS written once and read twice, 16 bit"),
    "image_layers": Assumption(12, "", "ViT-B/16"),
    "image_width": Assumption(768, "", "ViT-B/16"),
    "image_tokens": Assumption(197, "", "(224 / 16)^2 patches and one token"),
    "text_layers": Assumption(12, "", "CLIP's text tower with ViT-B/16"),
    "text_width": Assumption(512, "", "CLIP's text tower with ViT-B/16"),
    "text_tokens": Assumption(77, "", "CLIP's context, padded; names are shorter, so this is an upper bound"),
    "training_factor": Assumption(3, "forward passes", "a backward pass costs two; no recomputation"),
    "parameters": Assumption(150e6, "", "ViT-B/16 CLIP, both towers, for the gradients' all-reduce"),
}


def assumed(name: str) -> float:
    return ASSUMED[name].value


def a100(link: str = "nvlink", overlap: float | None = None, share: str = "product_share") -> Device:
    """One of the eight, on the links of one machine or between machines."""
    return Device(
        product_flops=assumed("tensor_peak") * assumed(share),
        special_rate=assumed("sms") * assumed("clock") * assumed("special_per_clock"),
        arithmetic_rate=assumed("sms") * assumed("clock") * assumed("lanes"),
        memory_rate=assumed("memory_rate") * assumed("memory_share"),
        overlap=assumed("overlap") if overlap is None else overlap,
        devices=int(assumed("devices")),
        link_rate=assumed(link) * assumed("link_share"),
        latency=assumed(f"{link}_latency"),
    )


def distributed_loss(geometry: str, way: str) -> Work:
    """What one of W devices does for the loss of the whole batch with its gradients.

    Args:
        geometry: "euclidean" or "lorentz".
        way: "shared": its own images against all texts, every tile computed once in the cluster: texts gathered,
            maximum and sum of every column all-reduced, the texts' gradient reduce-scattered. "whole": images and
            texts gathered, the whole matrix on every device, both gradients all-reduced, as LevelContrastiveLoss
            does. "local_loss": open_clip's, its own rows and its own columns, every tile computed twice in the
            cluster, so that six products have a tile's shape. With gradients that are reduce-scattered.

    Raises:
        ValueError: no such way.
    """
    M, N, D, W = (assumed(name) for name in ("batch", "texts", "width", "devices"))
    size = assumed("element_bytes")
    tile = 0.0, assumed("panel_bytes")
    whole = loss_work(M * N, int(D), geometry, "forward + backward", tile)
    texts, images = N * D * size, M * D * size
    if way == "shared":
        part = loss_work(M * N / W, int(D), geometry, "forward + backward", tile)
        columns = 2 * 4.0 * N  # maximum and sum, fp32; an all-reduce is a reduce-scatter and an all-gather
        return part + Work(0, 0, 0, 0, texts + columns, texts + columns, messages=4)
    if way == "whole":
        # an all-reduce is a reduce-scatter and an all-gather
        return whole + Work(0, 0, 0, 0, 2 * (texts + images), texts + images, messages=4)
    if way == "local_loss":
        dense = 2 * M * N / W  # its rows, its columns
        return Work(
            flop=assumed("held_products") * 2.0 * M * N * D / W,
            special=(assumed(f"{geometry}_special") - 1) * dense,  # an exponential, and nothing anew
            arithmetic=assumed(f"{geometry}_arithmetic") * dense,
            memory_bytes=assumed("held_passes") * size * dense,
            gathered_bytes=texts + images,
            scattered_bytes=texts + images,
            messages=4,
        )
    raise ValueError(f"way must be 'shared', 'whole' or 'local_loss', got {way!r}")


def tower_work() -> Work:
    """Both towers forward and backward for one device's part of the batch, and its part of the all-reduce."""
    image = transformer_flop(*(int(assumed(f"image_{x}")) for x in ("layers", "width", "tokens")))
    text = transformer_flop(*(int(assumed(f"text_{x}")) for x in ("layers", "width", "tokens")))
    flop = assumed("training_factor") * (assumed("batch") * image + assumed("texts") * text) / assumed("devices")
    gradients = assumed("parameters") * assumed("element_bytes")
    return Work(flop, 0.0, 0.0, 0.0, gradients, gradients, messages=2)


WAYS = {
    "shared": dict.fromkeys(GEOMETRIES, "every tile once in the cluster"),
    "whole": dict.fromkeys(GEOMETRIES, "the whole matrix on every GPU"),
    "local_loss": {
        "euclidean": "open_clip's local_loss, matrices held",
        "lorentz": "a dense Lorentz loss, matrices held",  # open_clip has none
    },
}
SHARES = {"local_loss": "library_share"}  # whose products are not a fused kernel's


def step_table() -> str:
    """The loss by every way on NVLink and network beside the towers."""
    lines = []
    for link in ("nvlink", "network"):
        towers = predict(tower_work(), a100(link, share="tower_share")).total
        for geometry in GEOMETRIES:
            for way, words in WAYS.items():
                work, share = distributed_loss(geometry, way), SHARES.get(way, "product_share")
                times = predict(work, a100(link, share=share))
                hidden, plain = (predict(work, a100(link, overlap, share)).total for overlap in (1.0, 0.0))
                lines.append(
                    [
                        link,
                        geometry,
                        words[geometry],
                        _ms(times.products),
                        _ms(times.epilogue),
                        _ms(times.communication),
                        f"**{_ms(times.total)}** ({_ms(hidden)} to {_ms(plain)})",
                        f"{times.total / towers:.2%}",
                    ]
                )
        lines.append(
            [link, "", "towers, and the all-reduce of their gradients", "", "", "", f"**{_ms(towers)}**", ""]
        )
    head = [
        "links",
        "geometry",
        "loss",
        "products ms",
        "epilogue ms",
        "communication ms",
        "all ms",
        "of the towers",
    ]
    return table(head, lines)


def assumption_table() -> str:
    """Every number of the model and its source."""
    return table(
        ["number", "value", "unit", "source"],
        [[name.replace("_", " "), f"{a.value:g}", a.unit, a.source] for name, a in ASSUMED.items()],
    )


def sensitivity_table() -> str:
    """The shared Lorentz loss on NVLink when an assumption is off by half or by two."""
    base = predict(distributed_loss("lorentz", "shared"), a100()).total
    lines = []
    for name, change in (
        ("product rate", lambda d, f: replace(d, product_flops=d.product_flops * f)),
        ("special functions", lambda d, f: replace(d, special_rate=d.special_rate * f)),
        ("arithmetic", lambda d, f: replace(d, arithmetic_rate=d.arithmetic_rate * f)),
        ("memory", lambda d, f: replace(d, memory_rate=d.memory_rate * f)),
        ("links", lambda d, f: replace(d, link_rate=d.link_rate * f)),
        ("latency of a collective, inverse", lambda d, f: replace(d, latency=d.latency / f)),
    ):
        found = [
            predict(distributed_loss("lorentz", "shared"), change(a100(), factor)).total / base
            for factor in (0.5, 2)
        ]
        lines.append([name, *(f"{x:.2f}" for x in found)])
    return table(["rate", "half of it: time x", "twice: time x"], lines)


# -- the document ---------------------------------------------------------------------------------------------


def tables(record: Record | None) -> dict[str, str]:
    """Every table of the document by its name."""
    none = "Not measured yet: `make bench`."
    return {
        "fits": none if record is None else fit_table(record),
        "cpu": none if record is None else cpu_table(record),
        "step": step_table(),
        "sensitivity": sensitivity_table(),
        "assumptions": assumption_table(),
    }


def newest() -> Record | None:
    """The results measured last."""
    records = [read(path) for path in sorted(RESULTS.glob("cpu-*.json"))]
    return max(records, key=lambda record: record.card["date"], default=None)


def publish(record: Record | None) -> None:
    """Put every table into the document."""
    for name, body in tables(record).items():
        update(DOCUMENT, f"<!-- {name} -->", f"<!-- end of {name} -->", body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="by default the newest results/cpu-*.json")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    options = parser.parse_args()
    record = read(options.file) if options.file else newest()
    if options.write:
        publish(record)
    else:
        print(*(f"{name}\n\n{body}\n" for name, body in tables(record).items()), sep="\n")


if __name__ == "__main__":
    main()
