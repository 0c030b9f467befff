"""From what systems predicted to a whole report.

# N images, R ranks, T taxa
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bioclip_hc.data.decode import DecodeError, decode_image
from bioclip_hc.data.photographs import Photographs
from bioclip_hc.evaluation.abstention import risk_coverage
from bioclip_hc.evaluation.confusion import confusion, find_taxon, most_confused, taxa_named
from bioclip_hc.evaluation.findings import Curve, Findings, Mark, Picture
from bioclip_hc.evaluation.mistakes import Mistake, losses, worst_mistakes
from bioclip_hc.evaluation.outcome import Outcome
from bioclip_hc.evaluation.report import Embedding, Report
from bioclip_hc.evaluation.rows import Row
from bioclip_hc.evaluation.thumbnails import small_jpeg
from bioclip_hc.taxonomy import RANKS

PROTOCOL = "full-path"  # of the findings, where a system has it: confidence is that of the full path
PICTURES = 24  # of mistakes in a report, those of all systems together
PICTURE_SIDE, PICTURE_BYTES = 280, 20_000  # pixels of the longer side; bytes of the JPEG
POINTS = 101  # of a risk-coverage curve in a report
THRESHOLDS = {"confidence 0.5": 0.5, "confidence 0.9": 0.9}


@dataclass(frozen=True)
class Run:
    """One system on one benchmark.

    Attributes:
        name: of the system.
        split: of the benchmark, or of the part of it.
        outcome: what it predicted.
        photographs: those that `outcome.indices` counts, for the pictures of the worst mistakes; None: no pictures.
        counts: (T,) training images of each taxon of `outcome.taxonomy`, for head, tail, unseen; None: no strata.
        published: protocol -> what was published of the system under it: rank -> accuracy in percent, "average" in
            percent, "nlca" as a share; what is not named was not published.
        thresholds: label -> confidence at which one may stop naming, marked in the risk-coverage curve.
        extra: what else to say of it, as JSON types: template, candidates, images seen, wall time.
    """

    name: str
    split: str
    outcome: Outcome
    photographs: Photographs | None = None
    counts: np.ndarray | None = None
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=lambda: THRESHOLDS)
    extra: Mapping[str, Any] = field(default_factory=dict)


def report_of(
    title: str,
    runs: Sequence[Run],
    *,
    baselines: Sequence[Row] = (),
    curves: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    embeddings: Sequence[Embedding] = (),
    clades: Sequence[str] = (),
    pictures: int = PICTURES,
) -> Report:
    """Score all runs and look into their mistakes.

    Args:
        runs: every system on every benchmark, in the order in which they are to be named.
        baselines: rows without a protocol (chance, a probe), compared with every system of their split.
        curves, embeddings: as in `Report`.
        clades: taxa (names, or paths written with >) whose children's confusion is shown beside that of the clade
            with most of it. A benchmark that lacks a clade does without; one of them must have it.
        pictures: of the worst mistakes, at most, shared evenly among the runs.

    Raises:
        ValueError: a clade that no benchmark has, or whose name several taxa of one bear; two runs of the same name
            and split; what `metrics.score` refuses.
    """
    named = [(run.name, run.split) for run in runs]
    if repeated := next((pair for pair in named if named.count(pair) > 1), None):
        raise ValueError(f"two runs of {repeated[0]!r} on {repeated[1]!r}; give each system a name of its own")
    _check_clades(clades, runs)
    rows = list(baselines)
    for run in runs:
        rows += [
            Row(run.name, protocol, run.split, score, run.extra, run.published.get(protocol, {}))
            for protocol, score in run.outcome.scores(run.counts).items()
        ]
    share = [pictures // len(runs) + (i < pictures % len(runs)) for i in range(len(runs))]
    findings = [find(run, clades, count) for run, count in zip(runs, share, strict=True)]
    return Report(title, rows, curves or {}, embeddings, findings)


def find(run: Run, clades: Sequence[str] = (), pictures: int = PICTURES) -> Findings:
    """What one system gets wrong, under `PROTOCOL` or else its first. Arguments are those of `report_of`."""
    outcome = run.outcome
    protocol = PROTOCOL if PROTOCOL in outcome.predictions else next(iter(outcome.predictions))
    predictions, truth, taxonomy = outcome.predictions[protocol], outcome.truth, outcome.taxonomy
    named = [t for name in clades for t in taxa_named(name, taxonomy)]
    chosen = [most_confused(predictions, truth, taxonomy), *named]
    confusions = [
        confusion(predictions, truth, taxonomy, clade) for clade in dict.fromkeys(chosen) if clade is not None
    ]
    curves, marks = _abstention(outcome, run.thresholds)
    mistakes = worst_mistakes(
        outcome.indices, predictions, truth, taxonomy, outcome.probability[protocol], pictures
    )
    return Findings(
        run.name,
        run.split,
        protocol,
        losses(predictions, truth, taxonomy),
        [c for c in confusions if c.images],
        curves,
        marks,
        [_picture(mistake, run.photographs) for mistake in mistakes],
    )


def _check_clades(clades: Sequence[str], runs: Sequence[Run]) -> None:
    """Raise for a name that no benchmark has, or that several taxa of one bear."""
    taxonomies = list({id(run.outcome.taxonomy): run.outcome.taxonomy for run in runs}.values())
    for name in clades:
        having = [taxonomy for taxonomy in taxonomies if taxa_named(name, taxonomy)]
        for taxonomy in having or taxonomies[:1]:
            find_taxon(name, taxonomy)


def _abstention(outcome: Outcome, thresholds: Mapping[str, float]) -> tuple[list[Curve], list[Mark]]:
    """Curves of the ranks with known truths, and what each threshold gives there."""
    curves, marks = [], []
    full = outcome.predictions.get(PROTOCOL)
    if full is None:
        return [], []
    for r, rank in enumerate(RANKS):
        known = outcome.truth[:, r] >= 0
        if not known.any():
            continue
        sure = outcome.confidence[known, r].astype(np.float64)
        right = full[known, r] == outcome.truth[known, r]
        curve = risk_coverage(sure, right)
        at = np.unique(np.searchsorted(curve.coverage, np.linspace(0, 1, POINTS)).clip(max=len(curve.coverage) - 1))
        points = (tuple(values[at].tolist()) for values in (curve.threshold, curve.coverage, curve.risk))
        curves.append(Curve(rank, curve.area, *points))
        for label, threshold in thresholds.items():
            taken = sure >= threshold
            risk = float((~right[taken]).mean()) if taken.any() else None
            marks.append(Mark(label, rank, threshold, float(taken.mean()), risk))
    return curves, marks


def _picture(mistake: Mistake, photographs: Photographs | None) -> Picture:
    if photographs is None:
        return Picture(mistake, f"photograph {mistake.photograph}", b"")
    place = photographs.name(mistake.photograph)
    name = "/".join(re.split(r"[\\/]", place)[-2:])  # a report may travel; where its photographs lay need not
    try:
        image = decode_image(photographs.read(mistake.photograph).image)
    except (OSError, DecodeError) as error:
        return Picture(mistake, name, b"", str(error).replace(place, name))
    return Picture(mistake, name, small_jpeg(image, PICTURE_SIDE, PICTURE_BYTES))
