"""make bench-check: measure a few problems again, and fail by name where a ratio is worse than the committed one.

    python benchmarks/check.py                      run what the suites' in_check() names (two minutes), compare
    python benchmarks/check.py RUN.json             compare a run that is there
    python benchmarks/check.py --baseline FILE      with another machine's results

Compared are ours over the group's base and over its floor, each of quickest rounds and within one run, never
seconds; peak memory; and whether runs that repeated bitwise still do. Where something is worse everything is
measured once more, and the better of both counts: a shared machine has bad minutes, a regression has only bad ones.
What failed in either run, what was lost since, and a suite that is absent fail too. Other versions are a warning.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from records import SAME_MACHINE, Missing, Record, Row, from_pytest, read, results_path

HERE = Path(__file__).parent
TIME_MARGIN, TIME_SLACK = 0.25, 0.05  # of the ratio, and added to it
MEMORY_MARGIN, MEMORY_SLACK_MIB = 0.10, 8.0
DIFFER = "runs that differ"
CHECKED = ("loss", "maps", "topk", "score")  # suites that have an in_check()


@dataclass(frozen=True)
class Finding:
    """One figure then and now, and the most it may be."""

    name: str
    before: float
    now: float
    bound: float

    @property
    def worse(self) -> bool:
        return not self.now <= self.bound  # NaN is worse

    def __str__(self) -> str:
        verdict = "WORSE" if self.worse else "fine"
        return f"{verdict}: {self.name}: {self.now:.3g}, was {self.before:.3g}, may be {self.bound:.3g}"


def compare(baseline: Record, run: Record) -> list[Finding]:
    """Every figure of ours that both have."""
    return [
        finding
        for key in run.problems()
        for way, before in baseline.group(key).items()
        if before.own and (now := run.group(key).get(way)) is not None
        for finding in _findings(f"{key[0]}: {key[1]}: {way}", before, now, baseline.base(key), run.base(key))
    ]


def _findings(name: str, before: Row, now: Row, base_before: Row | None, base_now: Row | None) -> Iterator[Finding]:
    if base_before is not None and base_now is not None and base_before.way == base_now.way:
        what = f"{name}: time over {base_now.way}"
        yield _slower(what, before.least / base_before.least, now.least / base_now.least)
    if before.floor is not None and now.floor is not None:
        yield _slower(f"{name}: time over its floor", before.least / before.floor, now.least / now.floor)
    if before.peak_mib is not None and now.peak_mib is not None:
        bound = before.peak_mib * (1 + MEMORY_MARGIN) + MEMORY_SLACK_MIB
        yield Finding(f"{name}: peak MiB", before.peak_mib, now.peak_mib, bound)
    if before.figures.get("repeatable"):
        yield Finding(f"{name}: {DIFFER}", 0, 1 - bool(now.figures.get("repeatable")), 0)


def _slower(name: str, before: float, now: float) -> Finding:
    return Finding(name, before, now, before * (1 + TIME_MARGIN) + TIME_SLACK)


def better_of(first: list[Finding], second: list[Finding]) -> list[Finding]:
    """Of each figure the lower one of two runs; runs that differ in one of them differ."""
    again = {finding.name: finding for finding in second}
    return [
        (max if f.name.endswith(DIFFER) else min)(f, again.get(f.name, f), key=lambda f: (f.worse, f.now))
        for f in first
    ]


def failures(baseline: Record, run: Record) -> list[str]:
    """What failed, and what of ours should have been compared and could not be."""
    found = [
        f"FAILED: {m.suite}: {m.group}: {m.way}: {m.reason}" for m in run.missing if m.reason.startswith("failed")
    ]
    absent = [
        s for s in CHECKED if any(r.suite == s for r in baseline.rows) and all(r.suite != s for r in run.rows)
    ]
    found += [f"ABSENT: {suite}: the run has nothing of this suite" for suite in absent]
    for key in run.problems():
        before, now = baseline.group(key), run.group(key)
        name = f"{key[0]}: {key[1]}"
        found += [f"NOT MEASURED: {name}: {w}" for w, row in before.items() if row.own and w not in now]
        found += [f"NOT IN THE BASELINE: {name}: {w}" for w, row in now.items() if row.own and w not in before]
        for w in (w for w, row in before.items() if row.own and w in now):
            lost = [
                what
                for what in ("floor", "peak_mib")
                if getattr(before[w], what) is not None and getattr(now[w], what) is None
            ]
            base_before, base_now = baseline.base(key), run.base(key)
            if base_before is not None and (base_now is None or base_now.way != base_before.way):
                lost.append("base")
            found += [f"LOST: {name}: {w}: {what}" for what in lost]
    return found


def changes(baseline: Record, run: Record) -> list[str]:
    """What is another machine's or version's than the baseline's: ratios may have moved for it."""
    cards = [(name, baseline.card.get(name), run.card.get(name)) for name in SAME_MACHINE]
    return [f"WARNING: {name} is {now}, was {before}" for name, before, now in cards if before != now]


def measure() -> Record:
    """Run the benchmarks that the suites name.

    Raises:
        SystemExit: nothing was measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        command = [sys.executable, "-m", "pytest", str(HERE), "--in-check", "--benchmark-quiet"]
        command += ["--continue-on-collection-errors", "--benchmark-json", str(path)]
        status = subprocess.run(command, check=False, cwd=HERE.parent).returncode
        if not path.exists():
            raise SystemExit("the benchmarks measured nothing; run pytest benchmarks --in-check to see why")
        run = from_pytest(json.loads(path.read_text(encoding="utf-8")))
        if status and not any(m.reason.startswith("failed") for m in run.missing):  # before a call: no way is named
            run.missing.append(Missing("pytest", "a suite", "", f"failed: pytest ended with {status}"))
        return run


def main(arguments: list[str] | None = None) -> int:
    """1 where something is worse, failed, or nothing could be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a file that pytest --benchmark-json wrote")
    parser.add_argument("--baseline", type=Path, help="by default the committed results of this CPU")
    options = parser.parse_args(arguments)
    run = from_pytest(json.loads(options.run.read_text(encoding="utf-8"))) if options.run else measure()
    path = options.baseline or results_path(run.card)
    if not path.exists():
        raise SystemExit(f"no results of this CPU to compare with, {path.name}; make bench measures them")
    baseline = read(path)
    findings, failed = compare(baseline, run), failures(baseline, run)
    if any(f.worse for f in findings) and options.run is None:
        second = measure()
        findings = better_of(findings, compare(baseline, second))
        failed += [words for words in failures(baseline, second) if words not in failed]
    print(*changes(baseline, run), *findings, *failed, sep="\n")
    worse = [f for f in findings if f.worse]
    if not findings:
        print(f"nothing to compare: no way of ours is both in the run and in {path.name}")
    print(f"{len(findings)} figures compared with {path.name}, {len(worse)} worse, {len(failed)} failed")
    return int(bool(worse or failed or not findings))


if __name__ == "__main__":
    raise SystemExit(main())
