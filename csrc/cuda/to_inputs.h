// Gradients of unit rows and radii back to the features they were made of: the twin of `_to_inputs` of
// bioclip_hc.kernels.triton_infonce. bioclip_hc/kernels/cuda.py has the contract.

#pragma once

#include "rows.h"

namespace bioclip_hc {

// One call; v and out of the dtype that its code says.
struct ToInputs {
    const void* v;
    const int32_t* order;  // row p of dn, dr and polar belongs to row order[p] of v and out; null = p
    const float *dn, *dr, *polar, *factor, *curv;
    void* out;
    int64_t rows, row_stride, column_stride;  // strides of v in elements
    int D, width, space;
};

template <class T>
Way way_of(const ToInputs& call) {
    const bool is_aligned = call.column_stride == 1 && call.D % PACKET<T> == 0 && starts_aligned(call.out, 0) &&
                            starts_aligned(call.v, call.row_stride * sizeof(T)) &&
                            starts_aligned(call.dn, call.width * sizeof(float));
    return way_of(is_aligned, call.D);
}

// Of one row, with n its unit row: dL/dv = across * dn + radial * n, before `along` is taken into account.
struct Pull {
    float across;  // of dn
    float radial;  // of n, without the part of dn along n
};

// polar: the row's; dr: dL/dr. Beyond the clamp a tangent row's radius no longer moves.
ROWS_FN Pull pull_of(const float* polar, float dr, float curv, int space) {
    const float norm = polar[0], r = polar[1], s = polar[2], root = sqrtf(curv);
    if (space == SPHERE) return {inverse_of(norm, space), 0.0f};
    if (space == TANGENT) {
        if (r >= MAX_RADIUS) return {s * inverse_of(norm, space), 0.0f};
        return {root * (r > 0.0f ? s / r : 1.0f), -root * dr};
    }
    if (space == HYPERBOLOID) return {root, -root * dr / sqrtf(1.0f + s * s)};
    return {1.0f, 0.0f};
}

// dn (width,) and dr to out (D,), for v (D,) as prepare_row had it, times factor. v and dn are read once. Aligned
// and held as in prepare_row.
template <int FEATURES, class T, class Team>
ROWS_FN void to_input_row(const Team& team, const T* v, const float* dn, float dr, const float* polar, T* out,
                          int D, float factor, float curv, int space) {
    constexpr int N = PACKET<T>, PACKETS = FEATURES / N;
    using Read = Packet<T, N>;
    using Gradient = Packet<float, N>;
    Read held[PACKETS];
    Gradient gradient[PACKETS];
    ROWS_UNROLL
    for (int p = 0; p < PACKETS; ++p) {
        const int at = (p * Team::lanes + team.lane) * N;
        held[p] = at < D && space != UNIT ? *reinterpret_cast<const Read*>(v + at) : Read{};
        gradient[p] = at < D ? *reinterpret_cast<const Gradient*>(dn + at) : Gradient{};
    }
    Pull pull = pull_of(polar, dr, curv, space);
    const float inverse = inverse_of(polar[0], space);
    if (space != UNIT) {
        float along = 0.0f;  // <dn, n>
        ROWS_UNROLL
        for (int p = 0; p < PACKETS; ++p) {
            ROWS_UNROLL
            for (int i = 0; i < N; ++i) along += widen(held[p].at[i]) * inverse * gradient[p].at[i];
        }
        pull.radial -= pull.across * team.sum(along);
    }
    ROWS_UNROLL
    for (int p = 0; p < PACKETS; ++p) {
        const int at = (p * Team::lanes + team.lane) * N;
        Read written;
        ROWS_UNROLL
        for (int i = 0; i < N; ++i) {
            const float n = widen(held[p].at[i]) * inverse;
            written.at[i] = narrow<T>(factor * (pull.across * gradient[p].at[i] + pull.radial * n));
        }
        if (at < D) *reinterpret_cast<Read*>(out + at) = written;
    }
}

// The same for any D, alignment and stride of v; v and dn are read twice, if UNIT v not at all.
template <class T, class Team>
ROWS_FN void to_loose_input_row(const Team& team, const T* v, int64_t stride, const float* dn, float dr,
                                const float* polar, T* out, int D, float factor, float curv, int space) {
    Pull pull = pull_of(polar, dr, curv, space);
    const float inverse = inverse_of(polar[0], space);
    if (space != UNIT) {
        float along = 0.0f;
        for (int at = team.lane; at < D; at += Team::lanes) along += widen(v[at * stride]) * inverse * dn[at];
        pull.radial -= pull.across * team.sum(along);
    }
    for (int at = team.lane; at < D; at += Team::lanes) {
        const float n = space != UNIT ? widen(v[at * stride]) * inverse : 0.0f;
        out[at] = narrow<T>(factor * (pull.across * dn[at] + pull.radial * n));
    }
}

// Row `row` of a call's gradients, by one of the above.
template <int FEATURES, class T, class Team>
ROWS_FN void to_input_at(const Team& team, const ToInputs& call, int64_t row) {
    const int64_t source = call.order ? call.order[row] : row;
    const T* v = static_cast<const T*>(call.v) + source * call.row_stride;
    const float* dn = call.dn + row * call.width;
    const float* polar = call.polar + row * FIELDS;
    T* out = static_cast<T*>(call.out) + source * call.D;
    if constexpr (FEATURES > 0) {
        to_input_row<FEATURES>(team, v, dn, call.dr[row], polar, out, call.D, *call.factor, *call.curv, call.space);
    } else {
        to_loose_input_row(team, v, call.column_stride, dn, call.dr[row], polar, out, call.D, *call.factor,
                           *call.curv, call.space);
    }
}

}  // namespace bioclip_hc
