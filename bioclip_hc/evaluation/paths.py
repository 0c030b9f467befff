"""The best path of the tree for each image, and how sure each step of it is.

# N images, T taxa, D embed, R ranks, I taxa with candidates below them
# b images of a block, n texts of a tile
# z what `Similarity.block` gives; bits: logarithms of base 2

A path runs from a root down to a leaf of the tree restricted to the candidates. The log-probability of a taxon is
the log-softmax of the logits over the candidates of its rank, the posterior that level-restricted training fits,
and a path's score is the mean of those of its taxa. The mean, not the sum: each is at most 0, so that of two paths
that are equally sure at every rank a sum prefers the one that skips a rank, or ends early. For paths with as many
taxa (all of a complete taxonomy) both order alike.

The search is exact, and one pass over the products. Ranks are visited downwards, and an image's sum over each path
so far is kept for the I taxa that have something below them; leaves only compete. All leaves of one rank and depth
share the normaliser of their rank, so that the winner among them is known before the normaliser is. Held are
(n, b) tiles that fit a cache and I sums an image of the block, never (N, T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bioclip_hc.evaluation.protocols import candidate_parent, checked_candidates
from bioclip_hc.kernels.objective import compute_dtype
from bioclip_hc.kernels.similarity import Similarity
from bioclip_hc.taxonomy import RANKS, Taxonomy

TILE_TEXTS, TILE_IMAGES = 1024, 256  # 1 MiB of fp32: a tile and its scratch stay in a core's cache


@dataclass(frozen=True)
class Paths:
    """One path of the tree for each image.

    taxa (N, R) int64, -1 at ranks that the path skips; log_probability (N, R) float32, of the taxon among the
    candidates of its rank, 0 where there is none.
    """

    taxa: np.ndarray
    log_probability: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """(N,) mean log-probability over the path's taxa; -inf where there is no path."""
        known = (self.taxa >= 0).sum(axis=1)
        total = self.log_probability.sum(axis=1)
        return np.where(known > 0, total / np.maximum(known, 1), -np.inf)

    @property
    def confidence(self) -> np.ndarray:
        """(N, R) float32: the least probability of the path's taxa down to each rank; 0 where there is no taxon.

        A taxon is right only if those above it are, so it cannot be surer than they: the least is the upper
        bound of the probability that all are right (Frechet's), and falls along a path.
        """
        least = np.minimum.accumulate(np.exp(self.log_probability), axis=1)
        return np.where(self.taxa >= 0, least, 0).astype(np.float32)


@torch.no_grad()
def best_paths(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    *,
    scale: float | Tensor,
    curv: float | Tensor = 1.0,
    geometry: str,
    space: str = "tangent",
    candidates: np.ndarray | None = None,
    block: int = 1024,
) -> Paths:
    """The path with the largest mean log-probability, of all paths from a root to a leaf, and its steps.

    Arguments and errors are those of `coarse_to_fine`. An image with features that are not finite gets no path.
    Equal scores: the leaf of the higher rank, then the smaller id.
    """
    allowed = checked_candidates(image, text, taxonomy, candidates)
    tree = _Tree(taxonomy, allowed)
    similarity = Similarity(scale, curv, geometry, space, image)
    taxa = np.full((len(image), len(RANKS)), -1, dtype=np.int64)
    logs = np.zeros(taxa.shape, dtype=np.float32)
    for start in range(0, len(image), block):
        rows = slice(start, start + block)
        search = _Search(tree, similarity, image[rows])
        for groups in tree.groups:
            for group in groups:
                search.visit(group, text)
            search.end_rank(groups)
        taxa[rows], logs[rows] = search.result()
    return Paths(taxa, logs)


def full_path(
    image: Tensor,
    text: Tensor,
    taxonomy: Taxonomy,
    *,
    scale: float | Tensor,
    curv: float | Tensor = 1.0,
    geometry: str,
    space: str = "tangent",
    candidates: np.ndarray | None = None,
    block: int = 1024,
) -> np.ndarray:
    """The taxa of `best_paths`: (N, R) int64, -1 at ranks that the path skips.

    Arguments and errors are those of `coarse_to_fine`.
    """
    return best_paths(
        image,
        text,
        taxonomy,
        scale=scale,
        curv=curv,
        geometry=geometry,
        space=space,
        candidates=candidates,
        block=block,
    ).taxa


@dataclass(frozen=True)
class _Group:
    """Taxa of one rank that are treated alike: those with candidates below, or the leaves at one depth."""

    taxa: np.ndarray  # (n,) ids, rising
    above: np.ndarray  # (n,) slot of the parent
    slots: slice | None  # their own slots; None: leaves
    known: int  # taxa on a leaf's path


class _Tree:
    """The tree restricted to the candidates, as groups to visit. Slot 0 stands above the roots."""

    def __init__(self, taxonomy: Taxonomy, allowed: np.ndarray) -> None:
        parent = candidate_parent(taxonomy, allowed)
        nodes = np.flatnonzero(allowed)
        inner = np.zeros(taxonomy.size, dtype=bool)
        inner[parent[nodes][parent[nodes] >= 0]] = True
        self.slot = np.zeros(taxonomy.size + 1, dtype=np.int64)  # one more: a root's parent, -1, is slot 0
        self.slot[:-1][inner] = 1 + np.arange(inner.sum())
        self.slots = 1 + int(inner.sum())
        self.paths = np.where(allowed[taxonomy.lineages] & (taxonomy.lineages >= 0), taxonomy.lineages, -1)
        known = (self.paths >= 0).sum(axis=1)
        self.groups: list[list[_Group]] = []
        for r in range(len(RANKS)):
            taxa = taxonomy.at_rank(r)
            taxa = taxa[allowed[taxa]]
            groups = [
                (taxa[inner[taxa]], 0),
                *((taxa[~inner[taxa] & (known[taxa] == k)], k) for k in range(1, r + 2)),
            ]
            self.groups.append([self._group(part, parent, k) for part, k in groups if len(part)])

    def _group(self, taxa: np.ndarray, parent: np.ndarray, known: int) -> _Group:
        slots = None if known else slice(int(self.slot[taxa[0]]), int(self.slot[taxa[-1]]) + 1)
        return _Group(taxa, self.slot[parent[taxa]], slots, known)


class _Best:
    """The best so far of each image of a block: how good, and which taxon; -inf and -1 before the first."""

    def __init__(self, images: int, like: Tensor) -> None:
        self.value = like.new_full((images,), -math.inf)
        self.taxon = torch.full((images,), -1, dtype=torch.int64, device=like.device)

    def merge(self, columns: slice, sums: Tensor, taxa: Tensor) -> None:
        """Take in a tile of sums (n, b); the places are looked for only where the tile is better."""
        value, taxon = self.value[columns], self.taxon[columns]
        better = (sums.amax(0) > value).nonzero().flatten()
        if len(better):
            top, place = (sums if len(better) == len(value) else sums[:, better]).max(0)
            value[better], taxon[better] = top, taxa[place]


class _Search:
    """One block of images on its way down the tree. Sums are in bits."""

    def __init__(self, tree: _Tree, similarity: Similarity, image: Tensor) -> None:
        self.tree, self.similarity, self.device = tree, similarity, image.device
        like = image.new_empty(0, dtype=compute_dtype(image))
        self.parts = [slice(i, min(i + TILE_IMAGES, len(image))) for i in range(0, len(image), TILE_IMAGES)]
        self.images = [similarity.images(image[part]) for part in self.parts]
        self.sums = [like.new_zeros(tree.slots, part.stop - part.start) for part in self.parts]  # by slot
        self.lse = like.new_full((len(image),), -math.inf)  # of this rank
        self.best = _Best(len(image), like)  # mean over the path
        self.total = like.new_zeros(len(image))  # sum over that path
        self.leaves: dict[int, _Best] = {}  # of this rank, by the number of taxa on the path; sums without lse
        self._buffers = like.new_empty(2, TILE_TEXTS * min(TILE_IMAGES, len(image)))

    def visit(self, group: _Group, text: Tensor) -> None:
        """Meet a group's taxa."""
        for start in range(0, len(group.taxa), TILE_TEXTS):
            tile = slice(start, start + TILE_TEXTS)
            taxa, above = (torch.from_numpy(ids[tile]).to(self.device) for ids in (group.taxa, group.above))
            factors = self.similarity.texts(text[taxa])
            for i, part in enumerate(self.parts):
                z, scratch = self._tile(len(taxa), part)
                self.similarity.block(factors, self.images[i], z, scratch)
                self._normalise(z, scratch, self.lse[part])
                sums = torch.index_select(self.sums[i], 0, above, out=scratch).add_(z, alpha=self.similarity.gain)
                if group.slots is not None:
                    first = group.slots.start + start
                    self.sums[i][first : first + len(taxa)] = sums
                else:
                    if group.known not in self.leaves:
                        self.leaves[group.known] = _Best(len(self.lse), self.lse)
                    self.leaves[group.known].merge(part, sums, taxa)

    def end_rank(self, groups: list[_Group]) -> None:
        """All taxa of the rank have been met: subtract its normaliser; its leaves compete with those above."""
        for group in groups:
            if group.slots is not None:
                for sums, part in zip(self.sums, self.parts, strict=True):
                    sums[group.slots] -= self.lse[part]
        for known, found in self.leaves.items():
            total = found.value - self.lse
            better = total / known > self.best.value
            self.best.value = torch.where(better, total / known, self.best.value)
            self.best.taxon = torch.where(better, found.taxon, self.best.taxon)
            self.total = torch.where(better, total, self.total)
        self.leaves = {}
        self.lse.fill_(-math.inf)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Taxa (b, R) of the best paths and their log-probabilities (b, R), natural logarithms."""
        leaf = self.best.taxon.cpu().numpy()
        taxa = np.where(leaf[:, None] >= 0, self.tree.paths[leaf], -1)
        slots = torch.from_numpy(np.where(taxa >= 0, self.tree.slot[taxa], 0)).to(self.device)
        sums = torch.cat([s.T.gather(1, slots[part]) for s, part in zip(self.sums, self.parts, strict=True)])
        bits = torch.where(slots > 0, sums, self.total[:, None]).cpu().numpy()  # a leaf has no slot
        logs = np.zeros(taxa.shape, dtype=np.float32)
        so_far = np.zeros_like(bits[:, 0])
        for r in range(len(RANKS)):
            here = np.where(taxa[:, r] >= 0, bits[:, r], so_far)
            logs[:, r] = np.minimum((here - so_far) * math.log(2), 0)
            so_far = here
        return taxa, logs

    def _tile(self, texts: int, part: slice) -> tuple[Tensor, Tensor]:
        images = part.stop - part.start
        z, scratch = (buffer[: texts * images].view(texts, images) for buffer in self._buffers)
        return z, scratch

    def _normalise(self, z: Tensor, scratch: Tensor, lse: Tensor) -> None:
        """Take a tile into the running log2 of the sum of 2^bits, in place."""
        gain = self.similarity.gain
        top = (z.amax(0) if gain >= 0 else z.amin(0)).mul_(gain)
        total = torch.add(-top, z, alpha=gain, out=scratch).exp2_().sum(0)
        torch.logaddexp2(lse, total.log2_().add_(top), out=lse)
