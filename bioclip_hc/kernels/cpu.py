"""Backend "cpu": the C++ of csrc/cpu around torch's matrix products, loaded through ctypes.

# M images, N texts, D embed

The library knows nothing of torch or Python: it takes pointers, and threads from the OpenMP runtime that torch has
loaded. The structures here mirror those of csrc/cpu/kernels.h field by field.
"""

from __future__ import annotations

import ctypes
import math
import os
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bioclip_hc.kernels import panel
from bioclip_hc.kernels.epilogue import Features, Polar, Pull, Running, Tile
from bioclip_hc.kernels.objective import Objective, compute_dtype

# setup.py builds it here; the variable names another, as the sanitizers' build does
LIBRARY = Path(os.environ.get("BIOCLIP_HC_CPU_LIBRARY", Path(__file__).with_name("libbioclip_hc_cpu.so")))
LAYOUT = 2  # of csrc/cpu/kernels.h
FEATURE_TYPES = {torch.float32: 0, torch.bfloat16: 1}


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Polar(ctypes.Structure):
    _fields_ = _fields(c_void_p, "s a b cosh h")


class _Tile(ctypes.Structure):
    _fields_ = (
        _fields(c_void_p, "product")
        + _fields(c_int64, "stride rows cols")
        + _fields(_Polar, "x y")
        + _fields(c_void_p, "positive positive_end taxon taxon_end")
        + _fields(c_int32, "first lorentz")
        + _fields(c_void_p, "bias")
        + _fields(c_float, "factor floor")
    )


class _Three(ctypes.Structure):
    """Running: top, sum, positives. Pull: lse, push, pull."""

    _fields_ = _fields(c_void_p, "first second third")


class _Lists(ctypes.Structure):
    _fields_ = (
        _fields(c_void_p, "v w")
        + _fields(c_int32, "v_type w_type")
        + _fields(c_int64, "v_stride w_stride width")
        + _fields(c_void_p, "v_norm w_norm")
        + _fields(_Polar, "x y")
        + _fields(c_void_p, "indptr indices text_rank")
        + _fields(c_int64, "images ranks k")
        + _fields(c_float, "factor")
        + _fields(c_int32, "lorentz")
        + _fields(c_void_p, "value index")
    )


_ROWS = (c_void_p, c_int32, c_int64)  # features, their type, their stride


class Kernels(ctypes.Structure):
    """The functions of one instruction set."""

    _fields_ = [
        ("name", c_char_p),
        ("infonce_forward", CFUNCTYPE(None, POINTER(_Tile), POINTER(_Three), POINTER(_Three), c_int32)),
        (
            "infonce_backward",
            CFUNCTYPE(c_double, POINTER(_Tile), POINTER(_Three), POINTER(_Three), c_void_p, c_void_p, c_int32),
        ),
        ("norms", CFUNCTYPE(None, *_ROWS, c_int64, c_int64, c_void_p, c_int32)),
        (
            "unit_rows",
            CFUNCTYPE(None, *_ROWS, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32),
        ),
        ("add_rows", CFUNCTYPE(None, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int32)),
        (
            "chain_rule",
            CFUNCTYPE(None, c_void_p, *_ROWS, *(c_void_p,) * 4, c_int64, c_int64, c_void_p, c_int32),
        ),
        (
            "map_forward",
            CFUNCTYPE(None, c_int32, c_void_p, c_int32, c_int64, c_int64, c_float, c_void_p, c_int32),
        ),
        (
            "map_backward",
            CFUNCTYPE(c_double, c_int32, c_void_p, c_void_p, c_int32, c_int64, c_int64, c_float, c_void_p, c_int32),
        ),
        ("keep_best", CFUNCTYPE(None, POINTER(_Tile), c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32)),
        ("keep_best_of_lists", CFUNCTYPE(None, POINTER(_Lists), c_int32)),
        ("exponentials", CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("logarithms", CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
    ]


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.is_file():
        return (
            f"{LIBRARY.name} was not built, as no C++ compiler was found or it failed (there is no {LIBRARY}); "
            "install g++ or clang++ and reinstall bioclip_hc with pip's --no-cache-dir"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.bioclip_hc_layout.restype = c_int64
        sizes = (ctypes.sizeof(kind) for kind in (Kernels, _Lists, _Tile))
        if library.bioclip_hc_layout() != reduce(lambda so_far, size: so_far << 16 | size, sizes, LAYOUT):
            return f"{LIBRARY.name} was built from other sources; reinstall bioclip_hc with pip's --no-cache-dir"
        library.bioclip_hc_kernels.restype = POINTER(Kernels)
        library.bioclip_hc_kernels.argtypes = [c_char_p]
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    return library


def why_not() -> str | None:
    """Why these kernels cannot run on this machine; None where they can."""
    library = _library()
    return library if isinstance(library, str) else None


@cache
def kernels(name: str | None = None) -> Kernels:
    """The kernels of an instruction set ("avx512", "avx2", "baseline"), or the best of this processor.

    Raises:
        RuntimeError: there is no library, or this processor or build lacks the instruction set.
    """
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    found = library.bioclip_hc_kernels(None if name is None else name.encode())
    if not found:
        raise RuntimeError(f"this processor, or this build, has no kernels for {name!r}")
    result: Kernels = found.contents
    return result


def instruction_set() -> str:
    """The name of those that run. Raises RuntimeError as `kernels` does."""
    name: bytes = kernels().name
    return name.decode()


def _pointer(x: Tensor | None) -> int | None:
    if x is None:
        return None
    assert x.is_contiguous()  # pointers know no strides
    return x.data_ptr()


def _polar(side: Polar | None) -> _Polar:
    if side is None:
        return _Polar()
    return _Polar(*map(_pointer, (side.s, side.a, side.b, side.cosh, side.h)))


def _tile(t: Tile) -> _Tile:
    marks = map(_pointer, (t.positive, t.positive_end, t.taxon, t.taxon_end))
    rows, cols = t.product.shape
    return _Tile(
        _pointer(t.product), cols, rows, cols, _polar(t.x), _polar(t.y), *marks, t.first, t.x is not None,
        _pointer(t.bias), t.factor, t.floor,
    )  # fmt: skip


def _rows(v: Tensor) -> tuple[int, int, int]:
    """Pointer, type and stride of features whose numbers lie side by side."""
    return v.data_ptr(), FEATURE_TYPES[v.dtype], v.stride(0)


class NativeEpilogue:
    """`epilogue.Epilogue` in C++: one pass over a tile forward and one back, on as many threads as torch has."""

    def __init__(self, instruction_set: str | None = None) -> None:
        self._do = kernels(instruction_set)

    def halves(self, image: Tensor, text: Tensor) -> bool:
        return image.dtype == text.dtype == torch.bfloat16 and _multiplies_bf16()

    def norms(self, v: Tensor) -> Tensor:
        norm = v.new_empty(len(v), dtype=torch.float32)
        self._do.norms(*_rows(v), *v.shape, _pointer(norm), torch.get_num_threads())
        return norm

    def unit_rows(self, v: Tensor, order: Tensor, norm: Tensor | None, n: Tensor, h: Tensor) -> None:
        pointers = _pointer(order), _pointer(norm), *n.shape, _pointer(n), _pointer(h)
        self._do.unit_rows(*_rows(v), *pointers, torch.get_num_threads())

    def forward(self, t: Tile, rows: Running, cols: Running) -> None:
        sums = (_Three(*map(_pointer, (x.top, x.sum, x.positives))) for x in (rows, cols))
        self._do.infonce_forward(_tile(t), *sums, torch.get_num_threads())

    def backward(self, t: Tile, rows: Pull, cols: Pull, row_radius: Tensor, col_radius: Tensor) -> float:
        pulls = (_Three(*map(_pointer, (x.lse, x.push, x.pull))) for x in (rows, cols))
        radii = _pointer(row_radius), _pointer(col_radius)
        total: float = self._do.infonce_backward(_tile(t), *pulls, *radii, torch.get_num_threads())
        return total

    def add_rows(self, part: Tensor, order: Tensor, total: Tensor) -> None:
        self._do.add_rows(_pointer(part), _pointer(order), *part.shape, _pointer(total), torch.get_num_threads())

    def chain_rule(
        self,
        dn: Tensor,
        v: Tensor,
        order: Tensor,
        norm: Tensor | None,
        across: Tensor | None,
        along: Tensor | None,
        dv: Tensor,
    ) -> None:
        pointers = map(_pointer, (order, norm, across, along))
        self._do.chain_rule(_pointer(dn), *_rows(v), *pointers, *dn.shape, _pointer(dv), torch.get_num_threads())

    def keep_best(self, t: Tile, columns: Tensor, value: Tensor, index: Tensor) -> None:
        assert value.stride() == index.stride()
        k, threads = value.shape[1], torch.get_num_threads()
        best = value.data_ptr(), index.data_ptr(), value.stride(0)
        self._do.keep_best(_tile(t), _pointer(columns), k, *best, threads)

    def keep_best_of_lists(
        self,
        sides: tuple[Features, Features],
        candidates: tuple[Tensor, Tensor],
        text_rank: Tensor,
        factor: float,
        value: Tensor,
        index: Tensor,
    ) -> None:
        (v, v_norm, x), (w, w_norm, y) = sides
        images, ranks, k = value.shape
        (v_pointer, v_type, v_stride), (w_pointer, w_type, w_stride) = _rows(v), _rows(w)
        lists = _Lists(
            v_pointer, w_pointer, v_type, w_type, v_stride, w_stride, v.shape[1],
            _pointer(v_norm), _pointer(w_norm),
            _polar(x), _polar(y), *map(_pointer, (*candidates, text_rank)), images, ranks, k, factor, x is not None,
            _pointer(value), _pointer(index),
        )  # fmt: skip
        self._do.keep_best_of_lists(lists, torch.get_num_threads())


@cache
def _multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 faster than fp32: AVX512_BF16 or AMX."""
    cpu = torch.cpu
    checks = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def _features(v: Tensor) -> Tensor:
    """v as the kernels take it: fp32 or bf16, the numbers of a row side by side."""
    v = v if v.dtype in FEATURE_TYPES else v.float()
    return v if v.stride(1) == 1 or v.shape[1] <= 1 else v.contiguous()


# -- the operations, as the other backends have them ------------------------------------------------------------


def forward(
    image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, o: Objective
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `panel.forward`."""
    return panel.forward(_features(image), _features(text), scale, curv, o, NativeEpilogue())


def backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    curv: Tensor,
    o: Objective,
    row_lse: Tensor,
    col_lse: Tensor,
    grad_image: Tensor,
    grad_text: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `panel.backward`."""
    sums_and_gradients = row_lse, col_lse, grad_image, grad_text, grad_lse
    dimage, dtext, dscale, dcurv = panel.backward(
        _features(image), _features(text), scale, curv, o, *sums_and_gradients, epilogue=NativeEpilogue()
    )
    return dimage.to(image.dtype), dtext.to(text.dtype), dscale, dcurv


def rank_topk(
    image: Tensor,
    text: Tensor,
    text_rank: Tensor,
    scale: Tensor,
    curv: Tensor,
    geometry: str,
    space: str,
    k: int,
    ranks: int,
    candidates: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """See `panel.rank_topk`."""
    options = geometry, space, k, ranks, candidates, NativeEpilogue()
    return panel.rank_topk(_features(image), _features(text), text_rank, scale, curv, *options)


def _matrix(v: Tensor) -> Tensor:
    """v (..., D) as rows one after the other."""
    return _features(v.reshape(math.prod(v.shape[:-1]), v.shape[-1])).contiguous()


def map_forward(name: str, v: Tensor, curv: Tensor) -> Tensor:
    """exp_map0 or log_map0 of v (..., D), fp32."""
    rows = _matrix(v)
    out = torch.empty(rows.shape, dtype=torch.float32)
    kind = rows.data_ptr(), FEATURE_TYPES[rows.dtype]
    threads = torch.get_num_threads()
    kernels().map_forward(name == "log_map0", *kind, *rows.shape, float(curv), _pointer(out), threads)
    return out.view(v.shape)


def map_backward(name: str, grad: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for v, in its dtype, and for curv."""
    rows = _matrix(v)
    grad = grad.to(compute_dtype(v)).contiguous()
    out = torch.empty_like(rows)
    kind = rows.data_ptr(), FEATURE_TYPES[rows.dtype]
    dcurv = kernels().map_backward(
        name == "log_map0", _pointer(grad), *kind, *rows.shape, float(curv), _pointer(out), torch.get_num_threads()
    )
    return out.view(v.shape).to(v.dtype), torch.full_like(curv, dcurv)
