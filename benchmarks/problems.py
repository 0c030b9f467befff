"""The batches that bench_kernels.py and tune.py measure: features, labels, and what they cost.

# M images, N texts, D embed, R ranks

Three modes of one op (see `level_infonce`):

- dense: M pairs at one rank, every taxon once: CLIP's problem, or MERU's;
- sorted: M pairs over seven equal ranks, each image supervised at its own text's rank only. The ranks are
  interleaved, so that sorting is part of what is measured;
- all_ranks: every image supervised at all seven ranks, each taxon of the batch encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

MODES = ("dense", "sorted", "all_ranks")
GEOMETRIES = ("euclidean", "lorentz")
RANKS = 7
LOGIT_SCALE = 1 / 0.07  # CLIP, section 2.5
# A tree of life of the size of TreeOfLife-10M's, kingdoms to species, and how often its species are pictured: a
# power law that gives a batch of 32,768 images about 30,000 taxa over the seven ranks.
TAXA_OF_RANK = (3, 60, 200, 1000, 8000, 80_000, 400_000)
POPULARITY_EXPONENT, POPULARITY_SHIFT = 1.3, 100


@dataclass(frozen=True)
class Problem:
    """One batch, ready for every way of computing its loss."""

    mode: str
    geometry: str
    image: Tensor  # (M, D) leaf; unit rows (euclidean) or tangent vectors (lorentz)
    text: Tensor  # (N, D) leaf, likewise
    scale: Tensor  # () fp32 leaf, float64 for float64 features
    curv: Tensor  # () likewise; takes part in lorentz only
    image_taxa: Tensor  # (M, R) int64, -1 = not supervised
    text_rank: Tensor  # (N,) int64
    text_taxon: Tensor  # (N,) int64
    own: Tensor  # (M, R) the text of each image's taxon at each rank, -1 = not supervised
    ranks: tuple[tuple[Tensor, Tensor], ...]  # per rank: the images supervised there, and its texts

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the loss is differentiated by."""
        inputs = (self.image, self.text, self.scale)
        return (*inputs, self.curv) if self.geometry == "lorentz" else inputs

    @property
    def pairs(self) -> int:
        """How many (image, text) logits the objective needs: the sum over ranks of images times texts."""
        return sum(len(images) * len(texts) for images, texts in self.ranks)


def make_problem(
    mode: str, geometry: str, images: int, width: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """A batch of that many images, the same for the same arguments; an image's own text is that of its lowest rank.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    generator = torch.Generator().manual_seed(0)
    taxa = _lineages(images, generator) if mode == "all_ranks" else _pairs(images, 1 if mode == "dense" else RANKS)
    text_rank, text_taxon = _texts(taxa)
    own = _own_text(taxa, text_rank, text_taxon)
    image, text = _features(own.max(dim=1).values.to(device), len(text_rank), width)
    if geometry == "lorentz":  # tangent vectors of radius 1/2 to 3/2
        image, text = (x * torch.linspace(0.5, 1.5, len(x), device=device)[:, None] for x in (image, text))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    ranks = tuple(
        ((taxa[:, r] >= 0).nonzero().flatten().to(device), (text_rank == r).nonzero().flatten().to(device))
        for r in range(taxa.shape[1])
    )
    return Problem(
        mode,
        geometry,
        image.to(device, dtype).requires_grad_(),
        text.to(device, dtype).requires_grad_(),
        torch.tensor(LOGIT_SCALE, dtype=compute, device=device).requires_grad_(),
        torch.tensor(1.0, dtype=compute, device=device).requires_grad_(),
        taxa.to(device),
        text_rank.to(device),
        text_taxon.to(device),
        own.to(device),
        ranks,
    )


def _features(own: Tensor, texts: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit rows (M, D) and (N, D), each image at about 45 degrees to its own text, (M,); made where `own` is."""
    generator = torch.Generator(own.device).manual_seed(0)
    text, noise = (
        normalize(torch.randn(rows, width, generator=generator, device=own.device), dim=1)
        for rows in (texts, len(own))
    )
    return normalize(text[own] + noise, dim=1), text


def _pairs(images: int, ranks: int) -> Tensor:
    """(M, R) taxa of images that have one text each, at rank i mod R."""
    i = torch.arange(images)
    taxa = torch.full((images, ranks), -1)
    taxa[i, i % ranks] = i
    return taxa


def expected_texts(images: int) -> list[float]:
    """How many taxa of each rank a batch of that many random images holds, on average: sum of 1 - (1 - p)^M.

    Which species are the common ones is drawn, as for a batch, but once.
    """
    return [float(-(images * absent).expm1().sum()) for absent in _log_absent()]


@cache
def _log_absent() -> list[Tensor]:
    """Of each rank, (taxa,) float64 log(1 - p), with p a taxon's chance to be that of a random image."""
    species, chance = TAXA_OF_RANK[-1], _popularity()
    leaf = torch.randperm(species, generator=torch.Generator().manual_seed(0))
    share = chance / chance.sum()
    return [(-share.new_zeros(taxa).index_add_(0, leaf * taxa // species, share)).log1p() for taxa in TAXA_OF_RANK]


def _popularity() -> Tensor:
    """(species,) float64: how often each is pictured, the commonest first; not normalised."""
    return (torch.arange(TAXA_OF_RANK[-1], dtype=torch.float64) + POPULARITY_SHIFT) ** -POPULARITY_EXPONENT


def _lineages(images: int, generator: torch.Generator) -> Tensor:
    """(M, 7) taxa of random species."""
    species = TAXA_OF_RANK[-1]
    chance = _popularity()
    draw = torch.rand(images, generator=generator, dtype=torch.float64) * chance.sum()
    place = torch.searchsorted(chance.cumsum(0), draw).clamp_max(species - 1)
    leaf = torch.randperm(species, generator=generator)[place]
    return torch.stack([leaf * taxa // species for taxa in TAXA_OF_RANK], 1)


def _texts(taxa: Tensor) -> tuple[Tensor, Tensor]:
    """Rank and taxon (N,) of every taxon that occurs, each once.

    In the order of the images where each image has its own text, so that text i is image i's.
    """
    known = taxa >= 0
    if bool((known.sum(1) == 1).all()):
        return known.long().argmax(1), taxa.max(1).values
    found = [taxa[known[:, r], r].unique() for r in range(taxa.shape[1])]
    rank = torch.cat([torch.full_like(ids, r) for r, ids in enumerate(found)])
    return rank, torch.cat(found)


def _own_text(taxa: Tensor, text_rank: Tensor, text_taxon: Tensor) -> Tensor:
    """(M, R) index of the text of each image's taxon, -1 = none."""
    own = torch.full_like(taxa, -1)
    for r in range(taxa.shape[1]):
        texts = (text_rank == r).nonzero().flatten()
        taxon, order = text_taxon[texts].sort()
        images = (taxa[:, r] >= 0).nonzero().flatten()
        own[images, r] = texts[order[torch.searchsorted(taxon, taxa[images, r])]]
    return own
