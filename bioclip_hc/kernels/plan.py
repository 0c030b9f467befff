"""Where the positives of a batch lie, from its labels alone: on the device, without waiting for it.

# M images, N texts, R ranks

Texts are sorted by (rank, taxon). At each rank the images that meet its texts are sorted by where their own taxon
stands among them, so that positives gather around a diagonal: a tile far from it has none, and need not look.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bioclip_hc.kernels.objective import TAXON_BITS, Objective


@dataclass(frozen=True)
class Plan:
    """A batch in the order in which tiles visit it; int32. Position: a place in the order of the texts."""

    col_order: Tensor  # (N,) the text at each position
    col_start: Tensor  # (R + 1,) first position of each rank
    col_code: Tensor  # (N,) first position of the texts of the same taxon
    row_order: Tensor  # (R, M) images in order of their code, those that meet no text of the rank last
    row_code: Tensor  # (R, M) code of each image's taxon; from N on: it has no text
    row_own: Tensor  # (R, M) position of each image's own text, -1 = none at this rank
    rows: Tensor  # (R,) how many images meet the rank's texts
    row_count: Tensor  # (M, R) positives of each image at each rank
    col_count: Tensor  # (N,) positives of each text, in the order they came in

    def weights(
        self, grad_image: Tensor, grad_text: Tensor, grad_lse: Tensor, restrict: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What gradients push every logit of a row or column by, and pull its positives.

        The gradients are those of nll_image (M, R), nll_text (N,) and text_lse (N,), the last 0 where a text met
        no image. push_image is (M, R), or (M, 1) where ranks share a denominator, so that their weights add up;
        push_text (N,), pull_image (M, R), pull_text (N,).
        """
        grad_image = grad_image.masked_fill(self.row_count == 0, 0)  # without a positive nll is the constant 0
        grad_text = grad_text.masked_fill(self.col_count == 0, 0)
        pull_image = grad_image / self.row_count.clamp_min(1)
        pull_text = grad_text / self.col_count.clamp_min(1)
        push_image = grad_image if restrict else grad_image.sum(1, keepdim=True)
        return push_image, grad_text + grad_lse, pull_image, pull_text


def make_plan(o: Objective) -> Plan:
    """The plan of a batch with at least one image, one text and one rank."""
    (M, R), N, device = o.image_taxa.shape, len(o.text_rank), o.image_taxa.device
    key, order = o.text_key.sort(stable=True)
    start = torch.searchsorted(key, torch.arange(R + 1, device=device) << TAXON_BITS)
    image_key = o.image_key.T.contiguous()  # (R, M)
    first = torch.searchsorted(key, image_key)
    found = key[first.clamp_max(N - 1)] == image_key
    meets = image_key >= 0 if o.restrict else (o.image_taxa >= 0).any(1).expand(R, M)
    code = torch.where(meets, torch.where(found, first, N), N + 1)
    row_code, row_order = code.int().sort(dim=1, stable=True)

    position = torch.empty_like(order).scatter_(0, order, torch.arange(N, device=device))
    ranks = torch.arange(R, device=device)[:, None]
    own = torch.where(o.pair_rank == ranks, position[o.pair.clamp_min(0)], -1)  # (R, M)
    if o.targets == "multi_positive":
        row_count = torch.where(found, torch.searchsorted(key, image_key, right=True) - first, 0)
        # ranks one after the other, each in order of its codes: one sorted list
        codes = (row_code + ranks * (N + 2)).flatten()
        wanted = first_of_taxon(key) + (key >> TAXON_BITS) * (N + 2)
        at_position = torch.searchsorted(codes, wanted, right=True) - torch.searchsorted(codes, wanted)
        col_count = at_position[position]
    else:
        row_count = (own >= 0).long()
        col_count = torch.zeros_like(order).scatter_add_(0, o.pair.clamp_min(0), (o.pair >= 0).long())
    return Plan(
        order.int(),
        start.int(),
        first_of_taxon(key).int(),
        row_order.int(),
        row_code,
        own.gather(1, row_order).int(),
        meets.sum(1).int(),
        row_count.T.contiguous(),
        col_count,
    )


def first_of_taxon(key: Tensor) -> Tensor:
    """(N,) first position of each sorted key."""
    return torch.searchsorted(key, key)
