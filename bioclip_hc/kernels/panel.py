"""`level_infonce` and `rank_topk` tile by tile: library products, a bounded workspace, an epilogue per geometry.

# M images, N texts, D embed, R ranks, B tile side
# S the product of two tiles of prepared vectors, l the logits, W = dL/dl

Texts are sorted by rank, so that a tile of columns has one rank; restricted, only the images supervised at that
rank meet it. The forward pass sees each tile once and keeps the running maximum and sum of its rows and of its
columns, each under a shift of their own (a shared one would underflow rows far below it). The backward pass
recomputes the tile, and ends in two products. Work: four products of the shape visited. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bioclip_hc.kernels.objective import Objective, compute_dtype
from bioclip_hc.kernels.plan import make_plan
from bioclip_hc.kernels.reference import MASKED, MAX_RADIUS, sinhc, u_floor, unit

TILE = 512  # B; about eleven live (B, B) fp32 temporaries, and six (B, 512) ones, make the workspace 16 MiB


@dataclass(frozen=True)
class Rows:
    """Some rows of one side, ready for the product: unit vectors, and per-row scalars of the polar form.

    KERNELS: with r = sqrt(c) d(0, x), s = sinh r, n the direction and h = |n|^2 / 2 of the rounded n,
    cosh(d) - 1 = (a_i b_j - b_i a_j)^2 / 2 + s_i s_j (h_i + h_j - <n_i, n_j>), a = e^{r/2}, b = e^{-r/2}.
    """

    n: Tensor  # (rows, D)
    r: Tensor  # (rows,); this and the fields below are empty for euclidean geometry
    s: Tensor
    a: Tensor
    b: Tensor
    h: Tensor


@dataclass(frozen=True)
class Side:
    """Images or texts as they came, and what little is kept of them: a few numbers a row."""

    v: Tensor  # (rows, D), any float dtype
    norm: Tensor  # (rows,)
    r: Tensor  # (rows,) sqrt(c) d(0, x), empty for euclidean geometry
    unit: bool  # v is taken as it is

    def direction(self, rows: Tensor) -> Tensor:
        """(b, D) unit vectors (or the vectors themselves) of some rows, in the compute dtype."""
        v = self.v.index_select(0, rows).to(self.norm.dtype)
        return v if self.unit else unit(v, self.norm[rows])

    def __getitem__(self, rows: Tensor) -> Rows:
        n = self.direction(rows)
        if not len(self.r):
            return Rows(n, self.r, self.r, self.r, self.r, self.r)
        r = self.r[rows]
        return Rows(n, r, r.sinh(), (r / 2).exp(), (-r / 2).exp(), n.square().sum(1).div_(2))


def prepare(v: Tensor, curv: Tensor, geometry: str, space: str) -> Side:
    """The pre-pass over one side, (rows, D)."""
    dtype = compute_dtype(v)
    norm = torch.linalg.vector_norm(v, dim=1, dtype=dtype)
    if geometry == "euclidean":
        return Side(v, norm, norm.new_empty(0), space == "unit")
    r = curv.sqrt() * norm
    return Side(v, norm, r.clamp_max(MAX_RADIUS) if space == "tangent" else r.asinh(), False)


# -- epilogues: from a product tile to logits, and from W back ------------------------------------------------


def _cosh_minus_one(S: Tensor, x: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """u = cosh(d) - 1 of a tile, and h_i + h_j - S, which takes S's memory."""
    difference = torch.outer(x.a, y.b).sub_(torch.outer(x.b, y.a))
    gap = S.neg_().add_(x.h[:, None]).add_(y.h)
    u = (gap * x.s[:, None]).mul_(y.s)
    return u.addcmul_(difference, difference, value=0.5).clamp_(min=0), gap


def _logits(
    x: Rows, y: Rows, scale: Tensor, curv: Tensor, geometry: str
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Logits of a tile, and for the way back u and the gap (Lorentz only)."""
    S = x.n @ y.n.T
    if geometry == "euclidean":
        return S.mul_(scale), None
    u, gap = _cosh_minus_one(S, x, y)
    root = (u + 2).mul_(u).sqrt_()
    return root.add_(u).log1p_().mul_(-scale / curv.sqrt()), (u, gap)


@dataclass
class Gradient:
    """Sums for one side: dn (rows, D) = dL/dn, divided by s for Lorentz (finite where s is 0), and dr (rows,)."""

    dn: Tensor
    dr: Tensor

    @classmethod
    def zeros(cls, side: Side) -> Gradient:
        return cls(torch.zeros_like(side.v, dtype=side.norm.dtype), torch.zeros_like(side.norm))

    def add(self, rows: Tensor, dn: Tensor, dr: Tensor | None = None) -> None:
        self.dn.index_add_(0, rows, dn)  # rows are distinct, so the order of the sum is fixed
        if dr is not None:
            self.dr.index_add_(0, rows, dr)


def _lorentz_backward(
    W: Tensor, apart: tuple[Tensor, Tensor], x: Rows, y: Rows, scale: Tensor, curv: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dn / s and dr of both sides of one tile. Takes W's memory."""
    u, gap = apart
    root = (u + 2).mul_(u).sqrt_()
    noise = torch.outer(x.s * u_floor(u.dtype), y.s)  # of u: its product is rounded in units of s_i s_j
    q = W.div_(root).mul_(-scale / curv.sqrt()).masked_fill_(u <= noise, 0)
    dx, dy = -(q * y.s) @ y.n, -(q * x.s[:, None]).T @ x.n
    # sinh(r_i - r_j) = t (a_i b_j + b_i a_j) / 2 with t = a_i b_j - b_i a_j: exact for near radii
    t = torch.outer(x.a, y.b)
    other = torch.outer(x.b, y.a)
    sinh = (t - other).mul_(t.add_(other)).div_(2)
    radial = q * sinh
    q.mul_(gap)
    drx = radial.sum(1) + x.r.cosh() * (q @ y.s)
    dry = -radial.sum(0) + y.r.cosh() * (q.T @ x.s)
    return dx, dy, drx, dry


def _to_inputs(g: Gradient, side: Side, curv: Tensor, geometry: str, space: str, tile: int) -> Tensor:
    """Chain rule from unit vectors and radii to the vectors that came in, (rows, D); takes g's memory."""
    if side.unit:
        return g.dn.to(side.v.dtype)
    root = curv.sqrt()
    everyone = torch.arange(len(side.v), device=side.v.device)
    for start in range(0, len(everyone), tile):
        part = slice(start, start + tile)
        n = side.direction(everyone[part])
        dn, norm = g.dn[part], side.norm[part]
        dn.sub_(n * (dn * n).sum(1, keepdim=True))  # across the direction
        if geometry == "euclidean":
            dn.copy_(unit(dn, norm))
            continue
        r, dr = side.r[part], g.dr[part]
        if space == "hyperboloid":  # s / |x| = sqrt(c), and dr/d|x| = sqrt(c) / cosh r
            dn.mul_(root).addcmul_(n, (root * dr / r.cosh())[:, None])
            continue
        free = r < MAX_RADIUS  # beyond the clamp the radius no longer moves
        s_over_norm = torch.where(free, root * sinhc(r), r.sinh() / torch.where(free, 1, norm))
        dn.mul_(s_over_norm[:, None]).addcmul_(n, (root * dr * free)[:, None])
    return g.dn.to(side.v.dtype)


def _radius_curvature(g: Gradient, side: Side, space: str) -> Tensor:
    """2c times one side's share of dL/dc through its radii."""
    moves = side.r * (side.r < MAX_RADIUS) if space == "tangent" else side.r.tanh()
    return (moves * g.dr).sum()


# -- the tiles ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """Row and column indices of one tile, its rank, and which of its pairs are positive and masked out."""

    rank: int
    rows: Tensor
    cols: Tensor
    positive: Tensor  # (b, b) bool
    row_mask: Tensor | None  # (b, b) bool: leaves the row's denominator
    col_mask: Tensor | None


def _tiles(o: Objective, tile: int) -> Iterator[Tile]:
    """Every tile that the objective needs, each once, texts in order of rank."""
    known = o.image_taxa >= 0
    everyone = known.any(1).nonzero().flatten()
    pair_rank = o.pair_rank
    for r in range(o.image_taxa.shape[1]):
        texts = (o.text_rank == r).nonzero().flatten()
        images = known[:, r].nonzero().flatten() if o.restrict else everyone
        for cols in texts.split(tile) if len(images) else ():
            taxon = o.text_taxon[cols]
            for rows in images.split(tile) if len(texts) else ():
                same = o.image_taxa[rows, r][:, None] == taxon  # unknown is -1, and no text has taxon -1
                if o.targets == "multi_positive":
                    yield Tile(r, rows, cols, same, None, None)
                    continue
                own = o.pair[rows][:, None] == cols
                duplicate = same & ~own
                at_own_rank = duplicate & (pair_rank[rows] == r)[:, None]
                masks = (at_own_rank, duplicate) if o.targets == "mask_out" else (None, None)
                yield Tile(r, rows, cols, own, *masks)


def _pools(l: Tensor, tile: Tile, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits as the rows' and as the columns' denominators see them; `l` itself where nothing changes."""
    rows = l if bias is None else l + bias[tile.cols]
    cols = l
    if tile.row_mask is not None and tile.col_mask is not None:
        rows, cols = rows.masked_fill(tile.row_mask, MASKED), cols.masked_fill(tile.col_mask, MASKED)
    return rows, cols


class RunningLSE:
    """logsumexp of many rows, of which a piece arrives at a time."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.top = like.new_full((rows,), MASKED)
        self.sum = like.new_zeros(rows)

    def add(self, index: Tensor, piece: Tensor, dim: int) -> None:
        old = self.top[index]
        top = torch.maximum(old, piece.amax(dim))
        total = (piece - top.unsqueeze(dim)).exp_().sum(dim)
        self.sum[index] = self.sum[index] * (old - top).exp() + total
        self.top[index] = top

    def value(self) -> Tensor:
        return self.top + self.sum.clamp_min(torch.finfo(self.sum.dtype).tiny).log()


def forward(
    image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, o: Objective, tile: int = TILE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll_image (M, R), nll_text (N,), and for `backward` row_lse (M, R), unrestricted (M, 1), and col_lse (N,)."""
    x, y = (prepare(v, curv, o.geometry, o.space) for v in (image, text))
    (M, R), N = o.image_taxa.shape, len(text)
    pools = R if o.restrict else 1
    row_lse, col_lse = RunningLSE(M * pools, x.norm), RunningLSE(N, x.norm)
    row_positive, col_positive = x.norm.new_zeros(M, R), x.norm.new_zeros(N)
    for t in _tiles(o, tile):
        l, _ = _logits(x[t.rows], y[t.cols], scale, curv, o.geometry)
        as_rows, as_cols = _pools(l, t, o.text_bias)
        row_lse.add(t.rows * pools + (t.rank if o.restrict else 0), as_rows, 1)
        col_lse.add(t.cols, as_cols, 0)
        chosen = l.mul_(t.positive)
        row_positive[t.rows, t.rank] += chosen.sum(1)
        col_positive[t.cols] += chosen.sum(0)
    over_rows, over_cols = row_lse.value().view(M, pools), col_lse.value()
    plan = make_plan(o)
    nll_image = torch.where(plan.row_count > 0, over_rows - row_positive / plan.row_count.clamp_min(1), 0)
    nll_text = torch.where(plan.col_count > 0, over_cols - col_positive / plan.col_count.clamp_min(1), 0)
    return nll_image, nll_text, over_rows, over_cols


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
    tile: int = TILE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <grad_image, nll_image> + <grad_text, nll_text>.

    For image and text in their own dtypes, scale () and curv ().
    """
    x, y = (prepare(v, curv, o.geometry, o.space) for v in (image, text))
    gx, gy = Gradient.zeros(x), Gradient.zeros(y)
    push_image, push_text, pull_image, pull_text = make_plan(o).weights(grad_image, grad_text, o.restrict)
    total = torch.zeros((), dtype=torch.float64, device=image.device)  # sum of W l
    for t in _tiles(o, tile):
        xt, yt = x[t.rows], y[t.cols]
        l, apart = _logits(xt, yt, scale, curv, o.geometry)
        as_rows, as_cols = _pools(l, t, o.text_bias)
        pool = t.rank if o.restrict else 0
        W = (as_rows - row_lse[t.rows, pool, None]).exp_().mul_(push_image[t.rows, pool, None])
        W.addcmul_((as_cols - col_lse[t.cols]).exp_(), push_text[t.cols].expand_as(W))
        W.sub_((pull_image[t.rows, t.rank, None] + pull_text[t.cols]).mul_(t.positive))
        total += l.mul_(W).sum(dtype=torch.float64)
        if apart is None:
            W.mul_(scale)
            gx.add(t.rows, W @ yt.n)
            gy.add(t.cols, W.T @ xt.n)
        else:
            dx, dy, drx, dry = _lorentz_backward(W, apart, xt, yt, scale, curv)
            gx.add(t.rows, dx, drx)
            gy.add(t.cols, dy, dry)
    dscale = (total / scale).to(scale.dtype)
    dcurv = torch.zeros_like(curv)
    if o.geometry == "lorentz":
        radii = _radius_curvature(gx, x, o.space) + _radius_curvature(gy, y, o.space)
        dcurv = ((radii - total) / (2 * curv)).to(curv.dtype)
    dimage, dtext = (_to_inputs(g, side, curv, o.geometry, o.space, tile) for g, side in ((gx, x), (gy, y)))
    return dimage, dtext, dscale, dcurv


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
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """score (M, R, k), -inf padded, and index (M, R, k), -1 padded; equal scores: the smaller index first."""
    x, y = (prepare(v, curv, geometry, space) for v in (image, text))
    score = x.norm.new_full((len(image), ranks, k), -math.inf)
    index = torch.full((len(image), ranks, k), -1, dtype=torch.int64, device=image.device)
    if candidates is None:
        parts = [
            (r, cols)
            for r in range(ranks)
            for cols in (text_rank == r).nonzero().flatten().split(tile)
            if len(cols)
        ]
        everyone = torch.arange(len(image), device=image.device)
        for start in range(0, len(everyone), tile):
            rows = slice(start, start + tile)
            xt = x[everyone[rows]]
            for r, cols in parts:
                l, _ = _logits(xt, y[cols], scale, curv, geometry)
                _keep_best(score[rows, r], index[rows, r], l, cols)
    else:
        _topk_of_lists(x, y, text_rank, scale, curv, geometry, candidates, score, index)
    return score, index


def _keep_best(best: Tensor, where: Tensor, l: Tensor, cols: Tensor) -> None:
    """Merge one tile's logits (b, n) into the k best so far (b, k), in place; the smaller index wins a tie."""
    k = best.shape[1]
    if k == 1:  # max returns the first maximum
        top, place = l.max(1, keepdim=True)
        better = top > best
        where.copy_(torch.where(better, cols[place], where))
        best.copy_(torch.where(better, top, best))
        return
    merged, order = torch.cat([best, l], 1).sort(dim=1, descending=True, stable=True)
    best.copy_(merged[:, :k])
    where.copy_(torch.cat([where, cols.expand_as(l)], 1).gather(1, order[:, :k]))


def _topk_of_lists(
    x: Side,
    y: Side,
    text_rank: Tensor,
    scale: Tensor,
    curv: Tensor,
    geometry: str,
    candidates: tuple[Tensor, Tensor],
    score: Tensor,
    index: Tensor,
    pairs: int = 1 << 15,
) -> None:
    """Fill score and index from each image's own list: pairs are scored one by one, `pairs` at a time."""
    indptr, indices = candidates
    k, R = score.shape[2], score.shape[1]
    row = torch.arange(len(indptr) - 1, device=indices.device).repeat_interleave(indptr.diff())
    value = torch.cat(
        [
            _pair_logits(x[i], y[j], scale, curv, geometry)
            for i, j in zip(row.split(pairs), indices.split(pairs), strict=True)
        ]
        or [x.norm.new_empty(0)]
    )
    group = row * R + text_rank[indices]  # sorted by group, then by falling score, then by index
    order = indices.argsort(stable=True)
    order = order[value[order].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    group = group[order]
    place = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    kept = place < k
    flat = group[kept] * k + place[kept]
    score.view(-1)[flat] = value[order][kept]
    index.view(-1)[flat] = indices[order][kept]


def _pair_logits(x: Rows, y: Rows, scale: Tensor, curv: Tensor, geometry: str) -> Tensor:
    """(P,) logits of P pairs given as equally long sides."""
    S = (x.n * y.n).sum(1)
    if geometry == "euclidean":
        return scale * S
    u = ((x.a * y.b - x.b * y.a).square() / 2 + x.s * y.s * (x.h + y.h - S)).clamp_min(0)
    return -scale / curv.sqrt() * torch.log1p(u + (u * (u + 2)).sqrt())
