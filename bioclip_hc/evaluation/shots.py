"""How well a few labelled images of each taxon tell the others apart, without any text.

# N images, D embed, R ranks
# of one draw at one rank: C taxa, S = C * shots support images, Q query images

A draw takes `shots` images at random of every taxon of the rank that has more; these support, and the rest of
those taxa's images are the queries. Nearest centroid (SimpleShot, arXiv 1911.04623): features made unit, less the
support's mean, made unit again, and class means; the nearest mean by Euclidean distance. In hyperbolic space the
class means are Lorentz centroids sum x / (sqrt(c) | |sum x|_L |) (Law et al., ICML 2019), or means of tangent
vectors, and the nearest is by geodesic distance. All is done by `kernels.rank_topk`: no (Q, S) matrix is held.

(The module is not called few_shot: Python would then bind that name of the package to it, over the function.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from bioclip_hc.evaluation.metrics import checked_taxa
from bioclip_hc.evaluation.protocols import finite_rows
from bioclip_hc.kernels import exp_map0, rank_topk
from bioclip_hc.kernels.objective import check_geometry
from bioclip_hc.taxonomy import RANKS, Taxonomy, rank_index

METHODS = ("centroid", "tangent", "cosine", "knn")
QUERIES = 4096  # asked at once


@dataclass(frozen=True)
class FewShot:
    """Accuracies of few-shot classification; NaN at a rank where fewer than two taxa have enough images.

    accuracy (seeds, R): share of queries named right; classes (R,), queries (R,): how many taxa, and queries of a
    draw.
    """

    accuracy: np.ndarray
    classes: np.ndarray
    queries: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(R,) over the seeds."""
        return self.accuracy.mean(axis=0)

    @property
    def std(self) -> np.ndarray:
        """(R,) over the seeds, of the sample; 0 for a single seed."""
        return self.accuracy.std(axis=0, ddof=min(1, len(self.accuracy) - 1))


@torch.no_grad()
def few_shot(
    embedding: Tensor,
    taxa: ArrayLike,
    taxonomy: Taxonomy,
    *,
    shots: int,
    seeds: int | Iterable[int] = 5,
    method: str = "centroid",
    neighbours: int = 1,
    geometry: str,
    curv: float = 1.0,
    rank: str | None = None,
) -> FewShot:
    """Few-shot accuracy at every rank, over several draws.

    Args:
        embedding: (N, D) float image embeddings: tangent vectors at the origin for "lorentz", else any features.
        taxa: (N, R) int64 taxon ids, -1 = unknown.
        taxonomy: what the ids mean.
        shots: labelled images of each taxon.
        seeds: how many draws, of seeds 0, 1, ..., or their seeds.
        method: "centroid": SimpleShot, or in "lorentz" Lorentz centroids. "tangent": in "lorentz" means of tangent
            vectors, mapped to the hyperboloid. "cosine": SimpleShot in either geometry, which leaves out the
            radius. "knn": the majority of the nearest support images, by distance or cosine; of taxa with as
            many, the one with the nearest image.
        neighbours: k of "knn".
        geometry: "lorentz" or "euclidean"; curv: c > 0.
        rank: the only rank to classify at; by default each.

    Returns:
        FewShot; deterministic in its arguments.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """
    classify = _classifier(method, neighbours, geometry, curv)
    if embedding.ndim != 2 or not embedding.is_floating_point():
        raise ValueError(f"embedding must be float (N, D), got {embedding.dtype} of shape {tuple(embedding.shape)}")
    broken = np.flatnonzero(~finite_rows(embedding))
    if len(broken):
        raise ValueError(f"embedding must be finite, got NaN or infinity in {len(broken)} rows, first {broken[0]}")
    labels = checked_taxa("taxa", taxa, taxonomy)
    if len(labels) != len(embedding):
        raise ValueError(f"taxa must have a row for each of {len(embedding)} images, got {len(labels)}")
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    draws = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not draws:
        raise ValueError(f"seeds must name one draw or more, got {seeds!r}")
    vectors = embedding if embedding.dtype == torch.float64 else embedding.float()
    accuracy = np.full((len(draws), len(RANKS)), math.nan)
    classes, queries = (np.zeros(len(RANKS), dtype=np.int64) for _ in range(2))
    for r in range(len(RANKS)) if rank is None else [rank_index(rank)]:
        usable, label = _usable(labels[:, r], shots)
        classes[r] = label.max(initial=-1) + 1
        if classes[r] < 2:
            continue
        queries[r] = len(usable) - shots * classes[r]
        for d, seed in enumerate(draws):
            support, query = _drawn(label, shots, np.random.default_rng((seed, r)))
            rows = [torch.from_numpy(usable[part]).to(vectors.device) for part in (support, query)]
            named = classify(
                vectors[rows[0]], torch.from_numpy(label[support]).to(vectors.device), vectors, rows[1]
            )
            accuracy[d, r] = float((named.cpu().numpy() == label[query]).mean())
    return FewShot(accuracy, classes, queries)


def _usable(taxa: np.ndarray, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n,) of taxa with more than `shots`, and their labels (n,), 0, 1, ... in order of the taxa."""
    known = np.flatnonzero(taxa >= 0)
    _, label, count = np.unique(taxa[known], return_inverse=True, return_counts=True)
    enough = count[label] > shots
    return known[enough], np.unique(label[enough], return_inverse=True)[1]


def _drawn(label: np.ndarray, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `shots` images of each label, label by label, and of all others."""
    shuffled = rng.permutation(len(label))
    shuffled = shuffled[np.argsort(label[shuffled], kind="stable")]
    place = np.arange(len(label)) - np.searchsorted(label[shuffled], label[shuffled])
    return shuffled[place < shots], np.sort(shuffled[place >= shots])


# -- classifiers: support (S, D), its labels (S,), all vectors (N, D) and which are queries (Q,) -> labels (Q,) ---

Classifier = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _classifier(method: str, neighbours: int, geometry: str, curv: float) -> Classifier:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    check_geometry(geometry, "tangent")
    if not (curv > 0 and math.isfinite(curv)):
        raise ValueError(f"curv must be positive, got {curv}")
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    if method == "knn":
        return partial(_neighbours, neighbours, geometry, curv)
    if method == "tangent":
        if geometry != "lorentz":
            raise ValueError("method 'tangent' needs geometry 'lorentz'; take 'centroid'")
        return partial(_by_distance, tangent_mean, curv)
    if method == "centroid" and geometry == "lorentz":
        return partial(_by_distance, lorentz_centroid, curv)
    return _simple_shot


def lorentz_centroid(v: Tensor, label: Tensor, curv: float) -> Tensor:
    """(C, D) space components of the Lorentz centroid of each label's points; v (S, D) tangent vectors.

    In float64: of points that are near each other and far from the origin, time and space are almost equal, and the
    difference of their squares is what counts (in fp32 it is noise from a distance of 7 on).
    """
    x = exp_map0(v.double(), curv)
    space = _sums(x, label)
    time = _sums((1 / curv + x.square().sum(1, keepdim=True)).sqrt(), label)
    lorentz = time.square() - space.square().sum(1, keepdim=True)
    return (space / (math.sqrt(curv) * lorentz.sqrt())).to(v.dtype)


def tangent_mean(v: Tensor, label: Tensor, curv: float) -> Tensor:
    """(C, D) space components of the points of each label's mean tangent vector; v (S, D) tangent vectors."""
    return exp_map0(_sums(v, label) / label.bincount()[:, None], curv)


def _by_distance(
    centre: Callable[[Tensor, Tensor, float], Tensor],
    curv: float,
    support: Tensor,
    label: Tensor,
    vectors: Tensor,
    query: Tensor,
) -> Tensor:
    centres = centre(support, label, curv)
    return _nearest(
        lambda v: exp_map0(v, curv), vectors, query, centres, 1, geometry="lorentz", space="hyperboloid", curv=curv
    )[:, 0]


def _simple_shot(support: Tensor, label: Tensor, vectors: Tensor, query: Tensor) -> Tensor:
    mean = normalize(support, dim=1).mean(0)

    def centred(v: Tensor) -> Tensor:
        return normalize(normalize(v, dim=1) - mean, dim=1)

    means = _sums(centred(support), label) / label.bincount()[:, None]
    # |x - m|^2 falls as <x, m> - |m|^2 / 2 rises: one more coordinate makes it a product
    means = torch.cat([means, means.square().sum(1, keepdim=True) / -2], 1)
    return _nearest(
        lambda v: torch.nn.functional.pad(centred(v), (0, 1), value=1.0),
        vectors, query, means, 1, geometry="euclidean", space="unit",
    )[:, 0]  # fmt: skip


def _neighbours(
    k: int, geometry: str, curv: float, support: Tensor, label: Tensor, vectors: Tensor, query: Tensor
) -> Tensor:
    near = _nearest(lambda v: v, vectors, query, support, k, geometry=geometry, space="tangent", curv=curv)
    votes = label[near]  # (Q, k), nearest first
    count = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return votes.gather(1, count.argmax(1, keepdim=True))[:, 0]  # of equals the first


def _nearest(
    as_points: Callable[[Tensor], Tensor],
    vectors: Tensor,
    query: Tensor,
    points: Tensor,
    k: int,
    *,
    geometry: str,
    space: str,
    curv: float = 1.0,
) -> Tensor:
    """(Q, min(k, points)) int64: the nearest of the points (P, D) to each query, nearest first."""
    one_rank = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    k = min(k, len(points))
    found = [
        rank_topk(
            as_points(vectors[rows]), points, one_rank, 1.0, curv, geometry=geometry, space=space, k=k, ranks=1
        )[1][:, 0]
        for rows in query.split(QUERIES)
    ]
    return torch.cat(found)


def _sums(x: Tensor, label: Tensor) -> Tensor:
    """(C, D) sums of the rows of each label."""
    return x.new_zeros(int(label.max()) + 1, x.shape[1]).index_add_(0, label, x)
