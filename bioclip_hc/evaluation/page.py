"""A report as one HTML file that needs nothing else.

# T taxa, D embed, R ranks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bioclip_hc.evaluation import disk, markup, plots
from bioclip_hc.evaluation.document import CARDS, PICTURES, document
from bioclip_hc.evaluation.findings import Findings
from bioclip_hc.evaluation.findings_html import findings_html
from bioclip_hc.evaluation.rows import Group
from bioclip_hc.evaluation.style import CSS
from bioclip_hc.evaluation.tables import (
    accuracies,
    facts_table,
    further_table,
    main_table,
    percent,
    rank_table,
    strata_table,
)
from bioclip_hc.taxonomy import RANKS, Taxonomy

if TYPE_CHECKING:
    from bioclip_hc.evaluation.report import Embedding, Report

Look = Mapping[str, plots.Style]

NOTE = (
    '<p class="note">Top-1 accuracy in % over all images whose truth is known at the rank; average over the ranks '
    "present; nLCA: mean share of an image’s known ranks before its first error; full path: images right at every "
    "known rank; consistent: predictions that are a path of the tree. Small figures are 95% bootstrap intervals "
    "over images. The best system of a column is bold; shaded rows are baselines, the same under every protocol. "
    "Differences are measured less published, in points.</p>"
)
FURTHER_NOTE = (
    "<p>POR: share of an image’s known ranks that are right; S-POR run: in its longest run of right "
    "ones; TOR: neighbouring ranks that are both right. h-precision, h-recall and h-F1 compare the taxa claimed "
    "with the true ones, ancestors included. LCA height: known ranks below the lowest common ancestor of truth and "
    "prediction, over all images, and over the mistakes; tree distance: edges between the two. Calibration error: "
    "gap between stated probability and share right, mean over ranks. Kendall’s τ: whether deeper names lie "
    "farther from the root. Of heights, distance and error the least is best.</p>"
)


def page(report: Report) -> str:
    """The whole file."""
    groups = list(report.groups())
    scored = [group for group in groups if group.images]
    names = list(dict.fromkeys([*(r.name for r in report.rows if r.protocol), *report.curves]))
    baselines = [n for n in dict.fromkeys(r.name for r in report.rows if not r.protocol) if n not in names]
    look = plots.styles(names, baselines)
    sections = {
        "Results": [
            markup.items(report.notes),
            NOTE + markup.folded("What the further measures mean", FURTHER_NOTE),
            *map(_results, groups),
        ]
        if groups
        else [],
        "Head, tail and unseen taxa": _strata(groups),
        "Accuracy per rank": [markup.grid(_accuracy(group, look) for group in scored)],
        "Where first errors fall": [markup.grid(map(_first_errors, scored))],
        "Sure and right": [markup.grid([*_risks(report.findings, look), *(_reliability(g, look) for g in scored)])],
        "What goes wrong": list(_findings(report)),
        "Training": [markup.grid(_training(report.curves, look))],
        "Embedding": [markup.grid(figure for embedding in report.embeddings for figure in _embedding(embedding))],
    }
    anchor = {title: title.lower().replace(" ", "-").replace(",", "") for title in sections}
    body = [markup.section(title, parts, anchor[title]) for title, parts in sections.items()]
    links = [
        f'<li><a href="#{anchor[title]}">{title}</a></li>'
        for title, inside in zip(sections, body, strict=True)
        if inside
    ]
    head = markup.shown(report.title, 200)
    navigation = f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>' if len(links) > 1 else ""
    allowed = [PICTURES] if any(picture.jpeg for found in report.findings for picture in found.pictures) else []
    return document(head, CSS + CARDS, [f"<h1>{head}</h1>", navigation, "<main>", *body, "</main>"], *allowed)


# -- results ----------------------------------------------------------------------------------------------


def _results(group: Group) -> str:
    per_rank = markup.table(rank_table(group))
    further = markup.table(further_table(group))
    facts = _facts(group)
    return "\n".join(
        [
            markup.table(main_table(group)),
            markup.folded(
                f"Further measures: {markup.name(group.title, markup.TITLE)}",
                further + per_rank + facts,
            ),
        ]
    )


def _facts(group: Group) -> str:
    content = facts_table(group)
    rows = [
        [markup.name(line.head), *(markup.name(cell.text, 300) for cell in line.cells)] for line in content.lines
    ]
    return markup.listing(["system", *content.columns], rows, content.title)


def _strata(groups: Sequence[Group]) -> list[str]:
    tables = [markup.table(strata_table(group), "system: images of") for group in groups]
    if not any(tables):
        return []
    head = next(d.head for group in groups for row in group.systems if (d := row.details) and d.strata)
    note = (
        f'<p class="note">By the training photographs of an image’s deepest known taxon: head from {head} on, tail '
        "fewer, unseen none. An image of an unseen species of a well-known genus is unseen at every rank.</p>"
    )
    return [note, *tables]


def _accuracy(group: Group, look: Look) -> str:
    averages = ", ".join(f"{row.name} {percent(row.score.average)} %" for row in group.rows)
    measures = accuracies()
    intervals = {row.name: [m.interval(row.score) for m in measures] for row in group.rows if row.details}
    return markup.figure(
        plots.accuracy_by_rank({row.name: row.score.accuracy for row in group.rows}, look, intervals),
        group.title,
        "Top-1 accuracy at each rank over all images whose truth is known there, with 95% bootstrap intervals; "
        "dashed lines are baselines.",
        f"Chart of top-1 accuracy per rank. Averages: {averages}.",
    )


def _first_errors(group: Group) -> str:
    return markup.figure(
        plots.first_errors({row.name: row.score.first_error for row in group.rows}),
        group.title,
        "The rank at which an image's prediction first leaves its true path: a longer grey end means more images "
        "right at every known rank, and an error further right in the bar is a milder one.",
        "Stacked bars of the rank of the first error. Right at every rank: "
        + ", ".join(f"{row.name} {percent(row.score.full_path)} %" for row in group.rows)
        + ".",
    )


def _reliability(group: Group, look: Look) -> str:
    """At the deepest rank at which all systems that give probabilities have answers, one line for each."""
    found = {row.name: row.details.calibration for row in group.systems if row.details and row.details.calibration}
    calibrations = {name: c for name, c in found.items() if any(error is not None for error in c.error)}
    shared = [
        r for r in range(len(RANKS)) if calibrations and all(c.error[r] is not None for c in calibrations.values())
    ]
    if not shared:
        return ""
    r, deepest = shared[-1], RANKS[shared[-1]]
    diagrams = {name: (c.probability[r], c.accuracy[r]) for name, c in calibrations.items()}
    errors = [f"{name} {percent(c.error[r])} %" for name, c in calibrations.items()]
    return markup.figure(
        plots.reliability(diagrams, look),
        f"Reliability, {deepest}: {group.title}",
        "How often answers of a stated probability are right: on the dotted line as often as stated, below it "
        f"less. Calibration error: {', '.join(errors)}.",
        f"Reliability diagram of the {deepest}. Calibration error: {', '.join(errors)}.",
    )


def _risks(findings: Sequence[Findings], look: Look) -> Iterator[str]:
    """Systems beside each other at the deepest rank, for the splits that have several."""
    for split in dict.fromkeys(found.split for found in findings):
        of_split = [found for found in findings if found.split == split and found.curves]
        if len(of_split) < 2:
            continue
        last = {found.name: found.curves[-1] for found in of_split}
        marks = {
            found.name: [
                (m.label, m.coverage, m.risk)
                for m in found.marks
                if m.rank == found.curves[-1].rank and m.risk is not None
            ]
            for found in of_split
        }
        areas = ", ".join(f"{name} {curve.area:.3f}" for name, curve in last.items())
        yield markup.figure(
            plots.risk_coverage({name: (c.coverage, c.risk) for name, c in last.items()}, marks, look),
            f"When to stop naming, {of_split[0].curves[-1].rank}: {split}",
            "Full paths, the surest first: the share named, and of those the share that is wrong. Marks show what "
            f"naming only from a given confidence on gives. Area under the curves (lower is better): {areas}.",
            f"Risk against coverage. Areas: {areas}.",
        )


def _findings(report: Report) -> Iterator[str]:
    scores = {(row.name, row.split, row.protocol): row.score for row in report.rows}
    for i, found in enumerate(report.findings):
        title = f"{markup.name(found.name)} on {markup.name(found.split)}, {markup.shown(found.protocol)}"
        inside = findings_html(found, scores.get((found.name, found.split, found.protocol)))
        yield markup.folded(title, inside, unfolded=i == 0)


# -- training ---------------------------------------------------------------------------------------------
def _training(curves: Mapping[str, Sequence[Mapping[str, Any]]], look: Look) -> Iterator[str]:
    rates = {}
    for name, log in curves.items():
        records = [record for record in log if "step" in record and "loss" in record]
        if not records:
            continue
        step, loss = ([record[key] for record in records] for key in ("step", "loss"))
        per_rank = _per_rank(records)
        yield markup.figure(
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
        yield markup.figure(
            plots.learning_rates(rates, look),
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


# -- embedding --------------------------------------------------------------------------------------------


def _embedding(embedding: Embedding) -> Iterator[str]:
    tangent, taxonomy = np.asarray(embedding.tangent, dtype=np.float64), embedding.taxonomy
    if not embedding.curv:
        yield _plane(embedding.name, tangent, taxonomy)
        return
    coordinates = disk.poincare_coordinates(tangent, embedding.curv)
    farthest = float(np.linalg.norm(coordinates, axis=1).max())
    hidden = int((~disk.drawn_taxa(taxonomy)).sum())
    medians = _median_distances(tangent, taxonomy)
    left_out = f"; {hidden} taxa of the lower ranks are left out" if hidden else ""
    yield markup.figure(
        disk.poincare_disk(coordinates, taxonomy, curv=embedding.curv),
        f"{embedding.name}: the whole disk",
        "Where the model learned the root in the middle, upper ranks lie near the origin (+): the radius is the "
        "true one (dotted rings bear their distance), the angle keeps the first two principal components of the "
        f"directions, lines are geodesics from parent to child{left_out}.",
        f"Poincare disk with {taxonomy.size - hidden} taxa of {embedding.name} and their tree. {medians}",
    )
    if 0 < farthest < 0.6:
        yield markup.figure(
            disk.poincare_disk(coordinates, taxonomy, curv=embedding.curv, reach=1.08 * farthest),
            f"{embedding.name}: enlarged",
            f"The same picture, enlarged {1 / (1.08 * farthest):.1f} times: the part of the disk that is used.",
            f"Enlarged middle of the disk of {embedding.name}.",
        )
    yield markup.figure(
        disk.distance_by_rank(tangent, taxonomy),
        f"{embedding.name}: distance from the origin",
        "Distances of the text embeddings by rank (box: quartiles, line: median, whiskers: extremes); they rise "
        "from kingdom to species where the model put general names in the middle.",
        f"Box plot of the distance from the origin per rank of {embedding.name}. {medians}",
    )


def _plane(name: str, vectors: np.ndarray, taxonomy: Taxonomy) -> str:
    """What a flat model has in place of a disk."""
    drawn = int(disk.drawn_taxa(taxonomy).sum())
    left_out = f" {taxonomy.size - drawn} taxa of the lower ranks are left out." if drawn < taxonomy.size else ""
    return markup.figure(
        disk.tree_plane(disk.plane_coordinates(vectors), taxonomy),
        f"{name}: its plane",
        "The first two principal components of the text embeddings, with lines from parent to child: what the "
        f"model keeps together lies together.{left_out}",
        f"Plane with {drawn} taxa of {name} and their tree.",
    )


def _median_distances(tangent: np.ndarray, taxonomy: Taxonomy) -> str:
    distance = np.linalg.norm(tangent, axis=1)
    medians = [
        f"{rank} {np.median(distance[taxonomy.rank == r]):.2f}"
        for r, rank in enumerate(RANKS)
        if (taxonomy.rank == r).any()
    ]
    return "Median distance from the origin: " + ", ".join(medians) + "."
