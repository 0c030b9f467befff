"""How right a hierarchical prediction is.

# N images, R ranks, T taxa

What asks only whether each rank is right is computed from one matrix, the probability of being right at each rank:
0 or 1 for predictions, between them for a guess. So a system and chance are scored by the same lines. What asks
where in the tree a wrong answer lies is in `hierarchy`.

Ranks that a truth does not know are skipped: they are neither right nor wrong, and the known ranks above and below
are neighbours. To leave out the ranks that a benchmark lacks, set them to -1 in the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bioclip_hc.evaluation.hierarchy import Parts, tree_parts
from bioclip_hc.taxonomy import RANKS, Taxonomy

ONE_VALUE = (
    *("nlca", "full_path", "por", "s_por_run", "tor", "consistency"),
    *("lca_height", "mistake_height", "tree_distance", "h_precision", "h_recall", "h_f1"),
)  # measures that are one number, in Score's order


@dataclass(frozen=True)
class Score:
    """Scores of one system under one protocol; None where nothing could be measured.

    Means over images leave out those of which nothing is known. For `chance`, counts and shares are expectations,
    and what depends on the place of a wrong answer (lca_height ... h_f1) is None.
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
    """Mean share of an image's known ranks that come before its first error: nLCA (arXiv 2606.21838), or S-POR by
    prefix. With complete lineages and predictions that are paths it equals `average`."""
    full_path: float | None
    """Share of images right at every known rank: HCA (Wu, Ho and Vasconcelos, CVPR 2024), FPA (Park et al.,
    arXiv 2406.11608)."""
    por: float | None
    """Mean share of an image's known ranks that are right: POR (Yi et al., ECCV 2022)."""
    s_por_run: float | None
    """Mean share of an image's known ranks in its longest run of right ones: S-POR by run (arXiv 2603.00431,
    equation 7). At least `nlca`, at most `por`."""
    tor: float | None
    """Mean share of an image's neighbouring known ranks that are both right: TOR (arXiv 2603.00431, equation 8);
    images known at one rank only have none and are left out."""
    consistency: float | None
    """Share of predictions that are a path of the tree; TICE is 1 - consistency."""
    lca_height: float | None
    """Mean height of the lowest common ancestor of prediction and truth, in ranks that the truth knows."""
    mistake_height: float | None
    """The same over images where it is not 0: how bad mistakes are."""
    tree_distance: float | None
    """Mean number of edges between the predicted and the true node."""
    h_precision: float | None
    """Hierarchical precision: the true ones among all taxa claimed, ancestors included."""
    h_recall: float | None
    """Hierarchical recall: the claimed ones among all true taxa, ancestors included."""
    h_f1: float | None
    """Their harmonic mean."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return _plain(asdict(self))


def score(predictions: ArrayLike, truth: ArrayLike, taxonomy: Taxonomy) -> Score:
    """Score predicted taxa.

    Args:
        predictions: (N, R) int64 taxon ids, -1 = none.
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.
        taxonomy: what the ids mean.

    Raises:
        ValueError: shapes that differ, an id out of range or of another rank.
    """
    return summary(score_parts(predictions, truth, taxonomy))


def score_parts(predictions: ArrayLike, truth: ArrayLike, taxonomy: Taxonomy) -> dict[str, Parts]:
    """All measures of `score` but `average`, as the per-image numerators and denominators that `summary` sums.

    Arguments and errors are those of `score`.
    """
    predicted = checked_taxa("predictions", predictions, taxonomy)
    true = checked_taxa("truth", truth, taxonomy)
    if predicted.shape != true.shape:
        raise ValueError(
            f"predictions and truth must have one row per image, got {predicted.shape} and {true.shape}"
        )
    known = true >= 0
    right = (predicted == true) & known
    return rank_parts(right.astype(np.int64), known) | tree_parts(predicted, true, taxonomy)


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
    return replace(summary(rank_parts(hit, known)), consistency=_guess_consistency(taxonomy, allowed, probability))


def top_k(answers: ArrayLike, truth: ArrayLike, taxonomy: Taxonomy) -> tuple[float | None, ...]:
    """(R,) share of images whose true taxon is among the k answers, over all images known at the rank.

    Args:
        answers: (N, R, k) int64 taxon ids in any order, -1 = none.
        truth: (N, R) int64 taxon ids, -1 = unknown or left out.

    Raises:
        ValueError: as `score`.
    """
    ids = np.asarray(answers)
    true = checked_taxa("truth", truth, taxonomy)
    if ids.ndim != 3 or ids.shape[:2] != true.shape:
        raise ValueError(f"answers must be {(*true.shape, 'k')} taxon ids, got shape {ids.shape}")
    found = np.zeros(true.shape, dtype=bool)
    for j in range(ids.shape[2]):
        found |= checked_taxa(f"answers[:, :, {j}]", ids[:, :, j], taxonomy) == true
    known = true >= 0
    return _ratio((found & known).sum(axis=0), known.sum(axis=0))


def rank_parts(hit: np.ndarray, known: np.ndarray) -> dict[str, Parts]:
    """The measures that ask only which ranks are right, by name.

    Args:
        hit: (N, R) probability of being right, ranks independent; integers 0 and 1 give integer counts.
        known: (N, R) bool.
    """
    hit = hit * known
    size: np.ndarray = known.sum(axis=1)
    labelled = size > 0
    passed = np.cumprod(np.where(known, hit, 1), axis=1)  # no error down to and including this rank
    reached = np.concatenate([np.ones_like(passed[:, :1]), passed[:, :-1]], axis=1)
    first_error = np.concatenate([reached - passed, passed[:, -1:]], axis=1)
    pairs = _both_right(hit, known)
    share = np.maximum(size, 1)
    return {
        "accuracy": (hit, known),
        "on_path_accuracy": (passed * known, reached * known),
        "first_error": (first_error * labelled[:, None], np.repeat(labelled[:, None], first_error.shape[1], 1)),
        "nlca": ((passed * known).sum(axis=1) / share, labelled),
        "full_path": (passed[:, -1] * labelled, labelled),
        "por": (hit.sum(axis=1) / share, labelled),
        "s_por_run": (_longest_run(hit, known) / share, labelled),
        "tor": (pairs / np.maximum(size - 1, 1), size > 1),
    }


def summary(parts: Mapping[str, Parts]) -> Score:
    """The score of all images that `parts` has; a measure it lacks is None."""
    sums = {name: (part.sum(axis=0), whole.sum(axis=0)) for name, (part, whole) in parts.items()}
    value = {name: _ratio(*sums[name]) for name in sums}
    present = [a for a in value["accuracy"] if a is not None]
    return Score(
        images=int(sums["first_error"][1][0]),
        known=tuple(sums["accuracy"][1].tolist()),
        accuracy=value["accuracy"],
        average=float(np.mean(present)) if present else None,
        on_path=tuple(sums["on_path_accuracy"][1].tolist()),
        on_path_accuracy=value["on_path_accuracy"],
        first_error=tuple(sums["first_error"][0].tolist()),
        **{name: value[name][0] if name in value else None for name in ONE_VALUE},
    )


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


def _longest_run(hit: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) the expected length of the longest run of right ranks, unknown ones taken out.

    The length is the number of k = 1 ... R that it reaches, and for each k the state is the probability that no run
    has reached k and the present one has c right ranks.
    """
    length = np.zeros(len(hit), hit.dtype)
    for k in range(1, hit.shape[1] + 1):
        state = np.zeros((k, len(hit)), hit.dtype)
        state[0] = 1
        for right, present in zip(hit.T, known.T, strict=True):
            broken = state.sum(axis=0) * (1 - right)
            state = np.where(present, np.concatenate([broken[None], state[:-1] * right]), state)
        length += 1 - state.sum(axis=0)
    return length


def _both_right(hit: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) expected number of neighbouring known ranks that are both right."""
    above, both = np.zeros(len(hit), hit.dtype), np.zeros(len(hit), hit.dtype)  # nothing above the first is right
    for right, present in zip(hit.T, known.T, strict=True):
        both += above * right  # 0 where unknown
        above = np.where(present, right, above)
    return both


def _ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, ...]:
    pairs = zip(np.atleast_1d(part), np.atleast_1d(whole), strict=True)
    return tuple(float(p / w) if w > 0 else None for p, w in pairs)


def _plain(value: Any) -> Any:
    """Tuples as lists, whatever holds them."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


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
