"""When to stop naming: calibrated abstention along the best path, and what it costs.

# N images, R ranks, n decisions, G thresholds

`abstain` names a path as deep as its confidence allows (`Paths.confidence`: the least softmax probability, over the
candidates of each rank, from the root down). A rank's softmax is the posterior that level-restricted training
fits, rank by rank; sums over the leaves' softmax would use the hardest rank alone to judge the easy ones. As
the least falls along a path, what passes a threshold is a path of the tree.

A decision is one image at one rank: how sure, and whether it was right. `risk_coverage` draws what every threshold
would give; `certified_threshold` chooses one that holds on images to come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bioclip_hc.evaluation.paths import best_paths
from bioclip_hc.taxonomy import Taxonomy

# Probabilities whose odds are spread evenly, 1:1000 to 1,000,000:1, and 0, at which every decision is taken
GRID = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-math.log(1e3), math.log(1e6), 63)))])


def abstain(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    *,
    threshold: float,
    scale: float | Tensor,
    curv: float | Tensor = 1.0,
    geometry: str,
    space: str = "tangent",
    candidates: np.ndarray | None = None,
    block: int = 1024,
) -> np.ndarray:
    """The best path down to the deepest rank whose confidence is at least `threshold`; 0 never abstains.

    Other arguments, result and errors are those of `coarse_to_fine`; -1 below where it stops.
    """
    paths = best_paths(
        image,
        text,
        taxonomy,
        scale=scale,
        curv=curv,
        geometry=geometry,
        space=space,
        candidates=candidates,
        block=block,
    )
    return stopped(paths.taxa, paths.confidence, threshold)


def stopped(taxa: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Paths (N, R) of taxa, -1 where the confidence (N, R) is below the threshold."""
    return np.where(confidence >= threshold, taxa, -1)


@dataclass(frozen=True)
class RiskCoverage:
    """What every threshold gives, from the strictest on: (m,) each, m distinct confidences.

    threshold: a decision is taken if its confidence is at least this; coverage: share of decisions taken; risk:
    share of wrong ones among them; area: the mean risk over coverages from 0 to 1 (AURC), each step at the risk of
    its end.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    area: float


def risk_coverage(confidence: ArrayLike, right: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv and Wiener, JMLR 2010) of n decisions.

    Args:
        confidence: (n,) float, how sure each decision is.
        right: (n,) bool, whether it was right. Leave out decisions whose truth is unknown.

    Raises:
        ValueError: shapes that differ, no decision, or a confidence that is not a number.
    """
    sure, hit = _decisions(confidence, right)
    order = np.argsort(-sure, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))  # equal confidences are taken together
    risk = np.cumsum(~hit[order])[ends] / (ends + 1)
    coverage = (ends + 1) / len(sure)
    return RiskCoverage(sure[order][ends], coverage, risk, float((np.diff(coverage, prepend=0) * risk).sum()))


def certified_threshold(
    confidence: ArrayLike, right: ArrayLike, *, target: float, delta: float = 0.05, grid: ArrayLike = GRID
) -> float:
    """The least threshold whose risk is shown to be at most `target`; inf where none is, that is: name nothing.

    With probability at least 1 - delta over the draw of these n decisions, at most `target` of further decisions
    that pass the threshold are wrong, if they come from the same distribution (each image once, all of one
    rank). The proof is a union bound: given how many of the n pass a threshold of the grid, which was fixed
    beforehand, the wrong ones among them are binomial; the Clopper-Pearson upper bound of their share at level
    delta / G fails with that probability, and all G hold together with 1 - delta, so that any may be chosen.

    Args:
        confidence, right: as in `risk_coverage`, of data held out from training and from what will be reported.
        target: the largest share of wrong decisions that is allowed, in (0, 1).
        delta: the probability that it is exceeded after all, in (0, 1).
        grid: (G,) thresholds, chosen without looking at `right` or `confidence`.

    Raises:
        ValueError: as `risk_coverage`, or a target, delta or grid out of range.
    """
    sure, hit = _decisions(confidence, right)
    for name, value in (("target", target), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}")
    thresholds = np.sort(np.asarray(grid, dtype=np.float64))
    if thresholds.ndim != 1 or not len(thresholds) or np.isnan(thresholds).any():
        raise ValueError(f"grid must be one or more thresholds (G,), got shape {thresholds.shape}")
    for threshold in thresholds:
        taken = sure >= threshold
        wrong = int((taken & ~hit).sum())
        if _at_most(wrong, int(taken.sum()), target) <= delta / len(thresholds):
            return float(threshold)
    return math.inf


def certified_thresholds(
    confidence: np.ndarray, taxa: np.ndarray, truth: np.ndarray, *, target: float, delta: float = 0.05
) -> np.ndarray:
    """(R,) the least threshold of each rank whose risk there is shown to be at most `target`; inf where none is.

    At each rank this holds as in `certified_threshold`. The thresholds rise from the root down, so that what is
    named is a path: all of the grid are shown at once, any of them may be chosen, and so may the least above that
    of the rank before. Where the truth of none that is named is known nothing is shown: inf, there and below. A
    rank at which nothing is named is inf too, but says nothing of those below.

    Args:
        confidence, taxa, truth: (N, R) of paths (`best_paths`) and of their truth, -1 = none.
    """
    thresholds = np.full(truth.shape[1], math.inf)
    least = -math.inf
    for r in range(truth.shape[1]):
        named = taxa[:, r] >= 0
        if not named.any():
            continue
        decided = named & (truth[:, r] >= 0)
        grid = GRID[least <= GRID]
        if not decided.any() or not len(grid):
            break
        right = taxa[decided, r] == truth[decided, r]
        share = delta * len(grid) / len(GRID)  # the same level for each threshold as if all were tried
        least = certified_threshold(confidence[decided, r], right, target=target, delta=share, grid=grid)
        thresholds[r] = least
    return thresholds


def _at_most(wrong: int, count: int, share: float) -> float:
    """Probability of at most `wrong` of `count` where each is wrong with probability `share`.

    Clopper and Pearson's upper bound at level alpha is at most `share` exactly where this is at most alpha.
    """
    k = torch.arange(wrong + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    return float((ways + k * math.log(share) + (count - k) * math.log1p(-share)).logsumexp(0).exp())


def _decisions(confidence: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sure, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right)
    if sure.ndim != 1 or sure.shape != hit.shape or hit.dtype != bool:
        raise ValueError(
            f"confidence must be (n,) numbers and right (n,) bool, got {sure.shape} and {hit.dtype} {hit.shape}"
        )
    if not len(sure) or np.isnan(sure).any():
        raise ValueError(f"there must be one decision or more, each with a confidence, got {sure[:5]}")
    return sure, hit
