"""Triton kernels of `rank_topk`.

# M images, N texts, D embed, R ranks, E entries of all candidate lists, K the least of KEPT from k on

Texts are sorted by rank, so that those of one rank are a run of positions; candidates by image, rank and index, so
that what one image may choose at one rank is a run as well. A program walks a run, or a share of it, tile by tile,
with the K best of its rows in registers. A tile in which nothing beats the worst of them, as after a few tiles
nearly all are, costs one comparison. Positions rise with the index and only a higher score displaces, so equal
scores keep the smaller index.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bioclip_hc.kernels.backends import interpreting
from bioclip_hc.kernels.configs import TOPK, Tile, tile_for
from bioclip_hc.kernels.triton_tiles import (
    Side,
    padded,
    prepare,
    product,
    product_dtype,
    space_code,
    takes_tf32,
    tile_logits,
)

KEPT = (1, 8, 32, 128)  # the K that there are: few kernels, none of which spills
PROGRAMS = 1024  # enough to fill any GPU; where rows and ranks give fewer, runs are shared out
SHARE = 16  # column tiles of a run's share at the least, so that the walk outweighs the first k exchanges
LIST_COLS, LIST_DEPTH, LIST_WARPS = 32, 128, 4  # candidates scored at once, and the step of their product

NONE = tl.constexpr(-math.inf)
LAST = tl.constexpr(2**31 - 1)


def rank_topk(
    image: Tensor,
    text: Tensor,
    text_rank: Tensor,
    scale: Tensor,
    curv: Tensor,
    geometry: str,
    space: str,
    k: int,
    ranks: int,
    candidates: tuple[Tensor, Tensor] | None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """score (M, R, k) fp32, -inf padded, and index (M, R, k) int64, -1 padded. tile: instead of the table's."""
    M, N = len(image), len(text)
    if not (M and N and ranks):
        return _padded(image.new_empty((M, ranks, 0), dtype=torch.float32), text_rank.new_empty(M, ranks, 0), k)
    dtype = product_dtype(image, text, geometry, space)
    tf32 = takes_tf32(dtype)
    tile = tile or tile_for(TOPK, image.device, dtype, tf32)
    width = padded(image.shape[1], tile.depth if candidates is None else LIST_DEPTH)
    code = space_code(geometry, space)
    x = prepare(image, None, curv, code, dtype, width, tf32)
    lorentz = geometry == "lorentz"
    factor = scale * math.log(2) / curv.sqrt() if lorentz else scale  # of a base-2 logarithm, or of a product
    options = {"LORENTZ": lorentz, "WIDTH": width, "K": next(K for K in KEPT if min(k, N) <= K)}
    if candidates is None:
        order = text_rank.argsort(stable=True)
        start = torch.searchsorted(text_rank[order], torch.arange(ranks + 1, device=order.device))
        y = prepare(text, order.to(torch.int32), curv, code, dtype, width, tf32)
        score, index = _walk(x, y, order, start, factor, min(k, N), tile, tf32, options)
    else:
        indices, start = _runs(*candidates, text_rank, ranks)
        y = prepare(text, None, curv, code, dtype, width, tf32)
        score, index = _walk_lists(x, y, indices, start, factor, ranks, min(k, N), options)
    return _padded(score, index, k)


def _padded(score: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    missing = (0, k - score.shape[-1])
    pad = torch.nn.functional.pad
    return pad(score, missing, value=-math.inf), pad(index, missing, value=-1)


def _walk(
    x: Side,
    y: Side,
    order: Tensor,
    start: Tensor,
    factor: Tensor,
    k: int,
    tile: Tile,
    tf32: bool,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Score and index (M, R, k) among all texts; order (N,), start (R + 1,) of the ranks' runs in it."""
    M, R = len(x.n), len(start) - 1
    row_tiles = triton.cdiv(M, tile.rows)
    shares = min(max(1, PROGRAMS // (row_tiles * R)), triton.cdiv(len(order), tile.cols * SHARE))
    score = x.polar.new_empty((M, R, shares * k))
    index = order.new_empty((M, R, shares * k))
    _walk_kernel[(row_tiles, R, shares)](
        x.n, y.n, x.polar, y.polar, order, start, factor, score, index, M, k,
        PRECISION="tf32" if tf32 else "ieee", ROWS=tile.rows, COLS=tile.cols, DEPTH=tile.depth,
        INTERPRET=interpreting(), num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    if shares > 1:  # shares lie in order of their positions, so a stable sort keeps the smaller index first
        score, best = score.sort(dim=2, descending=True, stable=True)
        score, index = score[:, :, :k], index.gather(2, best[:, :, :k])
    return score, index


def _runs(indptr: Tensor, indices: Tensor, text_rank: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Candidates (E,) sorted by image, rank and index, and where each image's ranks start, (M R + 1,)."""
    rows, N = len(indptr) - 1, len(text_rank)
    row = torch.arange(rows, device=indptr.device).repeat_interleave(indptr.diff(), output_size=len(indices))
    key = ((row * ranks + text_rank[indices]) * N + indices).sort().values
    return key % N, torch.searchsorted(key, torch.arange(rows * ranks + 1, device=key.device) * N)


def _walk_lists(
    x: Side, y: Side, indices: Tensor, start: Tensor, factor: Tensor, ranks: int, k: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Score and index (M, R, k) among each image's candidates, as `_runs` sorts them."""
    score = x.polar.new_empty((len(x.n), ranks, k))
    index = indices.new_empty((len(x.n), ranks, k))
    _walk_lists_kernel[(len(x.n) * ranks,)](
        x.n, y.n, x.polar, y.polar, indices, start, factor, score, index, ranks, k,
        COLS=LIST_COLS, DEPTH=LIST_DEPTH, num_warps=LIST_WARPS, **options,
    )  # fmt: skip
    return score, index


@triton.jit(do_not_specialize=["M", "k"])
def _walk_kernel(
    x, y, x_polar, y_polar, order, start, factor, score, index, M, k,
    LORENTZ: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    rank, R, share, shares = tl.program_id(1), tl.num_programs(1), tl.program_id(2), tl.num_programs(2)
    end = tl.load(start + rank + 1).to(tl.int32)
    first = tl.load(start + rank).to(tl.int32)
    length = tl.cdiv(tl.cdiv(end - first, COLS), shares) * COLS
    first += share * length
    end = tl.minimum(end, first + length)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.minimum(row, M - 1)
    f = tl.load(factor)
    best, at = _nothing(ROWS, K)
    for begin in range(first, end, COLS):
        position = begin + tl.arange(0, COLS)
        col = tl.minimum(position, end - 1)
        S = product(x, y, i, col, WIDTH, ROWS, COLS, DEPTH, PRECISION, INTERPRET)
        l = tile_logits(S, x_polar, y_polar, i, position, position < end, f, LORENTZ)
        l = tl.where((position < end)[None, :], l, NONE)
        best, at = _keep_best(best, at, l, position)
    out = ((row.to(tl.int64) * R + rank) * shares + share) * k
    _store_in_order(best, at, order, score + out, index + out, row < M, k)


@triton.jit(do_not_specialize=["ranks", "k"])
def _walk_lists_kernel(
    x, y, x_polar, y_polar, indices, start, factor, score, index, ranks, k,
    LORENTZ: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0).to(tl.int64) + tl.zeros((1,), tl.int64)  # one row, as a tile
    first = tl.load(start + tl.program_id(0))
    length = (tl.load(start + tl.program_id(0) + 1) - first).to(tl.int32)
    indices += first
    i = run // ranks
    d = tl.arange(0, DEPTH)
    f = tl.load(factor)
    best, at = _nothing(1, K)
    for begin in range(0, length, COLS):
        position = begin + tl.arange(0, COLS)
        col = tl.load(indices + tl.minimum(position, length - 1))
        S = tl.zeros((COLS,), tl.float32)
        for depth in range(0, WIDTH, DEPTH):
            a = tl.load(x + i[:, None] * WIDTH + depth + d[None, :]).to(tl.float32)
            b = tl.load(y + col[:, None] * WIDTH + depth + d[None, :]).to(tl.float32)
            S += tl.sum(a * b, 1)
        l = tile_logits(S[None, :], x_polar, y_polar, i, col, position < length, f, LORENTZ)
        l = tl.where((position < length)[None, :], l, NONE)
        best, at = _keep_best(best, at, l, position)
    _store_in_order(best, at, indices, score + run * k, index + run * k, run >= 0, k)


@triton.jit
def _nothing(ROWS: tl.constexpr, K: tl.constexpr):
    """Empty lists of the K best of each row; their places have numbers of their own, all below any position."""
    return tl.full((ROWS, K), NONE, tl.float32), tl.zeros((ROWS, K), tl.int32) - 1 - tl.arange(0, K)[None, :]


@triton.jit
def _keep_best(best, at, l, position):
    """Let a tile's logits (ROWS, COLS) displace what they beat, the best first; position (COLS,) rises."""
    top = tl.max(l, 1)
    worst = tl.min(best, 1)
    while tl.max((top > worst).to(tl.int32), 0) > 0:  # each turn takes one logit of every row that has one to give
        taken = tl.min(tl.where(l == top[:, None], position[None, :], LAST), 1)
        # of equally bad ones, the last goes
        last = tl.max(tl.where(best == worst[:, None], at, -LAST), 1)
        goes = (best == worst[:, None]) & (at == last[:, None]) & (top > worst)[:, None]
        best = tl.where(goes, top[:, None], best)
        at = tl.where(goes, taken[:, None], at)
        l = tl.where(position[None, :] == taken[:, None], NONE, l)
        top = tl.max(l, 1)
        worst = tl.min(best, 1)
    return best, at


@triton.jit
def _store_in_order(best, at, order, score, index, inside, k):
    """Write the k best of each row at score[0 .. k] and index[0 .. k], falling, equal ones by position."""
    for place in range(k):
        top = tl.max(best, 1)
        position = tl.min(tl.where(best == top[:, None], at, LAST), 1)
        found = top > NONE
        tl.store(score + place, top, inside)
        tl.store(index + place, tl.load(order + position, found, -1), inside)
        best = tl.where(at == position[:, None], NONE, best)
