// Rows of features to rounded unit rows and their polar scalars: the twin of
// bioclip_hc.kernels.triton_tiles.prepare. bioclip_hc/kernels/cuda.py has the contract.

#pragma once

#include <type_traits>

#include "rows.h"

namespace bioclip_hc {

// One call; v and n of the dtypes that their codes say.
struct Prepare {
    const void* v;
    const int32_t* order;  // row p of n is row order[p] of v; null = p
    const float* curv;
    void* n;
    float* polar;
    int64_t rows, row_stride, column_stride;  // strides of v in elements
    int D, width, space;
    bool tf32;
};

// Whether triton_tiles.product_dtype ever multiplies features of In as Out: fp32 stays fp32, fp16 never turns bf16.
template <class In, class Out>
constexpr bool IS_MULTIPLIED =
    std::is_same_v<Out, float> ||
    (!std::is_same_v<In, float> && (std::is_same_v<Out, Half> || std::is_same_v<In, Out>));

template <class In>
Way way_of(const Prepare& call) {
    constexpr int N = PACKET<In>;
    const bool is_aligned = call.column_stride == 1 && call.D % N == 0 && call.width % N == 0 &&
                            starts_aligned(call.v, call.row_stride * sizeof(In)) && starts_aligned(call.n, 0);
    return way_of(is_aligned, call.width);
}

// The six fields of a row, one lane a field. h is half the square of the rounded row, as the product sees it.
template <class Team>
ROWS_FN void write_polar(const Team& team, float* polar, float norm, float curv, int space, float h) {
    const Radius radius = radius_of(norm, curv, space);
    const float a = expf(0.5f * radius.r), b = expf(-0.5f * radius.r);
    for (int field = team.lane; field < FIELDS; field += Team::lanes) {
        float value = norm;
        value = field == 1 ? radius.r : value;
        value = field == 2 ? radius.s : value;
        value = field == 3 ? a : value;
        value = field == 4 ? b : value;
        value = field == 5 ? h : value;
        polar[field] = value;
    }
}

template <class Out>
ROWS_FN Out rounded(float x, bool tf32) {
    return narrow<Out>(tf32 ? round_tf32(x) : x);
}

// v (D,) to n (width,) and polar (6,). D and width are multiples of a packet, v and n aligned to 16 bytes, and
// lanes * FEATURES >= width. v is read once.
template <int FEATURES, class In, class Out, class Team>
ROWS_FN void prepare_row(const Team& team, const In* v, Out* n, float* polar, int D, int width, float curv,
                         int space, bool tf32) {
    constexpr int N = PACKET<In>, PACKETS = FEATURES / N;
    using Read = Packet<In, N>;
    using Written = Packet<Out, N>;
    Read held[PACKETS];
    ROWS_UNROLL
    for (int p = 0; p < PACKETS; ++p) {
        const int at = (p * Team::lanes + team.lane) * N;
        held[p] = at < D ? *reinterpret_cast<const Read*>(v + at) : Read{};
    }
    float norm = 0.0f;
    if (space != UNIT) {
        float square = 0.0f;
        ROWS_UNROLL
        for (int p = 0; p < PACKETS; ++p) {
            ROWS_UNROLL
            for (int i = 0; i < N; ++i) square += widen(held[p].at[i]) * widen(held[p].at[i]);
        }
        norm = sqrtf(team.sum(square));
    }
    const float inverse = inverse_of(norm, space);
    float square = 0.0f;
    ROWS_UNROLL
    for (int p = 0; p < PACKETS; ++p) {
        const int at = (p * Team::lanes + team.lane) * N;
        Written out;
        ROWS_UNROLL
        for (int i = 0; i < N; ++i) {
            out.at[i] = rounded<Out>(widen(held[p].at[i]) * inverse, tf32);
            square += widen(out.at[i]) * widen(out.at[i]);
        }
        if (at < width) *reinterpret_cast<Written*>(n + at) = out;
    }
    write_polar(team, polar, norm, curv, space, 0.5f * team.sum(square));
}

// The same for any D, width, alignment and stride of v, feature by feature; v is read twice, if UNIT once.
template <class In, class Out, class Team>
ROWS_FN void prepare_loose_row(const Team& team, const In* v, int64_t stride, Out* n, float* polar, int D,
                               int width, float curv, int space, bool tf32) {
    float norm = 0.0f;
    if (space != UNIT) {
        float square = 0.0f;
        for (int at = team.lane; at < D; at += Team::lanes) {
            const float x = widen(v[at * stride]);
            square += x * x;
        }
        norm = sqrtf(team.sum(square));
    }
    const float inverse = inverse_of(norm, space);
    float square = 0.0f;
    for (int at = team.lane; at < width; at += Team::lanes) {
        const Out out = rounded<Out>(at < D ? widen(v[at * stride]) * inverse : 0.0f, tf32);
        square += widen(out) * widen(out);
        n[at] = out;
    }
    write_polar(team, polar, norm, curv, space, 0.5f * team.sum(square));
}

// Row `row` of a call's results, by one of the above.
template <int FEATURES, class In, class Out, class Team>
ROWS_FN void prepare_at(const Team& team, const Prepare& call, int64_t row) {
    const int64_t source = call.order ? call.order[row] : row;
    const In* v = static_cast<const In*>(call.v) + source * call.row_stride;
    Out* n = static_cast<Out*>(call.n) + row * call.width;
    float* polar = call.polar + row * FIELDS;
    if constexpr (FEATURES > 0) {
        prepare_row<FEATURES>(team, v, n, polar, call.D, call.width, *call.curv, call.space, call.tf32);
    } else {
        prepare_loose_row(team, v, call.column_stride, n, polar, call.D, call.width, *call.curv, call.space,
                          call.tf32);
    }
}

}  // namespace bioclip_hc
