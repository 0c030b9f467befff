"""Results of the pytest-benchmark suites as they are kept: one file a machine, a line a row, no raw timings.

    benchmarks/results/cpu-<CPU>-<threads>t.json

Ratios are taken within one run of a group, so a group is replaced as a whole or not at all: a partial run updates
the groups that it measured completely, and cannot leave a file with half of them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS = "bioclip_hc"
SAME_MACHINE = ("cpu", "threads", "capability", "cores", "gpus", "versions")  # what a merge may not mix
OF_A_ROW = ("way", "base", "peak_mib")  # extra_info with a place of its own
Key = tuple[str, str]  # suite and group


@dataclass(frozen=True)
class Row:
    """One way to compute one problem."""

    suite: str
    group: str
    way: str
    base: bool  # whether ratios of its group are taken to it
    least: float  # seconds of the quickest round
    median: float  # seconds
    rounds: int
    peak_mib: float | None  # beyond inputs and results
    figures: dict[str, Any] = field(default_factory=dict)  # whatever else its suite measured
    date: str = ""
    commit: str = ""

    @property
    def key(self) -> Key:
        return self.suite, self.group

    @property
    def own(self) -> bool:
        return self.way.split(",")[0] == OURS

    @property
    def floor(self) -> float | None:
        """Seconds of the matrix products that the problem cannot do without."""
        return self.figures.get("floor_s")


@dataclass(frozen=True)
class Missing:
    """A way that was not measured, and why."""

    suite: str
    group: str
    way: str
    reason: str

    @property
    def key(self) -> Key:
        return self.suite, self.group


@dataclass
class Record:
    """A machine and what was measured on it."""

    card: dict[str, Any]
    rows: list[Row]
    missing: list[Missing]

    def problems(self) -> list[Key]:
        """Every group, in the order of measurement."""
        return list(dict.fromkeys(entry.key for entry in (*self.rows, *self.missing)))

    def group(self, key: Key) -> dict[str, Row]:
        """The rows of a group by way."""
        return {row.way: row for row in self.rows if row.key == key}

    def base(self, key: Key) -> Row | None:
        """The row that ratios are taken to."""
        return next((row for row in self.group(key).values() if row.base), None)

    def missing_of(self, key: Key) -> dict[str, str]:
        """Why ways of a group were not measured."""
        return {entry.way: entry.reason for entry in self.missing if entry.key == key}


# -- pytest-benchmark's file ----------------------------------------------------------------------------------


def from_pytest(content: dict[str, Any]) -> Record:
    """A run as pytest-benchmark and conftest.py wrote it. What is no possible figure counts as failed.

    Raises:
        ValueError: a benchmark says no group or no way, or two are the same.
    """
    card = _card(content)
    rows = [
        replace(_row(benchmark), date=card["date"], commit=card["commit"]) for benchmark in content["benchmarks"]
    ]
    count = Counter((*row.key, row.way) for row in rows)
    if count and max(count.values()) > 1:
        twice = sorted(name for name, times in count.items() if times > 1)
        raise ValueError(f"each way of a group must be measured once; more often were {twice}")
    missing = [Missing(**(m | {"suite": m["suite"].removeprefix("bench_")})) for m in content["not_measured"]]
    missing += [Missing(*row.key, row.way, f"failed: {_impossible(row)}") for row in rows if _impossible(row)]
    return Record(card, [row for row in rows if not _impossible(row)], missing)


def _impossible(row: Row) -> str:
    """Which figures of a row no measurement can give, in words."""
    times = {"least": row.least, "median": row.median, "floor": 1.0 if row.floor is None else row.floor}
    found = [f"{name} {value} s" for name, value in times.items() if not 0 < value < math.inf]
    if row.peak_mib is not None and not math.isfinite(row.peak_mib):
        found.append(f"peak {row.peak_mib} MiB")
    return ", ".join(found)


def _row(benchmark: dict[str, Any]) -> Row:
    info, stats = benchmark["extra_info"], benchmark["stats"]
    if not benchmark["group"] or "way" not in info:
        raise ValueError(f"{benchmark['fullname']} must set benchmark.group and extra_info['way']")
    return Row(
        benchmark["suite"].removeprefix("bench_"),
        benchmark["group"],
        info["way"],
        bool(info.get("base")),
        _digits(stats["min"]),
        _digits(stats["median"]),
        stats["rounds"],
        info.get("peak_mib"),
        {name: _digits(value) for name, value in info.items() if name not in OF_A_ROW},
    )


def _digits(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _card(content: dict[str, Any]) -> dict[str, Any]:
    info = content["machine_info"]
    return {
        "cpu": info["cpu"].get("brand_raw", "unknown"),
        "threads": info["torch_threads"],
        "cores": info["cores"],
        "capability": info["cpu_capability"],
        "gpus": info["gpus"],
        "system": f"{info['system']} {info['release']}",
        "versions": {"python": info["python_version"], **info["versions"]},
        "rates": {name: _digits(value) for name, value in info["rates"].items()},
        "date": info["date"],
        "commit": _commit(content["commit_info"]),
    }


def _commit(info: dict[str, Any]) -> str:
    """Twelve digits, and whether files had been changed since."""
    return info.get("id", "unknown")[:12] + "-dirty" * bool(info.get("dirty"))


# -- files ----------------------------------------------------------------------------------------------------


def results_path(card: dict[str, Any]) -> Path:
    """Where a machine's results are kept: results/cpu-intel-xeon-2t.json."""
    words = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor)\b", " ", card["cpu"].lower())
    return RESULTS / f"cpu-{'-'.join(re.findall('[a-z0-9]+', words))}-{card['threads']}t.json"


def read(path: Path) -> Record:
    """A file of `write`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Record(
        content["card"], [Row(**row) for row in content["rows"]], [Missing(**m) for m in content["missing"]]
    )


def write(path: Path, record: Record) -> None:
    """A line a row, so that a change of one shows as one."""

    def lines(entries: Iterable[Any]) -> str:
        return ",\n".join(json.dumps(asdict(entry)) for entry in entries)

    card = json.dumps(record.card, indent=1)
    text = f'{{"card": {card},\n"rows": [\n{lines(record.rows)}\n],\n"missing": [\n{lines(record.missing)}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# -- merging --------------------------------------------------------------------------------------------------


def merge(before: Record, run: Record) -> tuple[Record, list[str]]:
    """What is kept of a machine after a run, and what of the run was not taken, in words.

    A group of the run takes the place of the same group before if it measured all that was measured then; others
    stay as they were. The card is the run's, but the machine's rates, with which the loss is predicted, stay those
    of the run that measured the loss.

    Raises:
        ValueError: a partial run under other versions or on another machine: its ratios would stand among old ones.
    """
    lost = {key: sorted(before.group(key).keys() - run.group(key).keys()) for key in before.problems()}
    whole = [key for key in run.problems() if not lost.get(key)]
    stay = [key for key in before.problems() if key not in whole]
    changed = [name for name in SAME_MACHINE if before.card.get(name) != run.card.get(name)]
    if stay and changed:
        raise ValueError(
            f"the run measured only part of the {len(before.problems())} groups, under another "
            f"{', '.join(changed)} than the results at hand; run all suites, or replace the results with --replace"
        )
    notes = [
        f"{suite}: {group}: kept as it was, the run lacks {', '.join(lost[suite, group])}"
        for suite, group in stay
        if (suite, group) in run.problems()
    ]
    order = [*before.problems(), *(key for key in run.problems() if key not in before.problems())]
    source = {key: run if key in whole else before for key in order}
    rows = [row for key in order for row in source[key].group(key).values()]
    missing = [entry for key in order for entry in source[key].missing if entry.key == key]
    all_of_the_loss = all(source[key] is run for key in order if key[0] == "loss")
    card = run.card if all_of_the_loss else run.card | {"rates": before.card["rates"]}
    return Record(card, rows, missing), notes
