"""`level_infonce` and `rank_topk` tile by tile: library products, a bounded workspace, an epilogue of choice.

# M images, N texts, D embed, R ranks
# n unit vectors, S = <n_i, n_j>, l logits, W = dL/dl

Texts are sorted by rank and taxon, so that a tile of columns has one rank and a taxon's texts stand together;
restricted, only the images supervised at that rank meet it. The forward pass sees each tile once and keeps the
running maximum and sum of its rows and of its columns, each under a shift of their own (a shared one would
underflow rows far below it). The backward pass recomputes the tile, and ends in two products. Work: four products
of the shape visited. Deterministic.

In Lorentz geometry, with r = sqrt(c) d(0, x), s = sinh r, a = e^(r/2), b = e^(-r/2) and h = |n|^2 / 2,

    cosh(sqrt(c) d) - 1 = u = (a_i b_j - b_i a_j)^2 / 2 + s_i s_j (h_i + h_j - S_ij)

so that the product is CLIP's, and the geometry is left to the epilogue (`epilogue.py`, or its twin in C++).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bioclip_hc.kernels.epilogue import Epilogue, Features, Polar, Pull, Running, Tile, TorchEpilogue
from bioclip_hc.kernels.objective import Objective, compute_dtype
from bioclip_hc.kernels.plan import Plan, make_plan
from bioclip_hc.kernels.reference import MAX_RADIUS, sinhc, u_floor

TILE = 1536  # rows and columns of a tile: 9 MiB in fp32, beside five blocks of (TILE, D)
LEAST_SINH = 1e-12  # s is not taken smaller: dS / s_i is then finite, and its limit, where s_i is 0
TORCH = TorchEpilogue()


@dataclass(frozen=True)
class Side:
    """Images or texts as they came, and what little is kept of them: a few numbers a row."""

    v: Tensor  # (rows, D), any float dtype
    norm: Tensor | None  # (rows,); None: v is taken as it is
    r: Tensor | None  # (rows,) sqrt(c) d(0, x); None: euclidean geometry

    def polar(self, rows: Tensor) -> Polar | None:
        """Of some rows; h is not known yet."""
        if self.r is None:
            return None
        r = self.r[rows]
        return Polar(r.sinh().clamp_min(LEAST_SINH), (r / 2).exp(), (-r / 2).exp(), r.cosh(), r)

    def features(self) -> Features:
        """All rows, for what is not done by blocks."""
        return Features(self.v, self.norm, self.polar(torch.arange(len(self.v), device=self.v.device)))


def prepare(v: Tensor, curv: Tensor, geometry: str, space: str, epilogue: Epilogue = TORCH) -> Side:
    """The pre-pass over one side, (rows, D)."""
    if space == "unit":
        return Side(v, None, None)
    norm = epilogue.norms(v)
    if geometry == "euclidean":
        return Side(v, norm, None)
    r = curv.sqrt() * norm
    return Side(v, norm, r.clamp_max(MAX_RADIUS) if space == "tangent" else r.asinh())


class Block:
    """Some rows of one side, gathered and made unit for the product, in memory that is used again."""

    def __init__(self, rows: int, like: Tensor, epilogue: Epilogue) -> None:
        dtype = compute_dtype(like)
        self._n = like.new_empty((rows, like.shape[1]), dtype=dtype)
        self._h = like.new_empty((rows,), dtype=dtype)
        self._epilogue = epilogue

    def take(self, side: Side, rows: Tensor) -> tuple[Tensor, Tensor]:
        """n (b, D) and h (b,) of those rows, until the next call."""
        n, h = self._n[: len(rows)], self._h[: len(rows)]
        self._epilogue.unit_rows(side.v, rows, side.norm, n, h)
        return n, h


@dataclass(frozen=True)
class Rank:
    """The images and the texts that meet at one rank, in the plan's order. Positions count all sorted texts."""

    rank: int
    images: Tensor  # (rows,) int64
    x: Polar | None  # of the images
    start: int  # the texts' positions
    end: int
    positive: Tensor  # (rows,) int32, as in Tile, each
    positive_end: Tensor
    taxon: Tensor | None
    taxon_end: Tensor | None


class Problem:
    """One call: both sides prepared, the plan, and the tiles in the order in which they are visited."""

    def __init__(
        self, image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, o: Objective, epilogue: Epilogue, tile: int
    ) -> None:
        self.o, self.epilogue, self.tile = o, epilogue, tile
        self.plan: Plan = make_plan(o)
        self.x, self.y = (prepare(v, curv, o.geometry, o.space, epilogue) for v in (image, text))
        self.order = self.plan.col_order.long()  # (N,) the text at each position
        self.y_polar = self.y.polar(self.order)
        self.bias = None if o.text_bias is None else o.text_bias[self.order]
        self.factor = float(scale if o.geometry == "euclidean" else -scale / curv.sqrt())
        self.dtype = compute_dtype(image)
        rows, cols = min(tile, len(image)), min(tile, len(text))
        self.x_block, self.y_block = Block(rows, image, epilogue), Block(cols, text, epilogue)
        self._product = image.new_empty((rows, cols), dtype=self.dtype)

    def ranks(self) -> Iterator[Rank]:
        """The ranks at which anything meets."""
        starts, counts = self.plan.col_start.tolist(), self.plan.rows.tolist()
        for r, (start, end, count) in enumerate(zip(starts, starts[1:], counts, strict=False)):
            if start == end or not count:
                continue
            images = self.plan.row_order[r, :count].long()
            taxon = self.plan.row_code[r, :count].clamp_max(len(self.order))
            taxon_end = torch.searchsorted(self.plan.col_code, taxon, right=True, out_int32=True)
            if self.o.targets == "multi_positive":
                marks = (taxon, taxon_end, None, None)
            else:
                own = self.plan.row_own[r, :count]
                masked = (taxon, taxon_end) if self.o.targets == "mask_out" else (None, None)
                marks = (own, own + (own >= 0).int(), *masked)
            yield Rank(r, images, self.x.polar(images), start, end, *marks)

    def columns(self, rank: Rank) -> Iterator[slice]:
        """The positions of each tile of columns."""
        for start in range(rank.start, rank.end, self.tile):
            yield slice(start, min(start + self.tile, rank.end))

    def tiles(self, rank: Rank, cols: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tile]]:
        """For each tile of rows: which of the rank's images, their n, the columns' n, and the tile with S in it."""
        yn, yh = self.y_block.take(self.y, self.order[cols])
        y_polar = None if self.y_polar is None else self.y_polar.rows(cols, yh)
        bias = None if self.bias is None else self.bias[cols]
        for start in range(0, len(rank.images), self.tile):
            rows = slice(start, start + self.tile)
            xn, xh = self.x_block.take(self.x, rank.images[rows])
            area = len(xn) * len(yn)
            product = torch.mm(xn, yn.T, out=self._product.view(-1)[:area].view(len(xn), len(yn)))
            yield (
                rows,
                xn,
                yn,
                Tile(
                    product,
                    None if rank.x is None else rank.x.rows(rows, xh),
                    y_polar,
                    rank.positive[rows],
                    rank.positive_end[rows],
                    None if rank.taxon is None else rank.taxon[rows],
                    None if rank.taxon_end is None else rank.taxon_end[rows],
                    cols.start,
                    bias,
                    self.factor,
                    u_floor(self.dtype),
                ),
            )


def forward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    curv: Tensor,
    o: Objective,
    epilogue: Epilogue = TORCH,
    tile: int = TILE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll_image (M, R), nll_text (N,), and for `backward` row_lse (M, R), unrestricted (M, 1), and col_lse (N,).

    A denominator without a term has the logarithm MASKED, or next to it.
    """
    p = Problem(image, text, scale, curv, o, epilogue, tile)
    (M, R), N = o.image_taxa.shape, len(text)
    like = image.new_empty(0, dtype=p.dtype)
    of_rows = [Running.start(M, like) for _ in range(R if o.restrict else 1)]  # a denominator for each rank, or one
    of_cols = Running.start(N, like)  # by position
    row_positives = like.new_zeros(M, R)
    for rank in p.ranks():
        here = Running.start(len(rank.images), like)
        for cols in p.columns(rank):
            for rows, _, _, t in p.tiles(rank, cols):
                epilogue.forward(t, here.part(rows), of_cols.part(cols))
        pool = of_rows[rank.rank if o.restrict else 0]
        merged = Running(pool.top[rank.images], pool.sum[rank.images], here.positives)
        merged.merge(here.top, here.sum)
        pool.top[rank.images], pool.sum[rank.images] = merged.top, merged.sum
        row_positives[rank.images, rank.rank] = here.positives
    row_lse = torch.stack([pool.lse() for pool in of_rows], 1)
    col_lse, col_positives = (torch.empty_like(x) for x in (of_cols.top, of_cols.positives))
    col_lse[p.order], col_positives[p.order] = of_cols.lse(), of_cols.positives
    row_count, col_count = p.plan.row_count, p.plan.col_count
    nll_image = torch.where(row_count > 0, row_lse - row_positives / row_count.clamp_min(1), 0)
    nll_text = torch.where(col_count > 0, col_lse - col_positives / col_count.clamp_min(1), 0)
    return nll_image, nll_text, row_lse, col_lse


def backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    curv: Tensor,
    o: Objective,
    row_lse: Tensor,
    col_lse: Tensor,
    grad_image: Tensor,
    grad_text: Tensor,
    grad_lse: Tensor,
    epilogue: Epilogue = TORCH,
    tile: int = TILE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <grad_image, nll_image> + <grad_text, nll_text> + <grad_lse, col_lse>.

    For image and text in their own dtypes, scale () and curv (). grad_lse is 0 where a text met no image.
    """
    p = Problem(image, text, scale, curv, o, epilogue, tile)
    push_image, push_text, pull_image, pull_text = p.plan.weights(grad_image, grad_text, grad_lse, o.restrict)
    of_cols = Pull(col_lse[p.order], push_text[p.order], pull_text[p.order])
    D = image.shape[1]
    dx = image.new_zeros(image.shape, dtype=p.dtype)
    dtext = torch.zeros_like(text, memory_format=torch.contiguous_format)
    x_radius, y_radius = (dx.new_zeros(len(v)) for v in (image, text))  # dL/dr; of texts by position
    dx_block, dy_block = (dx.new_empty(min(tile, len(v)), D) for v in (image, text))
    half = epilogue.halves(image, text)
    total = torch.zeros((), dtype=torch.float64, device=image.device)  # sum of W l / factor
    for rank in p.ranks():
        pool = rank.rank if o.restrict else 0
        of_rows = Pull(
            *(a[rank.images, b] for a, b in ((row_lse, pool), (push_image, pool), (pull_image, rank.rank)))
        )
        radius = dx.new_zeros(len(rank.images))
        for cols in p.columns(rank):
            dy = dy_block[: cols.stop - cols.start].zero_()
            for rows, xn, yn, t in p.tiles(rank, cols):
                total += epilogue.backward(t, of_rows.part(rows), of_cols.part(cols), radius[rows], y_radius[cols])
                part = _gradient_products(t.product, xn, yn, half, dx_block[: len(xn)], dy)
                epilogue.add_rows(part, rank.images[rows], dx)
            _to_inputs(dy, p.y, p.order[cols], y_radius[cols], curv, o.space, epilogue, dtext)
        x_radius[rank.images] += radius
    dimage = dx if image.dtype == dx.dtype else torch.empty_like(image, memory_format=torch.contiguous_format)
    for start in range(0, len(image), tile):
        part = torch.arange(start, min(start + tile, len(image)), device=image.device)
        _to_inputs(dx[start : start + tile], p.x, part, x_radius[part], curv, o.space, epilogue, dimage)
    dscale = (total if o.geometry == "euclidean" else -total / curv.sqrt()).to(scale.dtype)
    dcurv = torch.zeros_like(curv)
    if o.geometry == "lorentz":
        moved = _radius_curvature(p.x.r, x_radius, o.space)
        assert p.y.r is not None
        moved += _radius_curvature(p.y.r[p.order], y_radius, o.space)
        dcurv = ((moved - total * p.factor) / (2 * curv)).to(curv.dtype)
    return dimage, dtext, dscale, dcurv


def _gradient_products(dS: Tensor, xn: Tensor, yn: Tensor, half: bool, dx: Tensor, dy: Tensor) -> Tensor:
    """dS @ yn, in dx where it is fp32; adds dS^T @ xn to dy. Tiles are summed in fp32 either way."""
    if half:
        dS, xn, yn = (matrix.bfloat16() for matrix in (dS, xn, yn))
        dy.add_(dS.T @ xn)
        return (dS @ yn).to(dy.dtype)
    dy.addmm_(dS.T, xn)
    return torch.mm(dS, yn, out=dx)


def _to_inputs(
    dn: Tensor,
    side: Side,
    rows: Tensor,
    dr: Tensor,
    curv: Tensor,
    space: str,
    epilogue: Epilogue,
    dv: Tensor,
) -> None:
    """Chain rule from the unit vectors and radii of some rows (b,) to the vectors that came in: fills dv[rows]."""
    if side.norm is None:
        epilogue.chain_rule(dn, side.v, rows, None, None, None, dv)
        return
    norm = side.norm[rows]
    if side.r is None:
        across = (1 / torch.where(norm > 0, norm, 1)).clamp_max(torch.finfo(norm.dtype).max)  # of denormal norms
        epilogue.chain_rule(dn, side.v, rows, side.norm, across, None, dv)
        return
    r, root = side.r[rows], curv.sqrt()
    s = r.sinh().clamp_min(LEAST_SINH)
    if space == "hyperboloid":  # s / |x| = sqrt(c), and dr/d|x| = sqrt(c) / cosh r
        across, along = root / s, root * dr / r.cosh()
    else:
        free = r < MAX_RADIUS  # beyond the clamp the radius no longer moves
        across = torch.where(free, root * sinhc(r), r.sinh() / torch.where(free, 1, norm)) / s
        along = root * dr * free
    epilogue.chain_rule(dn, side.v, rows, side.norm, across, along, dv)


def _radius_curvature(r: Tensor | None, dr: Tensor, space: str) -> Tensor:
    """2c times one side's share of dL/dc through its radii."""
    assert r is not None
    moves = r * (r < MAX_RADIUS) if space == "tangent" else r.tanh()
    return (moves * dr).sum()


# -- the best texts of each rank ------------------------------------------------------------------------------


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
    epilogue: Epilogue = TORCH,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """score (M, R, k), -inf padded, and index (M, R, k), -1 padded; equal scores: the smaller index first."""
    x, y = (prepare(v, curv, geometry, space, epilogue) for v in (image, text))
    value = image.new_full((len(image), ranks, k), -math.inf, dtype=compute_dtype(image))
    index = torch.full((len(image), ranks, k), -1, dtype=torch.int64, device=image.device)
    # farther is larger, so that distances need not be computed of all: values are -u
    factor = float(scale if geometry == "euclidean" else -scale.sign())
    if candidates is None:
        _scan(x, y, text_rank, factor, value, index, epilogue, tile)
    else:
        sides = x.features(), y.features()
        epilogue.keep_best_of_lists(sides, candidates, text_rank, factor, value, index)
    if geometry == "lorentz":
        u = torch.where(index < 0, 0, value.abs())
        score = -scale / curv.sqrt() * torch.log1p(u + (u * (u + 2)).sqrt())
        value = torch.where(index < 0, -math.inf, score)
    return value, index


def _scan(
    x: Side, y: Side, text_rank: Tensor, factor: float, value: Tensor, index: Tensor, epilogue: Epilogue, tile: int
) -> None:
    """Merge every text into value and index (M, R, k), tile by tile."""
    images, texts, ranks = len(x.v), len(y.v), value.shape[1]
    everyone = torch.arange(images, device=value.device)
    parts = [
        (r, cols) for r in range(ranks) for cols in (text_rank == r).nonzero().flatten().split(tile) if len(cols)
    ]
    x_block, y_block = Block(min(tile, images), x.v, epilogue), Block(min(tile, texts), y.v, epilogue)
    product = value.new_empty(min(tile, images) * min(tile, texts))
    nothing = index.new_empty(0, dtype=torch.int32)  # no image has a positive here
    for rows in everyone.split(tile) if images else ():
        part = slice(int(rows[0]), int(rows[0]) + len(rows))
        xn, xh = x_block.take(x, rows)
        x_polar = x.polar(rows)
        for r, cols in parts:
            yn, yh = y_block.take(y, cols)
            S = torch.mm(xn, yn.T, out=product[: len(rows) * len(cols)].view(len(rows), len(cols)))
            y_polar = y.polar(cols)
            t = Tile(
                S,
                x=None if x_polar is None else x_polar.rows(slice(None), xh),
                y=None if y_polar is None else y_polar.rows(slice(None), yh),
                positive=nothing,
                positive_end=nothing,
                taxon=None,
                taxon_end=None,
                first=0,
                bias=None,
                factor=factor,
            )
            epilogue.keep_best(t, cols, value[part, r], index[part, r])
