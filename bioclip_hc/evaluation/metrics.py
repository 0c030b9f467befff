"""How right a hierarchical prediction is.

# N images, R ranks, T taxa

Everything is computed from one matrix, the probability that the prediction is right at each rank: 0 or 1 for
predictions, between them for a guess. So a system and chance are scored by the same lines.

Ranks that a truth does not know are skipped: they are neither right nor wrong. To leave out the ranks that a
benchmark lacks, set them to -1 in the truth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.taxonomy import RANKS, Taxonomy


@dataclass(frozen=True)
class Score:
    """Scores of one system under one protocol; None where nothing could be measured.

    For `chance`, counts and shares are expectations.
    """

    images: int
    """Images scored: those whose truth is known at one rank or more."""
    known: tuple[int, ...]
    """(R,) images whose truth is known at the rank."""
    accuracy: tuple[float | None, ...]
    """(R,) top-1 accuracy over ALL images known at the rank."""
    average: float | None
    """Mean of `accuracy` over the ranks present."""
    on_path: tuple[float, ...]
    """(R,) images known at the rank whose known ranks above are all right."""
    on_path_accuracy: tuple[float | None, ...]
    """(R,) top-1 accuracy over those images."""
    first_error: tuple[float, ...]
    """(R + 1,) images by the rank of their first error; the last bin counts those with none."""
    nlca: float | None
    """Mean share of an image's known ranks that come before its first error (nLCA, S-POR by prefix)."""
    full_path: float | None
    """Share of images right at every known rank (HCA, FPA)."""
    consistency: float | None
    """Share of predictions that are a path of the tree; TICE is 1 - consistency."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def score(predictions: ArrayLike, truth: ArrayLike, taxonomy: Taxonomy) -> Score:
    """Score predicted taxa.

    Args:
        predictions: (N, R) int64 taxon ids, -1 = none.
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
        taxonomy: what the ids mean.

    Raises:
        ValueError: shapes that differ, an id out of range or of another rank.
    """
    predicted = checked_taxa("predictions", predictions, taxonomy)
    true = checked_taxa("truth", truth, taxonomy)
    if predicted.shape != true.shape:
        raise ValueError(
            f"predictions and truth must have one row per image, got {predicted.shape} and {true.shape}"
        )
    known = true >= 0
    right = (predicted == true) & known
    return _summary(right.astype(np.int64), known, path_share(predicted, taxonomy))


def chance(truth: ArrayLike, taxonomy: Taxonomy, candidates: np.ndarray | None = None) -> Score:
    """The expected score of a uniform guess among the candidates of each rank, ranks independent.

    Args:
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
        taxonomy: what the ids mean.
        candidates: (T,) bool, the taxa that may be guessed; None = all. A truth outside is never met.
    """
    true = checked_taxa("truth", truth, taxonomy)
    allowed = np.ones(taxonomy.size, dtype=bool) if candidates is None else np.asarray(candidates, dtype=bool)
    probability = _guess_probability(taxonomy, allowed)
    known = true >= 0
    hit = np.where(known, probability[true], 0.0)
    return _summary(hit, known, _guess_consistency(taxonomy, allowed, probability))


def path_share(predictions: np.ndarray, taxonomy: Taxonomy) -> float | None:
    """Share of predictions whose taxa lie on one path of the tree.

    The deepest predicted taxon is the path's end; every prediction above it must be its ancestor. A rank that
    this taxon's lineage does not name is not held against the prediction, for an independent protocol has to
    answer there too. Images without any prediction are left out.
    """
    deepest = predictions.max(axis=1, initial=-1)  # ids are rank-major: the deepest has the largest
    some = deepest >= 0
    if not some.any():
        return None
    path, predicted = taxonomy.lineages[deepest[some]], predictions[some]
    fits = (predicted == path) | (predicted < 0) | (path < 0)
    return float(fits.all(axis=1).mean())


def checked_taxa(name: str, taxa: ArrayLike, taxonomy: Taxonomy) -> np.ndarray:
    """`taxa` as an (N, R) int64 array of ids that stand at their own rank.

    Raises:
        ValueError: another shape, an id out of range or of another rank.
    """
    ids = np.asarray(taxa)
    if ids.ndim != 2 or ids.shape[1] != len(RANKS) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be (N, {len(RANKS)}) integers, got {ids.dtype} of shape {ids.shape}")
    ids = ids.astype(np.int64, copy=False)
    stray = (ids < -1) | (ids >= taxonomy.size)
    if stray.any():
        i, r = np.argwhere(stray)[0]
        raise ValueError(f"{name}[{i}, {r}] must be -1 or a taxon id below {taxonomy.size}, got {ids[i, r]}")
    stray = (ids >= 0) & (taxonomy.rank[ids] != np.arange(len(RANKS)))
    if stray.any():
        i, r = np.argwhere(stray)[0]
        raise ValueError(
            f"{name}[{i}, {r}] must be a taxon of rank {RANKS[r]}, "
            f"got {ids[i, r]} of rank {RANKS[taxonomy.rank[ids[i, r]]]}"
        )
    return ids


def _summary(hit: np.ndarray, known: np.ndarray, consistency: float | None) -> Score:
    """Score of (N, R) probabilities of being right; integer 0/1 hits give integer counts."""
    labelled = known.any(axis=1)
    hit, known = hit[labelled], known[labelled]
    passed = np.cumprod(np.where(known, hit, 1), axis=1)  # no error down to and including this rank
    reached = np.concatenate([np.ones_like(passed[:, :1]), passed[:, :-1]], axis=1)

    on_path = (reached * known).sum(axis=0)
    accuracy = _ratio((hit * known).sum(axis=0), known.sum(axis=0))
    present = [a for a in accuracy if a is not None]
    depth = (passed * known).sum(axis=1) / known.sum(axis=1)
    return Score(
        images=len(hit),
        known=tuple(known.sum(axis=0).tolist()),
        accuracy=accuracy,
        average=float(np.mean(present)) if present else None,
        on_path=tuple(on_path.tolist()),
        on_path_accuracy=_ratio((passed * known).sum(axis=0), on_path),
        first_error=(*(reached - passed).sum(axis=0).tolist(), passed[:, -1].sum().item()),
        nlca=float(depth.mean()) if len(depth) else None,
        full_path=float(passed[:, -1].mean()) if len(passed) else None,
        consistency=consistency,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(p / w) if w > 0 else None for p, w in zip(part, whole, strict=True))


def _guess_probability(taxonomy: Taxonomy, allowed: np.ndarray) -> np.ndarray:
    """(T,) the probability that a uniform guess at the taxon's rank is that taxon."""
    size = np.bincount(taxonomy.rank[allowed], minlength=len(RANKS))
    return allowed / np.maximum(size, 1)[taxonomy.rank]


def _guess_consistency(taxonomy: Taxonomy, allowed: np.ndarray, probability: np.ndarray) -> float | None:
    """Probability that independent guesses are a path: the mean over the deepest rank's candidates of the
    chance to guess all their ancestors."""
    if not allowed.any():
        return None
    guessed = np.isin(np.arange(len(RANKS)), taxonomy.rank[allowed])
    ends = np.flatnonzero(allowed & (taxonomy.rank == taxonomy.rank[allowed].max()))
    path = taxonomy.lineages[ends]
    asked = (path >= 0) & guessed & (path != ends[:, None])
    return float(np.where(asked, probability[path], 1.0).prod(axis=1).mean())
