"""What `panel` does to a tile of products and to rows of features: the steps around its matrix products.

# M images, N texts, D embed; a tile is (rows images, cols texts) of one rank
# l logits, W = dL/dl, n unit vectors

`TorchEpilogue` does them in plain torch, in any precision on any device; `cpu.NativeEpilogue` in C++.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bioclip_hc.kernels.reference import MASKED, unit


@dataclass(frozen=True)
class Polar:
    """Scalars of some rows in Lorentz geometry: with r = sqrt(c) d(0, x), s = sinh r, a = e^(r/2), b = e^(-r/2)."""

    s: Tensor  # (rows,), each
    a: Tensor
    b: Tensor
    cosh: Tensor
    h: Tensor  # |n|^2 / 2 of the unit vector as it is multiplied

    def rows(self, part: slice, h: Tensor) -> Polar:
        """Some of the rows, with the h of their unit vectors."""
        return Polar(self.s[part], self.a[part], self.b[part], self.cosh[part], h)


@dataclass(frozen=True)
class Tile:
    """One tile of products, and what is known of its rows and columns. Positions count the rank-sorted texts.

    Image i's positives are the positions from positive[i] to positive_end[i]. Where taxon is given, the other texts
    from taxon[i] to taxon_end[i] leave the column's denominator, and the row's if the image has a positive.
    """

    product: Tensor  # (rows, cols), written over
    x: Polar | None  # None: euclidean geometry
    y: Polar | None
    positive: Tensor  # (rows,) int32, each
    positive_end: Tensor
    taxon: Tensor | None
    taxon_end: Tensor | None
    first: int  # position of the tile's first column
    bias: Tensor | None  # (cols,)
    factor: float  # a logit is factor times the product, or factor times sqrt(c) d
    floor: float = 0.0  # cosh(sqrt(c) d) - 1, in units of s_i s_j, at which a distance's gradient is noise


@dataclass(frozen=True)
class Running:
    """A logsumexp, of rows or columns of which a tile arrives at a time, and the sum of the positives' logits."""

    top: Tensor  # (rows,), each
    sum: Tensor
    positives: Tensor

    @classmethod
    def start(cls, rows: int, like: Tensor) -> Running:
        return cls(like.new_full((rows,), MASKED), like.new_zeros(rows), like.new_zeros(rows))

    def part(self, part: slice) -> Running:
        """A view of some of the rows."""
        return Running(self.top[part], self.sum[part], self.positives[part])

    def lse(self) -> Tensor:
        return self.top + self.sum.clamp_min(torch.finfo(self.sum.dtype).tiny).log()

    def merge(self, top: Tensor, total: Tensor) -> None:
        """Take in exp(top) * total more, (rows,) each."""
        now = torch.maximum(self.top, top)
        self.sum.mul_((self.top - now).exp()).add_(total * (top - now).exp())
        self.top.copy_(now)


@dataclass(frozen=True)
class Pull:
    """What the gradients of the nll push every logit of a row or column by, and pull its positives."""

    lse: Tensor  # (rows,), each
    push: Tensor
    pull: Tensor

    def part(self, part: slice) -> Pull:
        """A view of some of the rows."""
        return Pull(self.lse[part], self.push[part], self.pull[part])


class Features(NamedTuple):
    """One side as it came: v (rows, D), norms (rows,), None to take v as it is, and scalars, None if euclidean."""

    v: Tensor
    norm: Tensor | None
    polar: Polar | None  # its h is not used


class Epilogue(Protocol):
    """The steps; order, an int64 tensor, says which rows of v are meant."""

    def halves(self, image: Tensor, text: Tensor) -> bool:
        """Whether the gradients' two products are done in bf16. The logits' never is: torch would round it."""
        ...

    def norms(self, v: Tensor) -> Tensor:
        """(rows,) lengths, fp32 or float64."""
        ...

    def unit_rows(self, v: Tensor, order: Tensor, norm: Tensor | None, n: Tensor, h: Tensor) -> None:
        """n[p] = v[order[p]] / norm[order[p]], or v[order[p]] without norm; h[p] = |n[p]|^2 / 2."""
        ...

    def forward(self, t: Tile, rows: Running, cols: Running) -> None:
        """Take the tile's logits into the sums of its rows and of its columns."""
        ...

    def backward(self, t: Tile, rows: Pull, cols: Pull, row_radius: Tensor, col_radius: Tensor) -> Tensor | float:
        """Turn the tile into dL/dproduct; add dL/dr of rows and columns (Lorentz). Returns sum W l / factor."""
        ...

    def add_rows(self, part: Tensor, order: Tensor, total: Tensor) -> None:
        """total[order[p]] += part[p]; the order names each row once."""
        ...

    def chain_rule(
        self,
        dn: Tensor,
        v: Tensor,
        order: Tensor,
        norm: Tensor | None,
        across: Tensor | None,
        along: Tensor | None,
        dv: Tensor,
    ) -> None:
        """dv[order[p]] = across[p] (I - n n^T) dn[p] + along[p] n of n = v[order[p]] / norm; dn[p] without norm."""
        ...

    def keep_best(self, t: Tile, columns: Tensor, value: Tensor, index: Tensor) -> None:
        """Merge a tile into the best so far, value and index (rows, k).

        Of equals the first that came stays. NaN comes before all numbers, to show what is wrong.

        A value is factor times the product, or for Lorentz factor times cosh(sqrt(c) d) - 1.
        """
        ...

    def keep_best_of_lists(
        self,
        sides: tuple[Features, Features],
        candidates: tuple[Tensor, Tensor],
        text_rank: Tensor,
        factor: float,
        value: Tensor,
        index: Tensor,
    ) -> None:
        """Fill value and index (M, R, k), which hold -inf and -1, from each image's own list (indptr, indices).

        Values are those of `keep_best`; of equals the smaller index is first.
        """
        ...


class TorchEpilogue:
    """Plain torch: about a dozen passes over a tile, which should stay in cache."""

    def halves(self, image: Tensor, text: Tensor) -> bool:
        return False

    def norms(self, v: Tensor) -> Tensor:
        dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
        return torch.linalg.vector_norm(v, dim=1, dtype=dtype)

    def unit_rows(self, v: Tensor, order: Tensor, norm: Tensor | None, n: Tensor, h: Tensor) -> None:
        n.copy_(v.index_select(0, order))
        if norm is not None:
            n.copy_(unit(n, norm[order]))
        h.copy_(n.square().sum(1).div_(2))

    def forward(self, t: Tile, rows: Running, cols: Running) -> None:
        l = _similarity(t, None if t.x is None else _cosh_minus_one(t)[0]).mul_(t.factor)
        positive, row_mask, col_mask = _marks(t)
        for running, piece, mask, dim in (
            (rows, l if t.bias is None else l + t.bias, row_mask, 1),
            (cols, l, col_mask, 0),
        ):
            pool = piece if mask is None else piece.masked_fill(mask, MASKED)
            top = pool.amax(dim)
            running.merge(top, (pool - top.unsqueeze(dim)).exp_().sum(dim))
            running.positives.add_((l * positive).sum(dim))

    def backward(self, t: Tile, rows: Pull, cols: Pull, row_radius: Tensor, col_radius: Tensor) -> Tensor | float:
        apart = None if t.x is None else _cosh_minus_one(t)
        similarity = _similarity(t, None if apart is None else apart[0])
        l = similarity * t.factor
        positive, row_mask, col_mask = _marks(t)
        W = ((l if t.bias is None else l + t.bias) - rows.lse[:, None]).exp_().mul_(rows.push[:, None])
        if row_mask is not None:
            W.masked_fill_(row_mask, 0)
        of_cols = (l - cols.lse).exp_().mul_(cols.push)
        W.add_(of_cols if col_mask is None else of_cols.masked_fill_(col_mask, 0))
        W.sub_((rows.pull[:, None] + cols.pull).mul_(positive))
        total = similarity.mul_(W).sum(dtype=torch.float64)
        W.mul_(t.factor)
        if apart is not None:
            W = _lorentz_backward(t, W, *apart, row_radius, col_radius)
        t.product.copy_(W)
        return total

    def add_rows(self, part: Tensor, order: Tensor, total: Tensor) -> None:
        total.index_add_(0, order, part)

    def chain_rule(
        self,
        dn: Tensor,
        v: Tensor,
        order: Tensor,
        norm: Tensor | None,
        across: Tensor | None,
        along: Tensor | None,
        dv: Tensor,
    ) -> None:
        if norm is not None and across is not None:
            n = unit(v.index_select(0, order).to(dn.dtype), norm[order])
            dn = (dn - n * (dn * n).sum(1, keepdim=True)).mul_(across[:, None])
            if along is not None:
                dn.addcmul_(n, along[:, None])
        dv.index_copy_(0, order, dn.to(dv.dtype, copy=norm is None))  # dn may lie in dv

    def keep_best(self, t: Tile, columns: Tensor, value: Tensor, index: Tensor) -> None:
        found = (t.product if t.x is None else _cosh_minus_one(t)[0]) * t.factor
        k = value.shape[1]
        if k == 1:  # max returns the first maximum
            top, place = found.max(1, keepdim=True)
            better = (top > value) | (top.isnan() & ~value.isnan())
            index.copy_(torch.where(better, columns[place], index))
            value.copy_(torch.where(better, top, value))
            return
        merged, order = torch.cat([value, found], 1).sort(dim=1, descending=True, stable=True)
        value.copy_(merged[:, :k])
        index.copy_(torch.cat([index, columns.expand_as(found)], 1).gather(1, order[:, :k]))

    def keep_best_of_lists(
        self,
        sides: tuple[Features, Features],
        candidates: tuple[Tensor, Tensor],
        text_rank: Tensor,
        factor: float,
        value: Tensor,
        index: Tensor,
        pairs: int = 1 << 15,
    ) -> None:
        indptr, indices = candidates
        R, k = value.shape[1:]
        row = torch.arange(len(indptr) - 1, device=indices.device).repeat_interleave(indptr.diff())
        chunks = zip(row.split(pairs), indices.split(pairs), strict=True)
        found = torch.cat([_of_pairs(*sides, i, j, factor, value.dtype) for i, j in chunks] or [value.new_empty(0)])
        group = row * R + text_rank[indices]  # sorted by group, then by falling value, then by index
        order = indices.argsort(stable=True)
        order = order[found[order].argsort(descending=True, stable=True)]
        order = order[group[order].argsort(stable=True)]
        group = group[order]
        place = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
        kept = place < k
        flat = group[kept] * k + place[kept]
        value.view(-1)[flat] = found[order][kept]
        index.view(-1)[flat] = indices[order][kept]


def _of_pairs(x: Features, y: Features, i: Tensor, j: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """(P,) values of P pairs, images i and texts j."""
    n, m = (side.v[rows].to(dtype) for side, rows in ((x, i), (y, j)))
    n, m = (v if side.norm is None else unit(v, side.norm[rows]) for v, side, rows in ((n, x, i), (m, y, j)))
    S = (n * m).sum(1)
    if x.polar is None or y.polar is None:
        return S * factor
    gap = n.square().sum(1) / 2 + m.square().sum(1) / 2 - S
    difference = x.polar.a[i] * y.polar.b[j] - x.polar.b[i] * y.polar.a[j]
    return (difference.square() / 2 + x.polar.s[i] * y.polar.s[j] * gap).clamp_min(0) * factor


def _marks(t: Tile) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(rows, cols) masks: positives, and what leaves the rows' and the columns' denominators."""
    position = torch.arange(t.first, t.first + t.product.shape[1], device=t.product.device)

    def between(start: Tensor, end: Tensor) -> Tensor:
        return (position >= start[:, None]) & (position < end[:, None])

    positive = between(t.positive, t.positive_end)
    if t.taxon is None or t.taxon_end is None:
        return positive, None, None
    duplicate = between(t.taxon, t.taxon_end) & ~positive
    return positive, duplicate & (t.positive < t.positive_end)[:, None], duplicate


def _cosh_minus_one(t: Tile) -> tuple[Tensor, Tensor]:
    """u = cosh(sqrt(c) d) - 1 of a tile, and 1 - cosine, which takes the product's memory."""
    assert t.x is not None
    assert t.y is not None
    difference = torch.outer(t.x.a, t.y.b).sub_(torch.outer(t.x.b, t.y.a))
    gap = t.product.neg_().add_(t.x.h[:, None]).add_(t.y.h)
    u = (gap * t.x.s[:, None]).mul_(t.y.s)
    return u.addcmul_(difference, difference, value=0.5).clamp_(min=0), gap


def _similarity(t: Tile, u: Tensor | None) -> Tensor:
    """Logits over factor: the product, or sqrt(c) d."""
    if u is None:
        return t.product.clone()
    root = (u + 2).mul_(u).sqrt_()
    return root.add_(u).log1p_()


def _lorentz_backward(t: Tile, W: Tensor, u: Tensor, gap: Tensor, row_radius: Tensor, col_radius: Tensor) -> Tensor:
    """dL/dproduct from W times factor, whose memory it takes; adds dL/dr of both sides."""
    assert t.x is not None
    assert t.y is not None
    x, y = t.x, t.y
    root = (u + 2).mul_(u).sqrt_()
    noise = torch.outer(x.s * t.floor, y.s)  # of u: its product is rounded in units of s_i s_j
    q = W.div_(root).masked_fill_(u <= noise, 0)  # dL/du
    # sinh(r_i - r_j) = t (a_i b_j + b_i a_j) / 2 with t = a_i b_j - b_i a_j: exact for near radii
    cross, other = torch.outer(x.a, y.b), torch.outer(x.b, y.a)
    radial = (cross - other).mul_(cross.add_(other)).div_(2).mul_(q)
    turned = gap.mul_(q)
    row_radius.add_(radial.sum(1)).add_(x.cosh * (turned @ y.s))
    col_radius.sub_(radial.sum(0)).add_(y.cosh * (turned.T @ x.s))
    return q.mul_(-x.s[:, None]).mul_(y.s)
