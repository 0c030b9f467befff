"""`rank_topk`: its contract, and the operator that torch.compile sees.

# M images, N texts, D embed, R ranks, E entries of all candidate lists
"""

from __future__ import annotations

import torch
from torch import Tensor

from bioclip_hc.kernels import panel, reference
from bioclip_hc.kernels.backends import choose_backend
from bioclip_hc.kernels.objective import (
    check_features,
    check_geometry,
    check_positive,
    check_range,
    compute_dtype,
    one_element,
)

MAX_K = 128  # the GPU kernels keep the k best of each row in registers


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
        ranks: R; by default the largest text_rank + 1, for which a GPU has to be waited.
        candidates: (indptr (M + 1,), indices (E,)) in CSR form: image i chooses only among the texts
            indices[indptr[i]:indptr[i + 1]], each named once. None: among all.
        backend: None, "reference" (dense), "tiled", "cpu" or "triton", which keeps min(k, N) <= 128 in
            registers.

    Returns:
        score (M, R, k) logits, falling, -inf padded; index (M, R, k) int64 into text, -1 padded. Equal scores
        keep the smaller index first. No gradient.

    Raises:
        ValueError: naming the argument, the value and what it should be. Where the values lie on a GPU, its stream
            fails instead.
    """
    check_geometry(geometry, space)
    check_features(image, text)
    if text_rank.shape != (len(text),):
        raise ValueError(f"text_rank must be ({len(text)},), got {tuple(text_rank.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if ranks is None:
        ranks = int(text_rank.max()) + 1 if len(text) else 0
    indptr = indices = None
    if candidates is not None:
        indptr, indices = (torch.as_tensor(x, device=image.device).to(torch.int64) for x in candidates)
        if indptr.shape != (len(image) + 1,) or indices.ndim != 1:
            raise ValueError(
                f"candidates must be (indptr ({len(image) + 1},), indices), got {tuple(indptr.shape)} first"
            )
    score, index = _rank_topk(
        image,
        text,
        text_rank.to(image.device, torch.int64),
        one_element("scale", scale, image),
        one_element("curv", curv, image),
        indptr,
        indices,
        geometry,
        space,
        k,
        ranks,
        _choose_backend(backend, image, min(k, len(text))),
    )
    return score, index


def _choose_backend(backend: str | None, image: Tensor, k: int) -> str:
    chosen = choose_backend(backend, image.device, image.dtype)
    if chosen != "triton" or k <= MAX_K:
        return chosen
    if backend is None:
        return "tiled"
    raise ValueError(f"backend 'triton' keeps at most {MAX_K} texts a rank, got k={k}; take 'tiled'")


@torch.library.custom_op("bioclip_hc::rank_topk", mutates_args=())
def _rank_topk(
    image: Tensor,
    text: Tensor,
    text_rank: Tensor,
    scale: Tensor,
    curv: Tensor,
    indptr: Tensor | None,
    indices: Tensor | None,
    geometry: str,
    space: str,
    k: int,
    ranks: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if geometry == "lorentz":
        check_positive("curv", curv)
    check_range("text_rank", text_rank, 0, ranks)
    lists = None if indptr is None or indices is None else (indptr, indices)
    if lists is not None:
        _check_lists(*lists, len(text))
    with torch.autocast(image.device.type, enabled=False), torch.cuda.device_of(image):
        if backend == "triton":
            from bioclip_hc.kernels import triton_topk

            return triton_topk.rank_topk(image, text, text_rank, scale, curv, geometry, space, k, ranks, lists)
        if backend == "cpu":
            from bioclip_hc.kernels import cpu

            return cpu.rank_topk(image, text, text_rank, scale, curv, geometry, space, k, ranks, lists)
        work = compute_dtype(image)
        plain = reference.rank_topk if backend == "reference" else panel.rank_topk
        return plain(image.to(work), text.to(work), text_rank, scale, curv, geometry, space, k, ranks, lists)


@_rank_topk.register_fake
def _(
    image: Tensor,
    text: Tensor,
    text_rank: Tensor,
    scale: Tensor,
    curv: Tensor,
    indptr: Tensor | None,
    indices: Tensor | None,
    geometry: str,
    space: str,
    k: int,
    ranks: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = (len(image), ranks, k)
    return image.new_empty(shape, dtype=compute_dtype(image)), image.new_empty(shape, dtype=torch.int64)


def _check_lists(indptr: Tensor, indices: Tensor, texts: int) -> None:
    """Check that indptr rises from 0 to E."""
    steps = torch.cat([indptr[:1], indptr.diff(), len(indices) - indptr[-1:]])
    fine = (steps >= 0).all() & (steps[0] == 0) & (steps[-1] == 0)
    if indptr.is_cuda:
        torch._assert_async(fine, f"candidates' indptr must rise from 0 to {len(indices)}")
    elif not bool(fine):
        raise ValueError(f"candidates' indptr must rise from 0 to {len(indices)}, got {indptr[:3].tolist()} ...")
    check_range("candidates' indices", indices, 0, texts)
