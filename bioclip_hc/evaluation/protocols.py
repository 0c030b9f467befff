"""From embeddings to one predicted taxon per image and rank.

# N images, T taxa (one text each), D embed, R ranks, m images of a block

Both protocols ask the same question, "which text of this set is nearest?", through `kernels.rank_topk`, and
differ only in the set:

- coarse-to-fine: at every rank all candidates of that rank, each rank for itself;
- top-down: at every rank the candidates below the taxon predicted so far.

No (N, T) matrix is held, whatever N and T.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.kernels import rank_topk
from bioclip_hc.taxonomy import RANKS, Taxonomy

LIST_BUDGET = 1 << 20  # candidate entries of one top-down block: 8 MiB of indices


@torch.no_grad()
def coarse_to_fine(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    *,
    scale: float | Tensor,
    curv: float | Tensor = 1.0,
    geometry: str,
    space: str = "tangent",
    candidates: np.ndarray | None = None,
    block: int = 4096,
) -> np.ndarray:
    """The best candidate of each rank, ranks independent of each other.

    Args:
        image: (N, D) image embeddings.
        text: (T, D) text embeddings, row t the text of taxon t.
        taxonomy: the T taxa.
        scale, curv, geometry, space: the model's, as in `kernels.level_infonce`.
        candidates: (T,) bool, the taxa that may be predicted; None = all.
        block: images scored at once.

    Returns:
        (N, R) int64 taxon ids, -1 at a rank without candidates, and throughout for an image with features that are
        not finite. Equal scores: the smaller id.

    Raises:
        ValueError: shapes that do not fit the taxonomy, or the text of a candidate that is not finite.
    """
    allowed = checked_candidates(image, text, taxonomy, candidates)
    nodes = np.flatnonzero(allowed)
    if len(nodes) < taxonomy.size:
        text = text[torch.from_numpy(nodes).to(text.device)]
    text_rank = torch.from_numpy(taxonomy.rank[nodes])

    predictions = np.full((len(image), len(RANKS)), -1, dtype=np.int64)
    if not len(nodes):
        return predictions
    for start in range(0, len(image), block):
        rows = slice(start, start + block)
        _, index = rank_topk(
            image[rows], text, text_rank, scale, curv, geometry=geometry, space=space, ranks=len(RANKS)
        )
        predictions[rows] = _taxa(nodes, index[:, :, 0])
    predictions[~finite_rows(image)] = -1
    return predictions


@torch.no_grad()
def top_down(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    *,
    scale: float | Tensor,
    curv: float | Tensor = 1.0,
    geometry: str,
    space: str = "tangent",
    candidates: np.ndarray | None = None,
    block: int = 4096,
) -> np.ndarray:
    """Descend the tree: at each rank the best candidate among the children of the taxon predicted so far.

    Every image stands on a taxon, at first above the roots. At rank r it may move to the taxa of rank r whose
    parent it stands on (`candidate_parent`: the tree restricted to the candidates); if there is none, the
    prediction at r is -1 and the image stays. Where the children of one taxon lie at several ranks (a class
    with orders, and with families that have no order), an image that moves to an order has left the families
    beside it behind. So a prediction is always a path of the tree, and a wrong turn is never mended.

    Arguments, result and errors are those of `coarse_to_fine`.
    """
    allowed = checked_candidates(image, text, taxonomy, candidates)
    parent = candidate_parent(taxonomy, allowed)

    predictions = np.full((len(image), len(RANKS)), -1, dtype=np.int64)
    standing = np.full(len(image), -1, dtype=np.int64)
    for r in range(len(RANKS)):
        nodes = taxonomy.at_rank(r)
        nodes = nodes[allowed[nodes]]
        nodes = nodes[np.argsort(parent[nodes], kind="stable")]  # siblings side by side: a list is a range
        first = np.searchsorted(parent[nodes], standing, side="left")
        count = np.searchsorted(parent[nodes], standing, side="right") - first

        movable = np.flatnonzero(count)
        node_text = text[torch.from_numpy(nodes).to(text.device)]
        one_rank = torch.zeros(len(nodes), dtype=torch.int64)
        for part in _blocks(count[movable], block):
            rows = movable[part]
            indptr, indices = _ranges(first[rows], count[rows])
            _, index = rank_topk(
                image[torch.from_numpy(rows).to(image.device)],
                node_text,
                one_rank,
                scale,
                curv,
                geometry=geometry,
                space=space,
                candidates=(torch.from_numpy(indptr), torch.from_numpy(indices)),
                ranks=1,
            )
            predictions[rows, r] = _taxa(nodes, index[:, 0, 0])
        standing = np.where(predictions[:, r] >= 0, predictions[:, r], standing)
    predictions[~finite_rows(image)] = -1
    return predictions


def candidate_parent(taxonomy: Taxonomy, candidates: np.ndarray) -> np.ndarray:
    """(T,) int64: the nearest ancestor that is a candidate, -1 where there is none.

    With all taxa (or a set closed under ancestors) this is `taxonomy.parent`; where a benchmark leaves out the
    upper ranks, its topmost taxa become the roots.
    """
    ancestors = taxonomy.lineages.copy()
    ancestors[np.arange(taxonomy.size), taxonomy.rank] = -1  # a taxon is not its own ancestor
    ancestors[~candidates[ancestors]] = -1  # (an unknown rank reads the last entry and stays -1)
    return ancestors.max(axis=1)  # ids are rank-major: the deepest ancestor has the largest


def _ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CSR lists (indptr, indices) with list i = first[i], first[i] + 1, ... , count[i] of them."""
    indptr = np.concatenate([[0], np.cumsum(count)])
    return indptr, np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], count)


def _blocks(count: np.ndarray, block: int) -> Iterator[slice]:
    """Runs of at most `block` images whose lists hold at most LIST_BUDGET entries together (or one image)."""
    total = np.concatenate([[0], np.cumsum(count)])
    start = 0
    while start < len(count):
        fits = int(np.searchsorted(total, total[start] + LIST_BUDGET, side="right")) - 1
        stop = max(start + 1, min(start + block, fits))
        yield slice(start, stop)
        start = stop


def _taxa(nodes: np.ndarray, index: Tensor) -> np.ndarray:
    """Taxon ids of indices into `nodes`; -1 stays -1."""
    found = index.cpu().numpy()
    return np.where(found >= 0, nodes[found], -1)


def checked_candidates(
    image: Tensor, text: Tensor, taxonomy: Taxonomy, candidates: np.ndarray | None
) -> np.ndarray:
    """(T,) bool, the taxa that may be predicted.

    Raises:
        ValueError: what does not fit the taxonomy, or the text of a candidate that is not finite: it would be
            nearest to nothing, and make every probability of its rank NaN.
    """
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image and text must be (N, D) and (T, D), got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if len(text) != taxonomy.size:
        raise ValueError(
            f"text must hold one row per taxon: the taxonomy has {taxonomy.size} taxa, got {len(text)} rows"
        )
    allowed = np.ones(taxonomy.size, dtype=bool) if candidates is None else np.asarray(candidates)
    if allowed.shape != (taxonomy.size,) or allowed.dtype != bool:
        raise ValueError(
            f"candidates must be a bool mask of shape ({taxonomy.size},), one entry per taxon, "
            f"got {allowed.dtype} of shape {allowed.shape}"
        )
    broken = np.flatnonzero(allowed & ~finite_rows(text))
    if len(broken):
        raise ValueError(
            f"text must be finite, got NaN or infinity for {len(broken)} taxa, the first "
            f"{' '.join(taxonomy.path(broken[0]))!r}; is the model damaged?"
        )
    return allowed


def finite_rows(x: Tensor) -> np.ndarray:
    """(N,) bool: rows of x (N, D) that are finite numbers throughout; no copy of x is made."""
    least, largest = torch.aminmax(x, dim=1)  # NaN where there is one
    return (least.isfinite() & largest.isfinite()).cpu().numpy()
