"""The server of small_run, whose forks carry the fault that their environment names.

FAULT is a JSON object with one key. Nothing of the product is replaced: faults come from hooks that Python and
torch offer, and what they do is what happens to processes and numbers.

    {"kill": {"operation": n}}   SIGKILL to itself before its n-th operation on a file since the first save began
    {"kill": {"forward": n}}     SIGKILL at the n-th forward pass; {"backward": n} in the backward pass
    {"stop": {"forward": n}}     the same with SIGSTOP
    {"count": path}              write the number of such operations to a file
    {"poison": {"site": s, "value": "nan" | "inf", "step": n}}   a number that is not finite, in the n-th step
    {"limit": bytes}             no file may grow beyond (RLIMIT_FSIZE)
    {"call": "module:function"}  not a training: call it with the arguments
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "train"), str(ROOT / "tests")]

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def main(arguments: list[str]) -> int:
    """train.py's main with the fault armed."""
    fault = json.loads(os.environ.get("FAULT", "{}"))
    if "call" in fault:
        module, function = fault["call"].split(":")
        return getattr(importlib.import_module(module), function)(*arguments)
    import train

    counter = None
    for kind, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        for where, count in fault.get(kind, {}).items():
            ARM[where](at(count, number))
    if "poison" in fault:
        poison(**fault["poison"])
    if "limit" in fault:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["limit"], fault["limit"]))
    if "count" in fault:
        counter = Counter()
        on_file_operations(counter)
    code = train.main(arguments)
    if counter:
        Path(fault["count"]).write_text(str(counter.value))
    return code


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> None:
        self.value += 1


def at(count: int, number: signal.Signals) -> Callable[[], None]:
    """A function whose `count`-th call in this process sends it the signal; worker processes inherit it in vain."""
    counter, own = Counter(), os.getpid()

    def call() -> None:
        counter()
        if counter.value == count and os.getpid() == own:
            os.kill(own, number)

    return call


def on_file_operations(call: Callable[[], None]) -> None:
    """Before every opening, renaming, making or removing of a file in the run's folder since the first save began.

    (Files that C++ code opens do not show; kills at random times meet their insides.)
    """
    own, saving = os.getpid(), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal saving
        if event not in FILE_EVENTS or os.getpid() != own or not isinstance(arguments[0], str):
            return
        path = arguments[0]
        saving = saving or ".partial" in path
        if saving and ("/checkpoints" in path or not path.startswith("/")):  # relative: within a tree's removal
            call()

    sys.addaudithook(hook)


def on_forward(call: Callable[[], None]) -> None:
    """Before every forward pass of the whole model."""
    import torch

    def hook(module: torch.nn.Module, inputs: Any) -> None:
        if type(module).__name__ == "HierarchicalCLIP":
            call()

    torch.nn.modules.module.register_module_forward_pre_hook(hook)


def on_backward(call: Callable[[], None]) -> None:
    """In every backward pass, when the gradient comes to the image features."""
    import torch

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if type(module).__name__ == "HierarchicalCLIP" and output.image.requires_grad:
            output.image.register_hook(lambda gradient: call())

    torch.nn.modules.module.register_module_forward_hook(hook)


def poison(site: str, value: str, step: int) -> None:
    """Put NaN or infinity into the `step`-th forward pass of the whole model, or into its backward pass."""
    import torch

    bad, calls = float(value), Counter()

    def spoiled(x: torch.Tensor, what: float = bad) -> torch.Tensor:
        """The tensor with its first row, or itself, replaced; gradients still flow to the rest."""
        mask = torch.zeros_like(x, dtype=torch.bool)
        mask[:1] = True
        return torch.where(mask, torch.full_like(x, what), x)

    def before(module: torch.nn.Module, inputs: Any) -> Any:
        if type(module).__name__ != "HierarchicalCLIP":
            return None
        calls()
        if calls.value == step and site == "pixels":
            return spoiled(inputs[0]), *inputs[1:]
        if calls.value == step and site == "parameter":
            with torch.no_grad():
                next(p for p in module.parameters() if p.ndim == 2 and p.numel()).view(-1)[:1] = bad
        return None

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if calls.value != step:
            return None
        if site == "loss" and type(module).__name__ == "LevelContrastiveLoss":
            return output._replace(loss=output.loss * bad)
        if type(module).__name__ != "HierarchicalCLIP":
            return None
        if site == "gradient":
            output.image.register_hook(lambda gradient: torch.full_like(gradient, bad))
        field = {"image features": "image", "text features": "text", "logit scale": "logit_scale"}
        field |= {"curvature": "curv"}
        if site in field:
            return output._replace(**{field[site]: spoiled(getattr(output, field[site]))})
        return None

    torch.nn.modules.module.register_module_forward_pre_hook(before)
    torch.nn.modules.module.register_module_forward_hook(after)


ARM = {"operation": on_file_operations, "forward": on_forward, "backward": on_backward}

if __name__ == "__main__":
    import small_run

    small_run.serve(main)
