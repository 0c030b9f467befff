"""Objectives: what is reduced over the rows that `kernels.level_infonce_part` returns.

# B local images, U local texts, N texts of the batch, D embed, R ranks, K texts of one rank
# P_k images that carry text k

Over several processes each computes its images' rows with the texts of all: every tile of the matrix once. Images
stay where they are, texts are gathered, and the texts' rows are merged from the processes' parts of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bioclip_hc.distributed import (
    all_gather_rows,
    average_gradient,
    gather_rows_with_grad,
    max_over_processes,
    row_counts,
    sum_over_processes,
    world_rank,
    world_size,
)
from bioclip_hc.kernels import level_infonce_part
from bioclip_hc.kernels.reference import MASKED
from bioclip_hc.taxonomy import RANKS


class LossOutput(NamedTuple):
    """loss (); per_rank (R,), NaN for a rank absent from the batch; floor (R,), the least per_rank can be."""

    loss: Tensor
    per_rank: Tensor
    floor: Tensor


class LevelContrastiveLoss(nn.Module):
    """Level-restricted contrastive loss over the batch of the whole process group.

    Per rank l, over the images known at l and the K unique texts of l that some image carries:

        I->T = mean over images of nll_image         T->I = mean over texts of nll_text
        loss = mean over the ranks present of direction_weight (I->T + T->I)

    (arXiv 2606.21838, equations 1-3: every text weighs the same whatever its number of images, and every rank
    weighs the same.) T->I cannot fall under mean log |P_k|, since an image of k also stands in the denominator
    of its siblings of the same text: `floor` holds that.

    Args:
        ranks: names of the R columns of image_taxa, for messages and logs.
        geometry: "lorentz" or "euclidean".
        targets: see `kernels.level_infonce`.
        rank_reduction: "mean" over the ranks present (the paper) or "sum" (the authors' code).
        direction_weight: weight of each direction: 1 (the paper) or 0.5 (the authors' code).
        image_weighting: "standard": every image weighs the same in I->T. "balanced": every text's images
            together weigh the same.
        restrict: False lets denominators run over all ranks.
        process_group: the group that shares a global batch; None is the default group.
        per_process: True takes each process' images and texts as a batch of their own (the authors' code).
        backend: see `kernels.level_infonce`.
    """

    def __init__(
        self,
        ranks: tuple[str, ...] = RANKS,
        geometry: str = "lorentz",
        targets: str = "multi_positive",
        rank_reduction: str = "mean",
        direction_weight: float = 1.0,
        image_weighting: str = "standard",
        restrict: bool = True,
        process_group: Any = None,
        per_process: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _one_of("rank_reduction", rank_reduction, ("mean", "sum"))
        _one_of("image_weighting", image_weighting, ("standard", "balanced"))
        self.ranks = tuple(ranks)
        self.geometry = geometry
        self.targets = targets
        self.rank_reduction = rank_reduction
        self.direction_weight = direction_weight
        self.image_weighting = image_weighting
        self.restrict = restrict
        self.process_group = process_group
        self.per_process = per_process
        self.backend = backend

    @classmethod
    def reference_code(cls, **options: Any) -> LevelContrastiveLoss:
        """The authors' training code: half of both directions, summed over ranks, a batch per process."""
        return cls(**{"rank_reduction": "sum", "direction_weight": 0.5, "per_process": True, **options})

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_taxa: Tensor,
        text_rank: Tensor,
        text_taxon: Tensor,
        logit_scale: Tensor,
        curv: Tensor | float | None = None,
        *,
        space: str = "tangent",
        pair: Tensor | None = None,
        text_bias: Tensor | None = None,
    ) -> LossOutput:
        """Loss of the global batch; every process returns the same value.

        The average over processes of the parameters' gradients, which DDP and DeepSpeed take, is the gradient of
        this loss; so the gradients for image, text, logit_scale and curv are those of this process times the number
        of processes.

        Args:
            image: (B, D) this process' images. text: (U, D) this process' texts.
            image_taxa: (B, R) int64, -1 = unknown or not supervised.
            text_rank, text_taxon: (U,) ids of the texts; unique within a process unless `pair` is given.
            logit_scale: one element, exponentiated. curv: one element, needed by geometry "lorentz".
            space: see `kernels.level_infonce`.
            pair: (B,) index into this process' texts; targets "diagonal" and "mask_out" need it.
            text_bias: (U,).

        Raises:
            ValueError: image_taxa without len(ranks) columns, a repeated text, a missing curvature.
        """
        if image_taxa.shape[1:] != (len(self.ranks),):
            raise ValueError(
                f"image_taxa must be (B, {len(self.ranks)}) for ranks {self.ranks}, got {tuple(image_taxa.shape)}"
            )
        if curv is None and self.geometry == "lorentz":
            raise ValueError("geometry 'lorentz' needs curv, the positive curvature (1.0 in the paper)")
        batch = self._pool(_Batch(image, text, image_taxa, text_rank, text_taxon, pair, text_bias))
        counts = self._count(batch)
        rows = level_infonce_part(
            *batch[:5],
            logit_scale,
            1.0 if curv is None else curv,
            geometry=self.geometry,
            space=space,
            targets=self.targets,
            pair=batch.pair,
            text_bias=batch.text_bias,
            restrict=self.restrict,
            backend=self.backend,
        )
        return self._reduce(*rows, batch, counts)

    def _alone(self) -> bool:
        """Whether this process' images and texts are the whole batch."""
        return self.per_process or world_size(self.process_group) == 1

    def _pool(self, local: _Batch) -> _Batch:
        """The local images and the texts of the whole batch, ids int64 and checked."""
        rank, taxon = local.text_rank.long(), local.text_taxon.long()
        local = local._replace(image_taxa=local.image_taxa.long(), text_rank=rank, text_taxon=taxon)
        if local.pair is None:
            _check_unique(rank, taxon)
        return local if self._alone() else _gather_texts(local, self.process_group)

    def _count(self, batch: _Batch) -> _Counts:
        """What the texts and the ranks of the whole batch count."""
        here, images = _images_per_text(batch).int(), (batch.image_taxa >= 0).sum(0).int()
        if self._alone():
            return _Counts(here, here, images)
        return _Counts(here, *sum_over_processes([here, images], self.process_group))

    def _merge(
        self, image_sum: Tensor, nll_text: Tensor, text_lse: Tensor, counts: _Counts
    ) -> tuple[Tensor, Tensor]:
        """image_sum (R,), which adds up over processes, and nll_text (N,), of the whole batch."""
        if self._alone():
            return image_sum, nll_text
        return _merge(image_sum, nll_text, text_lse, counts, self.process_group)

    def _reduce(
        self, nll_image: Tensor, nll_text: Tensor, text_lse: Tensor, batch: _Batch, counts: _Counts
    ) -> LossOutput:
        """Rows to a number per rank, and ranks to the loss."""
        R = len(self.ranks)
        carried = counts.carried
        used = carried > 0
        rank = batch.text_rank
        if self.image_weighting == "balanced":
            nll_image = nll_image * _text_share_of_images(batch, carried.to(nll_image.dtype))
        i2t, nll_text = self._merge(nll_image.sum(0), nll_text, text_lse, counts)
        texts = nll_text.new_zeros(R).index_add(0, rank, used.to(nll_text.dtype))  # (R,) K
        present = texts > 0
        least = texts.clamp_min(1)  # an absent rank is 0/1 below: 0/0 would send NaN back through 0 * inf
        t2i = nll_text.new_zeros(R).index_add(0, rank, nll_text * used) / least
        log_count = carried.clamp_min(1).to(nll_text.dtype).log()
        floor = nll_text.new_zeros(R).index_add(0, rank, log_count * used) / least
        i2t = i2t / (counts.images.clamp_min(1) if self.image_weighting == "standard" else least)
        per_rank = self.direction_weight * (i2t + t2i)
        total = (per_rank * present).sum()
        loss = total if self.rank_reduction == "sum" else total / present.sum().clamp_min(1)
        per_rank, floor = (
            x.detach().masked_fill(~present, math.nan) for x in (per_rank, self.direction_weight * floor)
        )
        return LossOutput(loss, per_rank, floor)


class _Batch(NamedTuple):
    image: Tensor
    text: Tensor
    image_taxa: Tensor
    text_rank: Tensor
    text_taxon: Tensor
    pair: Tensor | None
    text_bias: Tensor | None


class _Counts(NamedTuple):
    here: Tensor  # (N,) local images that carry each text
    carried: Tensor  # (N,) images of all processes that do, |P_k|
    images: Tensor  # (R,) images of all processes known at each rank


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def _keys(rank: Tensor, taxon: Tensor) -> Tensor:
    """One int64 for a (rank, taxon); ids stay far under 2^56."""
    return (rank << 56) | taxon


def _check_unique(text_rank: Tensor, text_taxon: Tensor) -> None:
    keys, order = _keys(text_rank, text_taxon).sort(stable=True)
    repeated = keys[1:] == keys[:-1]
    if keys.is_cuda:  # the host must not wait, so the device checks; it cannot name the text
        torch._assert_async(
            ~repeated.any(),
            "texts must be unique within a process: encode each once, or give pair= for one text per image",
        )
    elif bool(repeated.any()):
        j = int(order[:-1][repeated].min())
        raise ValueError(
            f"texts must be unique within a process; text {j} (rank {int(text_rank[j])}, taxon "
            f"{int(text_taxon[j])}) is repeated: encode it once, or give pair= for one text per image"
        )


def _gather_texts(local: _Batch, group: Any) -> _Batch:
    """The local images with the texts of all processes. A text that several hold comes from its first holder."""
    held, own = row_counts(len(local.text), local.text.device, group), world_rank(group)
    ids = all_gather_rows(torch.stack([local.text_rank, local.text_taxon], 1), held, group)  # (n, 2)
    bias = None if local.text_bias is None else all_gather_rows(local.text_bias, held, group)
    before = sum(held[:own])
    if local.pair is not None:
        text = gather_rows_with_grad(local.text, held, group)
        pair = torch.where(local.pair >= 0, local.pair + before, -1)
        return _Batch(local.image, text, local.image_taxa, ids[:, 0], ids[:, 1], pair, bias)
    first, sent = _first_holders(ids, held)
    text = local.text
    if sent[own] < held[own]:
        text = text[first[sum(sent[:own]) : sum(sent[: own + 1])] - before]
    text = gather_rows_with_grad(text, sent, group)
    ids, bias = ids[first], None if bias is None else bias[first]
    return _Batch(local.image, text, local.image_taxa, ids[:, 0], ids[:, 1], None, bias)


def _first_holders(ids: Tensor, held: list[int]) -> tuple[Tensor, list[int]]:
    """Where each distinct (rank, taxon) of ids (n, 2) stands first, in order; how many stand with each process."""
    keys, order = _keys(*ids.unbind(1)).sort(stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    first = torch.empty_like(first).scatter_(0, order, first)
    sent: list[int] = torch.stack([part.sum() for part in first.split(held)]).tolist()
    return first.nonzero().flatten(), sent


def _merge(
    image_sum: Tensor, nll_text: Tensor, text_lse: Tensor, counts: _Counts, group: Any
) -> tuple[Tensor, Tensor]:
    """image_sum (...) over all processes, and the texts' nll (N,) from the processes' parts of them.

    With lse_p the part's logsumexp, c_p its share of the images that carry the text, and m the largest lse_p,

        nll = sum_p c_p (nll_p + m - lse_p) + log sum_p exp(lse_p - m)

    of which no term is negative.
    """
    top = max_over_processes(text_lse, group)
    share = counts.here.to(nll_text.dtype) / counts.carried.clamp_min(1)
    parts = [image_sum, share * (nll_text + (top - text_lse)), (text_lse - top).exp()]
    image_sum, above, total = sum_over_processes(parts, group)
    return image_sum, torch.where(counts.carried > 0, above + total.log(), 0)


def _image_text(batch: _Batch) -> Tensor:
    """(B, R) some text of each image's taxon at each rank, -1 = none in the batch."""
    R = batch.image_taxa.shape[1]
    keys, order = _keys(batch.text_rank, batch.text_taxon).sort()
    ranks = torch.arange(R, device=keys.device).expand_as(batch.image_taxa)
    wanted = _keys(ranks, batch.image_taxa.clamp_min(0))
    if not len(keys):
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where((keys[place] == wanted) & (batch.image_taxa >= 0), order[place], -1)


def _images_per_text(batch: _Batch) -> Tensor:
    """(U,) int64, |P_k|: images whose taxon each text is (or, with pairs, whose own text it is)."""
    text = _image_text(batch) if batch.pair is None else batch.pair
    place = text.flatten().long() + 1  # place 0 collects the images without a text: no shape depends on the ids
    return place.new_zeros(len(batch.text_rank) + 1).scatter_add_(0, place, torch.ones_like(place))[1:]


def _text_share_of_images(batch: _Batch, carried: Tensor) -> Tensor:
    """(B, R) 1 / |P_k| of the text that each image carries at each rank, 0 where it has none."""
    if batch.pair is None:
        text = _image_text(batch)
    else:
        rank = batch.text_rank[batch.pair.clamp_min(0)]
        columns = torch.arange(batch.image_taxa.shape[1], device=rank.device)
        at = (columns == rank[:, None]) & (batch.pair >= 0)[:, None]
        text = torch.where(at, batch.pair[:, None], -1)
    return torch.where(text >= 0, 1.0 / carried[text.clamp_min(0)].clamp_min(1), 0.0)


class MixedRankClipLoss(LevelContrastiveLoss):
    """CLIP's loss on one caption per image, the captions' ranks mixed in one pool (how BioCLIP trains).

    Called as LevelContrastiveLoss is, with each distinct caption encoded once: a caption that n images share
    stands for n columns, which the log of n as its bias and the weight n restore exactly. So another image of the
    same taxon is a negative, as in CLIP. Every image must be supervised at one rank.
    """

    def __init__(
        self,
        ranks: tuple[str, ...] = RANKS,
        geometry: str = "euclidean",
        process_group: Any = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            ranks, geometry, direction_weight=0.5, restrict=False, process_group=process_group, backend=backend
        )

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_taxa: Tensor,
        text_rank: Tensor,
        text_taxon: Tensor,
        logit_scale: Tensor,
        curv: Tensor | float | None = None,
        *,
        space: str = "tangent",
        pair: Tensor | None = None,
        text_bias: Tensor | None = None,
    ) -> LossOutput:
        """As LevelContrastiveLoss.forward; per_rank is the mean over the images captioned at the rank."""
        if pair is not None or text_bias is not None:
            raise ValueError(
                "MixedRankClipLoss finds each image's caption by its taxon; leave out pair and text_bias"
            )
        batch = self._pool(_Batch(image, text, image_taxa, text_rank, text_taxon, None, None))
        captions = (batch.image_taxa >= 0).sum(1)
        if bool((captions > 1).any()):
            i = int((captions > 1).nonzero()[0])
            raise ValueError(
                f"image {i} is supervised at {int(captions[i])} ranks, and a caption has one; use a sampler that "
                "draws one rank per image"
            )
        counts = self._count(batch)
        carried = counts.carried
        log_carried = carried.clamp_min(1).double().log()
        bias = torch.where(carried > 0, log_carried, MASKED)  # a caption of no readable image is no column
        nll_image, nll_text, text_lse = level_infonce_part(
            *batch[:5],
            logit_scale,
            1.0 if curv is None else curv,
            geometry=self.geometry,
            space=space,
            text_bias=bias,
            restrict=False,
            backend=self.backend,
        )
        image_sum, nll_text = self._merge(nll_image.sum(0), nll_text, text_lse, counts)
        rank = batch.text_rank
        zeros = nll_text.new_zeros(len(self.ranks))
        images = zeros.index_add(0, rank, carried.to(zeros.dtype))  # (R,) images captioned at each rank
        both = image_sum + zeros.index_add(0, rank, nll_text * carried)
        floor = zeros.index_add(0, rank, (carried * log_carried).to(zeros.dtype))
        loss = self.direction_weight * both.sum() / images.sum().clamp_min(1)
        per_rank, floor = (self.direction_weight * (x / images).detach() for x in (both, floor))
        return LossOutput(loss, per_rank, floor)


class ClipLoss(nn.Module):
    """open_clip's ClipLoss on the fused operation: same constructor, call, value and gradients.

    Features are taken as they are (open_clip normalises them in the model). The (N, N) logits never exist.

    Args:
        local_loss: each process scores its own rows against all, instead of all against all.
        gather_with_grad: gradients flow through the gather to the other processes' features.
        cache_labels: accepted for compatibility; there are no label tensors to cache.
        rank, world_size: this process' position and the number of processes.
        use_horovod: not supported.

    Raises:
        ValueError: use_horovod.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod=True is not supported; use torch.distributed (DDP or DeepSpeed)")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Mean of both cross-entropies; image_features and text_features (B, D), logit_scale one element.

        logit_bias is one number for all logits, which no softmax notices: the value is the same without it, and
        its gradient is 0.
        """
        loss = self._loss(image_features, text_features, logit_scale)
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum().to(loss.dtype)  # in the graph: DDP waits for its gradient
        return {"contrastive_loss": loss} if output_dict else loss

    def _loss(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        if self.world_size == 1:
            return _symmetric(image, text, scale)
        own = torch.arange(len(image), device=image.device) + len(image) * self.rank
        if self.gather_with_grad and not self.local_loss:
            return self._each_tile_once(image, text, scale, own)
        all_image, all_text = (self._gather(x) for x in (image, text))
        if not self.local_loss:
            return _symmetric(all_image, all_text, scale)
        return (_rows_nll(image, all_text, scale, own) + _rows_nll(text, all_image, scale, own)) / 2

    def _each_tile_once(self, image: Tensor, text: Tensor, scale: Tensor, own: Tensor) -> Tensor:
        """The mean over all pairs from the local images alone: the same value and gradients on every process."""
        all_text = self._gather(text)
        nll_image, nll_text, text_lse = _one_rank(image, all_text, average_gradient(scale), own)
        each = torch.ones(len(all_text), dtype=torch.int32, device=own.device)
        here = torch.zeros_like(each).index_fill(0, own, 1)
        image_sum, nll_text = _merge(nll_image.sum(), nll_text, text_lse, _Counts(here, each, each.sum()), None)
        return (image_sum / len(all_text) + nll_text.mean()) / 2

    def _gather(self, x: Tensor) -> Tensor:
        counts = [len(x)] * self.world_size  # open_clip, too, needs equal local batches
        if self.gather_with_grad:
            return gather_rows_with_grad(x, counts)
        gathered = all_gather_rows(x, counts)
        if self.local_loss:
            return gathered
        before, after = len(x) * self.rank, len(x) * (self.rank + 1)
        return torch.cat([gathered[:before], x, gathered[after:]])  # the local rows keep their gradient


def _symmetric(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    nll_image, nll_text, _ = _one_rank(image, text, scale, torch.arange(len(image), device=image.device))
    return (nll_image.mean() + nll_text.mean()) / 2


def _rows_nll(rows: Tensor, columns: Tensor, scale: Tensor, own: Tensor) -> Tensor:
    """Mean nll of the rows alone, their positives being columns `own`."""
    # The sums of the columns come with the rows' and go unused: a few per cent of the product they come from.
    return _one_rank(rows, columns, scale, own)[0].mean()


def _one_rank(image: Tensor, text: Tensor, scale: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP's classification of pairs as a level of its own: one rank, every text a taxon."""
    taxon = torch.arange(len(text), device=text.device)
    return level_infonce_part(
        image,
        text,
        taxon[own][:, None],
        torch.zeros_like(taxon),
        taxon,
        scale,
        geometry="euclidean",
        space="unit",
        targets="diagonal",
        pair=own,
    )
