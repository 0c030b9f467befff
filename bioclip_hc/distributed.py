"""Collectives with gradient over the processes that share one global batch.

# W processes, n_p rows of process p, N = sum of n_p, U texts of this process' share
Without an initialised process group everything is a no-op, so that one process needs no launcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size(group: Any = None) -> int:
    """Number of processes of the group; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def world_rank(group: Any = None) -> int:
    """This process' position in the group; 0 without torch.distributed."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def row_counts(rows: int, device: torch.device, group: Any = None) -> list[int]:
    """n_p of every process, in order; one small all-gather and a host sync."""
    own = torch.tensor([rows], device=device)
    counts: list[int] = all_gather_rows(own, [1] * world_size(group), group).tolist()
    return counts


def all_gather_rows(x: Tensor, counts: list[int], group: Any = None) -> Tensor:
    """Rows of all processes, (n_p, ...) -> (N, ...), in order of processes; no gradient."""
    if len(counts) == 1:
        return x
    most, rows = max(counts), x.detach().contiguous()
    if len(rows) < most:
        rows = torch.cat([rows, rows.new_zeros(most - len(rows), *x.shape[1:])])
    gathered = rows.new_empty(len(counts) * most, *x.shape[1:])
    if most:
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # before torch 2.14
        all_gather(gathered, rows, group=group)
    if min(counts) == most:
        return gathered
    return torch.cat([piece[:count] for piece, count in zip(gathered.split(most), counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    """all_gather_rows whose backward sums the processes' gradients of the local rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: Any) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return all_gather_rows(x, counts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # Each process gets all shares of its rows and sums them itself, in fp32: 16-bit sums would round at every
        # hop, and gloo's reduce_scatter sends as much as an all-reduce, twice this.
        own, processes = ctx.counts[world_rank(ctx.group)], len(ctx.counts)
        shares = grad.new_empty(processes * own, *grad.shape[1:])
        dist.all_to_all_single(shares, grad.contiguous(), [own] * processes, ctx.counts, group=ctx.group)
        wide = grad.dtype if grad.dtype == torch.float64 else torch.float32
        return shares.view(processes, own, *grad.shape[1:]).sum(0, dtype=wide).to(grad.dtype), None, None


def gather_rows_with_grad(x: Tensor, counts: list[int], group: Any = None) -> Tensor:
    """all_gather_rows through which gradients flow back, summed over processes.

    Where every process then computes the same loss of the gathered rows, or its share of one that
    `sum_over_processes` puts together, the average over processes of the parameters' gradients (what DDP and
    DeepSpeed take) is the gradient of that loss.
    """
    return x if len(counts) == 1 else _GatherRows.apply(x, counts, group)


class _Sum(torch.autograd.Function):
    """The sum over processes, of which all of them compute one loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.processes = world_size(group)
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.processes, None


def sum_over_processes(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """Each tensor's sum over processes, of one shape and type everywhere; all in one message.

    Every process must go on to the same loss. Its gradient for a local tensor is then known without communication,
    and comes back times the number of processes, because their parameters' gradients will be averaged.
    """
    if world_size(group) == 1:
        return list(tensors)
    total = _Sum.apply(torch.cat([x.flatten() for x in tensors]), group)
    parts = total.split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]


class _AverageGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total / world_size(ctx.group), None


def average_gradient(x: Tensor, group: Any = None) -> Tensor:
    """x, whose gradient becomes the average over processes at once, for a caller who will not average it."""
    return x if world_size(group) == 1 else _AverageGradient.apply(x, group)


def max_over_processes(x: Tensor, group: Any = None) -> Tensor:
    """The elementwise maximum over processes; no gradient."""
    if world_size(group) == 1:
        return x.detach()
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top


def share_of_texts(count: int, world_rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of the texts that one process encodes of `count`: contiguous, sizes differ by at most one."""
    base, more = divmod(count, world_size)
    start = world_rank * base + min(world_rank, more)
    return start, start + base + (world_rank < more)


def share_unique_texts(text_rank: Tensor, text_taxon: Tensor, group: Any = None) -> tuple[Tensor, Tensor]:
    """This process' even share of the distinct texts that the processes need, each once in all.

    For loops that do not know the global batch: give the texts of the local images, encode those that come back,
    and pass them on to the loss, which gathers them.

    Args:
        text_rank, text_taxon: (n_p,) ids, in any order, repeated or not.

    Returns:
        rank, taxon (U,) int64, by rank, then by taxon; U differs by at most one between processes.
    """
    counts = row_counts(len(text_rank), text_rank.device, group)
    ids = all_gather_rows(torch.stack([text_rank.long(), text_taxon.long()], 1), counts, group)
    distinct = ids.unique(dim=0) if len(ids) else ids
    start, stop = share_of_texts(len(distinct), world_rank(group), len(counts))
    rank, taxon = distinct[start:stop].unbind(1)
    return rank, taxon
