"""How time and memory grow with N, and with GPUs: what docs/scaling.md shows.

    python benchmarks/scaling.py            print the tables
    python benchmarks/scaling.py --write    put them into docs/scaling.md

The fits are of measurements (results/cpu-*.json). The model (costs.py) is paper: products, special functions,
arithmetic, bytes to memory and bytes between devices, each over a rate. Here it predicts the CPU at hand from its
measured rates, and is held against what was measured there: what it misses on the CPU says how far to believe it
elsewhere. Then it predicts a step on eight A100; cluster.py plans past one machine.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cluster_tables
from costs import (
    ASSUMED,
    GEOMETRIES,
    STEPS,
    Device,
    Links,
    Transfer,
    Work,
    a100,
    a100_links,
    assumed,
    distributed_loss,
    gradient_transfer,
    loss_work,
    moving,
    predict,
    tower_seconds,
)
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

WAYS = {
    "shared": dict.fromkeys(GEOMETRIES, "every tile once in the cluster"),
    "whole": dict.fromkeys(GEOMETRIES, "the whole matrix on every GPU"),
    "local_loss": {
        "euclidean": "open_clip's local_loss, matrices held",
        "lorentz": "a dense Lorentz loss, matrices held",  # open_clip has none
    },
}
SHARES = {"local_loss": "library_share"}  # whose products are not a fused kernel's
WAITS = ("start", "inner_hop", "outer_hop", "message")  # of links, in seconds


def machine_links(link: str) -> Links:
    """Eight GPUs of one machine, or eight that reach each other through the network only."""
    devices = int(assumed("devices"))
    return a100_links(devices, 1) if link == "nvlink" else a100_links(1, devices)


def eight(geometry: str, way: str) -> tuple[Work, list[Transfer]]:
    """The published recipe's loss on eight GPUs."""
    return distributed_loss(geometry, way, assumed("batch"), assumed("texts"), int(assumed("devices")))


def towers_of_eight(links: Links) -> float:
    """Seconds of both towers forward and backward on one of the eight, and of the all-reduce of their gradients."""
    images, texts = assumed("batch") / links.devices, assumed("texts") / links.devices
    return tower_seconds(images, texts, assumed("training_factor")) + moving([gradient_transfer()], links)


def step_table() -> str:
    """The loss by every way on NVLink and network beside the towers."""
    lines = []
    for link in ("nvlink", "network"):
        links = machine_links(link)
        towers = towers_of_eight(links)
        for geometry in GEOMETRIES:
            for way, words in WAYS.items():
                work, transfers = eight(geometry, way)
                share, moved = SHARES.get(way, "product_share"), moving(transfers, links)
                times = predict(work, a100(share=share))
                total, hidden, plain = (
                    predict(work, a100(overlap, share)).total + moved for overlap in (None, 1.0, 0.0)
                )
                lines.append(
                    [
                        link,
                        geometry,
                        words[geometry],
                        _ms(times.products),
                        _ms(times.epilogue),
                        _ms(moved),
                        f"**{_ms(total)}** ({_ms(hidden)} to {_ms(plain)})",
                        f"{total / towers:.2%}",
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
    work, transfers = eight("lorentz", "shared")

    def seconds(device: Device, links: Links) -> float:
        return predict(work, device).total + moving(transfers, links)

    device, links = a100(), machine_links("nvlink")
    base = seconds(device, links)
    lines = []
    for name, field in (
        ("product rate", "product_flops"),
        ("special functions", "special_rate"),
        ("arithmetic", "arithmetic_rate"),
        ("memory", "memory_rate"),
    ):
        found = [seconds(replace(device, **{field: getattr(device, field) * f}), links) for f in (0.5, 2)]
        lines.append([name, *(f"{x / base:.2f}" for x in found)])
    for name, change in (
        ("links", lambda f: replace(links, inner_rate=links.inner_rate * f)),
        ("waits, inverse", lambda f: replace(links, **{x: getattr(links, x) / f for x in WAITS})),
    ):
        lines.append([name, *(f"{seconds(device, change(f)) / base:.2f}" for f in (0.5, 2))])
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
        **cluster_tables.tables(),
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
