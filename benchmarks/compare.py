"""From a run to what is kept and shown: results, plots, docs/benchmarks.md, docs/scaling.md, README.md.

    python benchmarks/compare.py RUN.json             keep a run of pytest --benchmark-json, and write everything
    python benchmarks/compare.py RUN.json --replace   the same, forgetting what was measured on this machine before
    python benchmarks/compare.py                      write everything anew from the results of this machine's CPU

Time ratios are of medians within a group; a floor is the time of the matrix products that the problem cannot do
without, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compare_kernels import Target, at_least, at_most
from documents import require, table, update
from records import OURS, Key, Record, Row, from_pytest, merge, read, results_path, write

ROOT = Path(__file__).parents[1]
README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
MARKERS = "<!-- bench:begin -->", "<!-- bench:end -->"
N_OF_TARGETS = 8192
THREAD_TOLERANCE = 1e-5  # sums in another order
SUITES = {  # in the order shown; others follow
    "loss": "The loss, D = 512, fp32 where a problem's name does not say bf16",
    "maps": "Maps and inner product, curvature 1.3",
    "topk": "The best texts of each rank",
    "score": "A score in full, iNaturalist 2021's tree",
    "data": "Reading the data",
    "step": "A training step",
}
HEADLINES: dict[str, Callable[[str], bool]] = {  # which groups the README shows; all of suites not named
    "loss": lambda group: bool(
        re.search(r"N = 8192, forward \+|N = 32768, forward \+", group) or re.search(r"dense, N = 32768, ", group)
    ),
    "maps": lambda group: "inner" not in group or "x 1024" in group,
    "topk": lambda group: "30000, k = 1" in group,
}


# -- figures --------------------------------------------------------------------------------------------------


def ratio(row: Row | None, other: Row | None) -> float | None:
    """How many times as long the first takes."""
    return None if row is None or other is None else row.median / other.median


def over_floor(row: Row | None) -> float | None:
    """The time of a row over the time of its products."""
    return None if row is None or row.floor is None else row.median / row.floor


def best_peer(record: Record, key: Key) -> Row | None:
    """The quickest way of a group that is neither ours nor the bare products."""
    peers = [row for row in record.group(key).values() if not row.own and row.way != "bare products"]
    return min(peers, key=lambda row: row.median, default=None)


def ordered(record: Record) -> Iterator[tuple[str, list[Key]]]:
    """Suites as they are shown, with their groups."""
    keys = record.problems()
    suites = list(dict.fromkeys(suite for suite, _ in keys))
    for suite in sorted(suites, key=lambda suite: [*SUITES, *suites].index(suite)):
        yield suite, [key for key in keys if key[0] == suite]


def shown(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def seconds(value: float) -> str:
    """A time in seconds, milliseconds or microseconds, to three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size or unit == "µs":
            return f"{value / size:.3g} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
    raise AssertionError


def mib(row: Row | None) -> str:
    return "" if row is None or row.peak_mib is None else f"{row.peak_mib:.0f}"


def card_line(record: Record) -> str:
    """The machine in one line, and when all this was measured."""
    card = record.card
    dates = sorted({row.date for row in record.rows if row.date}) or [card["date"]]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    where = f"{card['cpu']}, {card['threads']} of {card['cores']} cores, {card['capability']}"
    return f"{where}; {versions}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


# -- the README's table ---------------------------------------------------------------------------------------


def headlines(record: Record) -> str:
    """A line for each group that the README shows: ours, and what it is compared with."""
    lines = []
    for suite, keys in ordered(record):
        for key in keys:
            mine, base, peer = record.group(key).get(OURS), record.base(key), best_peer(record, key)
            if mine is not None and HEADLINES.get(suite, lambda _: True)(key[1]):
                lines.append(
                    [
                        key[1],
                        seconds(mine.median),
                        _of(mine, base),
                        _of(mine, peer),
                        shown(over_floor(mine)),
                        mib(mine),
                        mib(base),
                    ]
                )
    head = ["problem", "bioclip_hc", "over base", "over quickest peer", "over floor", "peak MiB", "base's"]
    return (
        f"{card_line(record)}\n\n{table(head, lines)}\n\n"
        "Time over that of the way named, in one run; floor: the matrix products alone; memory beyond inputs and "
        "results. `make bench` writes this table, [docs/benchmarks.md](docs/benchmarks.md) has every row."
    )


def _of(row: Row, other: Row | None) -> str:
    return "" if other is None else f"{ratio(row, other):.2f} {other.way}"


# -- targets --------------------------------------------------------------------------------------------------


def target_table(record: Record) -> str:
    """Asked, measured, met or missed."""
    lines = [[t.name, t.bound, t.shown, t.verdict] for t in targets(record)]
    return table(["target", "asked", "measured", ""], lines)


def targets(record: Record, n: int = N_OF_TARGETS) -> list[Target]:
    """What this project asks of itself on a CPU."""

    def row(title: str, mode: str, way: str) -> Row | None:
        return record.group(("loss", f"{title} {mode}, N = {n}, forward + backward")).get(way)

    found = []
    for title, floors, eager in (("CLIP", 1.10, 0.65), ("Lorentz", 1.25, 1 / 3)):
        mine, spread = row(title, "dense", OURS), row(title, "sorted", OURS)
        found += [
            at_most(f"{title}: time over the floor", floors, over_floor(mine), "{:.2f}"),
            at_most(f"{title}: over torch eager", eager, ratio(mine, row(title, "dense", "torch eager")), "{:.2f}"),
            at_most(f"{title}: spread over seven ranks, over dense", 1 / 5, ratio(spread, mine), "{:.2f}"),
            at_most(f"{title}: peak memory, dense", 64, mine and mine.peak_mib, "{:.0f} MiB"),
        ]
    differences = [row.figures["thread_difference"] for row in record.rows if "thread_difference" in row.figures]
    repeats = [row.figures["repeatable"] for row in record.rows if row.own and "repeatable" in row.figures]
    found += [
        at_most(
            "largest difference of one thread to two", THREAD_TOLERANCE, max(differences, default=None), "{:.1e}"
        ),
        at_least("runs bitwise equal to the one before", 1, _share(repeats), "{:.0%}"),
    ]
    return found


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


# -- the whole report -----------------------------------------------------------------------------------------


def report(record: Record, plots: list[str] | None = None) -> str:
    """docs/benchmarks.md: targets, every row, and what was not measured."""
    parts = [
        "# Benchmarks on a CPU",
        "Written by `make bench`. Ratios are of medians within one run of a problem; memory is what a call held at "
        "its peak beyond its inputs and results.",
        card_line(record),
        f"## Targets\n\nThe loss with its gradients, N = {N_OF_TARGETS}, D = 512, fp32.",
        target_table(record),
        *(f"![{Path(path).stem}]({path})" for path in plots or []),
    ]
    for suite, keys in ordered(record):
        parts += [f"## {SUITES.get(suite, suite)}", suite_table(record, keys)]
    return "\n\n".join(parts) + "\n"


def suite_table(record: Record, keys: list[Key]) -> str:
    """Every way of every group of a suite, or why it is missing."""
    lines = []
    for key in keys:
        base = record.base(key)
        for row in record.group(key).values():
            lines.append(
                [
                    key[1],
                    f"**{row.way}**" if row.own else row.way,
                    seconds(row.median),
                    str(row.rounds),
                    shown(ratio(row, base)),
                    shown(over_floor(row)),
                    mib(row),
                    _figures(row),
                ]
            )
        lines += [[key[1], way, "", "", "", "", "", reason] for way, reason in record.missing_of(key).items()]
    return table(["problem", "way", "median", "rounds", "over base", "over floor", "peak MiB", ""], lines)


def _figures(row: Row) -> str:
    named = {name: value for name, value in row.figures.items() if name != "floor_s"}
    words = [f"{name.replace('_', ' ')} {_short(value)}" for name, value in named.items()]
    return ", ".join((["base"] if row.base else []) + words)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- the command ----------------------------------------------------------------------------------------------


def publish(path: Path) -> None:
    """Write plots, docs/benchmarks.md, the README's table and docs/scaling.md from a results file."""
    import plot
    import scaling

    record = read(path)
    plots = plot.draw_record(path)
    relative = [f"../{p.relative_to(ROOT).as_posix()}" if p.is_relative_to(ROOT) else str(p) for p in plots]
    DOCUMENT.write_text(report(record, relative), encoding="utf-8")
    update(README, *MARKERS, headlines(record))
    scaling.publish(record)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a file that pytest --benchmark-json wrote")
    parser.add_argument("--replace", action="store_true", help="forget the results at hand")
    parser.add_argument("--no-documents", action="store_true", help="keep the results, write no documents")
    options = parser.parse_args(arguments)
    if not options.no_documents:
        require(README, *MARKERS)
    if options.run is None:
        paths = sorted(results_path({"cpu": "x", "threads": 0}).parent.glob("cpu-*.json"))
        if len(paths) != 1:
            parser.error(f"name a run: there are {len(paths)} results files")
        path = paths[0]
    else:
        run = from_pytest(json.loads(options.run.read_text(encoding="utf-8")))
        path = results_path(run.card)
        notes: list[str] = []
        if path.exists() and not options.replace:
            try:
                run, notes = merge(read(path), run)
            except ValueError as error:
                raise SystemExit(f"{path}: {error}") from error
        write(path, run)
        print(path, *notes, sep="\n")
    record = read(path)
    print(headlines(record), target_table(record), sep="\n\n")
    if not options.no_documents:
        publish(path)


if __name__ == "__main__":
    main()
