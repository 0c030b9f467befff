"""`level_infonce` as GPU kernels: no (images, texts) matrix, no wait for the device, the same bits every time.

# M images, N texts, D embed, R ranks; a tile is (ROWS images, COLS texts) of one rank
# S inner products, l base-2 logits, W = dL/dl, dS = dL/dS up to known factors

Only the device knows how many images and texts a rank has, so no grid is sized by it: programs derive the schedule
from `Plan` (a few numbers a rank) and those without work leave. Sums never meet in atomics. A tile writes its share
of each row and column, and a second kernel adds the shares in a fixed order.

Forward, one product: a program walks the column tiles of a chunk with one tile of rows, keeps the running maximum
and sum of its rows, as FlashAttention does, and gets the columns' sums from the same exponentials.

Backward, three products: panel by panel of the tiles' list, (1) tiles are recomputed and dS put into a workspace
of bounded size, (2) dS @ texts is added to the images' gradient, (3) dS^T @ images to the texts'. A panel has one
rank, so an image's gradient has one writer at a time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bioclip_hc.kernels import cuda
from bioclip_hc.kernels import triton_tiles as tiles
from bioclip_hc.kernels.backends import interpreting
from bioclip_hc.kernels.configs import Config, Tile, config_for
from bioclip_hc.kernels.objective import Objective
from bioclip_hc.kernels.plan import Plan, make_plan
from bioclip_hc.kernels.reference import u_floor
from bioclip_hc.kernels.triton_tiles import (
    FIELDS,
    HYPERBOLOID,
    MASKED,
    RADIUS_LIMIT,
    SPHERE,
    TANGENT,
    UNIT,
    Side,
    at_least_zero,
    cosh_minus_one,
    dot,
    log2_stretch,
    polar_scalars,
    polar_scalars_inside,
    product,
    tile_logits,
    unlikeness,
)

# TARGETS of the kernels
MULTI_POSITIVE, DIAGONAL, MASK_OUT = (tl.constexpr(i) for i in range(3))
TARGETS = {"multi_positive": 0, "diagonal": 1, "mask_out": 2}
# what underflowed beside a sum of at least this, from each of 256 rows, is no part of its fp32 digits
LEAST_SUM = tl.constexpr(2.0**-92)
LARGEST_SHIFT = tl.constexpr(1024.0)  # of a text; beyond, logits would lose digits to it
U_FLOOR = tl.constexpr(u_floor(torch.float32))
TINY = tl.constexpr(1e-30)


# -- what both passes start from ------------------------------------------------------------------------------


class Problem:
    """One call's prepared sides, plan and launch constants."""

    def __init__(
        self, image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, o: Objective, config: Config | None
    ) -> None:
        self.o = o
        self.plan: Plan = make_plan(o)
        self.dtype = tiles.product_dtype(image, text, o.geometry, o.space)
        self.tf32 = tiles.takes_tf32(self.dtype)
        self.config = config or config_for(image.device, self.dtype, self.tf32, o.geometry)
        steps = self.config.forward.depth, self.config.backward.depth, self.config.product.cols
        self.width = tiles.padded(image.shape[1], max(steps))  # powers of two, so a multiple of each
        self.space = tiles.space_code(o.geometry, o.space)

        def prepare(v: Tensor, order: Tensor | None) -> Side:
            arguments = v, order, curv, self.space, self.dtype, self.width, self.tf32
            return Side(*cuda.prepare(*arguments)) if self.config.rows == "cuda" else tiles.prepare(*arguments)

        self.x, self.y = prepare(image, None), prepare(text, self.plan.col_order)  # texts sorted
        self.factor = tiles.logit_factor(scale, curv, o.geometry)
        self.bias = None
        if o.text_bias is not None:
            self.bias = (o.text_bias / math.log(2))[self.plan.col_order].float()
        self.M, self.R = o.image_taxa.shape
        self.N = len(text)

    def to_inputs(
        self, v: Tensor, order: Tensor | None, dn: Tensor, dr: Tensor, side: Side, factor: Tensor, curv: Tensor
    ) -> Tensor:
        """Gradients of unit rows and radii as one of the features v (rows, D); row p is of v[order[p]]."""
        if self.config.rows == "cuda":
            return cuda.to_inputs(v, order, dn, dr, side.polar, factor, curv, self.space)
        return _to_inputs(v, order, dn, dr, side, factor, curv, self.space)

    def constants(self, tile: Tile) -> dict[str, object]:
        """Constexprs and launch options that a kernel over tiles of logits takes."""
        return {
            "WIDTH": self.width,
            "LORENTZ": self.o.geometry == "lorentz",
            "TARGETS": TARGETS[self.o.targets],
            "BIASED": self.bias is not None,
            **self.shape(tile),
        }

    def shape(self, tile: Tile) -> dict[str, object]:
        """Constexprs and launch options of any kernel here."""
        return {
            "PRECISION": "tf32" if self.tf32 else "ieee",
            "INTERPRET": interpreting(),
            "RANKS": triton.next_power_of_2(self.R),
            "ROWS": tile.rows,
            "COLS": tile.cols,
            "DEPTH": tile.depth,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


# -- forward --------------------------------------------------------------------------------------------------


def forward(
    image: Tensor, text: Tensor, scale: Tensor, curv: Tensor, o: Objective, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll_image (M, R), nll_text (N,), and for `backward` row_lse (M, R), unrestricted (M, 1), and col_lse (N,).

    The last two are in natural units too. At least one image, one text and one rank.
    """
    p = Problem(image, text, scale, curv, o, config)
    tile, chunk, M, N, R = p.config.forward, p.config.chunk, p.M, p.N, p.R
    new = p.factor.new_empty
    row_share = new(2, triton.cdiv(N, tile.cols * chunk) + R, M)  # log2 of the sum, and the sum of the positives
    row_lse, row_pos = new(M, R), new(M, R)
    col_lse, col_pos = torch.full_like(new(N), MASKED.value), torch.zeros_like(new(N))
    row_tiles = triton.cdiv(M, tile.rows)
    stripe = min(row_tiles, max(1, p.config.share // (8 * N)))  # row tiles whose column sums wait at a time
    col_share = new(2, stripe, N)
    programs = _resident_programs(image.device, tile)
    for first in range(0, row_tiles, stripe):
        _forward_kernel[(programs,)](
            p.x.n, p.y.n, p.x.polar, p.y.polar, p.factor if p.bias is None else p.bias, p.factor,
            p.plan.row_order, p.plan.row_code, p.plan.row_own, p.plan.rows, p.plan.col_start, p.plan.col_code,
            row_share, col_share, M, N, R, first, stripe, row_share.shape[1], CHUNK=chunk, maxnreg=tile.registers,
            **p.constants(tile),
        )  # fmt: skip
        _add_columns_kernel[(triton.cdiv(N, 128),)](
            col_share, col_lse, col_pos, p.plan.col_order, p.plan.col_start, p.plan.rows, M, N, R, first, stripe,
            ROWS=tile.rows, BLOCK=128, num_warps=4,
        )  # fmt: skip
    _add_rows_kernel[(triton.cdiv(M, 128), R)](
        row_share, row_lse, row_pos, p.plan.row_order, p.plan.col_start, p.plan.rows, M, R, row_share.shape[1],
        RANKS=triton.next_power_of_2(R), COLS=tile.cols, CHUNK=chunk, BLOCK=128, num_warps=4,
    )  # fmt: skip
    if not o.restrict:
        row_lse = (row_lse * math.log(2)).logsumexp(1, keepdim=True) / math.log(2)
    rows, cols = p.plan.row_count, p.plan.col_count
    nll_image = torch.where(rows > 0, (row_lse - row_pos / rows.clamp_min(1)) * math.log(2), 0)
    nll_text = torch.where(cols > 0, (col_lse - col_pos / cols.clamp_min(1)) * math.log(2), 0)
    return nll_image, nll_text, row_lse * math.log(2), col_lse * math.log(2)


def _resident_programs(device: torch.device, tile: Tile) -> int:
    if device.type != "cuda":
        return 3  # the interpreter: enough for programs to have neighbours
    return torch.cuda.get_device_properties(device).multi_processor_count * tile.per_sm


@triton.jit
def _rank_sizes(rows, col_start, R, RANKS: tl.constexpr):
    """Rank numbers, and how many images and texts each has; zeros from R on."""
    r = tl.arange(0, RANKS)
    inside = r < R
    images = tl.load(rows + r, inside, 0)
    texts = tl.load(col_start + r + 1, inside, 0) - tl.load(col_start + r, inside, 0)
    return r, images, texts


@triton.jit
def _of(values, r, rank):
    """Element `rank` of a small vector indexed by r."""
    return tl.sum(tl.where(r == rank, values, 0))


@triton.jit
def _rows_of_tile(row_order, row_code, row_own, rank, row, images, M, N):
    """Of places `row` among a rank's images: whether there is one, the image, its code (-1 = no text has its
    taxon) and the position of its own text."""
    valid = row < images
    entry = rank.to(tl.int64) * M + tl.where(valid, row, 0)
    code = tl.load(row_code + entry)
    code = tl.where(valid & (code < N), code, -1)
    own = tl.where(valid, tl.load(row_own + entry), -1)
    return valid, tl.load(row_order + entry), code, own


@triton.jit
def _code_range(code, N):
    """The least and the largest code of a tile's rows; N and -1 where none has one."""
    return tl.min(tl.where(code >= 0, code, N)), tl.max(code)


@triton.jit
def _may_hold_positives(least, largest, col_code, first, last):
    """Whether codes of a tile's rows overlap with those of its columns first to last, which are sorted."""
    return (least <= tl.load(col_code + last)) & (largest >= tl.load(col_code + first))


@triton.jit
def _positive(code, own, column_code, column, TARGETS: tl.constexpr):
    """(ROWS, COLS) which pairs are positive."""
    if TARGETS == MULTI_POSITIVE:
        return code[:, None] == column_code[None, :]
    else:
        return own[:, None] == column[None, :]


@triton.jit
def _left_out(code, own, column_code, column):
    """Pairs that mask_out takes out of the row's, and of the column's, denominator: another text of the taxon."""
    duplicate = (code[:, None] == column_code[None, :]) & (own[:, None] != column[None, :])
    return duplicate & (own >= 0)[:, None], duplicate


@triton.jit(do_not_specialize=["M", "N", "R", "first_tile", "stripe", "shares"])
def _forward_kernel(
    x, y, x_polar, y_polar, bias, factor, row_order, row_code, row_own, rows, col_start, col_code,
    row_share, col_share, M, N, R, first_tile, stripe, shares,
    CHUNK: tl.constexpr, WIDTH, LORENTZ: tl.constexpr, TARGETS: tl.constexpr, BIASED: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRET: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    r, images, texts = _rank_sizes(rows, col_start, R, RANKS)
    chunks = tl.cdiv(tl.cdiv(texts, COLS), CHUNK)
    share = tl.cumsum(chunks, 0) - chunks  # of each rank's first chunk
    row_tiles = tl.minimum(tl.maximum(tl.cdiv(images, ROWS) - first_tile, 0), stripe)
    work = row_tiles * chunks
    done = tl.cumsum(work, 0)
    factor = tl.load(factor)
    for w in range(tl.program_id(0), tl.sum(work), tl.num_programs(0)):
        rank = tl.sum((done <= w).to(tl.int32))
        at = w - _of(done - work, r, rank)
        tall = _of(row_tiles, r, rank)
        slot = at % tall  # neighbours share a chunk of columns, which stays in cache
        chunk = at // tall
        row = (first_tile + slot) * ROWS + tl.arange(0, ROWS)
        valid_row, image, code, own = _rows_of_tile(
            row_order, row_code, row_own, rank, row, _of(images, r, rank), M, N
        )
        least, largest = _code_range(code, N)
        outside = tl.where(valid_row, 0.0, MASKED)
        start = tl.load(col_start + rank)
        end = tl.load(col_start + rank + 1)
        top = tl.full((ROWS,), MASKED, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        positives = tl.zeros((ROWS,), tl.float32)
        first = start + chunk * CHUNK * COLS
        for left in range(first, tl.minimum(first + CHUNK * COLS, end), COLS):
            column = left + tl.arange(0, COLS)
            valid = column < end
            col = tl.where(valid, column, start)
            S = product(x, y, image, col, WIDTH, ROWS, COLS, DEPTH, PRECISION, INTERPRET)
            l = tile_logits(S, x_polar, y_polar, image, column, valid, factor, LORENTZ)
            col_positives = tl.zeros((COLS,), tl.float32)
            own_lse = tl.zeros((COLS,), tl.float32)
            near = _may_hold_positives(least, largest, col_code, left, tl.minimum(left + COLS, end) - 1)
            if near:
                column_code = tl.load(col_code + column, valid, -2)
                chosen = tl.where(_positive(code, own, column_code, column, TARGETS), l, 0.0)
                positives += tl.sum(chosen, 1)
                col_positives += tl.sum(chosen, 0)
                if TARGETS == MASK_OUT:  # columns leave out other pairs than rows
                    _, col_out = _left_out(code, own, column_code, column)
                    own_lse = _column_lse(tl.where(col_out, MASKED, l + outside[:, None]))
            if BIASED:
                shift = tl.load(bias + column, valid, MASKED)
            else:
                shift = tl.where(valid, 0.0, MASKED)
            in_rows = l + shift[None, :]
            if TARGETS == MASK_OUT:  # noqa: SIM102  (the one is decided when compiling, the other on the device)
                if near:
                    row_out, _ = _left_out(code, own, tl.load(col_code + column, valid, -2), column)
                    in_rows = tl.where(row_out, MASKED, in_rows)
            higher = tl.maximum(top, tl.max(in_rows, 1))
            e = tl.exp2(in_rows - higher[:, None])
            total = total * tl.exp2(top - higher) + tl.sum(e, 1)
            top = higher
            # the rows' exponentials serve the columns too, brought under the highest row's maximum
            ceiling = tl.max(top + outside)
            sums = tl.sum(e * tl.exp2(top + outside - ceiling)[:, None], 0)
            lse = ceiling - shift + tl.log2(tl.where(sums < LEAST_SUM, LEAST_SUM, sums))
            apart = tl.min(tl.where(valid, sums, 1.0)) < LEAST_SUM  # a column far below its rows
            if BIASED:
                apart |= tl.max(tl.where(valid, tl.abs(shift), 0.0)) > LARGEST_SHIFT
            if TARGETS == MASK_OUT:
                lse = tl.where(near, own_lse, lse)
                apart &= near == 0
            if apart:  # rare: the columns' own maxima
                lse = _column_lse((l if BIASED else in_rows) + outside[:, None])
            out = col_share + slot.to(tl.int64) * N + column
            tl.store(out, lse, valid)
            tl.store(out + stripe.to(tl.int64) * N, col_positives, valid)
        out = row_share + (_of(share, r, rank) + chunk).to(tl.int64) * M + row
        tl.store(out, top + tl.log2(total), valid_row)
        tl.store(out + shares.to(tl.int64) * M, positives, valid_row)


@triton.jit
def _column_lse(l):
    """log2 of the columns' sums of exp2, each under its own maximum."""
    top = tl.max(l, 0)
    return top + tl.log2(tl.sum(tl.exp2(l - top[None, :]), 0))


@triton.jit(do_not_specialize=["M", "N", "R", "first_tile", "stripe"])
def _add_columns_kernel(
    col_share, col_lse, col_pos, col_order, col_start, rows, M, N, R, first_tile, stripe,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a stripe's shares to what the columns have, in the order that texts came in."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = column < N
    images = tl.zeros((BLOCK,), tl.int32)
    for rank in range(R):
        here = (column >= tl.load(col_start + rank)) & (column < tl.load(col_start + rank + 1))
        images = tl.where(here, tl.load(rows + rank), images)
    count = tl.minimum(tl.maximum(tl.cdiv(images, ROWS) - first_tile, 0), stripe)
    text = tl.load(col_order + column, valid, 0)
    top = tl.load(col_lse + text, valid, MASKED)
    positives = tl.load(col_pos + text, valid, 0.0)
    total = tl.full((BLOCK,), 1.0, tl.float32)
    at = col_share + column
    for i in range(tl.max(count)):
        top, total = _add_share(top, total, tl.load(at, valid & (i < count), MASKED))
        positives += tl.load(at + stripe.to(tl.int64) * N, valid & (i < count), 0.0)
        at += N
    tl.store(col_lse + text, top + tl.log2(total), valid)
    tl.store(col_pos + text, positives, valid)


@triton.jit(do_not_specialize=["M", "R", "shares"])
def _add_rows_kernel(
    row_share, row_lse, row_pos, row_order, col_start, rows, M, R, shares,
    RANKS: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the chunks' shares of the rows of one rank, and bring them into the order that images came in."""
    rank = tl.program_id(1)
    r, images, texts = _rank_sizes(rows, col_start, R, RANKS)
    chunks = tl.cdiv(tl.cdiv(texts, COLS), CHUNK)
    first = tl.sum(tl.where(r < rank, chunks, 0))
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < M
    met = row < _of(images, r, rank)
    top = tl.full((BLOCK,), MASKED, tl.float32)
    total = tl.full((BLOCK,), 1.0, tl.float32)
    positives = tl.zeros((BLOCK,), tl.float32)
    at = row_share + first.to(tl.int64) * M + row
    for _ in range(_of(chunks, r, rank)):
        top, total = _add_share(top, total, tl.load(at, met, MASKED))
        positives += tl.load(at + shares.to(tl.int64) * M, met, 0.0)
        at += M
    image = tl.load(row_order + rank.to(tl.int64) * M + row, inside, 0).to(tl.int64)
    tl.store(row_lse + image * R + rank, top + tl.log2(total), inside)
    tl.store(row_pos + image * R + rank, positives, inside)


@triton.jit
def _add_share(top, total, share):
    """(top, total) stand for top + log2(total); add exp2(share) to it."""
    higher = tl.maximum(top, share)
    return higher, total * tl.exp2(top - higher) + tl.exp2(share - higher)


# -- backward -------------------------------------------------------------------------------------------------


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
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <grad_image, nll_image> + <grad_text, nll_text> + <grad_lse, col_lse>.

    For image and text in their own dtypes, scale () and curv (). grad_lse is 0 where a text met no image.
    """
    p = Problem(image, text, scale, curv, o, config)
    M, N, R, plan, tile, by = p.M, p.N, p.R, p.plan, p.config.backward, p.config.product
    grad_image, grad_text, grad_lse = (grad.float() for grad in (grad_image, grad_text, grad_lse))
    push_image, push_text, pull_image, pull_text = plan.weights(grad_image, grad_text, grad_lse, o.restrict)
    weights = (
        (row_lse / math.log(2)).contiguous(), push_image.contiguous(), pull_image.contiguous(),
        *(v[plan.col_order].contiguous() for v in (col_lse / math.log(2), push_text, pull_text)),
    )  # fmt: skip
    unit, s_max = _workspace_unit(p, push_image, push_text, pull_image, pull_text)

    row_tiles, col_tiles = triton.cdiv(M, tile.rows), triton.cdiv(N, tile.cols) + R - 1
    area = tile.rows * tile.cols
    slots = max(1, p.config.panel // (area * p.x.n.element_size()))
    slots = min(slots, row_tiles * col_tiles)
    dS = p.x.n.new_empty(slots, tile.rows, tile.cols)
    radial = p.factor.new_empty(slots, tile.rows + tile.cols)  # a tile's shares of its rows' and columns' dL/dr
    dx, dy = (torch.zeros_like(side.n, dtype=torch.float32) for side in (p.x, p.y))
    drx, dry = (torch.zeros_like(side.polar[:, 0]) for side in (p.x, p.y))
    total = p.factor.new_zeros(slots)  # of W l, by place in the panel
    labels = (plan.row_order, plan.row_code, plan.row_own, plan.rows, plan.col_start, plan.col_code)
    # rows of tiles times columns of tiles, summed over ranks, is at most this; so are panels, if each rank ends one
    panels = (row_tiles * col_tiles + R * (slots - 1)) // slots
    schedule = {"SLOTS": slots, "GROUP": p.config.group}
    products = {
        "WIDTH": p.width, "LORENTZ": o.geometry == "lorentz", **schedule,
        **p.shape(Tile(tile.rows, tile.cols, by.depth, by.warps, by.stages)), "SPAN": by.cols,
    }  # fmt: skip
    for panel in range(panels):
        _recompute_kernel[(slots,)](
            p.x.n, p.y.n, p.x.polar, p.y.polar, p.factor if p.bias is None else p.bias, p.factor, *labels,
            *weights, unit, s_max, dS, radial, total, M, N, R, panel,
            RESTRICT=o.restrict, **schedule, **p.constants(tile),
        )  # fmt: skip
        _add_row_gradient_kernel[(row_tiles, triton.cdiv(p.width, by.cols))](
            dS, radial, p.y.n, p.x.polar, unit, s_max, plan.row_order, plan.rows, plan.col_start, dx, drx,
            M, N, R, panel, **products,
        )  # fmt: skip
        _add_column_gradient_kernel[(triton.cdiv(N, tile.cols), triton.cdiv(p.width, by.cols))](
            dS, radial, p.x.n, p.y.polar, unit, s_max, plan.row_order, plan.rows, plan.col_start, dy, dry,
            M, N, R, panel, **products,
        )  # fmt: skip

    natural = p.factor * (math.log(2) if o.geometry == "euclidean" else 1.0)  # scale, or scale / sqrt(c)
    dimage = p.to_inputs(image, None, dx, drx, p.x, natural, curv)
    dtext = p.to_inputs(text, plan.col_order, dy, dry, p.y, natural, curv)
    total = total.double().sum() * math.log(2)
    dcurv = torch.zeros_like(curv)
    if o.geometry == "lorentz":
        radii = sum(_radius_moves(side, dr, o.space) for side, dr in ((p.x, drx), (p.y, dry)))
        dcurv = ((-natural * radii - total) / (2 * curv)).to(curv.dtype)
    return dimage, dtext, (total / scale).to(scale.dtype), dcurv


def _workspace_unit(
    p: Problem, push_image: Tensor, push_text: Tensor, pull_image: Tensor, pull_text: Tensor
) -> tuple[Tensor, Tensor]:
    """(R,) what an entry of the workspace counts for at each rank, and (2,) the largest s of both sides.

    fp16 ends at 65504 and fades under 6e-8. |W| is at most twice the sum of the largest weights g: in units of
    g / 2^13 the workspace neither overflows nor wastes its range. A Lorentz entry is
    W (s_i / max s) (s_j / max s) / sqrt(u (u + 2)), and u > U_FLOOR s_i s_j bounds it by
    2 g 2236 / sqrt(max s max s): its unit is an eighth of g over that root.
    """
    of_texts = torch.maximum(push_text.abs(), pull_text.abs())  # a text of a part may be pulled more than pushed
    of_images = torch.maximum(push_image.abs(), pull_image.abs()).amax(0)
    g = torch.zeros_like(of_images).scatter_reduce(0, p.o.text_rank, of_texts, "amax") + of_images  # (R,)
    g = torch.where(g > 0, g, 1.0)
    s_max = torch.stack([side.polar[:, 2].amax() for side in (p.x, p.y)])
    s_max = torch.where(s_max > 0, s_max, 1.0)
    return (g / 8 / s_max.prod().sqrt() if p.o.geometry == "lorentz" else g * 2.0**-13), s_max


def _radius_moves(side: Side, dr: Tensor, space: str) -> Tensor:
    """Sum over rows of dr/dc 2c dL/dr, up to the factor of dr."""
    r, s = side.polar[:, 1], side.polar[:, 2]
    moves = r * (r < RADIUS_LIMIT.value) if space == "tangent" else s / (1 + s * s).sqrt()
    return (moves * dr).sum(dtype=torch.float64)


@triton.jit
def _panel(
    panel, rows, col_start, R, RANKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, SLOTS: tl.constexpr
):
    """Rank of a panel, its first and one past its last tile among the rank's, and the rank's sizes.

    Returns (rank, first, last, images, texts, row tiles, column tiles); first = last where there is no such panel.
    """
    r, images, texts = _rank_sizes(rows, col_start, R, RANKS)
    count = tl.cdiv(images, ROWS) * tl.cdiv(texts, COLS)
    panels = tl.cdiv(count, SLOTS)
    done = tl.cumsum(panels, 0)
    rank = tl.sum((done <= panel).to(tl.int32))
    first = (panel - _of(done - panels, r, rank)) * SLOTS
    last = tl.maximum(tl.minimum(first + SLOTS, _of(count, r, rank)), first)
    last = tl.where(rank < R, last, first)
    m, n = _of(images, r, rank), _of(texts, r, rank)
    return rank, first, last, m, n, tl.cdiv(m, ROWS), tl.cdiv(n, COLS)


@triton.jit
def _tile_place(t, tall, wide, GROUP: tl.constexpr):
    """Row and column of tile t: column after column of a group of GROUP row tiles, group after group."""
    group = t // (GROUP * wide)
    height = tl.minimum(tall - group * GROUP, GROUP)
    inside = t - group * GROUP * wide
    return group * GROUP + inside % height, inside // height


@triton.jit
def _tile_number(i, j, tall, wide, GROUP: tl.constexpr):
    """The t of `_tile_place`."""
    group = i // GROUP
    height = tl.minimum(tall - group * GROUP, GROUP)
    return group * GROUP * wide + j * height + i - group * GROUP


@triton.jit(do_not_specialize=["M", "N", "R", "panel"])
def _recompute_kernel(
    x, y, x_polar, y_polar, bias, factor, row_order, row_code, row_own, rows, col_start, col_code,
    row_lse, row_push, row_pull, col_lse, col_push, col_pull, unit, s_max, dS, radial, total, M, N, R, panel,
    RESTRICT: tl.constexpr, SLOTS: tl.constexpr, GROUP: tl.constexpr, WIDTH, LORENTZ: tl.constexpr,
    TARGETS: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    RANKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """dS of one tile of the panel, its shares of dL/dr, and its sum of W l."""
    slot = tl.program_id(0)
    rank, first_tile, last_tile, images, texts, tall, wide = _panel(
        panel, rows, col_start, R, RANKS, ROWS, COLS, SLOTS
    )
    if first_tile + slot < last_tile:
        i, j = _tile_place(first_tile + slot, tall, wide, GROUP)
        row = i * ROWS + tl.arange(0, ROWS)
        valid_row, image, code, own = _rows_of_tile(row_order, row_code, row_own, rank, row, images, M, N)
        start = tl.load(col_start + rank)
        column = start + j * COLS + tl.arange(0, COLS)
        valid = column < start + texts
        col = tl.where(valid, column, start)
        S = product(x, y, image, col, WIDTH, ROWS, COLS, DEPTH, PRECISION, INTERPRET)
        times = tl.load(factor)
        if LORENTZ:
            xs, xa, xb, xh = polar_scalars(x_polar, image)
            ys, ya, yb, yh = polar_scalars_inside(y_polar, column, valid)
            gap = unlikeness(S, xh, yh)
            l = -times * log2_stretch(cosh_minus_one(gap, xs, xa, xb, ys, ya, yb))
        else:
            l = times * S

        least, largest = _code_range(code, N)
        near = _may_hold_positives(
            least, largest, col_code, start + j * COLS, start + tl.minimum((j + 1) * COLS, texts) - 1
        )
        # a place without image or text shows another's logits, which nothing bounds: its exponential is put at 0
        in_cols = l - tl.load(col_lse + column, valid, -MASKED)[None, :] + tl.where(valid_row, 0.0, MASKED)[:, None]
        if TARGETS == MASK_OUT:  # noqa: SIM102
            if near:
                _, col_out = _left_out(code, own, tl.load(col_code + column, valid, -2), column)
                in_cols = tl.where(col_out, MASKED, in_cols)
        W = tl.exp2(in_cols) * tl.load(col_push + column, valid, 0.0)[None, :]
        pool = image.to(tl.int64) * (R if RESTRICT else 1) + (rank if RESTRICT else 0)
        if BIASED:
            shift = tl.load(bias + column, valid, MASKED)
        else:
            shift = tl.where(valid, 0.0, MASKED)
        in_rows = l - tl.load(row_lse + pool, valid_row, -MASKED)[:, None] + shift[None, :]
        if TARGETS == MASK_OUT:  # noqa: SIM102
            if near:
                row_out, _ = _left_out(code, own, tl.load(col_code + column, valid, -2), column)
                in_rows = tl.where(row_out, MASKED, in_rows)
        W += tl.exp2(in_rows) * tl.load(row_push + pool, valid_row, 0.0)[:, None]
        if near:
            column_code = tl.load(col_code + column, valid, -2)
            pull = (
                tl.load(row_pull + image.to(tl.int64) * R + rank)[:, None]
                + tl.load(col_pull + column, valid, 0.0)[None, :]
            )
            W -= tl.where(_positive(code, own, column_code, column, TARGETS), pull, 0.0)
        tl.store(total + slot, tl.load(total + slot) + tl.sum(W * l))

        W *= 1.0 / tl.load(unit + rank)
        if LORENTZ:
            # read anew: whole tiles of their products would stay in registers since the logits were made of them
            xs, xa, xb, xh = polar_scalars(x_polar, image)
            ys, ya, yb, yh = polar_scalars_inside(y_polar, column, valid)
            ss = xs[:, None] * ys[None, :]
            t = xa[:, None] * yb[None, :] - xb[:, None] * ya[None, :]
            u = at_least_zero(0.5 * t * t + ss * gap)
            q = tl.where(u <= ss * U_FLOOR, 0.0, W * tl.rsqrt(tl.maximum(u, TINY) * (u + 2.0)))
            # dL/dr_i is the sum of q (sinh(r_i - r_j) + cosh(r_i) s_j gap), up to a factor
            sinh = 0.5 * t * (xa[:, None] * yb[None, :] + xb[:, None] * ya[None, :])
            rows_share = tl.sum(q * (sinh + _cosh(xa, xb)[:, None] * ys[None, :] * gap), 1)
            cols_share = tl.sum(q * (_cosh(ya, yb)[None, :] * xs[:, None] * gap - sinh), 0)
            share = radial + slot * (ROWS + COLS)
            tl.store(share + tl.arange(0, ROWS), rows_share)
            tl.store(share + ROWS + tl.arange(0, COLS), cols_share)
            W = q * _scaled(xs, tl.load(s_max))[:, None] * _scaled(ys, tl.load(s_max + 1))[None, :]
        at = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
        tl.store(dS + slot.to(tl.int64) * (ROWS * COLS) + at, W.to(dS.dtype.element_ty))


@triton.jit
def _cosh(a, b):
    """cosh r of a = e^{r/2} and b = e^{-r/2}."""
    return 0.5 * (a * a + b * b)


@triton.jit
def _scaled(s, s_max):
    """s / max s; 1 at s = 0, whose unit row is 0, so that its own gradient is left and it moves no other."""
    return tl.where(s > 0, s / s_max, 1.0)


@triton.jit(do_not_specialize=["M", "N", "R", "panel"])
def _add_row_gradient_kernel(
    dS, radial, y, x_polar, unit, s_max, row_order, rows, col_start, dx, drx, M, N, R, panel,
    SLOTS: tl.constexpr, GROUP: tl.constexpr, WIDTH, LORENTZ: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """dx += dS @ y over the panel, for one of its row tiles and SPAN features."""
    rank, first_tile, last_tile, images, _, tall, wide = _panel(panel, rows, col_start, R, RANKS, ROWS, COLS, SLOTS)
    if first_tile < last_tile:
        i = (first_tile // (GROUP * wide)) * GROUP + tl.program_id(0)
        i_in = tl.minimum(i, tall - 1)
        height = tl.minimum(tall - i_in // GROUP * GROUP, GROUP)
        base = _tile_number(i_in, 0, tall, wide, GROUP)
        left = tl.minimum(tl.maximum(tl.cdiv(first_tile - base, height), 0), wide)
        right = tl.minimum(tl.maximum(tl.cdiv(last_tile - base, height), 0), wide)
        if (i < tall) & (left < right):
            STEPS: tl.constexpr = COLS // DEPTH
            start = tl.load(col_start + rank)
            feature = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
            k = tl.arange(0, DEPTH)
            at = dS + tl.arange(0, ROWS)[:, None] * COLS + k[None, :]
            sum = tl.zeros((ROWS, SPAN), tl.float32)
            for step in range(left * STEPS, right * STEPS):
                j = step // STEPS
                inside = (step % STEPS) * DEPTH
                slot = (base - first_tile + j * height).to(tl.int64)
                a = tl.load(at + slot * (ROWS * COLS) + inside)
                col = tl.minimum(start + j * COLS + inside + k, N - 1).to(tl.int64)
                b = tl.load(y + col[:, None] * WIDTH + feature[None, :])
                sum = dot(a, b, sum, PRECISION, INTERPRET)
            row = i * ROWS + tl.arange(0, ROWS)
            valid = row < images
            image = tl.load(row_order + rank.to(tl.int64) * M + row, valid, 0).to(tl.int64)
            back = tl.load(unit + rank)
            if LORENTZ:
                if tl.program_id(1) == 0:
                    dr = tl.load(drx + image, valid, 0.0)
                    for j in range(left, right):
                        slot = base - first_tile + j * height
                        dr += tl.load(radial + slot * (ROWS + COLS) + tl.arange(0, ROWS)) * back
                    tl.store(drx + image, dr, valid)
                back = back * _over_s(tl.load(x_polar + image * FIELDS + 2), s_max, 0)[:, None]
            out = dx + image[:, None] * WIDTH + feature[None, :]
            tl.store(out, tl.load(out, valid[:, None], 0.0) + sum * back, valid[:, None])


@triton.jit(do_not_specialize=["M", "N", "R", "panel"])
def _add_column_gradient_kernel(
    dS, radial, x, y_polar, unit, s_max, row_order, rows, col_start, dy, dry, M, N, R, panel,
    SLOTS: tl.constexpr, GROUP: tl.constexpr, WIDTH, LORENTZ: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """dy += dS^T @ x over the panel, for one of its column tiles and SPAN features; dy is in the sorted order."""
    rank, first_tile, last_tile, images, texts, tall, wide = _panel(
        panel, rows, col_start, R, RANKS, ROWS, COLS, SLOTS
    )
    j = tl.program_id(0)
    if (first_tile < last_tile) & (j < wide):
        # a panel is a run of tiles, so its part of column j is a run of row tiles, across groups too
        top = _first_row_from(first_tile, j, tall, wide, GROUP)
        bottom = _first_row_from(last_tile, j, tall, wide, GROUP)
        if top < bottom:
            STEPS: tl.constexpr = ROWS // DEPTH
            order = row_order + rank.to(tl.int64) * M
            feature = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
            k = tl.arange(0, DEPTH)
            at = dS + k[:, None] * COLS + tl.arange(0, COLS)[None, :]
            sum = tl.zeros((COLS, SPAN), tl.float32)
            for step in range(top * STEPS, bottom * STEPS):
                i = step // STEPS
                inside = (step % STEPS) * DEPTH
                slot = (_tile_number(i, j, tall, wide, GROUP) - first_tile).to(tl.int64)
                a = tl.load(at + slot * (ROWS * COLS) + inside * COLS)
                row = tl.minimum(i * ROWS + inside + k, images - 1)
                image = tl.load(order + row).to(tl.int64)
                b = tl.load(x + image[:, None] * WIDTH + feature[None, :])
                sum = dot(a.T, b, sum, PRECISION, INTERPRET)
            within = j * COLS + tl.arange(0, COLS)
            valid = within < texts
            column = (tl.load(col_start + rank) + within).to(tl.int64)
            back = tl.load(unit + rank)
            if LORENTZ:
                if tl.program_id(1) == 0:
                    dr = tl.load(dry + column, valid, 0.0)
                    for i in range(top, bottom):
                        slot = _tile_number(i, j, tall, wide, GROUP) - first_tile
                        dr += tl.load(radial + slot * (ROWS + COLS) + ROWS + tl.arange(0, COLS)) * back
                    tl.store(dry + column, dr, valid)
                back = back * _over_s(tl.load(y_polar + column * FIELDS + 2, valid, 0.0), s_max, 1)[:, None]
            out = dy + column[:, None] * WIDTH + feature[None, :]
            tl.store(out, tl.load(out, valid[:, None], 0.0) + sum * back, valid[:, None])


@triton.jit
def _first_row_from(t, j, tall, wide, GROUP: tl.constexpr):
    """The first row tile of column j whose number is at least t."""
    group = t // (GROUP * wide)
    height = tl.minimum(tl.maximum(tall - group * GROUP, 0), GROUP)
    before = t - group * GROUP * wide - j * height  # how far into the column's part of the group
    return group * GROUP + tl.minimum(tl.maximum(before, 0), height)


@triton.jit
def _over_s(s, s_max, SIDE: tl.constexpr):
    """What turns a sum of workspace entries, weighted by s / max s of both sides, into dL/dn / s of one side."""
    own, other = tl.load(s_max + SIDE), tl.load(s_max + 1 - SIDE)
    return other * tl.where(s > 0, own / tl.where(s > 0, s, 1.0), 1.0)


def _to_inputs(
    v: Tensor, order: Tensor | None, dn: Tensor, dr: Tensor, side: Side, factor: Tensor, curv: Tensor, space: int
) -> Tensor:
    """Chain rule from unit rows and radii to the features that came in, (rows, D); v[order[p]] became row p."""
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    block = 4
    _to_inputs_kernel[(triton.cdiv(len(v), block),)](
        v, v if order is None else order, dn, dr, side.polar, factor, curv, out, len(v), v.shape[1], v.stride(0),
        v.stride(1), SPACE=space, SORTED=order is not None, WIDTH=dn.shape[1], ROWS=block,
        DEPTH=min(512, triton.next_power_of_2(dn.shape[1])), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _to_inputs_kernel(
    v, order, dn, dr, polar, factor, curv, out, rows, D, row_stride, column_stride,
    SPACE: tl.constexpr, SORTED: tl.constexpr, WIDTH, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row = row.to(tl.int64)
    source = tl.load(order + row, inside, 0).to(tl.int64) if SORTED else row
    k = tl.arange(0, DEPTH)
    factor = tl.load(factor)
    root_c = tl.sqrt_rn(tl.load(curv))
    norm = tl.load(polar + row * FIELDS, inside, 0.0)
    r = tl.load(polar + row * FIELDS + 1, inside, 0.0)
    s = tl.load(polar + row * FIELDS + 2, inside, 0.0)
    divisor = tl.where((norm > 0) & (SPACE != UNIT), norm, 1.0)
    along = tl.zeros((ROWS,), tl.float32)  # <dn, n>
    if SPACE != UNIT:
        for start in range(0, WIDTH, DEPTH):
            at = start + k
            here = inside[:, None] & (at < D)[None, :]
            n = tl.load(v + source[:, None] * row_stride + at[None, :].to(tl.int64) * column_stride, here, 0.0)
            along += tl.sum(
                n.to(tl.float32) / divisor[:, None] * tl.load(dn + row[:, None] * WIDTH + at[None, :], here, 0.0), 1
            )
    across = tl.full((ROWS,), 1.0, tl.float32)  # of dn
    radial = tl.zeros((ROWS,), tl.float32)  # of n
    if SPACE == SPHERE:
        across = 1.0 / divisor
    elif SPACE == TANGENT:
        free = r < RADIUS_LIMIT  # beyond the clamp the radius no longer moves
        across = tl.where(free, root_c * tl.where(r > 0, s / tl.where(r > 0, r, 1.0), 1.0), s / divisor)
        radial = tl.where(free, -root_c * tl.load(dr + row, inside, 0.0), 0.0)
    elif SPACE == HYPERBOLOID:
        across = root_c + tl.zeros((ROWS,), tl.float32)
        radial = -root_c * tl.load(dr + row, inside, 0.0) / tl.sqrt_rn(1.0 + s * s)
    radial -= across * along
    for start in range(0, WIDTH, DEPTH):
        at = start + k
        here = inside[:, None] & (at < D)[None, :]
        n = tl.load(v + source[:, None] * row_stride + at[None, :].to(tl.int64) * column_stride, here, 0.0)
        n = n.to(tl.float32) / divisor[:, None]
        d = tl.load(dn + row[:, None] * WIDTH + at[None, :], here, 0.0)
        value = factor * (across[:, None] * d + (radial[:, None] * n if SPACE != UNIT else 0.0))
        tl.store(out + source[:, None] * D + at[None, :], value.to(out.dtype.element_ty), here)
