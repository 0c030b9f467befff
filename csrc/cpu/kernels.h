// The C interface between kernels.cpp, which is compiled once per instruction set, and Python (bioclip_hc/kernels/cpu.py,
// which mirrors the structs field by field).
//
// M images, N texts, D embed. A tile is (rows images, cols texts) of one rank, `product` its inner products of unit
// vectors, made by a library. Pointers are to fp32 where nothing else is said; `type` says what features are.

#pragma once

#include <cstdint>

extern "C" {

enum FeatureType : int32_t { FLOAT32 = 0, BFLOAT16 = 1 };

// The polar scalars of some rows: r = sqrt(c) d(0, x), s = sinh r, a = e^(r/2), b = e^(-r/2), cosh r, and h = |n|^2 / 2
// of the unit vector as it was multiplied. All null for euclidean geometry.
struct Polar {
    const float *s, *a, *b, *cosh, *h;
};

struct Tile {
    float* product;  // (rows, cols), `stride` apart; forward leaves logits here, backward dL/dproduct
    int64_t stride, rows, cols;
    Polar x, y;
    // Positions among the rank-sorted texts, the tile's first being `first`. Image i's positives are the positions
    // [positive[i], positive_end[i]), the texts of its taxon [taxon[i], taxon_end[i]). With the latter, texts of the
    // taxon that are not positive leave the column's denominator, and the row's if the image has a positive.
    const int32_t *positive, *positive_end;
    const int32_t *taxon, *taxon_end;  // null: nothing is masked out
    int32_t first;
    int32_t lorentz;
    const float* bias;  // (cols), or null
    float factor;       // a logit is factor times the product, or factor times sqrt(c) d: scale, or -scale / sqrt(c)
    float floor;        // cosh(sqrt(c) d) - 1, in units of s_i s_j, at which a distance's gradient is noise
};

// A running logsumexp and the sum of the positives' logits, of rows or of columns.
struct Running {
    float *top, *sum, *positives;
};

// What the gradients of the nll push every logit of a row or column by, and pull its positives.
struct Pull {
    const float *lse, *push, *pull;
};

// Features of images and texts, v and w, as they came; norms are null where they are taken as they are.
struct Lists {
    const void *v, *w;
    int32_t v_type, w_type;
    int64_t v_stride, w_stride, width;
    const float *v_norm, *w_norm;
    Polar x, y;  // without h
    const int64_t *indptr, *indices, *text_rank;
    int64_t images, ranks, k;
    float factor;
    int32_t lorentz;
    float* value;
    int64_t* index;
};

struct Kernels {
    const char* name;

    void (*infonce_forward)(const Tile*, const Running* rows, const Running* cols, int32_t threads);

    // row_radius and col_radius: dL/dr is added to them (Lorentz). Returns the sum of dL/dl times l / factor.
    double (*infonce_backward)(
        const Tile*, const Pull* rows, const Pull* cols, float* row_radius, float* col_radius, int32_t threads);

    // |v| of each row.
    void (*norms)(const void* v, int32_t type, int64_t stride, int64_t rows, int64_t width, float* norm, int32_t threads);

    // n[p] = v[order[p]] / |v|, or v itself where norm is null; a zero row stays zero. h[p] = |n[p]|^2 / 2, if wanted.
    void (*unit_rows)(
        const void* v, int32_t type, int64_t stride, const int64_t* order, const float* norm, int64_t rows, int64_t width,
        float* n, float* h, int32_t threads);

    // sum[order[p]] += part[p]; the order names each row once.
    void (*add_rows)(const float* part, const int64_t* order, int64_t rows, int64_t width, float* sum, int32_t threads);

    // dv[order[p]] = across[p] (I - n n^T) dn[p] + along[p] n, n the unit vector of v[order[p]];
    // dn[p] itself where norm is null. dn (rows, width) may be dv itself, in order. along may be null.
    void (*chain_rule)(
        const float* dn, const void* v, int32_t type, int64_t stride, const int64_t* order, const float* norm,
        const float* across, const float* along, int64_t rows, int64_t width, void* dv, int32_t threads);

    // The maps at the origin: exponential (logarithm = 0) or logarithm, out (rows, width).
    void (*map_forward)(
        int32_t logarithm, const void* v, int32_t type, int64_t rows, int64_t width, float curv, float* out, int32_t threads);

    // dv of the type of v; returns dL/dcurv.
    double (*map_backward)(
        int32_t logarithm, const float* grad, const void* v, int32_t type, int64_t rows, int64_t width, float curv,
        void* dv, int32_t threads);

    // Merges a tile into the k best so far: value (rows, k) falling, `value_stride` apart, and index likewise. A value is
    // factor times the product, or for Lorentz factor times cosh(sqrt(c) d) - 1. Of equals the first that came stays;
    // NaN comes before all numbers.
    void (*keep_best)(
        const Tile*, const int64_t* columns, int64_t k, float* value, int64_t* index, int64_t value_stride,
        int32_t threads);

    // The k best of each image's own list, the texts indices[indptr[i]] to indices[indptr[i + 1] - 1], at each of `ranks`
    // ranks: value and index (images, ranks, k), to be merged into as above, but of equals the smaller index is first.
    void (*keep_best_of_lists)(const Lists*, int32_t threads);

    // Elementwise, for the tests of accuracy: e^x and log(1 + x).
    void (*exponentials)(const float* x, float* y, int64_t count);
    void (*logarithms)(const float* x, float* y, int64_t count);
};

// What the mirrors in cpu.py must agree with: the sizes of the structs, and a number to raise when a meaning changes.
constexpr int64_t LAYOUT = 2;
__attribute__((visibility("default"))) int64_t bioclip_hc_layout();

// The kernels of an instruction set ("avx512", "avx2", "baseline"), of the best one where name is null; null where this
// processor, or this build, has none of that name.
__attribute__((visibility("default"))) const Kernels* bioclip_hc_kernels(const char* name);
}
