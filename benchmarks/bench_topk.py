"""rank_topk beside the matrix of logits and torch.topk of each rank, and beside the bare products: time and memory.

# M = 4096 images, N texts of R = 7 ranks, each about twice the one above; k the best of each rank

With candidate lists each image chooses among 16 texts of each rank, as a top-down evaluation does after the first
rank; the dense way masks the others. It and the products, the base, run in blocks of 256 images, so that what they
hold is bounded too.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from peers import OURS, meru_distance, meru_exp_map0
from problems import GEOMETRIES, LOGIT_SCALE
from recording import Call, equal, name, record
from torch import Tensor
from torch.nn.functional import normalize

from bioclip_hc.kernels import rank_topk

M, D, RANKS, BLOCK = 4096, 512, 7, 256
SIZES = (10_000, 20_000, 30_000)
LIST = 16  # texts of each rank that an image chooses among
PRODUCTS, DENSE = "bare products", "torch matmul + topk"
ROUNDS = 2  # and one call for memory; the dense way is timed in that one alone
CHECKED_N = 20_000


class Search(NamedTuple):
    """Images, the texts of all ranks, rank by rank, and each image's candidates, if it has a list."""

    geometry: str
    image: Tensor  # (M, D)
    text: Tensor  # (N, D)
    text_rank: Tensor  # (N,)
    indptr: Tensor  # (M + 1,)
    indices: Tensor  # (M * R * LIST,)


def sizes_of_ranks(n: int, ranks: int = RANKS) -> list[int]:
    """Texts of each rank: doubling, N together."""
    sizes = [n * 2**r // (2**ranks - 1) for r in range(ranks)]
    return [*sizes[:-1], n - sum(sizes[:-1])]


@cache
def search(geometry: str, n: int, images: int = M, width: int = D, listed: int = LIST) -> Search:
    """Features of random directions, tangent vectors of radius 1/2 to 3/2 for Lorentz; lists of neighbours."""
    generator = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(rows, width, generator=generator), dim=1) for rows in (images, n))
    if geometry == "lorentz":
        image, text = (x * torch.linspace(0.5, 1.5, len(x))[:, None] for x in (image, text))
    sizes = torch.tensor(sizes_of_ranks(n))
    room = sizes.clamp_max(listed)
    starts = (torch.rand(images, RANKS, generator=generator) * (sizes - room + 1)).long()
    first = sizes.cumsum(0) - sizes + starts  # (M, R)
    indices = torch.cat([first[:, r, None] + torch.arange(int(room[r])) for r in range(RANKS)], 1)
    indptr = torch.arange(images + 1) * indices.shape[1]
    return Search(geometry, image, text, torch.arange(RANKS).repeat_interleave(sizes), indptr, indices.flatten())


# -- the ways -------------------------------------------------------------------------------------------------


def ours(s: Search, k: int, lists: bool) -> tuple[Tensor, Tensor]:
    """This package's."""
    return rank_topk(
        s.image, s.text, s.text_rank, LOGIT_SCALE, 1.0,
        geometry=s.geometry, space="unit" if s.geometry == "euclidean" else "tangent", k=k, ranks=RANKS,
        candidates=(s.indptr, s.indices) if lists else None,
    )  # fmt: skip


def dense(s: Search, k: int, lists: bool) -> tuple[Tensor, Tensor]:
    """All logits of a block of images, then torch.topk of each rank. Ranks of fewer than k texts are padded."""
    one = s.image.new_ones(())
    text = s.text if s.geometry == "euclidean" else meru_exp_map0(s.text, one)
    sizes = s.text_rank.bincount(minlength=RANKS).tolist()
    score = s.image.new_full((len(s.image), RANKS, k), -math.inf)
    index = torch.full(score.shape, -1)
    for start in range(0, len(s.image), BLOCK):
        rows = slice(start, start + BLOCK)
        image = s.image[rows]
        if s.geometry == "euclidean":
            l = (image @ text.T).mul_(LOGIT_SCALE)
        else:
            l = meru_distance(meru_exp_map0(image, one), text, one).mul_(-LOGIT_SCALE)
        if lists:
            l = only_listed(l, s.indptr, s.indices, start)
        first = 0
        for r, size in enumerate(sizes):
            best, where = l[:, first : first + size].topk(min(k, size))
            score[rows, r, : best.shape[1]] = best
            index[rows, r, : best.shape[1]] = torch.where(best > -math.inf, where + first, -1)
            first += size
    return score, index


def only_listed(l: Tensor, indptr: Tensor, indices: Tensor, start: int) -> Tensor:
    """Logits (b, N) of images `start` onwards, -inf where a text is not on the image's list."""
    bounds = indptr[start : start + len(l) + 1]
    columns = indices[bounds[0] : bounds[-1]]
    row = torch.arange(len(l)).repeat_interleave(bounds.diff())
    masked = torch.full_like(l, -math.inf)
    masked[row, columns] = l[row, columns]
    return masked


def products(s: Search) -> tuple[Tensor, ...]:
    """The matrix products of all images and texts, and nothing else."""
    out = s.image.new_empty(BLOCK, len(s.text))
    for image in s.image.split(BLOCK):
        torch.mm(image, s.text.T, out=out[: len(image)])
    return ()


def call_of(way: str, s: Search, k: int, lists: bool) -> Call:
    """That way as a call."""
    if way == PRODUCTS:
        return lambda: products(s)
    return lambda: (ours if way == OURS else dense)(s, k, lists)


# -- the benchmark --------------------------------------------------------------------------------------------


def cases() -> list[tuple[str, int, int, bool, str]]:
    """Geometry, N, k, lists and way, those of one group beside each other."""
    return [
        (geometry, n, k, lists, way)
        for geometry in GEOMETRIES
        for n in SIZES
        for lists in (False, True)
        for k in ((1, 5) if n == SIZES[-1] else (1,))
        for way in (PRODUCTS, OURS, DENSE)
    ]


def in_check(n: int, k: int, way: str, **_: Any) -> bool:
    """What make bench-check measures again: ours and the products."""
    return n == CHECKED_N and k == 1 and way != DENSE


def group_of(geometry: str, n: int, k: int, lists: bool) -> str:
    return f"rank_topk {geometry}{' of lists' * lists}, {M} x {n}, k = {k}"


@pytest.mark.parametrize(("geometry", "n", "k", "lists", "way"), cases())
def test_topk(benchmark: Any, geometry: str, n: int, k: int, lists: bool, way: str) -> None:
    """Time and peak memory; ours also says whether two runs are bitwise equal."""
    name(benchmark, group_of(geometry, n, k, lists), way, base=way == PRODUCTS)
    s = search(geometry, n)
    small = search(geometry, 500, 64)
    if way != PRODUCTS:
        agree(small, k, lists)
    call_of(way, small, k, lists)()
    first, last = record(benchmark, call_of(way, s, k, lists), 0 if way == DENSE else ROUNDS)
    if way == OURS:
        benchmark.extra_info["repeatable"] = equal(first, last)


def agree(s: Search, k: int, lists: bool) -> None:
    """Assert that both ways find the same scores; equal scores may come in another order."""
    (mine, _), (theirs, _) = ours(s, k, lists), dense(s, k, lists)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
