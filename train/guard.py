"""No update by a number that is not finite: found on all processes in the step that made it, before it does harm.

In fp16 infinite gradients are how the loss scale learns, and DeepSpeed skips their updates by itself; there only
what comes before the gradients is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

BEFORE_GRADIENTS = ("image features", "text features", "logit scale", "curvature", "loss")


class Guard:
    """Remembers, on the device, what was not finite since the last `verdict`.

    Args:
        model: its trainable parameters' gradients are looked at as the backward pass makes them.
        gradients: False leaves them to DeepSpeed's loss scaling.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, gradients: bool) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad] if gradients else []
        self._names = [*BEFORE_GRADIENTS, *(f"gradient of {name}" for name, _ in trained)]
        self._bad = torch.zeros(len(self._names), dtype=torch.bool, device=device)
        for i, (_, parameter) in enumerate(trained, len(BEFORE_GRADIENTS)):
            parameter.register_hook(partial(self._look_at, i))

    def look(self, name: str, value: Tensor) -> None:
        """Look at one of BEFORE_GRADIENTS."""
        self._note(self._names.index(name), value.detach().isfinite())

    def positive(self, name: str, value: Tensor) -> Tensor:
        """A scalar that must be a positive number; 1 stands in where it is none, for the loss refuses that."""
        fine = value.isfinite() & (value > 0)
        self._note(self._names.index(name), fine)
        return torch.where(fine, value, 1.0)

    def _look_at(self, i: int, gradient: Tensor) -> None:
        self._note(i, gradient.isfinite())

    def _note(self, i: int, fine: Tensor) -> None:
        self._bad[i].logical_or_(~fine.all())

    def verdict(self) -> dict[int, list[str]]:
        """What was not finite, by process; empty where all was. All processes call it, and the host waits once."""
        anywhere = self._bad.any().int()
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
        if not anywhere.item():
            return {}
        own = [name for name, bad in zip(self._names, self._bad.tolist(), strict=True) if bad]
        self._bad.zero_()
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, own)
        return {process: names for process, names in enumerate(found) if names}


def discard_gradients(engine: Any, zero_stage: int) -> None:
    """Leave the engine as it was before the backward pass, as DeepSpeed's own skipping of a step does."""
    engine.zero_grad()
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    if zero_stage in (1, 2):
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        for kept in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            kept.update(dict.fromkeys(kept))
    if zero_stage == 3:
        optimizer.averaged_gradients = {}
    if zero_stage and (getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False)):
        optimizer.reset_cpu_buffers()


def batch_norms(model: torch.nn.Module) -> dict[str, _BatchNorm]:
    """The layers that keep statistics of what passes through them, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


class Statistics:
    """The running statistics of a model as they were when this was made."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._kept = [
            (buffer, buffer.clone()) for module in batch_norms(model).values() for buffer in module.buffers()
        ]

    def restore(self) -> None:
        for buffer, value in self._kept:
            buffer.copy_(value)


@contextmanager
def still_statistics(model: torch.nn.Module) -> Iterator[None]:
    """Inside, batches pass through without moving the running statistics."""
    moved = [module for module in batch_norms(model).values() if module.track_running_stats]
    for module in moved:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in moved:
            module.track_running_stats = True
