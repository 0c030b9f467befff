"""Print the kernels' results as Markdown: python benchmarks/compare_kernels.py [FILE] [--sizes 32768 ...]

First what is asked of a GPU beside what was measured; then every way's time and memory. A share
of cuBLAS is the time that its product of the same shape takes for the same work, one product forward and three
backward, over the time measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import OURS

IMAGES = 32768  # the size that the targets speak of
WORK = {"forward": 1, "backward": 3, "forward_backward": 4, "replay": 4}  # products of the logits' shape


@dataclass(frozen=True)
class Target:
    """Something asked for, and what was found; measured is None where nothing was."""

    name: str
    bound: str
    measured: float | None
    met: bool | None
    shown: str

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "met", False: "missed"}[self.met]


def at_least(name: str, bound: float, measured: float | None, form: str) -> Target:
    met = None if measured is None else measured >= bound
    return Target(name, f">= {form.format(bound)}", measured, met, _shown(measured, form))


def at_most(name: str, bound: float, measured: float | None, form: str) -> Target:
    met = None if measured is None else measured <= bound
    return Target(name, f"<= {form.format(bound)}", measured, met, _shown(measured, form))


def _shown(measured: float | None, form: str) -> str:
    return "" if measured is None else form.format(measured)


class Measurements:
    """Look-ups in a results file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.card = content["card"]
        self.smoke = content["smoke"]
        self.rows = content["rows"]
        self.rates = {(p["product"], p["images"], p["dtype"]): p.get("tflops") for p in content["products"]}

    def row(
        self, way: str, steps: str, mode: str, geometry: str, dtype: str, images: int = IMAGES
    ) -> dict[str, Any]:
        """The row of that cell of level_infonce, or an empty one."""
        key: dict[str, Any] = {
            "op": "level_infonce",
            "way": way,
            "steps": steps,
            "mode": mode,
            "geometry": geometry,
        }
        key |= {"dtype": dtype, "images": images}
        return next((row for row in self.rows if all(row[k] == v for k, v in key.items())), {})

    def ms(self, *cell: Any) -> float | None:
        """Median milliseconds of a cell."""
        return median(self.row(*cell))

    def ratio(self, other: tuple[Any, ...], ours: tuple[Any, ...]) -> float | None:
        """How many times longer another way takes."""
        theirs, own = self.ms(*other), self.ms(*ours)
        return None if theirs is None or own is None else theirs / own

    def share(self, row: dict[str, Any], products: Sequence[str]) -> float | None:
        """The time of those products of the row's problem at cuBLAS's rates, over the row's time."""
        rates = [self.rates.get((name, row.get("images"), row.get("dtype"))) for name in products]
        ms = median(row)
        if ms is None or None in rates:
            return None
        return sum(row["product_flops"] / rate / 1e9 for rate in rates) / ms


def median(row: dict[str, Any]) -> float | None:
    """Median milliseconds of a row, None where it was not measured."""
    return row["ms"]["p50"] if row.get("ms") else None


# -- targets --------------------------------------------------------------------------------------------------


def targets(m: Measurements) -> list[Target]:
    """What section 7 asks for at 32,768 x 512 in 16 bit."""
    found = []
    for dtype in ("fp16", "bf16"):
        for geometry in ("euclidean", "lorentz"):
            forward, backward, both = (
                m.row(OURS, steps, "dense", geometry, dtype)
                for steps in ("forward", "backward", "forward_backward")
            )
            label = f"{geometry}, {dtype}"
            own = ("logits", "image_gradient", "text_gradient")
            panel = ("logits", "image_gradient_panel", "text_gradient_panel")
            found += [
                at_least(f"forward, of cuBLAS's rate ({label})", 0.60, m.share(forward, ["logits"]), "{:.0%}"),
                at_least(
                    f"backward, of cuBLAS's rates at its shapes ({label})", 0.75, m.share(backward, own), "{:.0%}"
                ),
                at_least(f"the same, by panels of 64 MiB ({label})", 0.75, m.share(backward, panel), "{:.0%}"),
                at_most(f"dense step (an H100's; {label})", 9.0, median(both), "{:.2f} ms"),
                at_most(
                    f"rank-sorted step (an H100's; {label})",
                    1.6,
                    m.ms(OURS, "forward_backward", "sorted", geometry, dtype),
                    "{:.2f} ms",
                ),
            ]
    return [*found, *_against_peers(m), _memory(m), _repeatable(m)]


def _against_peers(m: Measurements) -> list[Target]:
    def cell(way: str, mode: str, geometry: str) -> tuple[str, ...]:
        return (way, "forward_backward", mode, geometry, "fp16")

    plain, ours_sorted = cell(OURS, "dense", "euclidean"), cell(OURS, "sorted", "euclidean")
    asked = [
        ("dense: inf-cl", 5, cell("inf-cl", "dense", "euclidean"), plain),
        ("dense: open_clip", 1.5, cell("open_clip", "dense", "euclidean"), plain),
        ("dense: MERU in fp32", 15, cell("meru", "dense", "lorentz"), cell(OURS, "dense", "lorentz")),
        (
            "rank-sorted: dense with a mask, open_clip's way",
            8,
            cell("torch masked", "sorted", "euclidean"),
            ours_sorted,
        ),
        # it has no mask; with one it would still compute every pair
        ("rank-sorted: all pairs, inf-cl's way", 30, cell("inf-cl", "dense", "euclidean"), ours_sorted),
    ]
    return [
        at_least(f"{name}, over ours (fp16)", bound, m.ratio(peer, ours), "{:.1f}x")
        for name, bound, peer, ours in asked
    ]


def _our_steps(m: Measurements) -> list[dict[str, Any]]:
    return [
        row
        for row in m.rows
        if (row["op"], row["way"], row["steps"]) == ("level_infonce", OURS, "forward_backward")
    ]


def _memory(m: Measurements) -> Target:
    peaks = [
        row["peak_mib"] / 1024
        for row in _our_steps(m)
        if row["images"] == IMAGES and row["dtype"] != "tf32" and row.get("peak_mib") is not None
    ]
    return at_most("memory beyond inputs and gradients, the largest", 0.30, max(peaks, default=None), "{:.2f} GiB")


def _repeatable(m: Measurements) -> Target:
    same = [row["repeatable"] for row in _our_steps(m) if "repeatable" in row]
    return at_least(
        "gradients bitwise repeatable, of all steps", 1.0, sum(same) / len(same) if same else None, "{:.0%}"
    )


# -- tables ---------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def target_table(m: Measurements) -> str:
    """Asked, found, met or missed."""
    return markdown(
        ["target, 32,768 x 512", "asked", "measured", ""],
        [[t.name, t.bound, t.shown, t.verdict] for t in targets(m)],
    )


def loss_table(m: Measurements, sizes: Sequence[int] | None = None) -> str:
    """Every way on every problem of those sizes (None = all): times, peak memory, share of cuBLAS."""
    problems: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in m.rows:
        if row["op"] == "level_infonce" and (sizes is None or row["images"] in sizes):
            key = tuple(row[k] for k in ("mode", "geometry", "dtype", "images", "texts"))
            problems.setdefault(key, {}).setdefault(row["way"], {})[row["steps"]] = row
    head = [
        "mode",
        "geometry",
        "dtype",
        "images",
        "texts",
        "way",
        "forward ms",
        "forward + backward ms",
        "over ours",
    ]
    head += ["as a graph ms", "peak MiB", "of cuBLAS forward", "of cuBLAS both", "loss", "note"]
    lines = []
    for key, ways in sorted(problems.items()):
        ours = median(ways.get(OURS, {}).get("forward_backward", {}))
        for way, steps in ways.items():
            lines.append([*map(str, key), way, *_figures(m, steps, ours)])
    return markdown(head, lines)


def _figures(m: Measurements, steps: dict[str, dict[str, Any]], ours: float | None) -> list[str]:
    forward, both, replay = (steps.get(name, {}) for name in ("forward", "forward_backward", "replay"))
    theirs = median(both)
    over = None if ours is None or theirs is None else theirs / ours
    shares = [
        m.share(row, ["logits"] * WORK[name]) for row, name in ((forward, "forward"), (both, "forward_backward"))
    ]
    notes = dict.fromkeys(row["note"] for row in steps.values() if row.get("note"))
    return [
        _shown(median(forward), "{:.3f}"),
        _shown(median(both), "{:.3f}"),
        _shown(over, "{:.2f}x"),
        _shown(median(replay), "{:.3f}"),
        _shown(both.get("peak_mib"), "{:.0f}"),
        *(_shown(share, "{:.0%}") for share in shares),
        _shown(forward.get("value"), "{:.4f}"),
        "; ".join(notes).replace("|", "/"),
    ]


def map_table(m: Measurements) -> str:
    """exp_map0, lorentz_inner and rank_topk beside plain torch."""
    lines = [
        [
            *(str(row[k]) for k in ("op", "dtype", "images", "texts", "way", "steps")),
            _shown(median(row), "{:.3f}"),
            _shown(row.get("peak_mib"), "{:.0f}"),
            row.get("note", ""),
        ]
        for row in m.rows
        if row["op"] != "level_infonce"
    ]
    return markdown(["op", "dtype", "images", "texts", "way", "steps", "ms", "peak MiB", "note"], lines)


def product_table(m: Measurements) -> str:
    """The rates that cuBLAS reached."""
    lines = [
        [name, dtype, str(images), "" if rate is None else f"{rate:.0f}"]
        for (name, images, dtype), rate in m.rates.items()
    ]
    return markdown(["cuBLAS product", "dtype", "images", "TFLOP/s"], lines)


def report(content: dict[str, Any], sizes: Sequence[int] | None = None) -> str:
    """The whole page."""
    m = Measurements(content)
    card = ", ".join(f"{key} {value}" for key, value in m.card.items())
    parts = [card, target_table(m), loss_table(m, sizes), map_table(m), product_table(m)]
    if m.smoke:
        parts.insert(0, "**A smoke run: its times mean nothing.**")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Print the report of a file, by default that of the GPU at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="by default the results of this machine's GPU")
    parser.add_argument("--sizes", type=int, nargs="+", help="images of the problems shown; all by default")
    options = parser.parse_args(arguments)
    path = options.file
    if path is None:
        from machine import machine_card, require_gpu, results_path

        require_gpu()
        path = results_path(machine_card()["gpu"])
    print(report(json.loads(path.read_text(encoding="utf-8")), options.sizes))


if __name__ == "__main__":
    main()
