"""Which implementation of an operation runs: an explicit choice is kept or refused, never replaced."""

from __future__ import annotations

import importlib.util

import torch

BACKENDS = ("reference", "tiled", "triton")


def choose_backend(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The named backend, or the best for this device: Triton's kernels on a GPU, "tiled" elsewhere.

    float64 is for checking, and runs "tiled" on every device.

    Raises:
        ValueError: no such backend, or one that cannot run here, with the reason.
    """
    if backend is None:
        return "triton" if device.type == "cuda" and why_not_triton(device, dtype) is None else "tiled"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")
    reason = why_not_triton(device, dtype) if backend == "triton" else None
    if reason is not None:
        raise ValueError(f"backend 'triton' cannot run here: {reason}")
    return backend


@torch.compiler.assume_constant_result
def why_not_triton(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the Triton kernels cannot run on that device with that dtype; None where they can."""
    if dtype == torch.float64:
        return "its kernels take float16, bfloat16 and float32, not float64; take 'tiled' or 'reference'"
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
