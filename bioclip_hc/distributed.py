"""Collectives with gradient over the processes that share one global batch.

# W processes, n_p rows of process p, N = sum of n_p
Without an initialised process group everything is a no-op, so that one process needs no launcher.
"""

from __future__ import annotations

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
    if world_size(group) == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size(group))]
    dist.all_gather(counts, torch.tensor([rows], device=device), group=group)
    return [int(count) for count in counts]


def all_gather_rows(x: Tensor, counts: list[int], group: Any = None) -> Tensor:
    """Rows of all processes, (n_p, ...) -> (N, ...), in order of processes; no gradient."""
    if len(counts) == 1:
        return x
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded, group=group)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    """all_gather_rows whose backward sums the processes' gradients of the local rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], group: Any) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return all_gather_rows(x, counts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)  # autograd may hand one tensor to several
        dist.all_reduce(grad, group=ctx.group)
        start = sum(ctx.counts[: world_rank(ctx.group)])
        return grad[start : start + ctx.counts[world_rank(ctx.group)]], None, None


def gather_rows_with_grad(x: Tensor, counts: list[int], group: Any = None) -> Tensor:
    """all_gather_rows through which gradients flow back, summed over processes.

    Where every process then computes the same loss of the gathered rows, the average over processes of the
    parameters' gradients (what DDP and DeepSpeed take) is the gradient of that loss.
    """
    return x if len(counts) == 1 else _GatherRows.apply(x, counts, group)


def share_of_texts(count: int, world_rank: int, world_size: int) -> tuple[int, int]:
    """[start, stop) of the texts that one process encodes of `count`: contiguous, sizes differ by at most one."""
    base, more = divmod(count, world_size)
    start = world_rank * base + min(world_rank, more)
    return start, start + base + (world_rank < more)
