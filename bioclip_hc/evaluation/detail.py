"""All that can be said of one system's predictions: its score, how sure that is, and for which images it holds.

# N images, R ranks, T taxa, k answers per rank
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from bioclip_hc.evaluation.calibration import Calibration, calibration
from bioclip_hc.evaluation.intervals import Intervals, bootstrap
from bioclip_hc.evaluation.metrics import Score, score_parts, summary, top_k
from bioclip_hc.evaluation.ordering import root_order
from bioclip_hc.evaluation.strata import HEAD, strata
from bioclip_hc.taxonomy import Taxonomy


@dataclass(frozen=True)
class DetailedScore(Score):
    """A score and what belongs to it."""

    top_k: tuple[float | None, ...] | None
    """(R,) share of images whose true taxon is among the k answers; None: a protocol of one answer."""
    top_k_average: float | None
    """Mean of `top_k` over the ranks present."""
    k: int
    calibration: Calibration | None
    """None: no probabilities were given."""
    intervals: Intervals
    """Bootstrap intervals of the score."""
    strata: Mapping[str, DetailedScore] | None
    """head, tail, unseen: the same of those images alone; None: no training counts were given."""
    head: int
    """Training images from which a taxon is of the head."""
    root_order: float | None
    """Kendall's tau between rank and distance from the root of the taxa's embeddings, whatever is predicted; None:
    no distances were given."""


def detailed(
    predictions: np.ndarray,
    truth: np.ndarray,
    taxonomy: Taxonomy,
    *,
    answers: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    counts: np.ndarray | None = None,
    head: int = HEAD,
    distance: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DetailedScore:
    """Score predictions with everything that the further arguments allow.

    Args:
        predictions, truth: (N, R) int64, as in `metrics.score`.
        answers: (N, R, k) int64, as in `metrics.top_k`.
        probability: (N, R), as in `calibration.calibration`.
        counts: (T,) int, head: as in `strata.strata`.
        distance: (T,), as in `ordering.root_order`.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: as these functions.
    """
    parts = score_parts(predictions, truth, taxonomy)
    score = summary(parts)
    by_frequency: dict[str, DetailedScore] | None = None
    if counts is not None:
        by_frequency = {
            name: detailed(
                predictions[rows],
                truth[rows],
                taxonomy,
                answers=None if answers is None else answers[rows],
                probability=None if probability is None else probability[rows],
                head=head,
                resamples=resamples,
                seed=seed,
            )
            for name, rows in strata(truth, counts, taxonomy, head).items()
        }
    best = None if answers is None else top_k(answers, truth, taxonomy)
    present = [share for share in best or () if share is not None]
    return DetailedScore(
        **{field.name: getattr(score, field.name) for field in fields(Score)},
        top_k=best,
        top_k_average=float(np.mean(present)) if present else None,
        k=1 if answers is None else answers.shape[2],
        calibration=None if probability is None else calibration(probability, predictions, truth, taxonomy),
        intervals=bootstrap(parts, resamples=resamples, seed=seed),
        strata=by_frequency,
        head=head,
        root_order=None if distance is None else root_order(distance, taxonomy),
    )
