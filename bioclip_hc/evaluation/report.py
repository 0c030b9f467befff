"""Results as JSON, as a table for the terminal and as one HTML file that needs nothing else.

# T taxa, D embed, R ranks

A report compares rows (a system under a protocol on a split). A row without a protocol is a baseline, chance or
the pixel probe: it is compared with every protocol of its split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation import plots
from bioclip_hc.evaluation.document import document
from bioclip_hc.evaluation.findings import Findings
from bioclip_hc.evaluation.metrics import Score
from bioclip_hc.taxonomy import RANKS, Taxonomy

FORMAT = 1  # of the JSON
NAME_WIDTH = 28  # of a system in the terminal: the widest table then has 112 columns


@dataclass(frozen=True)
class Row:
    """One system's score."""

    name: str
    protocol: str
    """"coarse-to-fine", "top-down", or "" for a baseline."""
    split: str
    score: Score
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else to say of it, as JSON types: template, candidates, images seen, wall time."""
    published: Mapping[str, float] = field(default_factory=dict)
    """What was published of it: rank -> accuracy in percent, "average" in percent, "nlca" as a share."""


@dataclass(frozen=True)
class Embedding:
    """The text embeddings of a hyperbolic model, to be drawn in the Poincare disk."""

    name: str
    tangent: ArrayLike
    """(T, D) tangent vectors at the origin, row t the text of taxon t."""
    curv: float
    taxonomy: Taxonomy


@dataclass(frozen=True)
class Report:
    """What was measured, in three forms.

    Attributes:
        title: heading of the report.
        rows: the scores, in any order.
        curves: run name -> its training log, records with step, loss, per_rank (R values or a mapping by rank
            name; None where the rank was absent) and lr. Other records of a log are passed over.
        embeddings: the hyperbolic models to draw.
        findings: what else is known of a system on a split. `study.report_of` makes a whole report.
    """

    title: str
    rows: Sequence[Row]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    embeddings: Sequence[Embedding] = ()
    findings: Sequence[Findings] = ()

    def to_dict(self) -> dict[str, Any]:
        """Title, rows and findings as plain JSON types."""
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
        return {"format": FORMAT, "title": self.title, "ranks": list(RANKS), "rows": rows, "findings": findings}

    def to_json(self, path: str | Path) -> None:
        """Write title and rows; the training log is a file of its own."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def table(self) -> str:
        """A plain text table per split and protocol, at most 112 columns wide."""
        return "\n\n".join(_text_table(group) for group in self.groups())

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained HTML file.

        Raises:
            ImportError: matplotlib is missing; the message says how to install it.
        """
        Path(path).write_text(_page(self), encoding="utf-8")

    def groups(self) -> Iterator[Group]:
        """The rows of each split and protocol: systems from best to worst, then baselines from best to worst."""
        for split in dict.fromkeys(row.split for row in self.rows):
            rows = [row for row in self.rows if row.split == split]
            for protocol in dict.fromkeys(row.protocol for row in rows if row.protocol) or [""]:
                chosen = [row for row in rows if row.protocol in (protocol, "")]
                chosen.sort(key=lambda row: (not row.protocol, -_or(row.score.average, -1)))
                yield Group(split, protocol, chosen)


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: one split, one protocol, and the split's baselines."""

    split: str
    protocol: str
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.split, self.protocol)))

    @property
    def images(self) -> int:
        return max(row.score.images for row in self.rows)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# -- terminal ---------------------------------------------------------------------------------------------


def _text_table(group: Group) -> str:
    names = [_cut(row.name) for row in group.rows]
    width = max(map(len, ["system", *names]))
    head = ["system".ljust(width), *(rank.rjust(8) for rank in RANKS), " average", "  nLCA", "  consistent"]
    lines = [f"{group.title} (top-1 accuracy in %, {group.images} images)", "".join(head)]
    for name, row in zip(names, group.rows, strict=True):
        score = row.score
        cells = [_percent(a).rjust(8) for a in (*score.accuracy, score.average)]
        lines.append(
            name.ljust(width) + "".join(cells) + _share(score.nlca).rjust(6) + _percent(score.consistency).rjust(12)
        )
    return "\n".join(lines)


def _cut(name: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= NAME_WIDTH else printable[: NAME_WIDTH - 1] + "…"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# -- page -------------------------------------------------------------------------------------------------

CSS = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 3rem;max-width:78rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.6rem;line-height:1.25;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-bottom:1px solid var(--faint)}
h3{font-size:1rem;margin:1.5rem 0 .4rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem;min-width:100%}
th,td{padding:.3rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--faint)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);
min-width:8rem;max-width:12rem;white-space:normal;overflow-wrap:break-word}
tr.baseline td{background:var(--soft)}
.grid{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));align-items:start}
.grid+.grid{margin-top:2rem}
figure{margin:0;max-width:34rem}
figure h4{font-size:.95rem;margin:0 0 .4rem;overflow-wrap:anywhere}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
figcaption,.note{font-size:.85rem;max-width:60rem}
"""


def _page(report: Report) -> str:
    groups = list(report.groups())
    scored = [group for group in groups if group.images]
    names = list(dict.fromkeys([*(r.name for r in report.rows if r.protocol), *report.curves]))
    baselines = [n for n in dict.fromkeys(r.name for r in report.rows if not r.protocol) if n not in names]
    style = plots.styles(names, baselines)
    title = escape(report.title)
    body = [
        f"<h1>{title}</h1>",
        _section("Results", [_TABLE_NOTE, *map(_html_table, groups)]),
        _section("Accuracy per rank", [_grid(_accuracy_figure(group, style) for group in scored)]),
        _section("Where first errors fall", [_grid(_error_figure(group) for group in scored)]),
        _section("Training", [_grid(_training_figures(report.curves, style))]),
        _section("Embedding", [_grid(_embedding_figures(embedding)) for embedding in report.embeddings]),
    ]
    return document(title, CSS, body)


def _section(title: str, parts: Sequence[str]) -> str:
    """A section, or nothing where it would be empty."""
    return f"<h2>{title}</h2>\n" + "\n".join(parts) if any(parts) else ""


def _grid(figures: Iterator[str]) -> str:
    inside = "\n".join(figures)
    return f'<div class="grid">\n{inside}\n</div>' if inside else ""


def _figure(svg: str, title: str, caption: str, alt: str) -> str:
    """A figure with its caption; title and alt are plain text, the caption too."""
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return f"<figure><h4>{escape(title)}</h4>{labelled}<figcaption>{escape(caption)}</figcaption></figure>"


_TABLE_NOTE = (
    '<p class="note">Top-1 accuracy in % over all images whose truth is known at the rank; average over the ranks '
    "present; nLCA: mean share of an image's known ranks before its first error; h-F1: F1 of the taxa claimed, "
    "ancestors included; full path: images right at every known rank; consistent: predictions that are a path of "
    "the tree. The best system of a column is bold; shaded rows are baselines, the same under every protocol.</p>"
)


def _html_table(group: Group) -> str:
    measures = [
        *((rank, [row.score.accuracy[r] for row in group.rows], _percent) for r, rank in enumerate(RANKS)),
        ("average", [row.score.average for row in group.rows], _percent),
        ("nLCA", [row.score.nlca for row in group.rows], _share),
        ("h-F1", [row.score.h_f1 for row in group.rows], _percent),
        ("full path", [row.score.full_path for row in group.rows], _percent),
        ("consistent", [row.score.consistency for row in group.rows], _percent),
    ]
    columns = [[escape(row.name) for row in group.rows]]
    for _, values, text in measures:
        best = max((_or(v, -1) for v, row in zip(values, group.rows, strict=True) if row.protocol), default=None)
        columns.append(
            [
                f"<b>{text(v)}</b>" if v == best and row.protocol else text(v)
                for v, row in zip(values, group.rows, strict=True)
            ]
        )
    extras = list(dict.fromkeys(key for row in group.rows for key in row.extra))
    columns += [[escape(str(row.extra.get(key, ""))) for row in group.rows] for key in extras]

    heads = ["system", *(name for name, _, _ in measures), *map(escape, extras)]
    lines = ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for row, cells in zip(group.rows, zip(*columns, strict=True), strict=True):
        kind = "" if row.protocol else ' class="baseline"'
        lines.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    table = "\n".join(lines)
    title = f"{escape(group.title)} ({group.images} images)"
    return f'<h3>{title}</h3>\n<div class="scroll"><table>\n{table}\n</table></div>'


def _accuracy_figure(group: Group, style: Mapping[str, plots.Style]) -> str:
    accuracy = {row.name: row.score.accuracy for row in group.rows}
    return _figure(
        plots.accuracy_by_rank(accuracy, style),
        group.title,
        "Top-1 accuracy at each rank over all images whose truth is known there; dashed lines are baselines.",
        f"Line chart of top-1 accuracy per rank. Averages: {_averages(group)}.",
    )


def _error_figure(group: Group) -> str:
    return _figure(
        plots.first_errors({row.name: row.score.first_error for row in group.rows}),
        group.title,
        "The rank at which an image's prediction first leaves its true path: a longer grey end means more images "
        "right at every known rank, and an error further right in the bar is a milder one.",
        "Stacked bars of the rank of the first error. Right at every rank: "
        + ", ".join(f"{row.name} {_percent(row.score.full_path)} %" for row in group.rows)
        + ".",
    )


def _averages(group: Group) -> str:
    return ", ".join(f"{row.name} {_percent(row.score.average)} %" for row in group.rows)


def _training_figures(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], style: Mapping[str, plots.Style]
) -> Iterator[str]:
    rates = {}
    for name, log in curves.items():
        records = [record for record in log if "step" in record and "loss" in record]
        if not records:
            continue
        step, loss = ([record[key] for record in records] for key in ("step", "loss"))
        per_rank = _per_rank(records)
        yield _figure(
            plots.loss_by_rank(step, loss, per_rank),
            name,
            f"Training loss {'of each rank ' if per_rank else ''}over the steps, as means of up to {plots.BINS} "
            "bins; objectives differ between systems, so compare shapes, not heights.",
            f"Line chart of the training loss of {name}: {loss[0]:.3g} at step {step[0]}, "
            f"{loss[-1]:.3g} at step {step[-1]}.",
        )
        if all("lr" in record for record in records):
            rates[name] = (step, [record["lr"] for record in records])
    if rates:
        yield _figure(
            plots.learning_rates(rates, style),
            "Learning rate",
            "The schedule that each run followed, from its training log.",
            "Line chart of the learning rate over the steps of " + ", ".join(rates) + ".",
        )


def _per_rank(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """rank -> its loss at every record, NaN where the rank was absent; ranks that never occur are left out."""
    values = np.full((len(records), len(RANKS)), np.nan)
    for i, record in enumerate(records):
        found = record.get("per_rank") or {}
        pairs = found.items() if isinstance(found, Mapping) else zip(RANKS, found, strict=True)
        for rank, value in pairs:
            if value is not None:
                values[i, RANKS.index(rank)] = value
    return {rank: values[:, r] for r, rank in enumerate(RANKS) if np.isfinite(values[:, r]).any()}


def _embedding_figures(embedding: Embedding) -> Iterator[str]:
    tangent, taxonomy = np.asarray(embedding.tangent, dtype=np.float64), embedding.taxonomy
    coordinates = plots.poincare_coordinates(tangent, embedding.curv)
    farthest = float(np.linalg.norm(coordinates, axis=1).max())
    hidden = int((~plots.drawn_taxa(taxonomy)).sum())
    medians = _median_distances(tangent, taxonomy)
    left_out = f"; {hidden} taxa of the lower ranks are left out" if hidden else ""
    yield _figure(
        plots.poincare_disk(coordinates, taxonomy, curv=embedding.curv),
        f"{embedding.name}: the whole disk",
        "Where the model learned the root in the middle, upper ranks lie near the origin (+): the radius is the "
        "true one (dotted rings bear their distance), the angle keeps the first two principal components of the "
        f"directions, lines are geodesics from parent to child{left_out}.",
        f"Poincare disk with {taxonomy.size - hidden} taxa of {embedding.name} and their tree. {medians}",
    )
    if 0 < farthest < 0.6:
        yield _figure(
            plots.poincare_disk(coordinates, taxonomy, curv=embedding.curv, reach=1.08 * farthest),
            f"{embedding.name}: enlarged",
            f"The same picture, enlarged {1 / (1.08 * farthest):.1f} times: the part of the disk that is used.",
            f"Enlarged middle of the disk of {embedding.name}.",
        )
    yield _figure(
        plots.distance_by_rank(tangent, taxonomy),
        f"{embedding.name}: distance from the origin",
        "Distances of the text embeddings by rank (box: quartiles, line: median, whiskers: extremes); they rise "
        "from kingdom to species where the model put general names in the middle.",
        f"Box plot of the distance from the origin per rank of {embedding.name}. {medians}",
    )


def _median_distances(tangent: np.ndarray, taxonomy: Taxonomy) -> str:
    distance = np.linalg.norm(tangent, axis=1)
    medians = [
        f"{rank} {np.median(distance[taxonomy.rank == r]):.2f}"
        for r, rank in enumerate(RANKS)
        if (taxonomy.rank == r).any()
    ]
    return "Median distance from the origin: " + ", ".join(medians) + "."
