"""`level_infonce`: its contract, and the custom operators that torch.compile and autograd see.

# M images, N texts, D embed, R ranks
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bioclip_hc.kernels import panel, reference
from bioclip_hc.kernels.backends import choose_backend
from bioclip_hc.kernels.objective import (
    Objective,
    check_values,
    compute_dtype,
    make_objective,
    one_element,
)
from bioclip_hc.kernels.reference import MASKED

NO_IMAGE = MASKED / 10  # text_lse is not above it where a text met no image; no logit comes near


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
        backend: "reference" (dense, the oracle, differentiable again), "tiled" (library products in a bounded
            workspace), "cpu" (the same, all else in C++), "triton" (fused kernels), or None: triton on a GPU, cpu
            elsewhere, tiled where that cannot run.

    Returns:
        nll_image (M, R) and nll_text (N,), fp32 (float64 for float64 inputs); 0 where there is no positive.
        Differentiable once in image, text, scale and curv.

    Raises:
        ValueError: naming the argument, the value and what it should be. What labels hold is checked without
            waiting for a GPU: there a wrong value fails the stream.
    """
    nll_image, nll_text, _ = level_infonce_part(
        image,
        text,
        image_taxa,
        text_rank,
        text_taxon,
        scale,
        curv,
        geometry=geometry,
        space=space,
        targets=targets,
        pair=pair,
        text_bias=text_bias,
        restrict=restrict,
        backend=backend,
    )
    return nll_image, nll_text


def level_infonce_part(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """`level_infonce` of a part of a batch's images and all its texts, and what merges the texts' rows of parts.

    Images only meet texts, so nll_image is the whole batch's already. With c_p positives of text j among the images
    of part p, C in all, and lse_j = logsumexp_p text_lse_pj, that text's nll in the whole batch is

        nll_text[j] = sum_p c_p / C (nll_text_p[j] + lse_j - text_lse_pj)

    Args: as `level_infonce`.

    Returns:
        nll_image (M, R) and nll_text (N,) as `level_infonce`, text_lse (N,): logsumexp_{i in I_r} l_ij; where text
        j met no image, a finite number of at most -1e29, without gradient. All three are differentiable once.

    Raises:
        ValueError: as `level_infonce`.
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
    if backend == "reference":
        check_values(objective, curv)
        work = compute_dtype(image)
        with torch.autocast(image.device.type, enabled=False):
            return reference.level_infonce_part(image.to(work), text.to(work), scale, curv, objective)
    nll_image, nll_text, _, text_lse = _forward(image, text, scale, curv, *_flat(objective), backend)
    return nll_image, nll_text, text_lse


# -- custom operators: an Objective travels as its fields ------------------------------------------------------

_FIELDS = (
    "Tensor image_taxa, Tensor text_rank, Tensor text_taxon, Tensor pair, Tensor? text_bias, "
    "str geometry, str space, str targets, bool restrict, str? backend"
)


def _flat(o: Objective) -> tuple[Any, ...]:
    return tuple(getattr(o, field.name) for field in fields(o))


def _implementation(backend: str | None, image: Tensor) -> Any:
    """The module whose forward and backward run."""
    chosen = choose_backend(backend, image.device, image.dtype)
    if chosen == "triton":
        from bioclip_hc.kernels import triton_infonce

        return triton_infonce
    if chosen == "cpu":
        from bioclip_hc.kernels import cpu

        return cpu
    return panel


def _pool_width(image_taxa: Tensor, restrict: bool) -> int:
    """Denominators of an image: one for each rank, or one for all."""
    return image_taxa.shape[1] if restrict else 1


@torch.library.custom_op(
    "bioclip_hc::level_infonce",
    mutates_args=(),
    schema=f"(Tensor image, Tensor text, Tensor scale, Tensor curv, {_FIELDS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, *objective_and_backend: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll_image (M, R), nll_text (N,), for the backward pass row_lse (M, R or 1), and text_lse (N,)."""
    *arguments, backend = objective_and_backend
    o = Objective(*arguments)
    check_values(o, curv)
    module = _implementation(backend, image)
    if _is_empty(o):
        (M, R), N, width = o.image_taxa.shape, len(text), _pool_width(o.image_taxa, o.restrict)
        like = scale.new_zeros
        return like(M, R), like(N), like(M, width), like(N).fill_(MASKED)
    with torch.autocast(image.device.type, enabled=False), torch.cuda.device_of(image):
        result: tuple[Tensor, Tensor, Tensor, Tensor] = module.forward(image, text, scale, curv, o)
    return result


@_forward.register_fake
def _(image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    (M, R), N, width = rest[0].shape, text.shape[0], _pool_width(rest[0], rest[8])
    return scale.new_empty(M, R), scale.new_empty(N), scale.new_empty(M, width), scale.new_empty(N)


@torch.library.custom_op(
    "bioclip_hc::level_infonce_backward",
    mutates_args=(),
    schema=f"(Tensor grad_image, Tensor grad_text, Tensor grad_lse, Tensor row_lse, Tensor text_lse, Tensor image, "
    f"Tensor text, Tensor scale, Tensor curv, {_FIELDS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    grad_image: Tensor,
    grad_text: Tensor,
    grad_lse: Tensor,
    row_lse: Tensor,
    text_lse: Tensor,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    curv: Tensor,
    *objective_and_backend: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients for image, text, scale and curv of the sum over nll_image, nll_text, text_lse of <gradient, it>."""
    *arguments, backend = objective_and_backend
    o = Objective(*arguments)
    if _is_empty(o):
        return torch.zeros_like(image), torch.zeros_like(text), torch.zeros_like(scale), torch.zeros_like(curv)
    grad_lse = grad_lse.masked_fill(text_lse <= NO_IMAGE, 0)
    with torch.autocast(image.device.type, enabled=False), torch.cuda.device_of(image):
        result: tuple[Tensor, Tensor, Tensor, Tensor] = _implementation(backend, image).backward(
            image, text, scale, curv, o, row_lse, text_lse, grad_image, grad_text, grad_lse
        )
    return result


@_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in arguments[5:9])


def _is_empty(o: Objective) -> bool:
    return 0 in o.image_taxa.shape or not len(o.text_rank)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, scale, curv, taxa, rank, taxon, pair, bias, *options = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*output[2:], image, text, scale, curv, taxa, rank, taxon, pair, bias)
    ctx.options = options


def _differentiate(ctx: Any, grad_image: Tensor, grad_text: Tensor, _: Any, grad_lse: Tensor) -> tuple[Any, ...]:
    gradients = _backward(grad_image, grad_text, grad_lse, *ctx.saved_tensors, *ctx.options)
    return (*gradients, *[None] * 10)


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "level_infonce is differentiable once: call backward without create_graph, or take backend='reference'"
    )


_forward.register_autograd(_differentiate, setup_context=_remember)
_backward.register_autograd(_refuse)
