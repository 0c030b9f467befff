"""What every GPU kernel of this package starts from: unit rows with their polar scalars, and a tile of logits.

# M images, N texts, D embed; v (rows, D) features as they came, n (rows, WIDTH) rounded unit rows
# Logarithms and exponentials are base 2 inside the kernels; logits there are logits / ln 2.

With r = sqrt(c) d(0, x), s = sinh r, a = e^{r/2}, b = e^{-r/2} and h = |n|^2 / 2 of the rounded n,

    u = cosh(sqrt(c) d) - 1 = (a_i b_j - b_i a_j)^2 / 2 + s_i s_j (h_i + h_j - <n_i, n_j>)

so a Lorentz logit is CLIP's product of unit rows with an epilogue on five numbers a row. h belongs to the rounded
rows, as the product does: 1 in its place would turn rounding into distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bioclip_hc.kernels.reference import MAX_RADIUS

# SPACE of the kernels: what v is, and so how a row becomes a direction and a radius
UNIT, SPHERE, TANGENT, HYPERBOLOID = (tl.constexpr(i) for i in range(4))
SPACES = {"unit": 0, "sphere": 1, "tangent": 2, "hyperboloid": 3}
RADIUS_LIMIT = tl.constexpr(MAX_RADIUS)
MASKED = tl.constexpr(-1e30)  # finite: exp2(MASKED - MASKED) is a number
FIELDS = tl.constexpr(6)  # norm, r, s, a, b, h: the columns of `polar`


def space_code(geometry: str, space: str) -> int:
    """SPACE of a call's geometry and space."""
    return SPACES["sphere" if (geometry, space) == ("euclidean", "tangent") else space]


@dataclass(frozen=True)
class Side:
    """Images or texts, ready for the product."""

    n: Tensor  # (rows, width) unit rows in the product's dtype, zeros beyond D
    polar: Tensor  # (rows, 6) fp32: |v|, r, s, a, b, h


def product_dtype(image: Tensor, text: Tensor, geometry: str, space: str) -> torch.dtype:
    """What the matrix product is done in.

    Unit rows lie in [-1, 1], where fp16 resolves eight times finer than bf16 at the same speed; rows taken as
    they are keep their own range.
    """
    both = torch.promote_types(image.dtype, text.dtype)
    if both == torch.float32:  # fp32 itself, or fp16 with bf16, which only fp32 holds
        return torch.float32
    return both if (geometry, space) == ("euclidean", "unit") else torch.float16


def padded(width: int, block: int) -> int:
    """The least multiple of block that is at least width, and at least block."""
    return max(1, -(-width // block)) * block


def takes_tf32(dtype: torch.dtype) -> bool:
    """Whether fp32 products run on tensor cores, as torch.backends.cuda.matmul says for its own products."""
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def prepare(
    v: Tensor, order: Tensor | None, curv: Tensor, space: int, dtype: torch.dtype, width: int, tf32: bool
) -> Side:
    """Unit rows and polar scalars of v (rows, D); row p of the result is v[order[p]].

    Args:
        order: (rows,) int32, None = as they are.
        curv: () or (1,) fp32.
        space: see SPACES.
        dtype, tf32: of the product; rows are rounded to it here, so that h is the h of what is multiplied.
        width: columns of the result, at least D.
    """
    rows = len(v)
    n = v.new_empty((rows, width), dtype=dtype)
    polar = v.new_empty((rows, 6), dtype=torch.float32)
    if rows:
        block = 4
        _prepare_kernel[(triton.cdiv(rows, block),)](
            v, v if order is None else order, curv, n, polar, rows, v.shape[1], v.stride(0), v.stride(1),
            SPACE=space, SORTED=order is not None, ROUND_TF32=tf32, WIDTH=width, ROWS=block,
            DEPTH=min(512, triton.next_power_of_2(width)), num_warps=4,
        )  # fmt: skip
    return Side(n, polar)


@triton.jit(do_not_specialize=["rows"])
def _prepare_kernel(
    v, order, curv, n, polar, rows, D, row_stride, column_stride,
    SPACE: tl.constexpr, SORTED: tl.constexpr, ROUND_TF32: tl.constexpr, WIDTH, ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    source = tl.load(order + row, inside, 0).to(tl.int64) if SORTED else row.to(tl.int64)
    k = tl.arange(0, DEPTH)
    square = tl.zeros((ROWS,), tl.float32)
    if SPACE != UNIT:
        for start in range(0, WIDTH, DEPTH):
            at = start + k
            pointer = v + source[:, None] * row_stride + at[None, :].to(tl.int64) * column_stride
            x = tl.load(pointer, inside[:, None] & (at < D)[None, :], 0.0).to(tl.float32)
            square += tl.sum(x * x, 1)
    norm = tl.sqrt_rn(square)
    divisor = tl.where((norm > 0) & (SPACE != UNIT), norm, 1.0)  # a zero row stays zero
    h = tl.zeros((ROWS,), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        at = start + k
        pointer = v + source[:, None] * row_stride + at[None, :].to(tl.int64) * column_stride
        x = tl.load(pointer, inside[:, None] & (at < D)[None, :], 0.0).to(tl.float32)
        x = x / divisor[:, None]
        if ROUND_TF32:  # to nearest, ten bits of mantissa kept
            nearest = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
            x = tl.where(x == x, nearest, x)  # the carry would turn a GPU's NaN into -0
        rounded = x.to(n.dtype.element_ty)
        tl.store(
            n + row.to(tl.int64)[:, None] * WIDTH + at[None, :], rounded, inside[:, None] & (at < WIDTH)[None, :]
        )
        kept = rounded.to(tl.float32)
        h += tl.sum(kept * kept, 1) * 0.5
    r, s = _radius(norm, tl.load(curv), SPACE)
    polar += row.to(tl.int64) * FIELDS
    tl.store(polar, norm, inside)
    tl.store(polar + 1, r, inside)
    tl.store(polar + 2, s, inside)
    tl.store(polar + 3, tl.exp(r * 0.5), inside)
    tl.store(polar + 4, tl.exp(r * -0.5), inside)
    tl.store(polar + 5, h, inside)


@triton.jit
def _radius(norm, c, SPACE: tl.constexpr):
    """r = sqrt(c) d(0, x) and s = sinh r of rows of that norm; zeros where there is no radius."""
    t = tl.sqrt_rn(c) * norm
    if SPACE == TANGENT:
        r = tl.where(t > RADIUS_LIMIT, RADIUS_LIMIT, t)  # a GPU's minimum would drop NaN
        s = sinh(r)
    elif SPACE == HYPERBOLOID:
        r = asinh(t)
        s = t
    else:
        r = tl.zeros_like(t)
        s = tl.zeros_like(t)
    return r, s


@triton.jit
def sinh(x):
    """sinh of fp32 x >= 0; a series under 1/2, where e^x - e^-x would cancel."""
    y = x * x
    series = x * (1.0 + y / 6.0 * (1.0 + y / 20.0 * (1.0 + y / 42.0)))
    return tl.where(x < 0.5, series, 0.5 * (tl.exp(x) - tl.exp(-x)))


@triton.jit
def asinh(x):
    """asinh of fp32 x >= 0, as log1p(w) with w = x + x^2 / (1 + sqrt(1 + x^2))."""
    w = x + x * (x / (1.0 + tl.sqrt_rn(1.0 + x * x)))
    above = 1.0 + w
    # Kahan's log1p: the rounding of 1 + w cancels out of the quotient
    return tl.where(above == 1.0, w, tl.log(above) * (w / tl.where(above == 1.0, 1.0, above - 1.0)))


# -- a tile of products, and of logits ------------------------------------------------------------------------


@triton.jit
def product(
    x, y, row, col,
    WIDTH, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) inner products of rows `row` of x and `col` of y, both (., WIDTH), DEPTH dividing WIDTH.

    Indices past the end must have been folded back: every load is in bounds, so none needs a mask.
    """
    k = tl.arange(0, DEPTH)
    xs = x + row.to(tl.int64)[:, None] * WIDTH + k[None, :]
    ys = y + col.to(tl.int64)[:, None] * WIDTH + k[None, :]
    S = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        S = dot(tl.load(xs + start), tl.load(ys + start).T, S, PRECISION, INTERPRET)
    return S


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """sum + a @ b in fp32. The interpreter has no 16-bit product that is right."""
    if INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision="ieee")
    else:
        return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def polar_scalars(polar, row):
    """s, a, b and h of rows of `polar`."""
    at = polar + row.to(tl.int64) * FIELDS
    return tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def polar_scalars_inside(polar, row, inside):
    """The same of a run of rows, zeros outside: a place and constants, where folded indices fill registers."""
    at = polar + row.to(tl.int64) * FIELDS
    s, a = tl.load(at + 2, inside, 0.0), tl.load(at + 3, inside, 0.0)
    return s, a, tl.load(at + 4, inside, 0.0), tl.load(at + 5, inside, 0.0)


@triton.jit
def unlikeness(S, xh, yh):
    """1 - cosine of a tile of products S of rounded rows."""
    return xh[:, None] + (yh[None, :] - S)


@triton.jit
def cosh_minus_one(gap, xs, xa, xb, ys, ya, yb):
    """u of a tile of `unlikeness`; 1-D scalars of its rows and of its columns."""
    t = xa[:, None] * yb[None, :] - xb[:, None] * ya[None, :]
    return at_least_zero(0.5 * t * t + (xs[:, None] * ys[None, :]) * gap)


@triton.jit
def at_least_zero(u):
    """max(u, 0), and NaN of NaN, where a GPU's maximum would say 0 and make a broken row everyone's nearest."""
    return tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log2_stretch(u):
    """log2(1 + u + sqrt(u (u + 2))): the distance of cosh - 1 = u, over ln 2."""
    return tl.log2(1.0 + (u + tl.sqrt(u * (u + 2.0))))


@triton.jit
def tile_logits(S, x_polar, y_polar, row, col, inside, factor, LORENTZ: tl.constexpr):
    """Base-2 logits of a tile of products, something finite outside. factor: scale / ln 2, or scale / sqrt(c)."""
    if LORENTZ:
        xs, xa, xb, xh = polar_scalars(x_polar, row)
        ys, ya, yb, yh = polar_scalars_inside(y_polar, col, inside)
        return -factor * log2_stretch(cosh_minus_one(unlikeness(S, xh, yh), xs, xa, xb, ys, ya, yb))
    else:
        return factor * S


def logit_factor(scale: Tensor, curv: Tensor, geometry: str) -> Tensor:
    """What the kernels multiply a product, or a base-2 logarithm, by: one fp32 element, on the device."""
    if geometry == "euclidean":
        return scale.float() / math.log(2)
    return scale.float() / curv.float().sqrt()
