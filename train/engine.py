"""DeepSpeed: the engine around the model, its configuration, the optimizer and the learning rate."""

from __future__ import annotations

import math
import sys
import warnings
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

    # DeepSpeed calls collectives by names that torch 2.14 has replaced; its users can do nothing about it
    warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)
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
    if config.run.zero_stage == 0 and config.run.precision == "bf16":
        _forget_phantom_step(engine.optimizer)
    return engine, schedule


def _forget_phantom_step(optimizer: Any) -> None:
    """Undo the step of Adam that DeepSpeed's 16-bit optimizer of stage 0 makes to have its states allocated.

    It decays the masters once and leaves the step counter at 1, so that the first real step is a quarter too small.
    """
    optimizer.optimizer.state.clear()
    for masters, parameters in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
        for master, parameter in zip(masters, parameters, strict=True):
            master.data.copy_(parameter.data)


def deepspeed_config(config: Config, reshard: bool = False) -> dict[str, Any]:
    """DeepSpeed's own configuration of a run."""
    precision, offload = config.run.precision, config.run.offload
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": config.run.zero_stage}
    if offload != "none":
        zero["offload_optimizer"] = place
    if offload == "parameters":
        zero["offload_param"] = place
    return {
        "train_batch_size": config.optim.global_batch,
        "gradient_accumulation_steps": 1,  # negatives come from the whole batch; there is nothing to accumulate
        "gradient_clipping": config.optim.grad_clip,  # DeepSpeed clips at 1.0 when the key is missing
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW serves there too; theirs must be compiled
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


def full_state(engine: Any, precision: str, zero_stage: int) -> dict[str, torch.Tensor]:
    """The whole state dict in fp32 on the CPU, from the optimizer's fp32 masters where training was in 16 bit.

    All processes call it. (A 16-bit weight near 1 does not show steps under 0.4%; its master does.)
    """
    model = engine.module
    with gathered_parameters(list(model.parameters()), zero_stage):
        state = {name: x.detach().float().cpu().clone() for name, x in model.state_dict().items()}
    if precision != "fp32":
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                state[name] = master(engine, parameter).detach().float().cpu().reshape(state[name].shape)
    return state


def master(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The optimizer's fp32 copy of a trainable parameter, whole; all processes call it.

    Raises:
        RuntimeError: the engine has none.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(engine.optimizer, "fp32_groups"):  # 16 bit at stage 0, for which DeepSpeed's function gives None
        pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        found = [m for p, m in ((p, m) for ps, ms in pairs for p, m in zip(ps, ms, strict=True)) if p is parameter]
        value = found[0] if found else None
    else:
        value = safe_get_full_fp32_param(parameter)
    if value is None:
        raise RuntimeError("DeepSpeed keeps no fp32 copy of a parameter that it trains in 16 bit")
    return value


def check_precision(precision: str) -> None:
    """Raises ValueError where this machine has no fp16."""
    if precision != "fp16" or torch.cuda.is_available():
        return
    try:
        works = torch.ops.mkldnn._is_mkldnn_fp16_supported()
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        works = False
    if not works:
        raise ValueError("run.precision = 'fp16' needs a GPU or a CPU with fp16; use bf16 or fp32 here")
