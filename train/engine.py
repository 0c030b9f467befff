"""DeepSpeed: the engine around the model, its configuration, the optimizer and the learning rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bioclip_hc.model import HierarchicalCLIP

from config import Config


def start_engine(model: HierarchicalCLIP, config: Config, steps: int, reshard: bool = False) -> tuple[Any, Any]:
    """DeepSpeed's engine around the model, and the learning-rate schedule.

    Args:
        steps: of the whole run.
        reshard: whether it is to load a checkpoint of another number of processes.
    """
    import deepspeed

    if not torch.cuda.is_available():
        # its shared-memory collectives take 37 s and a compiler to build at first use; gloo serves
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    o = config.optim
    optimizer = torch.optim.AdamW(
        parameter_groups(model, o.weight_decay), lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_share(step, o.warmup, steps))
    engine, _, _, schedule = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(config, reshard)
    )
    return engine, schedule


def deepspeed_config(config: Config, reshard: bool = False) -> dict[str, Any]:
    """DeepSpeed's own configuration of a run."""
    precision = config.run.precision
    return {
        "train_batch_size": config.optim.global_batch,
        "gradient_accumulation_steps": 1,  # negatives come from the whole batch; there is nothing to accumulate
        "gradient_clipping": config.optim.grad_clip,  # DeepSpeed clips at 1.0 when the key is missing
        "zero_optimization": {"stage": config.run.zero_stage},
        "fp16": {"enabled": precision == "fp16"},
        "bf16": {"enabled": precision == "bf16"},
        "checkpoint": {"load_universal": reshard},
        "steps_per_print": sys.maxsize,
    }


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: scalars, biases and norms do not decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for _, p in named if p.ndim < 2]
    decayed = [p for _, p in named if p.ndim >= 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def lr_share(step: int, warmup: int, steps: int) -> float:
    """Share of the maximum learning rate at a step: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


@contextmanager
def gathered_parameters(parameters: list[torch.nn.Parameter], zero_stage: int) -> Iterator[None]:
    """Inside, these parameters are whole on every process, which under ZeRO-3 they otherwise are not."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def full_state(model: torch.nn.Module, precision: str, zero_stage: int) -> dict[str, torch.Tensor]:
    """The whole state dict in fp32 on the CPU, from the optimizer's fp32 masters where training was in 16 bit.

    All processes call it. (A 16-bit weight near 1 does not show steps under 0.4%; its master does.)
    """
    with gathered_parameters(list(model.parameters()), zero_stage):
        state = {name: x.detach().float().cpu().clone() for name, x in model.state_dict().items()}
    if precision != "fp32":
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in model.named_parameters():
            master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if master is not None:
                state[name] = master.detach().float().cpu().reshape(state[name].shape)
    return state
