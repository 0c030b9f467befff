"""Inject every fault, count what is survived, write the table: `make faults`, or

    python tests/faults/run.py [--only kills damage ...] [--share 0.1] [--jobs 2] [--minutes M] [--fresh]

Results go to runs/faults/results.jsonl as they come, and a run that was cut off goes on with the cases that are
missing: a result counts as long as the sources are those it was found with. What is missed is kept in
runs/faults/missed/. A run of all counts writes docs/faults.md and README's table; a share of them only prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import documents  # noqa: E402
import torch  # noqa: E402

from faults import damage, exact, kills, nonfinite, order, samples, saving, signals, silence, soak  # noqa: E402
from faults.lab import Case, Laboratory, Lane, Missed, Outcome, Skip  # noqa: E402

# in the order of the table; (row, the counts of a full run)
ROWS: tuple[Any, ...] = (
    kills,
    exact,
    order,
    order.Epochs,
    damage,
    samples,
    saving,
    silence,
    nonfinite,
    signals,
    soak,
)
FOLDER = ROOT / "runs" / "faults"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
HEAD = ("fault", "promise", "injected", "survived", "seen", "repeat with")


def main() -> int:
    """Returns 1 if anything was missed."""
    options = parse()
    rows = [row for row in ROWS if options.only is None or row.NAME in options.only]
    results = Results(FOLDER / "results.jsonl", fresh=rows if options.fresh else ())
    wanted = {row.NAME: cases_of(row, options.share) for row in rows}
    work: queue.Queue[tuple[Any, Case]] = queue.Queue()
    for row in sorted(rows, key=lambda row: row is not soak):  # the longest first
        for case in wanted[row.NAME]:
            if case.name not in results:
                work.put((row, case))
    print(f"{work.qsize()} cases to try, {sum(map(len, wanted.values())) - work.qsize()} found before", flush=True)
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    begin = time.monotonic()
    laboratory = Laboratory(FOLDER / "work")
    left = {name: {case.name for case in cases} - results.names for name, cases in wanted.items()}
    said = threading.Lock()

    def serve(name: str) -> None:
        lane = Lane(laboratory, name)
        while time.monotonic() < end:
            try:
                row, case = work.get_nowait()
            except queue.Empty:
                return
            outcome, seconds = attempt(row, case, lane)
            results.add(row, case, outcome, seconds)
            with said:
                if outcome.note:
                    print(
                        f"  {'missed' if outcome.injected else 'not tried'}: {case.name}: {outcome.note}",
                        flush=True,
                    )
                left[row.NAME].discard(case.name)
                if not left[row.NAME]:
                    print(line_of(row, results, wanted[row.NAME], time.monotonic() - begin), flush=True)

    lanes = [threading.Thread(target=serve, args=(f"lane {i}",), daemon=True) for i in range(options.jobs)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    shutil.rmtree(laboratory.folder, ignore_errors=True)
    body = table(rows, results, wanted)
    print(f"\n{body}\n\n{time.monotonic() - begin:.0f} s")
    whole = options.only is None and options.share == 1.0 and not any(left.values())
    if whole:
        write_documents(body, rows, results, wanted)
    return int(any(o.survived < o.injected for row in rows for o in results.of(wanted[row.NAME])))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.NAME for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the counts; documents stay as they are below 1"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="cases at a time")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no case after so many; 0: no bound")
    parser.add_argument("--fresh", action="store_true", help="forget what these rows have found before")
    return parser.parse_args()


def cases_of(row: Any, share: float) -> list[Case]:
    """The cases of a row at a share of its full counts."""
    if share == 1.0:
        return row.cases()
    counts = row.cases.__defaults__
    return row.cases(*(max(1, round(share * count)) for count in counts))


def attempt(row: Any, case: Case, lane: Lane) -> tuple[Outcome, float]:
    """Try a case; what breaks is a miss with its reason, and its files are kept."""
    begin = time.monotonic()
    try:
        outcome = row.run(case, lane)
    except Skip as reason:
        outcome = Outcome(0, 0, str(reason))
    except Missed as miss:
        outcome = Outcome(1, 0, str(miss)[:2000] or "no reason", miss.figures)
    except Exception:
        outcome = Outcome(1, 0, traceback.format_exc()[-2000:])
    folder = lane.path(case.name)
    if outcome.survived < outcome.injected and folder.is_dir():
        kept = FOLDER / "missed" / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome, time.monotonic() - begin


class Results:
    """Outcomes by case, in a file of JSON lines that a cut cannot spoil."""

    def __init__(self, path: Path, fresh: Any = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._sources, self._lock = path, sources(), threading.Lock()
        self._found: dict[str, Outcome] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        forgotten = {row.NAME for row in fresh}
        kept = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written
                continue
            if record["sources"] == self._sources and record["row"] not in forgotten:
                kept.append(line)
                self._found[record["case"]] = Outcome(**record["outcome"])
                self.seconds[record["row"]] += record["seconds"]
        path.write_text("".join(line + "\n" for line in kept))

    def __contains__(self, name: str) -> bool:
        return name in self._found

    @property
    def names(self) -> set[str]:
        return set(self._found)

    def of(self, cases: list[Case]) -> list[Outcome]:
        """Outcomes of these cases, as far as they have been tried."""
        return [self._found[case.name] for case in cases if case.name in self._found]

    def add(self, row: Any, case: Case, outcome: Outcome, seconds: float) -> None:
        record = {"row": row.NAME, "case": case.name, "seconds": round(seconds, 2), "sources": self._sources}
        record["outcome"] = dataclasses.asdict(outcome)
        with self._lock:
            self._found[case.name] = outcome
            self.seconds[row.NAME] += seconds
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def sources() -> str:
    """A digest of everything that a result depends on."""
    digest = hashlib.sha256(f"{sys.version} {torch.__version__}".encode())
    for folder in ("bioclip_hc", "train", "tests/faults", "tests/small_run.py"):
        path = ROOT / folder
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


# -- the table --------------------------------------------------------------------------------------------


def counted(outcomes: list[Outcome]) -> tuple[int, int]:
    """Injected and survived."""
    return sum(o.injected for o in outcomes), sum(o.survived for o in outcomes)


def line_of(row: Any, results: Results, cases: list[Case], seconds: float) -> str:
    """A finished row, for people who wait."""
    injected, survived = counted(results.of(cases))
    return f"{row.NAME}: survived {survived} of {injected}; {row.summary(results.of(cases))} [{seconds:.0f} s]"


def table(rows: list[Any], results: Results, wanted: dict[str, list[Case]]) -> str:
    """The table of README and docs/faults.md."""
    lines = []
    for row in rows:
        outcomes = results.of(wanted[row.NAME])
        injected, survived = counted(outcomes)
        not_tried = sum(not o.injected for o in outcomes) + len(wanted[row.NAME]) - len(outcomes)
        seen = row.summary(outcomes) if outcomes else ""
        if not_tried:
            seen += f"; {not_tried} cases not tried"
        told = f"{survived:,}" if survived == injected else f"**{survived:,}**"
        command = f"`python tests/faults/run.py --only {row.NAME}`"
        lines.append((row.FAULT, row.PROMISE, f"{injected:,}", told, seen.strip("; "), command))
    return documents.table(HEAD, lines)


def details(rows: list[Any], results: Results, wanted: dict[str, list[Case]]) -> str:
    """Counts of every kind of case, and every miss with its reason."""
    lines, misses = [], []
    for row in rows:
        kinds: dict[str, list[Outcome]] = defaultdict(list)
        for case in wanted[row.NAME]:
            kinds[case.kind] += results.of([case])
        for kind, outcomes in kinds.items():
            injected, survived = counted(outcomes)
            reason = next((o.note for o in outcomes if not o.injected), "")
            lines.append((row.NAME, kind, f"{injected:,}", f"{survived:,}", reason))
        for case in wanted[row.NAME]:
            misses += [
                f"- {case.name}: {o.note.splitlines()[-1]}" for o in results.of([case]) if o.survived < o.injected
            ]
    text = documents.table(("row", "kind", "injected", "survived", "not tried because"), lines)
    return text + ("\n\nMissed:\n\n" + "\n".join(misses) if misses else "")


def write_documents(body: str, rows: list[Any], results: Results, wanted: dict[str, list[Case]]) -> None:
    """docs/faults.md, and README where it has the markers."""
    where = f"Python {sys.version.split()[0]}, torch {torch.__version__.split('+')[0]}, {os.cpu_count()} cores"
    spent = f"{sum(results.seconds.values()) / 60:.0f} minutes of one lane, {time.strftime('%Y-%m-%d')}"
    page = f"{body}\n\n{where}; {spent}.\n\n## By kind\n\n{details(rows, results, wanted)}"
    documents.update(ROOT / "docs" / "faults.md", BEGIN, END, page)
    readme = ROOT / "README.md"
    if BEGIN in readme.read_text(encoding="utf-8"):
        short = documents.table(
            [cell for i, cell in enumerate(HEAD) if i != 5],
            [line.strip("| ").split(" | ")[:5] for line in body.splitlines()[2:]],
        )
        documents.update(readme, BEGIN, END, short)
    print("written: docs/faults.md" + (", README.md" if BEGIN in readme.read_text(encoding="utf-8") else ""))


if __name__ == "__main__":
    sys.exit(main())
