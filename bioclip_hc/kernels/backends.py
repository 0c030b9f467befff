"""Which implementation of an operation runs: an explicit choice is kept or refused, never replaced."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch

BACKENDS = ("reference", "tiled", "cpu", "triton")


def choose_backend(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The named backend, or the best for this device: Triton's kernels on a GPU, C++ on a CPU.

    Where that cannot run, "tiled" does, after one warning. float64 is for checking, and runs "tiled" everywhere.

    Raises:
        ValueError: no such backend, or one that cannot run here, with the reason.
    """
    if backend is None:
        best = "triton" if device.type == "cuda" else "cpu"
        reason = why_not(best, device, dtype)
        if reason is None:
            return best
        if dtype != torch.float64 and not torch.compiler.is_compiling():  # a warning would break the graph
            _warn(f"level_infonce and its kin run on plain torch instead of {best!r}: {reason}")
        return "tiled"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")
    reason = why_not(backend, device, dtype)
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot run here: {reason}")
    return backend


@cache
def _warn(message: str) -> None:  # once each
    warnings.warn(message, stacklevel=4)


@torch.compiler.assume_constant_result
def why_not(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a backend cannot run on that device with that dtype; None where it can."""
    if backend in ("reference", "tiled"):
        return None
    if dtype == torch.float64:
        return "its kernels take float16, bfloat16 and float32, not float64; take 'tiled' or 'reference'"
    return _why_not_cpu(device) if backend == "cpu" else _why_not_triton(device)


def _why_not_cpu(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"tensors are on {device}"
    from bioclip_hc.kernels import cpu

    return cpu.why_not()


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if interpreting():
        return None
    if device.type != "cuda":
        return f"tensors are on {device}, not on a CUDA device (TRITON_INTERPRET=1 runs it there, slowly)"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    return None


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of any device."""
    import triton

    return bool(triton.knobs.runtime.interpret)
