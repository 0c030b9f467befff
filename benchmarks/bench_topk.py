"""rank_topk beside the matrix of logits and torch.topk of each rank, and beside the bare products: time and memory.

# M = 4096 images, N texts of R = 7 ranks, each about twice the one above; k the best of each rank

With candidate lists each image chooses among 16 texts of each rank, as a top-down evaluation does after the first
rank; the dense way masks the others, and another gathers the listed texts and multiplies by them alone. All these
run in blocks of 256 images, so that what they hold is bounded too. The base is the products of all images and
texts; of lists, the gathering way. Scores and texts are checked against the dense logits in the benchmark itself.
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
GATHERED = "torch gather + bmm"  # of lists only
ROUNDS = 2  # and one call for memory, which warms up
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


def embedded(s: Search, x: Tensor) -> Tensor:
    """Features as they enter the products: on the hyperboloid for Lorentz."""
    return x if s.geometry == "euclidean" else meru_exp_map0(x, x.new_ones(()))


def logits_of(s: Search, image: Tensor, text: Tensor) -> Tensor:
    """(b, N) logits of some images and of texts that are embedded already."""
    if s.geometry == "euclidean":
        return (image @ text.T).mul_(LOGIT_SCALE)
    return meru_distance(embedded(s, image), text, image.new_ones(())).mul_(-LOGIT_SCALE)


def dense(s: Search, k: int, lists: bool) -> tuple[Tensor, Tensor]:
    """All logits of a block of images, then torch.topk of each rank. Ranks of fewer than k texts are padded."""
    text = embedded(s, s.text)
    sizes = s.text_rank.bincount(minlength=RANKS).tolist()
    score = s.image.new_full((len(s.image), RANKS, k), -math.inf)
    index = torch.full(score.shape, -1)
    for start in range(0, len(s.image), BLOCK):
        rows = slice(start, start + BLOCK)
        l = logits_of(s, s.image[rows], text)
        if lists:
            l = only_listed(l, s.indptr, s.indices, start)
        first = 0
        for r, size in enumerate(sizes):
            best, where = l[:, first : first + size].topk(min(k, size))
            score[rows, r, : best.shape[1]] = best
            index[rows, r, : best.shape[1]] = torch.where(best > -math.inf, where + first, -1)
            first += size
    return score, index


def gathered(s: Search, k: int, lists: bool = True) -> tuple[Tensor, Tensor]:
    """The listed texts of a block of images, their products, torch.topk of each rank. Every list is as long."""
    assert lists, "without lists there is nothing to gather"
    columns = s.indices.view(len(s.image), -1)  # (M, R * LIST), rank by rank
    ranks = s.text_rank[columns[0]].bincount(minlength=RANKS).tolist()
    image, text = embedded(s, s.image), embedded(s, s.text)
    if s.geometry == "lorentz":
        image_time, text_time = ((1 + x.square().sum(1)).sqrt() for x in (image, text))
    score = s.image.new_full((len(s.image), RANKS, k), -math.inf)
    index = torch.full(score.shape, -1)
    for start in range(0, len(s.image), BLOCK):
        rows = slice(start, start + BLOCK)
        own = columns[rows]
        l = torch.bmm(text[own], image[rows, :, None])[..., 0]
        if s.geometry == "lorentz":
            l = (image_time[rows, None] * text_time[own] - l).clamp_min(1 + 1e-8).acosh().neg()
        first = 0
        for r, size in enumerate(ranks):
            best, where = l[:, first : first + size].topk(min(k, size))
            score[rows, r, : best.shape[1]] = best * LOGIT_SCALE
            index[rows, r, : best.shape[1]] = own.gather(1, where + first)
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
    return lambda: FINDERS[way](s, k, lists)


FINDERS = {OURS: ours, DENSE: dense, GATHERED: gathered}


def base_of(lists: bool) -> str:
    return GATHERED if lists else PRODUCTS


# -- the benchmark --------------------------------------------------------------------------------------------


def cases() -> list[tuple[str, int, int, bool, str]]:
    """Geometry, N, k, lists and way, those of one group beside each other."""
    return [
        (geometry, n, k, lists, way)
        for geometry in GEOMETRIES
        for n in SIZES
        for lists in (False, True)
        for k in ((1, 5) if n == SIZES[-1] else (1,))
        for way in (base_of(lists), OURS, DENSE)
    ]


def in_check(n: int, k: int, way: str, **_: Any) -> bool:
    """What make bench-check measures again: ours and the base."""
    return n == CHECKED_N and k == 1 and way != DENSE


def group_of(geometry: str, n: int, k: int, lists: bool) -> str:
    return f"rank_topk {geometry}{' of lists' * lists}, {M} x {n}, k = {k}"


@pytest.mark.parametrize(("geometry", "n", "k", "lists", "way"), cases())
def test_topk(benchmark: Any, geometry: str, n: int, k: int, lists: bool, way: str) -> None:
    """Time and peak memory; ours also says whether two runs are bitwise equal."""
    name(benchmark, group_of(geometry, n, k, lists), way, base=way == base_of(lists))
    s = search(geometry, n)
    small = search(geometry, 500, 64)
    call_of(way, small, k, lists)()
    first, last = record(benchmark, call_of(way, s, k, lists), ROUNDS)
    if way != PRODUCTS:
        agree(s, lists, *last)
    if way == OURS:
        benchmark.extra_info["repeatable"] = equal(first, last)


def agree(s: Search, lists: bool, score: Tensor, index: Tensor) -> None:
    """Assert that scores and texts are right: of a block of images the best scores of the dense logits, in order.

    The dense logits at the texts that were found must be the scores; which of equal texts is found is open.
    """
    few = s._replace(image=s.image[:BLOCK], indptr=s.indptr[: BLOCK + 1])
    score, index = score[:BLOCK], index[:BLOCK]
    expected, _ = dense(few, score.shape[2], lists)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)
    found = index >= 0
    assert torch.equal(found, expected > -math.inf), "texts are missing, or there are some where none is"
    l = logits_of(few, few.image, embedded(few, few.text))
    if lists:
        l = only_listed(l, few.indptr, few.indices, 0)
    at = l.gather(1, index.clamp_min(0).flatten(1)).view_as(index)
    torch.testing.assert_close(at[found], score[found], rtol=1e-3, atol=1e-3)
    rank = torch.arange(index.shape[1])[None, :, None].expand_as(index)
    assert torch.equal(s.text_rank[index[found]], rank[found]), "a text is of another rank"
    ordered = index.masked_fill(~found, len(s.text)).sort().values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] < len(s.text))
    assert not twice.any(), "a text was found twice"
