"""A report as Markdown, as GitHub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bioclip_hc.data.captions import printable
from bioclip_hc.evaluation.findings import Findings
from bioclip_hc.evaluation.tables import (
    UNKNOWN,
    Cell,
    Line,
    Table,
    count,
    facts_table,
    further_table,
    main_table,
    percent,
    rank_table,
    strata_table,
)

if TYPE_CHECKING:
    from bioclip_hc.evaluation.report import Report

MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$@:^=-])")  # what may begin markup, a link, a mention or mathematics
LONGEST = 120  # characters of a name

NOTE = (
    "Top-1 accuracy in % over all images whose truth is known at the rank; average over the ranks present; nLCA: "
    "mean share of an image's known ranks before its first error. Small figures are 95% bootstrap intervals over "
    "images. The best system of a column is bold."
)


def markdown(report: Report) -> str:
    """The whole report."""
    notes = "\n".join(f"- {escaped(note, 500)}" for note in report.notes)
    parts = [f"# {escaped(report.title)}", notes, NOTE if report.rows else ""]
    for group in report.groups():
        table = main_table(group)
        parts += [f"## {escaped(table.title)}", _table(table)]
        for more in (further_table(group), rank_table(group), strata_table(group), facts_table(group)):
            if more.lines and more.columns:
                title = "Head, tail and unseen taxa" if more.title == group.title else more.title
                parts += [f"### {escaped(title)}", _table(more)]
    for found in report.findings:
        parts += _findings(found)
    return "\n\n".join(filter(None, parts)) + "\n"


def escaped(text: str, longest: int = LONGEST) -> str:
    """A text of the data, on one line, that is shown as it is."""
    plain = printable(text)
    return MARKUP.sub(r"\\\1", plain if len(plain) <= longest else plain[: longest - 1] + "…")


def _table(table: Table) -> str:
    shown = table.without_empty_columns()
    lines = [
        "| system | " + " | ".join(map(escaped, shown.columns)) + " |",
        "| :--- |" + " ---: |" * len(shown.columns),
        *("| " + " | ".join([_head(line), *map(_cell, line.cells)]) + " |" for line in shown.lines),
    ]
    return "\n".join(lines)


def _head(line: Line) -> str:
    if line.kind in ("published", "difference"):
        return f"&emsp;*{line.head}*"
    return escaped(line.head) + (f": {line.part}" if line.part else "")


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    return f"{text}<br><sub>{cell.interval}</sub>" if cell.interval else text


def _findings(found: Findings) -> Iterator[str]:
    yield f"## What {escaped(found.name)} gets wrong on {escaped(found.split)} ({escaped(found.protocol)})"
    if found.losses:
        yield "### Taxa at which most images leave their true path"
        rows = [
            [
                escaped(" › ".join(loss.taxon)),
                loss.rank,
                count(loss.reached),
                f"{count(loss.lost)} ({percent(loss.lost / loss.reached)} %)",
                f"{escaped(loss.taken_for[-1] if loss.taken_for else 'nothing')} ({count(loss.taken_for_images)})",
            ]
            for loss in found.losses
        ]
        yield _plain_table(["taxon", "rank", "images", "lost", "mostly taken for"], rows)
    for matrix in found.confusions:
        yield f"### Confusion within {escaped(matrix.title)} (rows: truth; images)"
        names = [*map(escaped, matrix.children), f"{matrix.others} others", "outside", "no answer"]
        rows = [[name, *map(count, row)] for name, row in zip(names, matrix.counts, strict=False)]
        yield _plain_table(["", *names], rows)
    if found.marks:
        yield "### Where naming may stop"
        rows = [
            [escaped(mark.label), mark.rank, percent(mark.coverage), percent(mark.risk)] for mark in found.marks
        ]
        yield _plain_table(["threshold", "rank", "named (%)", "wrong of those (%)"], rows)
    if found.pictures:
        yield "### Worst mistakes"
        rows = [
            [
                escaped(picture.name[-LONGEST:]),
                escaped(" › ".join(filter(None, picture.mistake.truth))),
                escaped(" › ".join(filter(None, picture.mistake.prediction))) or "nothing",
                escaped(picture.mistake.ancestor[-1]) if picture.mistake.ancestor else "the root",
                UNKNOWN if picture.mistake.probability is None else percent(picture.mistake.probability) + " %",
            ]
            for picture in found.pictures
        ]
        yield _plain_table(["photograph", "truth", "named", "both are", "how sure"], rows)


def _plain_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        [
            "| " + " | ".join(heads) + " |",
            "| :--- |" + " :--- |" * (len(heads) - 1),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )
