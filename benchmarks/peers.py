"""Other ways to compute the losses of problems.py: packages people use, and what one would write in plain torch.

# M images, N texts, D embed, R ranks

Every way returns the same scalar, (sum of nll_image + sum of nll_text) / 2M, which for pairs is the mean of CLIP's
two cross entropies. Products run in the dtype of the features, without autocast, which would add copies in fp32.
MERU's distance is computed in fp32, as MERU does.

liger-kernel has no contrastive loss for pairs of towers; its fused linear cross entropy is CLIP's loss in one
direction when the other tower's features stand in for the classifier, so it takes part twice a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from problems import GEOMETRIES, MODES, Problem
from records import OURS
from torch import Tensor
from torch.nn.functional import cross_entropy

from bioclip_hc.kernels import level_infonce

Loss = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class Way:
    """One way to compute a loss, and the objectives that it can compute."""

    name: str
    loss: Loss
    modes: tuple[str, ...] = ("dense",)
    geometries: tuple[str, ...] = ("euclidean",)

    def applies(self, mode: str, geometry: str) -> bool:
        """Whether it computes that objective."""
        return mode in self.modes and geometry in self.geometries


# -- ours -----------------------------------------------------------------------------------------------------


def fused(p: Problem) -> Tensor:
    """This package's GPU kernels."""
    return level_loss(p, "triton")


def level_loss(p: Problem, backend: str | None) -> Tensor:
    """`level_infonce` by that backend (None: the default for the device), reduced."""
    nll_image, nll_text = level_infonce(
        p.image, p.text, p.image_taxa, p.text_rank, p.text_taxon, p.scale, p.curv,
        geometry=p.geometry, space="unit" if p.geometry == "euclidean" else "tangent", backend=backend,
    )  # fmt: skip
    return (nll_image.sum() + nll_text.sum()) / (2 * len(p.image))


# -- plain torch ----------------------------------------------------------------------------------------------


def logits(p: Problem, image: Tensor, text: Tensor) -> Tensor:
    """(images, texts) CLIP's logits, or MERU's."""
    if p.geometry == "euclidean":
        return p.scale * image @ text.T
    return -p.scale * meru_distance(meru_exp_map0(image, p.curv), meru_exp_map0(text, p.curv), p.curv)


def meru_exp_map0(v: Tensor, curv: Tensor) -> Tensor:
    """Space components of tangent vectors (rows, D), in fp32 (MERU, arXiv 2304.09172, equation 6)."""
    v = v.to(curv.dtype)
    r = curv.sqrt() * v.norm(dim=1, keepdim=True)
    return v * r.clamp(1e-8, math.asinh(2**15)).sinh() / r.clamp_min(1e-8)


def meru_distance(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
    """(rows of x, rows of y) acosh(-c <x, y>_L) / sqrt(c), the argument clamped as MERU does (equation 4)."""
    x_time = (1 / curv + x.square().sum(1, keepdim=True)).sqrt()
    y_time = (1 / curv + y.square().sum(1, keepdim=True)).sqrt()
    inner = x @ y.T - x_time @ y_time.T
    return (-curv * inner).clamp_min(1 + 1e-8).acosh() / curv.sqrt()


def both_ways(image_logits: Tensor, text_logits: Tensor) -> Tensor:
    """The mean of the cross entropies of images and of texts, pair i on the diagonal."""
    target = torch.arange(len(image_logits), device=image_logits.device)
    return (cross_entropy(image_logits, target) + cross_entropy(text_logits, target)) / 2


def eager(p: Problem) -> Tensor:
    """One matrix of logits, and its transpose."""
    l = logits(p, p.image, p.text)
    return both_ways(l, l.T)


def meru(p: Problem) -> Tensor:
    """MERU's contrastive term as published: the distances of either direction on their own."""
    x, y = meru_exp_map0(p.image, p.curv), meru_exp_map0(p.text, p.curv)
    return both_ways(-p.scale * meru_distance(x, y, p.curv), -p.scale * meru_distance(y, x, p.curv))


def masked(p: Problem) -> Tensor:
    """The level-restricted objective over all pairs, other ranks masked: what a dense loss turns into."""
    l = logits(p, p.image, p.text)
    if p.mode != "all_ranks":  # each image at one rank: one mask
        l = l.masked_fill(_rank_of_image(p)[:, None] != p.text_rank, -math.inf)
        return both_ways(l, l.T)
    own = l.gather(1, p.own)  # (M, R), every image supervised at every rank
    pool = torch.stack([l.masked_fill(p.text_rank != r, -math.inf).logsumexp(1) for r in range(len(p.ranks))], 1)
    texts = l.logsumexp(0) - _mean_positives(own.flatten(), p.own.flatten(), len(p.text))
    total = (pool - own).sum(dtype=p.curv.dtype) + texts.sum(dtype=p.curv.dtype)  # fp16 would overflow
    return total / (2 * len(p.image))


def by_rank(p: Problem) -> Tensor:
    """The level-restricted objective one rank after the other, each dense over its own images and texts."""
    total = torch.zeros_like(p.curv)  # fp16 would overflow
    for r, (images, texts) in enumerate(p.ranks):
        l = logits(p, p.image[images], p.text[texts])
        target = p.own[images, r] - texts[0] if p.mode == "all_ranks" else torch.arange(len(l), device=l.device)
        own = _mean_positives(l.gather(1, target[:, None])[:, 0], target, len(texts))
        for nll in (cross_entropy(l, target, reduction="none"), l.logsumexp(0) - own):
            total = total + nll.sum(dtype=total.dtype)
    return total / (2 * len(p.image))


def _rank_of_image(p: Problem) -> Tensor:
    """(M,) the one rank at which each image is supervised."""
    return (p.image_taxa >= 0).long().argmax(1)


def _mean_positives(own: Tensor, text: Tensor, texts: int) -> Tensor:
    """(texts,) the mean of the logits `own` of the positives of each text."""
    zeros = own.new_zeros(texts)
    return zeros.index_add(0, text, own) / zeros.index_add(0, text, torch.ones_like(own)).clamp_min(1)


# -- compiled, and other packages -----------------------------------------------------------------------------


def compiled(p: Problem) -> Tensor:
    """`eager` through torch.compile."""
    return _compiled_eager()(p)


@cache
def _compiled_eager() -> Loss:
    return torch.compile(eager, dynamic=False)


def compiled_once(p: Problem) -> Tensor:
    """`eager` through torch.compile, shapes dynamic: on a CPU a compilation costs half a minute.

    It still compiles anew beyond some sizes: call it once at a size before its time counts.
    """
    return _compiled_for_all_sizes()(p)


@cache
def _compiled_for_all_sizes() -> Loss:
    return torch.compile(eager, dynamic=True)


def open_clip(p: Problem) -> Tensor:
    """open_clip's ClipLoss, world size 1."""
    from open_clip.loss import ClipLoss

    return ClipLoss()(p.image, p.text, p.scale)


def inf_cl(p: Problem) -> Tensor:
    """Inf-CL (arXiv 2410.17243) on one GPU: products in TF32 whatever comes in, its own choice.

    The scale is multiplied in here: passed as an argument its gradient asks for a process group.
    """
    from inf_cl import cal_inf_loss

    head = math.gcd(256, p.image.shape[1])  # how much of D it loads at a time; 256 is its default
    images = cal_inf_loss(p.scale * p.image, p.text, head_dim=head)
    return (images + cal_inf_loss(p.scale * p.text, p.image, head_dim=head)) / 2


def inf_cl_in_torch(p: Problem) -> Tensor:
    """Inf-CL's algorithm by torch's products: either direction on its own, block by block, ten products in all.

    Its Triton kernels need a GPU; what they compute, and how often, does not.
    """
    x, y = p.image, p.text
    return (_Blocks.apply(p.scale * x, y) + _Blocks.apply(p.scale * y, x)) / 2


class _Blocks(torch.autograd.Function):
    """Mean cross entropy (rows of x against all rows of y, the diagonal is right), a block of the matrix at a time.

    Forward: a running maximum and sum of each row. Backward: the gradients of x and of y come from two sweeps, each
    of which computes the blocks anew, as Inf-CL's two kernels do.
    """

    SIDE = 1024

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        side = _Blocks.SIDE
        lse = []
        for rows in x.split(side):
            top, total = rows.new_full((len(rows),), -math.inf), rows.new_zeros(len(rows))
            for columns in y.split(side):
                l = rows @ columns.T
                higher = torch.maximum(top, l.amax(1))
                total = total * (top - higher).exp() + l.sub_(higher[:, None]).exp_().sum(1)
                top = higher
            lse.append(top + total.log())
        ctx.save_for_backward(x, y, torch.cat(lse))
        return (torch.cat(lse) - (x * y).sum(1)).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, lse = ctx.saved_tensors
        side, weight = _Blocks.SIDE, grad / len(x)
        dx, dy = -weight * y, -weight * x  # the diagonal
        for at, rows, norm in zip(dx.split(side), x.split(side), lse.split(side), strict=True):
            for columns in y.split(side):
                at.addmm_((rows @ columns.T).sub_(norm[:, None]).exp_().mul_(weight), columns)
        for at, columns in zip(dy.split(side), y.split(side), strict=True):
            for rows, norm in zip(x.split(side), lse.split(side), strict=True):
                at.addmm_((rows @ columns.T).sub_(norm[:, None]).exp_().mul_(weight).T, rows)
        return dx, dy


def liger(p: Problem) -> Tensor:
    """liger-kernel's fused linear cross entropy, once a direction. It computes gradients in its forward pass."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    target = torch.arange(len(p.image), device=p.image.device)
    images = LigerFusedLinearCrossEntropyFunction.apply(p.scale * p.image, p.text, target)[0]
    texts = LigerFusedLinearCrossEntropyFunction.apply(p.scale * p.text, p.image, target)[0]
    return (images + texts) / 2


WAYS = (
    Way(OURS, fused, MODES, GEOMETRIES),
    Way("torch eager", eager, geometries=GEOMETRIES),
    Way("torch.compile", compiled, geometries=GEOMETRIES),
    Way("open_clip", open_clip),
    Way("inf-cl", inf_cl),
    Way("liger", liger),
    Way("meru", meru, geometries=("lorentz",)),
    Way("torch masked", masked, ("sorted", "all_ranks"), GEOMETRIES),
    Way("torch by rank", by_rank, ("sorted", "all_ranks"), GEOMETRIES),
)
CPU_WAYS = (  # beside this package's: on a CPU
    Way("torch eager", eager, geometries=GEOMETRIES),
    Way("torch.compile", compiled_once, geometries=GEOMETRIES),
    Way("open_clip", open_clip),
    Way("inf-cl", inf_cl),
    Way("inf-cl's algorithm in torch", inf_cl_in_torch),
    Way("meru", meru, geometries=("lorentz",)),
    Way("torch masked", masked, ("sorted",), GEOMETRIES),
    Way("torch by rank", by_rank, ("sorted",), GEOMETRIES),
)
