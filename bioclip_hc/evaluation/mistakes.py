"""Where predictions leave the tree's true path: which taxa lose most images, and which mistakes are the worst.

# N images, R ranks, T taxa
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bioclip_hc.evaluation.hierarchy import tree_parts
from bioclip_hc.taxonomy import RANKS, Taxonomy

SAME_TAXON = 2  # of the worst mistakes, at most this many of one true taxon: or all would be of one


@dataclass(frozen=True)
class Loss:
    """A taxon at which images leave their true path: right above it, wrong at it."""

    taxon: tuple[str, ...]
    """Its path."""
    rank: str
    reached: int
    """Images of it that were right at all known ranks above."""
    lost: int
    """Those of them that are wrong at it."""
    taken_for: tuple[str, ...]
    """The path of what most of them were taken for; () where most got no answer."""
    taken_for_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Mistake:
    """One image that was named wrongly."""

    photograph: int
    """Its number in the benchmark."""
    truth: tuple[str, ...]
    """(R,) the true names, "" where unknown."""
    prediction: tuple[str, ...]
    """(R,) the predicted names, "" where none was given."""
    rank: str
    """Of the first error."""
    ancestor: tuple[str, ...]
    """Path of the lowest common ancestor of the truth and the deepest answer; () is the root."""
    height: int
    """Known ranks of the truth below that ancestor."""
    probability: float | None
    """What the system says of its answer at that rank."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def losses(predictions: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy, count: int = 10) -> list[Loss]:
    """The `count` taxa at which most images leave their true path; of equal ones the upper, then by path.

    Args:
        predictions: (N, R) taxon ids, -1 = none; truth: (N, R), -1 = unknown.
    """
    first = first_errors(predictions, truth)
    reached, lost = (np.zeros(taxonomy.size, np.int64) for _ in range(2))
    for r in range(len(RANKS)):
        known = truth[:, r] >= 0
        reached += np.bincount(truth[known & (first >= r), r], minlength=taxonomy.size)
        lost += np.bincount(truth[first == r, r], minlength=taxonomy.size)
    worst = np.lexsort((np.arange(taxonomy.size), -lost))[:count]
    return [_loss(t, predictions, truth, first, taxonomy, int(reached[t])) for t in worst.tolist() if lost[t]]


def _loss(
    t: int, predictions: np.ndarray, truth: np.ndarray, first: np.ndarray, taxonomy: Taxonomy, reached: int
) -> Loss:
    r = int(taxonomy.rank[t])
    answers = predictions[(first == r) & (truth[:, r] == t), r]
    answer, images = min(Counter(answers.tolist()).items(), key=lambda item: (-item[1], item[0]))
    taken_for = taxonomy.path(answer) if answer >= 0 else ()
    return Loss(taxonomy.path(t), RANKS[r], reached, len(answers), taken_for, images)


def first_errors(predictions: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) the rank of each image's first error, R where it has none."""
    wrong = (truth >= 0) & (predictions != truth)
    return np.where(wrong.any(axis=1), wrong.argmax(axis=1), truth.shape[1])


def worst_mistakes(
    indices: np.ndarray,
    predictions: np.ndarray,
    truth: np.ndarray,
    taxonomy: Taxonomy,
    probability: np.ndarray,
    count: int,
) -> list[Mistake]:
    """The mistakes that are farthest off, and of those as far the surest first; of equal ones the earlier image.

    How far is the height of the lowest common ancestor (`hierarchy.tree_parts`), how sure the probability of the
    answer at the first error. At most `SAME_TAXON` are of one true taxon.

    Args:
        indices: (N,) numbers of the photographs.
        predictions: (N, R) taxon ids, -1 = none; truth: (N, R), -1 = unknown.
        probability: (N, R) of the predictions.
    """
    first = first_errors(predictions, truth)
    wrong = np.flatnonzero(first < truth.shape[1])
    if not len(wrong):
        return []
    height = tree_parts(predictions[wrong], truth[wrong], taxonomy)["lca_height"][0]
    sure = probability[wrong, first[wrong]]
    order = wrong[np.lexsort((indices[wrong], -sure, -height))]
    height_of = dict(zip(wrong.tolist(), height.tolist(), strict=True))
    shown: Counter[int] = Counter()
    found: list[Mistake] = []
    for i in order.tolist():
        if len(found) == count:
            break
        deepest = int(truth[i].max())
        shown[deepest] += 1
        if shown[deepest] <= SAME_TAXON:
            found.append(_mistake(i, first[i], indices, predictions, truth, taxonomy, probability, height_of[i]))
    return found


def _mistake(
    i: int,
    rank: int,
    indices: np.ndarray,
    predictions: np.ndarray,
    truth: np.ndarray,
    taxonomy: Taxonomy,
    probability: np.ndarray,
    height: int,
) -> Mistake:
    deepest = int(taxonomy.rank[truth[i].max()])
    node = int(predictions[i, : deepest + 1].max())
    shared = truth[i][(truth[i] >= 0) & (truth[i] == taxonomy.lineages[node])] if node >= 0 else truth[i][:0]
    return Mistake(
        photograph=int(indices[i]),
        truth=_names(truth[i], taxonomy),
        prediction=_names(predictions[i], taxonomy),
        rank=RANKS[rank],
        ancestor=taxonomy.path(int(shared[-1])) if len(shared) else (),
        height=height,
        probability=float(probability[i, rank]) if predictions[i, rank] >= 0 else None,
    )


def _names(ids: np.ndarray, taxonomy: Taxonomy) -> tuple[str, ...]:
    return tuple(taxonomy.name(t) if t >= 0 else "" for t in ids.tolist())
