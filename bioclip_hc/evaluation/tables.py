"""The tables of a report, as texts in cells: the terminal, the page and the Markdown show the same ones.

# R ranks
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bioclip_hc.data.captions import printable
from bioclip_hc.evaluation.intervals import Interval
from bioclip_hc.evaluation.metrics import Score
from bioclip_hc.evaluation.rows import Group, Row
from bioclip_hc.taxonomy import RANKS

NAME_WIDTH = 28  # of a system in the terminal: the widest table then has 112 columns
UNKNOWN = "–"
MINUS = "−"

Kind = Literal["system", "baseline", "published", "difference"]


@dataclass(frozen=True)
class Cell:
    """A value, its bootstrap interval where there is one, and whether it is the best of its column."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table; lines of published figures and differences belong to the system above them."""

    head: str
    kind: Kind
    cells: Sequence[Cell]
    part: str = ""
    """What of the system the line shows, where it has several."""


@dataclass(frozen=True)
class Table:
    """Heads of the columns after the first, and the lines."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Line]

    def without_empty_columns(self) -> Table:
        """The same less the columns in which no line has a value, if any has one."""
        kept = [j for j in range(len(self.columns)) if any(line.cells[j].text != UNKNOWN for line in self.lines)]
        if not kept:
            return self
        lines = [replace(line, cells=[line.cells[j] for j in kept]) for line in self.lines]
        return Table(self.title, [self.columns[j] for j in kept], lines)


@dataclass(frozen=True)
class Measure:
    """A column: how its value is found in a score, and written."""

    head: str
    value: Callable[[Score], float | None]
    text: Callable[[float | None], str]
    key: str = ""
    """Of its interval."""
    column: int | None = None
    """Of its interval, where the measure has several."""
    best: Callable[..., float] = max

    @property
    def published_key(self) -> str:
        """Under which a published figure of it stands."""
        return self.head if self.key == "accuracy" else self.key

    def interval(self, score: Score) -> Interval:
        """The bootstrap interval, None where there is none."""
        intervals = getattr(score, "intervals", None)
        found = intervals.measures.get(self.key) if intervals is not None else None
        return found if found is None or self.column is None else found[self.column]

    def cell(self, score: Score, best: float | None) -> Cell:
        """The value with its interval."""
        value, around = self.value(score), self.interval(score)
        span = "" if value is None or around is None else "–".join(map(self.text, around))
        return Cell(self.text(value), span, value is not None and value == best)


# -- numbers ----------------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """A share in percent, one decimal."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def share(value: float | None) -> str:
    """A share as it is, three decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def ranks_high(value: float | None) -> str:
    """A mean number of ranks or edges."""
    return UNKNOWN if value is None else f"{value:.2f}"


def signed(value: float, decimals: int) -> str:
    """A difference, with its sign unless it rounds to nothing."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if not float(text) else text.replace("-", MINUS)


def count(number: float) -> str:
    """A number of images; of chance, an expectation."""
    return f"{number:,.0f}"


# -- columns ----------------------------------------------------------------------------------------------


def accuracies() -> list[Measure]:
    """Top-1 accuracy per rank."""
    return [
        Measure(rank, lambda s, r=r: s.accuracy[r], percent, "accuracy", r)  # type: ignore[misc]
        for r, rank in enumerate(RANKS)
    ]


def single(head: str, name: str, text: Callable[[float | None], str], best: Callable[..., float] = max) -> Measure:
    """A measure that is one number of the score."""
    return Measure(head, lambda s: getattr(s, name, None), text, name, best=best)


def main_measures() -> list[Measure]:
    """What the first table of a group shows."""
    return [
        *accuracies(),
        single("average", "average", percent),
        single("nLCA", "nlca", share),
        single("full path", "full_path", percent),
        single("consistent", "consistency", percent),
    ]


def further_measures() -> list[Measure]:
    """What the second shows."""
    return [
        single("POR", "por", percent),
        single("S-POR run", "s_por_run", percent),
        single("TOR", "tor", percent),
        single("h-precision", "h_precision", percent),
        single("h-recall", "h_recall", percent),
        single("h-F1", "h_f1", percent),
        single("LCA height", "lca_height", ranks_high, min),
        single("of mistakes", "mistake_height", ranks_high, min),
        single("tree distance", "tree_distance", ranks_high, min),
        Measure("calibration error", _mean_calibration_error, percent, best=min),
        single("Kendall’s τ", "root_order", share),
    ]


def _mean_calibration_error(score: Score) -> float | None:
    """Over the ranks that have one."""
    calibration = getattr(score, "calibration", None)
    errors = [] if calibration is None else [e for e in calibration.error if e is not None]
    return float(np.mean(errors)) if errors else None


# -- tables -----------------------------------------------------------------------------------------------


def main_table(group: Group) -> Table:
    """Accuracies, average and nLCA; under each system what was published of it, and the difference."""
    measures = main_measures()
    lines = []
    for row, line in zip(group.rows, _lines(group.rows, measures), strict=True):
        lines.append(line)
        if row.published:
            lines += _published(row, measures)
    return Table(f"{group.title} ({count(group.images)} images)", [m.head for m in measures], lines)


def further_table(group: Group) -> Table:
    """The other measures of a group's systems."""
    measures = further_measures()
    return Table("Further measures", [m.head for m in measures], _lines(group.systems, measures))


def rank_table(group: Group) -> Table:
    """Per rank: top-k, accuracy among the images still on their true path, calibration error."""
    lines = []
    for row in group.systems:
        score, details = row.score, row.details
        parts: list[tuple[str, Sequence[float | None] | None]] = [
            (f"top-{details.k}" if details else "", details.top_k if details else None),
            ("on the true path", score.on_path_accuracy),
            ("calibration error", details.calibration.error if details and details.calibration else None),
        ]
        lines += [
            Line(row.name, "system", [Cell(percent(v)) for v in values], what)
            for what, values in parts
            if values is not None
        ]
    return Table("Further measures per rank", RANKS, lines)


def strata_table(group: Group) -> Table:
    """Each system's scores on images of often, seldom and never photographed taxa, those that there are."""
    measures = [m for m in main_measures() if m.head != "consistent"]
    lines = []
    for row in group.systems:
        strata = row.details.strata if row.details else None
        for name, score in ((n, s) for n, s in (strata or {}).items() if s.images):
            cells = [Cell(count(score.images)), *(m.cell(score, None) for m in measures)]
            lines.append(Line(row.name, "system", cells, name))
    return Table(group.title, ["images", *(m.head for m in measures)], lines)


def facts_table(group: Group) -> Table:
    """What else is said of the rows."""
    keys = list(dict.fromkeys(key for row in group.rows for key in row.extra))
    rows = [row for row in group.rows if row.extra]
    lines = [
        Line(
            row.name, "system" if row.protocol else "baseline", [Cell(str(row.extra.get(k, UNKNOWN))) for k in keys]
        )
        for row in rows
    ]
    return Table("What was run", keys, lines)


def _lines(rows: Sequence[Row], measures: Sequence[Measure]) -> list[Line]:
    best = [_best(measure, (row for row in rows if row.protocol)) for measure in measures]
    return [
        Line(
            row.name,
            "system" if row.protocol else "baseline",
            [m.cell(row.score, b if row.protocol else None) for m, b in zip(measures, best, strict=True)],
        )
        for row in rows
    ]


def _best(measure: Measure, rows: Iterable[Row]) -> float | None:
    values = [v for row in rows if (v := measure.value(row.score)) is not None]
    return measure.best(values) if values else None


def _published(row: Row, measures: Sequence[Measure]) -> list[Line]:
    """What was published, and the measured less it."""
    printed, gap = [], []
    for measure in measures:
        value, published = measure.value(row.score), row.published.get(measure.published_key)
        unit, decimals = (1, 3) if measure.text is share else (100, 1)
        printed.append(Cell(UNKNOWN if published is None else f"{published:.2f}"))
        gap.append(
            Cell(UNKNOWN if published is None or value is None else signed(unit * value - published, decimals))
        )
    return [Line("published", "published", printed), Line("difference", "difference", gap)]


# -- terminal ---------------------------------------------------------------------------------------------


def text_table(group: Group) -> str:
    """A plain text table, at most 112 columns wide."""
    shown = main_table(group)
    chosen = [j for j, head in enumerate(shown.columns) if head != "full path"]
    heads = [_cut(("  " if line.kind in ("published", "difference") else "") + line.head) for line in shown.lines]
    width = max(map(len, ["system", *heads]))
    widths = [8] * (len(RANKS) + 1) + [7, 12]
    title = f"{printable(group.title)} (top-1 accuracy in %, {group.images} images)"
    lines = [title, _line("system", width, [shown.columns[j] for j in chosen], widths)]
    for head, line in zip(heads, shown.lines, strict=True):
        lines.append(_line(head, width, [line.cells[j].text for j in chosen], widths))
    return "\n".join(lines)


def _line(head: str, width: int, cells: Sequence[str], widths: Sequence[int]) -> str:
    return head.ljust(width) + "".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))


def _cut(name: str) -> str:
    text = printable(name)
    return text if len(text) <= NAME_WIDTH else text[: NAME_WIDTH - 1] + "…"
