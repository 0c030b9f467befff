"""Results as JSON, as Markdown, as a table for the terminal and as one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from bioclip_hc.evaluation.findings import Findings
from bioclip_hc.evaluation.markdown import markdown
from bioclip_hc.evaluation.page import page
from bioclip_hc.evaluation.rows import Group, Row, groups
from bioclip_hc.evaluation.tables import text_table
from bioclip_hc.taxonomy import RANKS, Taxonomy

FORMAT = 1  # of the JSON: raised when a key changes its meaning or goes


@dataclass(frozen=True)
class Embedding:
    """The text embeddings of a model: of a hyperbolic one to be drawn in the Poincare disk, else in a plane."""

    name: str
    tangent: ArrayLike
    """(T, D) tangent vectors at the origin (of a Euclidean model the embeddings), row t the text of taxon t."""
    curv: float
    """Of the hyperbolic space; 0: Euclidean."""
    taxonomy: Taxonomy


@dataclass(frozen=True)
class Report:
    """What was measured, in four forms.

    Attributes:
        title: heading of the report.
        rows: the scores, in any order.
        curves: run name -> its training log, records with step, loss, per_rank (R values or a mapping by rank
            name; None where the rank was absent) and lr. Other records of a log are passed over.
        embeddings: the models to draw.
        findings: what else is known of a system on a split. `study.report_of` makes a whole report.
        notes: what whoever reads the figures should know, a sentence each: what was left out, what is partial.
        systems: what was run, as JSON types; `System.to_dict` says it.
    """

    title: str
    rows: Sequence[Row]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    embeddings: Sequence[Embedding] = ()
    findings: Sequence[Findings] = ()
    notes: Sequence[str] = ()
    systems: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Title, notes, systems, rows and findings as plain JSON types; docs/evaluation.md names the keys."""
        rows = [
            {
                "name": row.name,
                "protocol": row.protocol,
                "split": row.split,
                "score": row.score.to_dict(),
                "published": dict(row.published),
                "extra": dict(row.extra),
            }
            for row in self.rows
        ]
        findings = [found.to_dict() for found in self.findings]
        return {
            "format": FORMAT,
            "title": self.title,
            "notes": list(self.notes),
            "systems": [dict(system) for system in self.systems],
            "ranks": list(RANKS),
            "rows": rows,
            "findings": findings,
        }

    def to_json(self, path: str | Path) -> None:
        """Write what `to_dict` gives; the training log is a file of its own."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        # half a letter, as in names of files that are not UTF-8, becomes JSON's escape of it
        Path(path).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    def to_markdown(self, path: str | Path) -> None:
        """Write the tables as Markdown, as GitHub reads it."""
        Path(path).write_text(markdown(self), encoding="utf-8")

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained HTML file.

        Raises:
            ImportError: matplotlib is missing; the message says how to install it.
        """
        Path(path).write_text(page(self), encoding="utf-8")

    def table(self) -> str:
        """A plain text table per split and protocol, at most 112 columns wide."""
        return "\n\n".join(map(text_table, self.groups()))

    def groups(self) -> Iterator[Group]:
        """The rows of each split and protocol: systems from best to worst, then baselines from best to worst."""
        return groups(self.rows)
