"""Public operations: contracts, autograd, and the choice of a backend.

# M images, N texts, D embed, R ranks
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bioclip_hc.kernels import panel, reference
from bioclip_hc.kernels.objective import (
    Objective,
    check_features,
    check_geometry,
    compute_dtype,
    make_objective,
    one_element,
)

BACKENDS = ("reference", "tiled")


def choose_backend(backend: str | None) -> str:
    """The named backend, or the best for any device that this version has. A named one is never replaced.

    Raises:
        ValueError: no such backend.
    """
    if backend is None:
        return "tiled"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")
    return backend


def level_infonce(
    image: Tensor,
    text: Tensor,
    image_taxa: Tensor,
    text_rank: Tensor,
    text_taxon: Tensor,
    scale: Tensor | float,
    curv: Tensor | float = 1.0,
    *,
    geometry: str = "lorentz",
    space: str = "tangent",
    targets: str = "multi_positive",
    pair: Tensor | None = None,
    text_bias: Tensor | None = None,
    restrict: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE in both directions with every denominator restricted to one taxonomic rank.

    With T_r the texts of rank r, I_r the images supervised at r, and l_ij the logit of image i and text j:

        nll_image[i, r] = logsumexp_{j in T_r} l_ij - mean of l_ij over the positives j of i at r
        nll_text[j]     = logsumexp_{i in I_r} l_ij - mean of l_ij over the positives i of j,  r = text_rank[j]

    (BioCLIP-HC, arXiv 2606.21838, equations 1-3, before their means.) The logit is scale times the cosine
    (geometry "euclidean"), or -scale times the geodesic distance of curvature -curv ("lorentz").

    Args:
        image: (M, D) float; `space` says what it is.
        text: (N, D) float.
        image_taxa: (M, R) int64, the taxon of each image at each rank; -1 = unknown or not supervised.
        text_rank: (N,) int, rank of each text in [0, R).
        text_taxon: (N,) int64, taxon of each text.
        scale: one element, the logit scale, already exponentiated.
        curv: one element, c > 0.
        geometry: "lorentz" or "euclidean".
        space: lorentz: "tangent" (vectors at the origin) or "hyperboloid" (space components); euclidean:
            "tangent" (normalised inside) or "unit" (taken as they are).
        targets: "multi_positive": every text of an image's taxon is positive. "diagonal": only the image's own
            text pair[i]. "mask_out": as diagonal, and other texts of the same taxon leave the denominator.
        pair: (M,) int64, each image's own text, -1 = none; required by diagonal and mask_out.
        text_bias: (N,) float, added to a text's logits inside the logsumexp over texts (the log-count of a
            deduplicated text); no gradient flows to it.
        restrict: False lets denominators run over the texts (images) of all ranks, the cross-rank ablation.
        backend: None, "reference" (dense, the oracle) or "tiled" (bounded workspace).

    Returns:
        nll_image (M, R) and nll_text (N,), fp32 (float64 for float64 inputs); 0 where there is no positive.
        Differentiable once in image, text, scale and curv.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """
    objective = make_objective(
        image,
        text,
        image_taxa,
        text_rank,
        text_taxon,
        geometry=geometry,
        space=space,
        targets=targets,
        pair=pair,
        text_bias=text_bias,
        restrict=restrict,
    )
    scale, curv = one_element("scale", scale, image), one_element("curv", curv, image)
    with torch.autocast(image.device.type, enabled=False):
        if choose_backend(backend) == "reference":
            work = compute_dtype(image)
            return reference.level_infonce(image.to(work), text.to(work), scale, curv, objective)
        return _LevelInfoNCE.apply(image, text, scale, curv, objective)


class _LevelInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        nll_image, nll_text, sums = panel.forward(image, text, scale, curv, objective)
        ctx.save_for_backward(image, text, scale, curv)
        ctx.objective, ctx.sums = objective, sums
        return nll_image, nll_text

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let a constant gradient pass
            raise RuntimeError(
                "level_infonce is differentiable once: call backward without create_graph, or take "
                "backend='reference'"
            )
        grad_image, grad_text = grads
        image, text, scale, curv = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):  # backward may be called inside an autocast block
            gradients = panel.backward(image, text, scale, curv, ctx.objective, ctx.sums, grad_image, grad_text)
        return (*gradients, None)


def exp_map0(v: Tensor, curv: Tensor | float = 1.0) -> Tensor:
    """Exponential map at the origin: tangent vectors (..., D) to space components (..., D) of curvature -curv.

    The radius sqrt(curv)|v| is clamped to asinh(2^15), as MERU does. Computed in fp32 (float64 for float64).
    """
    with torch.autocast(v.device.type, enabled=False):
        return reference.exp_map0(v.to(compute_dtype(v)), one_element("curv", curv, v))


def log_map0(x: Tensor, curv: Tensor | float = 1.0) -> Tensor:
    """Logarithmic map at the origin, the inverse of exp_map0 below its clamp: (..., D) to (..., D)."""
    with torch.autocast(x.device.type, enabled=False):
        return reference.log_map0(x.to(compute_dtype(x)), one_element("curv", curv, x))


def lorentz_inner(x: Tensor, y: Tensor, curv: Tensor | float = 1.0) -> Tensor:
    """(M, N) Lorentz inner products of points given by their space components, x (M, D) and y (N, D).

    Between -infinity and -1/curv, which is reached at x = y.
    """
    check_features(x, y)
    with torch.autocast(x.device.type, enabled=False):
        return reference.lorentz_inner(x.to(compute_dtype(x)), y.to(compute_dtype(x)), one_element("curv", curv, x))


@torch.no_grad()
def rank_topk(
    image: Tensor,
    text: Tensor,
    text_rank: Tensor,
    scale: Tensor | float = 1.0,
    curv: Tensor | float = 1.0,
    *,
    geometry: str = "lorentz",
    space: str = "tangent",
    k: int = 1,
    ranks: int | None = None,
    candidates: tuple[Tensor, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best texts of every rank for each image, without the (M, N) matrix.

    Args:
        image: (M, D) float. text: (N, D) float. geometry, space, scale, curv: as in `level_infonce`.
        text_rank: (N,) int in [0, ranks).
        k: how many texts per rank.
        ranks: R; by default the largest text_rank + 1.
        candidates: (indptr (M + 1,), indices) in CSR form: image i chooses only among the texts
            indices[indptr[i]:indptr[i + 1]], each named once. None: among all.

    Returns:
        score (M, R, k) logits, falling, -inf padded; index (M, R, k) int64 into text, -1 padded. Equal scores
        keep the smaller index first. No gradient.

    Raises:
        ValueError: naming the argument, the value and what it should be.
    """
    check_geometry(geometry, space)
    check_features(image, text)
    if text_rank.shape != (len(text),):
        raise ValueError(f"text_rank must be ({len(text)},), got {tuple(text_rank.shape)}")
    text_rank = text_rank.to(image.device, torch.int64)
    largest = int(text_rank.max()) if len(text) else -1
    ranks = largest + 1 if ranks is None else ranks
    if largest >= ranks or (len(text) and int(text_rank.min()) < 0):
        raise ValueError(f"text_rank must be in [0, {ranks}), got {int(text_rank.min())} to {largest}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if candidates is not None:
        candidates = _checked_lists(candidates, len(image), len(text), image.device)
    module = reference if choose_backend(backend) == "reference" else panel
    work = compute_dtype(image)
    with torch.autocast(image.device.type, enabled=False):
        return module.rank_topk(
            image.to(work),
            text.to(work),
            text_rank,
            one_element("scale", scale, image),
            one_element("curv", curv, image),
            geometry,
            space,
            k,
            ranks,
            candidates,
        )


def _checked_lists(
    candidates: tuple[Tensor, Tensor], rows: int, texts: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    indptr, indices = (torch.as_tensor(x, device=device).to(torch.int64) for x in candidates)
    if indptr.shape != (rows + 1,) or indices.ndim != 1:
        raise ValueError(f"candidates must be (indptr ({rows + 1},), indices), got {tuple(indptr.shape)} first")
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or bool((indptr.diff() < 0).any()):
        raise ValueError(f"candidates' indptr must rise from 0 to {len(indices)}, got {indptr[:3].tolist()} ...")
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= texts):
        raise ValueError(
            f"candidates' indices must be in [0, {texts}), got {int(indices.min())} to {int(indices.max())}"
        )
    return indptr, indices
