"""The row-wise CUDA C++ kernels of csrc/cuda, called through ctypes: twins of Triton's that read a row once.

# rows images or texts, D embed; v (rows, D) features as they came, n (rows, width) rounded unit rows

`prepare` is the twin of `triton_tiles.prepare`, `to_inputs` of `triton_infonce._to_inputs`. Nothing takes them by
default, as nobody has timed them on a GPU yet. This module needs no Triton; the library that it loads needs no
particular torch. Rows that lie one after the other, with D a multiple of 16 bytes and starts at multiples of 16
bytes, are read 16 bytes at a time and held in registers up to D = 8192; others are read twice, feature by feature.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LIBRARY = Path(__file__).with_name("libbioclip_hc_cuda.so")
LEAST_CAPABILITY = (8, 0)
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}  # codes of csrc/cuda/rows.h
SPACES = {0: "unit", 1: "sphere", 2: "tangent", 3: "hyperboloid"}  # as triton_tiles.SPACES
UNIT = 0
FIELDS = 6  # |v|, r, s, a, b, h: see triton_tiles

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "bioclip_hc_prepare": (
        _INT, _POINTER, _POINTER, _INT, _LONG, _LONG, *(_POINTER,) * 3, _INT, _POINTER, _LONG, *(_INT,) * 4,
    ),
    "bioclip_hc_to_inputs": (
        _INT, _POINTER, _POINTER, _INT, _LONG, _LONG, *(_POINTER,) * 7, _LONG, *(_INT,) * 3,
    ),
}  # fmt: skip


class Rows(NamedTuple):
    """Images or texts, ready for the product: the fields of `triton_tiles.Side`."""

    n: Tensor  # (rows, width) unit rows in the product's dtype, zeros beyond D
    polar: Tensor  # (rows, 6) fp32: |v|, r, s, a, b, h


def why_not(device: torch.device) -> str | None:
    """Why the kernels cannot run on that device; None where they can."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not built; python csrc/cuda/build.py builds it where nvcc is"
    if device.type != "cuda":
        return f"tensors are on {device}, not on a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        name, (major, minor) = torch.cuda.get_device_name(device), capability
        return f"they need compute capability 8.0 or newer, {name} has {major}.{minor}"
    return None


def prepare(
    v: Tensor, order: Tensor | None, curv: Tensor, space: int, dtype: torch.dtype, width: int, tf32: bool
) -> Rows:
    """Unit rows and polar scalars of v (rows, D), fp16, bf16 or fp32 of any strides; row p is of v[order[p]].

    Args:
        order: (rows,) int32, each in [0, rows), which is not looked at; None = as they are.
        curv: () or (1,) fp32.
        space: see SPACES.
        dtype: of the product. float32, or, for 16-bit v, float16 or v's own.
        width: columns of the result, at least D.
        tf32: round rows to TF32; float32 only.

    Raises:
        ValueError: an argument that this does not take, or kernels that cannot run here.
    """
    _check_features(v, order, curv, space)
    wanted = (torch.float32,) if v.dtype == torch.float32 else (torch.float32, torch.float16, v.dtype)
    if dtype not in wanted:
        raise ValueError(f"dtype of the product must be one of {wanted} for v of {v.dtype}, got {dtype}")
    if width < v.shape[1]:
        raise ValueError(f"width must be at least the {v.shape[1]} columns of v, got {width}")
    if tf32 and dtype != torch.float32:
        raise ValueError(f"tf32 rounds a product of torch.float32, got {dtype}")
    n = v.new_empty((len(v), width), dtype=dtype)
    polar = v.new_empty((len(v), FIELDS), dtype=torch.float32)
    _launch(
        v.device, "bioclip_hc_prepare", v, DTYPES[v.dtype], *v.stride(), order, curv, n, DTYPES[dtype], polar,
        *v.shape, width, space, tf32,
    )  # fmt: skip
    return Rows(n, polar)


def to_inputs(
    v: Tensor, order: Tensor | None, dn: Tensor, dr: Tensor, polar: Tensor, factor: Tensor, curv: Tensor, space: int
) -> Tensor:
    """Chain rule from unit rows and radii to the features that came in: (rows, D) contiguous, in v's dtype.

    The gradient of factor (<s dn, n> - dr r) by v, where s counts as fixed, and is 1 in spaces without a radius.

    Args:
        v, order, curv, space: as `prepare` had them; order a permutation.
        dn: (rows, width) fp32, width at least D, row p of v[order[p]].
        dr: (rows,) fp32, likewise.
        polar: what `prepare` returned.
        factor: one fp32 element.

    Raises:
        ValueError: an argument that this does not take, or kernels that cannot run here.
    """
    _check_features(v, order, curv, space)
    rows, D = v.shape
    if dn.ndim != 2 or len(dn) != rows or dn.shape[1] < D:
        raise ValueError(f"dn must be ({rows}, at least {D}), got {tuple(dn.shape)}")
    for name, x, shape in (
        ("dn", dn, tuple(dn.shape)), ("dr", dr, (rows,)), ("polar", polar, (rows, FIELDS)),
        ("factor", factor.reshape(-1), (1,)),
    ):  # fmt: skip
        _check(name, x, v.device, torch.float32, shape)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    _launch(
        v.device, "bioclip_hc_to_inputs", v, DTYPES[v.dtype], *v.stride(), order, dn, dr, polar, factor, curv, out,
        *v.shape, dn.shape[1], space,
    )  # fmt: skip
    return out


def _check_features(v: Tensor, order: Tensor | None, curv: Tensor, space: int) -> None:
    if v.ndim != 2:
        raise ValueError(f"v must be (rows, D), got {tuple(v.shape)}")
    if v.dtype not in DTYPES:
        raise ValueError(f"v must be one of {tuple(DTYPES)}, got {v.dtype}")
    if space not in SPACES:
        raise ValueError(f"space must be one of {SPACES}, got {space!r}")
    _check("curv", curv.reshape(-1), v.device, torch.float32, (1,))
    if order is not None:
        _check("order", order, v.device, torch.int32, (len(v),))


def _check(name: str, x: Tensor, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape or x.dtype != dtype or x.device != device or not x.is_contiguous():
        layout = "contiguous" if x.is_contiguous() else "strided"
        raise ValueError(
            f"{name} must be contiguous {shape} of {dtype} on {device}, got {layout} {tuple(x.shape)} of {x.dtype} "
            f"on {x.device}"
        )


def _launch(device: torch.device, name: str, *arguments: Any) -> None:
    """Queue a function of the library on the device's current stream; tensors go as their addresses."""
    reason = why_not(device)
    if reason is not None:
        raise ValueError(f"the kernels of csrc/cuda cannot run here: {reason}")
    with torch.cuda.device(device):
        call(load(LIBRARY), name, device.index, torch.cuda.current_stream(device).cuda_stream, *arguments)


def call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call a function of a library that `load` gave.

    Raises:
        RuntimeError: CUDA refused.
    """
    code = getattr(library, name)(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments))
    if code:
        raise RuntimeError(f"{name}: CUDA error {code}, {library.bioclip_hc_cuda_error(code).decode()}")


@cache
def load(path: Path) -> ctypes.CDLL:
    """The library, with the types of its functions.

    Raises:
        RuntimeError: it does not load, or is of other sources.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        library.bioclip_hc_cuda_error.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"{path} does not load: {error}; python csrc/cuda/build.py builds it anew") from error
    return library
