"""Triton kernels of the maps at the origin and of the Lorentz inner product.

# rows of vectors v (rows, D), M and N points, D embed

Both maps stretch a row along itself, out = v f(r), with r = sqrt(c) d(0, point). With lag(r) = (r - tanh r) / r^3,

    exp: f = sinh(r) / r,  f'(|v|) / (c |v|) = bend = cosh(r) lag(r)
    log: f = r / sinh(r),  bend = -f^3 lag(r)

so that dL/dv = f g + c bend <g, v> v and dL/dc = bend <g, v> |v|^2 / 2, all finite at v = 0.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bioclip_hc.kernels.backends import interpreting
from bioclip_hc.kernels.configs import INNER, Tile, tile_for
from bioclip_hc.kernels.reference import MAX_RADIUS
from bioclip_hc.kernels.triton_tiles import (
    FIELDS,
    SPACES,
    asinh,
    padded,
    prepare,
    product,
    product_dtype,
    sinh,
    takes_tf32,
)

ROWS, WARPS = 4, 4  # of one program of the maps, which move bytes and do little else
RADIUS_LIMIT = tl.constexpr(MAX_RADIUS)
SINH_LIMIT = tl.constexpr(math.sinh(MAX_RADIUS))


def forward(name: str, v: Tensor, curv: Tensor) -> Tensor:
    """exp_map0 or log_map0 of v (..., D), curv () fp32: (..., D) fp32."""
    out = v.new_empty(v.shape, dtype=torch.float32)
    if out.numel():
        x = v.reshape(-1, v.shape[-1])
        rows, D = x.shape
        _map_kernel[(triton.cdiv(rows, ROWS),)](
            x, curv, out, rows, D, *x.stride(),
            LOG=name == "log_map0", ROWS=ROWS, DEPTH=_depth(D), num_warps=WARPS,
        )  # fmt: skip
    return out


def backward(name: str, grad: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of <grad, map(v, curv)>: in v, (..., D) of v's dtype, and in curv, () fp32."""
    dv = v.new_empty(v.shape)
    if not dv.numel():
        return dv, torch.zeros_like(curv)
    x, g = (t.reshape(-1, v.shape[-1]) for t in (v, grad))
    rows, D = x.shape
    dcurv = x.new_empty(rows, dtype=torch.float32)
    _map_backward_kernel[(triton.cdiv(rows, ROWS),)](
        x, g, curv, dv, dcurv, rows, D, *x.stride(), *g.stride(),
        LOG=name == "log_map0", ROWS=ROWS, DEPTH=_depth(D), num_warps=WARPS,
    )  # fmt: skip
    return dv, dcurv.sum(dtype=torch.float64).to(curv.dtype)


def _depth(D: int) -> int:
    return min(512, triton.next_power_of_2(D))


def lorentz_inner(x: Tensor, y: Tensor, curv: Tensor, tile: Tile | None = None) -> Tensor:
    """(M, N) fp32 inner products of x (M, D) and y (N, D), curv () fp32. tile: instead of the table's."""
    out = x.new_empty((len(x), len(y)), dtype=torch.float32)
    if not out.numel():
        return out
    dtype = product_dtype(x, y, "euclidean", "unit")
    tf32 = takes_tf32(dtype)
    tile = tile or tile_for(INNER, x.device, dtype, tf32)
    width = padded(x.shape[1], tile.depth)
    # as they are, but rounded to what is multiplied: times of other points than the product's would not cancel it
    a, b = (prepare(p, None, curv, SPACES["unit"], dtype, width, tf32) for p in (x, y))
    _inner_kernel[(triton.cdiv(len(x), tile.rows) * triton.cdiv(len(y), tile.cols),)](
        a.n, b.n, a.polar, b.polar, curv, out, len(x), len(y),
        WIDTH=width, ROWS=tile.rows, COLS=tile.cols, DEPTH=tile.depth, PRECISION="tf32" if tf32 else "ieee",
        INTERPRET=interpreting(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _map_kernel(
    v, curv, out, rows, D, row_stride, column_stride,
    LOG: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    k = tl.arange(0, DEPTH).to(tl.int64)
    square = tl.zeros((ROWS,), tl.float32)
    for start in range(0, D, DEPTH):
        at = start + k
        mask = inside[:, None] & (at < D)[None, :]
        x = tl.load(v + row[:, None] * row_stride + at[None, :] * column_stride, mask, 0.0).to(tl.float32)
        square += tl.sum(x * x, 1)
    stretch, _ = _stretch_and_bend(square, tl.load(curv), LOG)
    for start in range(0, D, DEPTH):
        at = start + k
        mask = inside[:, None] & (at < D)[None, :]
        x = tl.load(v + row[:, None] * row_stride + at[None, :] * column_stride, mask, 0.0).to(tl.float32)
        tl.store(out + row[:, None] * D + at[None, :], x * stretch[:, None], mask)


@triton.jit(do_not_specialize=["rows"])
def _map_backward_kernel(
    v, grad, curv, dv, dcurv, rows, D, row_stride, column_stride, g_row_stride, g_column_stride,
    LOG: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    k = tl.arange(0, DEPTH).to(tl.int64)
    square = tl.zeros((ROWS,), tl.float32)
    along = tl.zeros((ROWS,), tl.float32)  # <g, v>
    for start in range(0, D, DEPTH):
        at = start + k
        mask = inside[:, None] & (at < D)[None, :]
        x = tl.load(v + row[:, None] * row_stride + at[None, :] * column_stride, mask, 0.0).to(tl.float32)
        g = tl.load(grad + row[:, None] * g_row_stride + at[None, :] * g_column_stride, mask, 0.0).to(tl.float32)
        square += tl.sum(x * x, 1)
        along += tl.sum(x * g, 1)
    c = tl.load(curv)
    stretch, bend = _stretch_and_bend(square, c, LOG)
    tl.store(dcurv + row, 0.5 * along * (bend * square), inside)
    pull = c * bend * along
    for start in range(0, D, DEPTH):
        at = start + k
        mask = inside[:, None] & (at < D)[None, :]
        x = tl.load(v + row[:, None] * row_stride + at[None, :] * column_stride, mask, 0.0).to(tl.float32)
        g = tl.load(grad + row[:, None] * g_row_stride + at[None, :] * g_column_stride, mask, 0.0).to(tl.float32)
        result = stretch[:, None] * g + pull[:, None] * x
        tl.store(dv + row[:, None] * D + at[None, :], result.to(dv.dtype.element_ty), mask)


@triton.jit
def _stretch_and_bend(square, c, LOG: tl.constexpr):
    """f(r) and bend of rows of that squared norm."""
    t = tl.sqrt_rn(c * square)
    if LOG:
        r = asinh(t)
        stretch = tl.where(t > 0, r / tl.where(t > 0, t, 1.0), 1.0)
        bend = -stretch * stretch * stretch * _lag(r)
    else:
        r = tl.minimum(t, RADIUS_LIMIT)
        some = tl.where(t > 0, t, 1.0)
        stretch = tl.where(t > RADIUS_LIMIT, SINH_LIMIT, sinh(r)) / some
        stretch = tl.where(t > 0, stretch, 1.0)
        cosh = 0.5 * (tl.exp(r) + tl.exp(-r))
        # beyond the clamp points stay on a sphere: f is a constant over r
        bend = tl.where(t > RADIUS_LIMIT, -stretch / some / some, cosh * _lag(r))
    return stretch, bend


@triton.jit
def _lag(r):
    """(r - tanh r) / r^3 of fp32 r >= 0; the series under 1/2, where the difference would cancel."""
    y = r * r
    series = 1382.0 / 155925.0 - y * (21844.0 / 6081075.0 - y * (929569.0 / 638512875.0))
    series = 1.0 / 3.0 - y * (2.0 / 15.0 - y * (17.0 / 315.0 - y * (62.0 / 2835.0 - y * series)))
    some = tl.maximum(r, 0.5)
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * some) + 1.0)
    return tl.where(r < 0.5, series, (some - tanh) / (some * some * some))


@triton.jit(do_not_specialize=["M", "N"])
def _inner_kernel(
    x, y, x_polar, y_polar, curv, out, M, N,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    row_tiles = tl.cdiv(M, ROWS)
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) // row_tiles * COLS + tl.arange(0, COLS)
    i = tl.minimum(row, M - 1)
    j = tl.minimum(col, N - 1)
    S = product(x, y, i, j, WIDTH, ROWS, COLS, DEPTH, PRECISION, INTERPRET)
    inside = (row < M)[:, None] & (col < N)[None, :]
    S -= _time(x_polar, i, curv)[:, None] * _time(y_polar, j, curv)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * N + col[None, :], S, inside)


@triton.jit
def _time(polar, row, curv):
    """sqrt(1/c + |x|^2) of rows; their |x|^2 / 2 is the last of `polar`."""
    half_square = tl.load(polar + row.to(tl.int64) * FIELDS + 5)
    return tl.sqrt_rn(1.0 / tl.load(curv) + 2.0 * half_square)
