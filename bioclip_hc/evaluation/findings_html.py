"""What one system gets wrong on one split, as HTML.

# R ranks, n children shown
"""

from __future__ import annotations

from collections.abc import Sequence

from bioclip_hc.data.captions import scientific_name
from bioclip_hc.evaluation import plots
from bioclip_hc.evaluation.confusion import Confusion
from bioclip_hc.evaluation.findings import Findings, Picture
from bioclip_hc.evaluation.flow import flow
from bioclip_hc.evaluation.markup import figure, grid, listing, name, shown
from bioclip_hc.evaluation.metrics import Score
from bioclip_hc.evaluation.tables import count, percent
from bioclip_hc.evaluation.thumbnails import data_uri
from bioclip_hc.taxonomy import RANKS

ROOT = "the root"


def findings_html(found: Findings, score: Score | None) -> str:
    """Flow, losses, confusion, risk and pictures; score: the system's under the findings' protocol."""
    title = f"{found.name}, {found.split}"
    return "\n".join(
        filter(
            None,
            [
                grid([_flow(score, title) if score else "", _risk(found, title)]),
                _losses(found),
                *map(_confusion, found.confusions),
                _mistakes(found.pictures),
            ],
        )
    )


def _flow(score: Score, title: str) -> str:
    return figure(
        flow(score.first_error, score.known),
        f"First errors: {title}",
        "The stream of images down the ranks: at each rank those that are wrong there for the first time part from "
        "it. Images whose truth is unknown at a rank pass it by.",
        "Flow of images down the tree. First errors: "
        + ", ".join(f"{rank} {count(n)}" for rank, n in zip(RANKS, score.first_error, strict=False) if n)
        + f"; right at every known rank {count(score.first_error[-1])}.",
    )


def _risk(found: Findings, title: str) -> str:
    if not found.curves:
        return ""
    curves = {curve.rank: (curve.coverage, curve.risk) for curve in found.curves}
    marks = {
        rank: [(m.label, m.coverage, m.risk) for m in found.marks if m.rank == rank and m.risk is not None]
        for rank in curves
    }
    areas = ", ".join(f"{curve.rank} {curve.area:.3f}" for curve in found.curves)
    return figure(
        plots.risk_coverage(curves, marks, plots.rank_styles()),
        f"When to stop naming: {title}",
        "Full paths, the surest first: of those named down to a rank, the share that is wrong there. Marks show "
        f"what naming only from a given confidence on gives. Area under the curves (lower is better): {areas}.",
        f"Risk against coverage per rank. Areas: {areas}.",
    )


def _losses(found: Findings) -> str:
    rows = [
        (
            f"{name(loss.taxon[-1], 60)} <small>{loss.rank}</small>",
            name(" › ".join(loss.taxon[:-1]), 160) or ROOT,
            count(loss.reached),
            f"{count(loss.lost)} <small>{percent(loss.lost / loss.reached)} %</small>",
            f"{name(loss.taken_for[-1], 60) if loss.taken_for else 'no answer'} "
            f"<small>{count(loss.taken_for_images)}</small>",
        )
        for loss in found.losses
    ]
    heads = ("taxon", "below", "right above it", "lost at it", "mostly taken for")
    return listing(heads, rows, "Taxa at which most images leave their true path")


# -- confusion


def _confusion(matrix: Confusion) -> str:
    """A matrix of shares of each true child; counts are titles, so that they show where the pointer rests."""
    children = [*matrix.children, *([f"{matrix.others} others"] if matrix.others else [])]
    answers = [*children, "outside", "no answer"]
    kept = [j for j in range(len(matrix.counts[0])) if matrix.others or j != len(matrix.children)]
    head = "".join(f'<th scope="col"><span>{name(answer, 22)}</span></th>' for answer in answers)
    rows = [
        _confusion_row(i, child, answers, [matrix.counts[i][j] for j in kept]) for i, child in enumerate(children)
    ]
    where = name(matrix.title, 60)
    path = name(" › ".join(matrix.clade), 200) if len(matrix.clade) > 1 else ""
    note = (
        f'<p class="note">{path + ". " if path else ""}Taken for another child: {count(matrix.within)} of its '
        f"{count(matrix.images)} images. A row is a true child, with its images; a "
        "column is what they are taken for, in % of the row. The pointer shows counts.</p>"
    )
    body = "\n".join(rows)
    return (
        f'<h4>Confusion within {where}</h4>{note}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="Confusion within {shown(matrix.title, 60)}"><table class="confusion">\n'
        f'<caption class="unseen">Confusion within {where}, in % of each row</caption>\n'
        f'<thead><tr><th scope="col">truth</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _confusion_row(i: int, child: str, answers: Sequence[str], counts: Sequence[int]) -> str:
    images = sum(counts)
    cells = []
    for j, (answer, found) in enumerate(zip(answers, counts, strict=True)):
        kind = "right" if i == j else "wrong"
        title = f"{count(found)} of {count(images)} {shown(child, 60)}: {shown(answer, 60)}"
        share = found / images if images else 0
        text = "" if not found else "&lt;1" if share < 0.005 else f"{100 * share:.0f}"
        cells.append(f'<td class="{kind}" style="--share:{100 * share:.0f}%" title="{title}">{text}</td>')
    return f'<tr><th scope="row">{name(child, 40)} <small>{count(images)}</small></th>{"".join(cells)}</tr>'


# -- pictures


def _mistakes(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    cards = "\n".join(map(_card, pictures))
    return (
        "<h4>Worst mistakes</h4>"
        '<p class="note">Those that leave the true path farthest up, of these the surest first; at most two of one '
        f'true taxon.</p>\n<div class="sheet">\n{cards}\n</div>'
    )


def _card(picture: Picture) -> str:
    mistake = picture.mistake
    truth, answer = (scientific_name(lineage) for lineage in (mistake.truth, mistake.prediction))
    r = RANKS.index(mistake.rank)
    sure = "" if mistake.probability is None else f" at {percent(mistake.probability)} %"
    below = mistake.ancestor[-1] if mistake.ancestor else ROOT
    return (
        f'<figure class="card">{_frame(picture, truth)}<figcaption>'
        f"<div>is <b>{name(truth, 60)}</b></div>"
        f"<div>named <b>{name(answer, 60) if answer else 'nothing'}</b></div>"
        f"<div>{mistake.rank}: {name(mistake.prediction[r], 40) if mistake.prediction[r] else 'no answer'}{sure}, "
        f"not {name(mistake.truth[r], 40)}</div>"
        f'<div class="faint">common ancestor: {name(below, 40)}, {mistake.height} '
        f"{'rank' if mistake.height == 1 else 'ranks'} up</div>"
        f'<div class="key faint">{name(picture.name, 60)}</div></figcaption></figure>'
    )


def _frame(picture: Picture, truth: str) -> str:
    if picture.jpeg:
        label = f"Photograph of {shown(truth, 80)}"
        return f'<div class="frame"><img alt="{label}" loading="lazy" src="{data_uri(picture.jpeg)}"></div>'
    return (
        f'<div class="frame"><p>cannot be shown: {shown(picture.problem, 160)}</p></div>' if picture.problem else ""
    )
