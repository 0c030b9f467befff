"""The operations as plain mathematics: dense, differentiable by autograd, any dtype. The oracle of every backend.

# M images, N texts, D embed, R ranks
# Coordinates: a point of the hyperboloid is given by its space components x; its time is sqrt(1/c + |x|^2).
# Tangent vectors are taken at the origin, where they have no time component.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bioclip_hc.kernels.objective import Objective

MAX_RADIUS = math.asinh(2**15)  # MERU's clamp of exp_map0: sinh stays exact enough in fp32
MASKED = -1e30  # finite: a fully masked row gives exp(0) times nothing, not exp(-inf - -inf) = NaN


def u_floor(dtype: torch.dtype) -> float:
    """cosh(d) - 1, in units of s_i s_j, below which the direction of a distance's gradient is rounding noise.

    The gradient is set to 0 there. (The product in u is rounded in these units; its other term is exact near 0.)
    """
    return 0.0 if dtype == torch.float64 else 1e-7


def sinhc(r: Tensor) -> Tensor:
    """sinh(r) / r, and its limit 1 at 0."""
    small = r.abs() < 1e-4  # the next term of the series, r^4/120, is under float64's epsilon there
    safe = torch.where(small, torch.ones_like(r), r)
    return torch.where(small, 1 + r * r / 6, safe.sinh() / safe)


def exp_map0(v: Tensor, curv: Tensor) -> Tensor:
    """Space components of exp_0(v): v sinh(r)/r with r = sqrt(c)|v|; the argument of sinh is clamped.

    v (..., D), curv one element > 0 -> (..., D).
    """
    r = curv.sqrt() * v.norm(dim=-1, keepdim=True)
    clamped = r > MAX_RADIUS
    beyond = math.sinh(MAX_RADIUS) / torch.where(clamped, r, torch.ones_like(r))
    return v * torch.where(clamped, beyond, sinhc(r.clamp_max(MAX_RADIUS)))


def log_map0(x: Tensor, curv: Tensor) -> Tensor:
    """Tangent vector at the origin that exp_map0 sends to x: x asinh(s)/s with s = sqrt(c)|x|.

    x (..., D), curv one element > 0 -> (..., D).
    """
    s = curv.sqrt() * x.norm(dim=-1, keepdim=True)
    small = s < 1e-4
    safe = torch.where(small, torch.ones_like(s), s)
    return x * torch.where(small, 1 - s * s / 6, safe.asinh() / safe)


def lorentz_inner(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    """(M, N) Lorentz inner products <x_i, y_j> - x0_i y0_j of points given by their space components."""
    x0 = (1 / curv + x.square().sum(-1)).sqrt()
    y0 = (1 / curv + y.square().sum(-1)).sqrt()
    return x @ y.T - x0[:, None] * y0[None, :]


def unit(v: Tensor, norm: Tensor) -> Tensor:
    """v / |v| row by row, v (rows, D), norm (rows,); a zero row stays zero, and its gradient is not divided."""
    return v / torch.where(norm > 0, norm, 1).unsqueeze(1)


def logits(image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, geometry: str, space: str) -> Tensor:
    """(M, N) similarities: scale times the cosine (or plain) product, or minus scale times the distance."""
    if geometry == "euclidean":
        if space == "tangent":
            image, text = (unit(x, x.norm(dim=1)) for x in (image, text))
        return scale * (image @ text.T)
    return -scale * lorentz_distance(image, text, curv, space)


def lorentz_distance(image: Tensor, text: Tensor, curv: Tensor, space: str) -> Tensor:
    """(M, N) geodesic distances of curvature -curv.

    cosh(sqrt(c) d) - 1 = u = 2 sinh^2((r_i - r_j)/2) + s_i s_j - c <x_i, y_j>, r = asinh(s), s = sqrt(c)|x|: no
    cancellation between the two cosh where plain acosh has one. Gradients are 0 where u is under `u_floor`.
    """
    x, r = _polar(image, curv, space)
    y, q = _polar(text, curv, space)
    u = 2 * ((r[:, None] - q[None, :]) / 2).sinh().square()
    ss = r.sinh()[:, None] * q.sinh()[None, :]
    u = (u + ss - curv * (x @ y.T)).clamp_min(0)
    near = u <= u_floor(u.dtype) * ss.detach()
    far = _acosh1p(torch.where(near, torch.ones_like(u), u))
    return torch.where(near, _acosh1p(u.detach()), far) / curv.sqrt()


def _polar(v: Tensor, curv: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Space components (rows, D) and radius r = sqrt(c) d(0, x) (rows,)."""
    r = curv.sqrt() * v.norm(dim=-1)
    if space == "tangent":
        return exp_map0(v, curv), r.clamp_max(MAX_RADIUS)
    return v, r.asinh()


def _acosh1p(u: Tensor) -> Tensor:
    return torch.log1p(u + (u * (u + 2)).sqrt())


def level_infonce_part(
    image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """See `bioclip_hc.kernels.level_infonce_part`; dense: holds several (M, N) matrices."""
    o = objective
    R = o.image_taxa.shape[1]
    similarity = logits(image, text, scale, curv, o.geometry, o.space)  # (M, N)
    biased = similarity if o.text_bias is None else similarity + o.text_bias
    known = o.image_taxa >= 0  # (M, R)
    own = o.pair[:, None] == torch.arange(len(text), device=text.device)  # (M, N)
    supervised = known.any(1)
    nll_image = []
    nll_text, text_lse = similarity.new_zeros(len(text)), similarity.new_full((len(text),), MASKED)
    for r in range(R):
        at_rank = o.text_rank == r  # (N,)
        same = (o.image_taxa[:, r, None] == o.text_taxon) & at_rank & known[:, r, None]
        positive = same if o.targets == "multi_positive" else own & same
        columns = at_rank.expand_as(same) if o.restrict else torch.ones_like(same)
        rows = (known[:, r] if o.restrict else supervised)[:, None].expand_as(same)
        if o.targets == "mask_out":
            columns, rows = columns & (~same | own), rows & (~same | own)
        nll_image.append(_nll(biased, similarity, columns, positive, dim=1)[0])
        nll, lse = _nll(similarity, similarity, rows, positive, dim=0)
        nll_text, text_lse = torch.where(at_rank, nll, nll_text), torch.where(at_rank, lse, text_lse)
    rows_nll = torch.stack(nll_image, 1) if nll_image else similarity.new_zeros(len(image), 0)
    return rows_nll, nll_text, text_lse


def _nll(pool: Tensor, similarity: Tensor, allowed: Tensor, positive: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """logsumexp of the pool over what is allowed, less the mean similarity of the positives; 0 without one.

    And the logsumexp itself.
    """
    if pool.numel() == 0:
        nothing = pool.sum(dim)  # zeros that autograd knows
        return nothing, nothing + MASKED
    count = positive.sum(dim)
    total = pool.masked_fill(~allowed, MASKED).logsumexp(dim)
    mean = (similarity * positive).sum(dim) / count.clamp_min(1)
    return torch.where(count > 0, total - mean, torch.zeros_like(total)), total


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
) -> tuple[Tensor, Tensor]:
    """See `bioclip_hc.kernels.rank_topk`; dense."""
    similarity = logits(image, text, scale, curv, geometry, space)
    allowed = torch.ones_like(similarity, dtype=torch.bool)
    if candidates is not None:
        indptr, indices = candidates
        allowed = torch.zeros_like(allowed)
        row = torch.arange(len(image), device=image.device).repeat_interleave(indptr.diff())
        allowed[row, indices] = True
    score = similarity.new_full((len(image), ranks, k), -math.inf)
    index = torch.full((len(image), ranks, k), -1, dtype=torch.int64, device=image.device)
    for r in range(ranks):
        masked = similarity.masked_fill(~(allowed & (text_rank == r)), -math.inf)
        best, where = masked.sort(dim=1, descending=True, stable=True)  # equal scores: the smallest index first
        width = min(k, best.shape[1])
        score[:, r, :width] = best[:, :width]
        index[:, r, :width] = torch.where(best[:, :width] > -math.inf, where[:, :width], -1)
    return score, index
