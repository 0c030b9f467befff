// The kernels, compiled once per instruction set: see setup.py, which defines INSTRUCTION_SET as avx512, avx2 or baseline.
//
// Tiles are worked through in stripes of rows, and stripes in blocks of columns that stay in the first caches. Each
// stripe keeps sums of its own for the columns; they are added up in the stripes' order at the end. So results depend
// neither on the number of threads nor on their luck.

#include "kernels.h"

#include <cmath>
#include <memory>

#include "lanes.h"
#include "parallel.h"

namespace {

constexpr int64_t STRIPE = 32;  // rows; with BLOCK columns of fp32 they are 64 KiB, a part of a core's second cache
constexpr int64_t BLOCK = 512;  // columns, of which up to a dozen numbers each are 24 KiB, a first cache
constexpr int64_t PART = 64;  // rows that one task of a row-wise kernel does
constexpr double MAX_RADIUS = 11.090354889191955;  // asinh(2^15), as reference.py

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls body(j, n) for the columns from j on, n of them at a time: LANES, known to the compiler, and once what is left.
template <typename Body>
INLINE void for_lanes(int64_t start, int64_t end, Body body) {
    int64_t j = start;
    for (; j + LANES <= end; j += LANES) body(j, LANES);
    if (j < end) body(j, end - j);
}

// -- a tile's logits -----------------------------------------------------------------------------------------------

struct Row {  // polar scalars of one image, in every lane
    Lanes s, a, b, cosh, h;
    INLINE Row(const Polar& p, int64_t i) : s(all(p.s[i])), a(all(p.a[i])), b(all(p.b[i])), cosh(all(p.cosh[i])), h(all(p.h[i])) {}
    INLINE Row() {}
};

struct Apart {  // how far images and texts are from each other, in Lorentz geometry
    Lanes gap;   // 1 - cosine
    Lanes u;     // cosh(sqrt(c) d) - 1
    Lanes cross, other;  // a_i b_j and b_i a_j
    Lanes ss;    // s_i s_j
};

INLINE Apart apart(Lanes product, const Row& x, const Polar& y, int64_t j, int64_t n) {
    Apart p;
    p.cross = rounded(x.a * load(y.b + j, n));
    p.other = rounded(x.b * load(y.a + j, n));
    p.gap = x.h + load(y.h + j, n) - product;
    p.ss = x.s * load(y.s + j, n);
    const Lanes difference = p.cross - p.other;
    const Lanes u = rounded(p.ss * p.gap) + difference * difference * 0.5f;
    p.u = u < 0.0f ? Lanes{} : u;
    return p;
}

INLINE Lanes hyperbolic_root(Lanes u) { return square_root(u * (u + 2.0f)); }

template <bool LORENTZ>
INLINE Lanes logit(Lanes product, const Tile& t, const Row& x, int64_t j, int64_t n) {
    if constexpr (!LORENTZ) return rounded(product * t.factor);
    const Lanes u = apart(product, x, t.y, j, n).u;
    return rounded(log_one_plus(hyperbolic_root(u) + u) * t.factor);
}

// Which columns of a vector lie in [first, end), given where the vector lies.
INLINE Ints between(int64_t j, int32_t first, int32_t end) {
    const Ints column = LANE + static_cast<int32_t>(j);
    return (column >= first) & (column < end);
}

// The columns of one image that are not plain negatives, counted from the tile's first.
struct Marks {
    int32_t positive, positive_end, taxon, taxon_end;
    bool leaves_row;  // duplicates leave the row's denominator, not the column's only

    INLINE Marks(const Tile& t, int64_t i)
        : positive(t.positive[i] - t.first), positive_end(t.positive_end[i] - t.first),
          taxon(t.taxon ? t.taxon[i] - t.first : positive), taxon_end(t.taxon ? t.taxon_end[i] - t.first : positive_end),
          leaves_row(positive < positive_end) {}
    INLINE bool touch(int64_t j) const { return j < taxon_end && j + LANES > taxon; }
    INLINE Ints positives(int64_t j) const { return between(j, positive, positive_end); }
    INLINE Ints duplicates(int64_t j) const { return between(j, taxon, taxon_end) & ~positives(j); }
};

// -- forward -------------------------------------------------------------------------------------------------------

template <bool LORENTZ, bool MASK>
void forward_stripe(const Tile& t, const Running& rows, int64_t begin, int64_t end, float* top, float* total, float* positives) {
    for_lanes(0, t.cols, [&](int64_t j, int64_t n) {
        store(top + j, all(MASKED), n);
        store(total + j, Lanes{}, n);
        store(positives + j, Lanes{}, n);
    });
    for (int64_t start = 0; start < t.cols; start += BLOCK) {
        const int64_t stop = least(start + BLOCK, t.cols);
        for (int64_t i = begin; i < end; ++i) {  // logits, the columns' largest, and the row's
            const Row x = LORENTZ ? Row(t.x, i) : Row();
            const Marks marks(t, i);
            float* const line = t.product + i * t.stride;
            Lanes best = all(MASKED), found = {};
            for_lanes(start, stop, [&](int64_t j, int64_t n) {
                const Lanes l = logit<LORENTZ>(load(line + j, n), t, x, j, n);
                store(line + j, l, n);
                Lanes as_row = t.bias ? l + load(t.bias + j, n) : l, as_col = l;
                if (marks.touch(j)) {
                    const Lanes chosen = marks.positives(j) ? l : Lanes{};
                    found += n < LANES ? (LANE < static_cast<int32_t>(n) ? chosen : Lanes{}) : chosen;
                    store(positives + j, load(positives + j, n) + chosen, n);
                    if (MASK) {
                        const Ints duplicate = marks.duplicates(j);
                        as_col = duplicate ? all(MASKED) : as_col;
                        if (marks.leaves_row) as_row = duplicate ? all(MASKED) : as_row;
                    }
                }
                if (n < LANES) as_row = LANE < static_cast<int32_t>(n) ? as_row : all(MASKED);
                best = maximum(as_row, best);
                store(top + j, maximum(as_col, load(top + j, n)), n);
            });
            rows.positives[i] += sum(found);
            const float old = rows.top[i], now = largest(best) > old ? largest(best) : old;
            rows.sum[i] *= exponential(all(old - now))[0];
            rows.top[i] = now;
        }
        for (int64_t i = begin; i < end; ++i) {  // every exponential under a maximum that is its own row's or column's
            const Marks marks(t, i);
            const float* const line = t.product + i * t.stride;
            const Lanes shift = all(rows.top[i]);
            Lanes row_sum = {};
            for_lanes(start, stop, [&](int64_t j, int64_t n) {
                const Lanes l = load(line + j, n);
                Lanes as_row = exponential((t.bias ? l + load(t.bias + j, n) : l) - shift);
                Lanes as_col = exponential(l - load(top + j, n));
                if (MASK && marks.touch(j)) {
                    const Ints duplicate = marks.duplicates(j);
                    as_col = duplicate ? Lanes{} : as_col;
                    if (marks.leaves_row) as_row = duplicate ? Lanes{} : as_row;
                }
                if (n < LANES) as_row = LANE < static_cast<int32_t>(n) ? as_row : Lanes{};
                row_sum += as_row;
                store(total + j, load(total + j, n) + as_col, n);
            });
            rows.sum[i] += sum(row_sum);
        }
    }
}

template <bool LORENTZ, bool MASK>
void forward_tile(const Tile& t, const Running& rows, const Running& cols, int32_t threads) {
    const int64_t stripes = parts_of(t.rows, STRIPE), width = t.cols;
    const std::unique_ptr<float[]> scratch(new float[3 * stripes * width]);
    float *const top = scratch.get(), *const total = top + stripes * width, *const positives = total + stripes * width;
    in_parallel(stripes, threads, [&](int64_t k) {
        forward_stripe<LORENTZ, MASK>(
            t, rows, k * STRIPE, least((k + 1) * STRIPE, t.rows), top + k * width, total + k * width, positives + k * width);
    });
    in_parallel(parts_of(width, BLOCK), threads, [&](int64_t block) {  // the stripes' sums meet under one maximum
        for_lanes(block * BLOCK, least((block + 1) * BLOCK, width), [&](int64_t j, int64_t n) {
            const Lanes old = load(cols.top + j, n);
            Lanes now = old;
            for (int64_t k = 0; k < stripes; ++k) now = maximum(load(top + k * width + j, n), now);
            Lanes merged = load(cols.sum + j, n) * exponential(old - now), found = load(cols.positives + j, n);
            for (int64_t k = 0; k < stripes; ++k) {
                const int64_t at = k * width + j;
                merged += load(total + at, n) * exponential(load(top + at, n) - now);
                found += load(positives + at, n);
            }
            store(cols.top + j, now, n);
            store(cols.sum + j, merged, n);
            store(cols.positives + j, found, n);
        });
    });
}

void infonce_forward(const Tile* t, const Running* rows, const Running* cols, int32_t threads) {
    const auto kernel = t->lorentz ? (t->taxon ? forward_tile<true, true> : forward_tile<true, false>)
                                   : (t->taxon ? forward_tile<false, true> : forward_tile<false, false>);
    kernel(*t, *rows, *cols, threads);
}

// -- backward ------------------------------------------------------------------------------------------------------

// Returns the stripe's sum of W l / factor, W = dL/dl.
template <bool LORENTZ, bool MASK>
double backward_stripe(
    const Tile& t, const Pull& rows, const Pull& cols, int64_t begin, int64_t end, float* row_radius, float* col_radius) {
    if (LORENTZ) for_lanes(0, t.cols, [&](int64_t j, int64_t n) { store(col_radius + j, Lanes{}, n); });
    double total = 0;
    for (int64_t start = 0; start < t.cols; start += BLOCK) {
        const int64_t stop = least(start + BLOCK, t.cols);
        for (int64_t i = begin; i < end; ++i) {
            const Row x = LORENTZ ? Row(t.x, i) : Row();
            const Marks marks(t, i);
            float* const line = t.product + i * t.stride;
            const Lanes row_lse = all(rows.lse[i]), row_push = all(rows.push[i]), row_pull = all(rows.pull[i]);
            Lanes moved = {}, radius = {};
            for_lanes(start, stop, [&](int64_t j, int64_t n) {
                Apart p;
                Lanes similarity = load(line + j, n), root;
                if constexpr (LORENTZ) {
                    p = apart(similarity, x, t.y, j, n);
                    root = hyperbolic_root(p.u);
                    similarity = log_one_plus(root + p.u);
                }
                const Lanes l = rounded(similarity * t.factor);  // as forward had it
                Lanes as_row = row_push * exponential((t.bias ? l + load(t.bias + j, n) : l) - row_lse);
                Lanes as_col = load(cols.push + j, n) * exponential(l - load(cols.lse + j, n));
                Lanes pulled = {};
                if (marks.touch(j)) {
                    pulled = marks.positives(j) ? row_pull + load(cols.pull + j, n) : Lanes{};
                    if (MASK) {
                        const Ints duplicate = marks.duplicates(j);
                        as_col = duplicate ? Lanes{} : as_col;
                        if (marks.leaves_row) as_row = duplicate ? Lanes{} : as_row;
                    }
                }
                Lanes W = as_row + as_col - pulled;
                if (n < LANES) W = LANE < static_cast<int32_t>(n) ? W : Lanes{};
                moved += W * similarity;
                if constexpr (LORENTZ) {  // q = dL/du, but 0 where u is the noise of its product
                    const Lanes q = p.u <= p.ss * t.floor ? Lanes{} : W * t.factor / root;
                    const Lanes sinh = (p.cross - p.other) * (p.cross + p.other) * 0.5f;  // of r_i - r_j
                    const Lanes s = load(t.y.s + j, n), cosh = load(t.y.cosh + j, n);
                    radius += q * (x.cosh * s * p.gap + sinh);
                    store(col_radius + j, load(col_radius + j, n) + q * (cosh * x.s * p.gap - sinh), n);
                    store(line + j, -(q * p.ss), n);
                } else {
                    store(line + j, W * t.factor, n);
                }
            });
            total += sum(moved);
            if (LORENTZ) row_radius[i] += sum(radius);
        }
    }
    return total;
}

template <bool LORENTZ, bool MASK>
double backward_tile(
    const Tile& t, const Pull& rows, const Pull& cols, float* row_radius, float* col_radius, int32_t threads) {
    const int64_t stripes = parts_of(t.rows, STRIPE), width = t.cols;
    const std::unique_ptr<double[]> totals(new double[stripes]);
    const std::unique_ptr<float[]> radii(new float[LORENTZ ? stripes * width : 1]);
    in_parallel(stripes, threads, [&](int64_t k) {
        totals[k] = backward_stripe<LORENTZ, MASK>(
            t, rows, cols, k * STRIPE, least((k + 1) * STRIPE, t.rows), row_radius, radii.get() + (LORENTZ ? k * width : 0));
    });
    if (LORENTZ) {
        in_parallel(parts_of(width, BLOCK), threads, [&](int64_t block) {
            for_lanes(block * BLOCK, least((block + 1) * BLOCK, width), [&](int64_t j, int64_t n) {
                Lanes r = load(col_radius + j, n);
                for (int64_t k = 0; k < stripes; ++k) r += load(radii.get() + k * width + j, n);
                store(col_radius + j, r, n);
            });
        });
    }
    double total = 0;
    for (int64_t k = 0; k < stripes; ++k) total += totals[k];
    return total;
}

double infonce_backward(
    const Tile* t, const Pull* rows, const Pull* cols, float* row_radius, float* col_radius, int32_t threads) {
    const auto kernel = t->lorentz ? (t->taxon ? backward_tile<true, true> : backward_tile<true, false>)
                                   : (t->taxon ? backward_tile<false, true> : backward_tile<false, false>);
    return kernel(*t, *rows, *cols, row_radius, col_radius, threads);
}

// -- rows of features ----------------------------------------------------------------------------------------------

template <typename F, typename G>
double dot(const F* v, const G* w, int64_t width) {
    Doubles total = {};
    int64_t k = 0;
    for (; k + HALF <= width; k += HALF) total += load_doubles(v + k, HALF) * load_doubles(w + k, HALF);
    if (k < width) total += load_doubles(v + k, width - k) * load_doubles(w + k, width - k);
    return sum(total);
}

// Calls row(i) for every row.
template <typename Row>
void for_rows(int64_t rows, int32_t threads, Row row) {
    in_parallel(parts_of(rows, PART), threads, [&](int64_t part) {
        for (int64_t i = part * PART; i < least((part + 1) * PART, rows); ++i) row(i);
    });
}

// Calls work with a null pointer of the type that features have.
template <typename Work>
void with_type(int32_t type, Work work) {
    if (type == BFLOAT16) {
        work(static_cast<const uint16_t*>(nullptr));
    } else {
        work(static_cast<const float*>(nullptr));
    }
}

template <typename F>
const F* row_of(const void* v, F const*, int64_t stride, int64_t row) {
    return static_cast<const F*>(v) + row * stride;
}

void norms(const void* v, int32_t type, int64_t stride, int64_t rows, int64_t width, float* norm, int32_t threads) {
    with_type(type, [&](auto kind) {
        for_rows(rows, threads, [&](int64_t i) {
            const auto* const row = row_of(v, kind, stride, i);
            norm[i] = static_cast<float>(std::sqrt(dot(row, row, width)));
        });
    });
}

void unit_rows(
    const void* v, int32_t type, int64_t stride, const int64_t* order, const float* norm, int64_t rows, int64_t width,
    float* n, float* h, int32_t threads) {
    with_type(type, [&](auto kind) {
        for_rows(rows, threads, [&](int64_t p) {
            const auto* const row = row_of(v, kind, stride, order[p]);
            const float length = norm ? norm[order[p]] : 1.0f;
            const Lanes divisor = all(length > 0 ? length : 1.0f);
            float* const out = n + p * width;
            for_lanes(0, width, [&](int64_t k, int64_t count) { store(out + k, load(row + k, count) / divisor, count); });
            if (h) h[p] = static_cast<float>(dot(out, out, width) / 2);
        });
    });
}

void add_rows(const float* part, const int64_t* order, int64_t rows, int64_t width, float* sum, int32_t threads) {
    for_rows(rows, threads, [&](int64_t p) {
        const float* const in = part + p * width;
        float* const out = sum + order[p] * width;
        for_lanes(0, width, [&](int64_t k, int64_t n) { store(out + k, load(out + k, n) + load(in + k, n), n); });
    });
}

void chain_rule(
    const float* dn, const void* v, int32_t type, int64_t stride, const int64_t* order, const float* norm,
    const float* across, const float* along, int64_t rows, int64_t width, void* dv, int32_t threads) {
    with_type(type, [&](auto kind) {
        using F = std::remove_const_t<std::remove_pointer_t<decltype(kind)>>;
        for_rows(rows, threads, [&](int64_t p) {
            const F* const row = row_of(v, kind, stride, order[p]);
            const float* const g = dn + p * width;
            F* const out = static_cast<F*>(dv) + order[p] * width;
            if (!norm) {
                for_lanes(0, width, [&](int64_t k, int64_t n) { store(out + k, load(g + k, n), n); });
                return;
            }
            const Lanes divisor = all(norm[order[p]] > 0 ? norm[order[p]] : 1.0f);
            Lanes total = {};
            for_lanes(0, width, [&](int64_t k, int64_t n) { total += load(g + k, n) * (load(row + k, n) / divisor); });
            const Lanes stretch = all(across[p]), inner = all(sum(total));
            const Lanes radial = all(along ? along[p] : 0.0f);
            for_lanes(0, width, [&](int64_t k, int64_t n) {
                const Lanes unit = load(row + k, n) / divisor;
                store(out + k, stretch * (load(g + k, n) - inner * unit) + radial * unit, n);
            });
        });
    });
}

// -- maps ----------------------------------------------------------------------------------------------------------

struct Stretch {
    double f;      // the map is v f(r), r = sqrt(c) |v|
    double slope;  // f'(r) / r
};

Stretch exponential_map(double r) {
    if (r > MAX_RADIUS) {  // the argument of sinh is clamped
        const double f = std::sinh(MAX_RADIUS) / r;
        return {f, -f / (r * r)};
    }
    if (r < 1e-2) {
        const double q = r * r;
        return {1 + q / 6 * (1 + q / 20), 1.0 / 3 + q / 30 * (1 + q / 28)};
    }
    const double sinh = std::sinh(r);
    return {sinh / r, (r * std::cosh(r) - sinh) / (r * r * r)};
}

Stretch logarithm_map(double s) {
    if (s < 1e-2) {
        const double q = s * s;
        return {1 - q / 6 * (1 - q * 9 / 20), -1.0 / 3 + q * 3 / 10 * (1 - q * 25 / 28)};
    }
    const double f = std::asinh(s) / s;
    return {f, (1 / std::sqrt(1 + s * s) - f) / (s * s)};
}

void map_forward(
    int32_t logarithm, const void* v, int32_t type, int64_t rows, int64_t width, float curv, float* out, int32_t threads) {
    const auto map = logarithm ? logarithm_map : exponential_map;
    with_type(type, [&](auto kind) {
        for_rows(rows, threads, [&](int64_t i) {
            const auto* const row = row_of(v, kind, width, i);
            const Lanes f = all(static_cast<float>(map(std::sqrt(curv * dot(row, row, width))).f));
            for_lanes(0, width, [&](int64_t k, int64_t n) { store(out + i * width + k, load(row + k, n) * f, n); });
        });
    });
}

double map_backward(
    int32_t logarithm, const float* grad, const void* v, int32_t type, int64_t rows, int64_t width, float curv,
    void* dv, int32_t threads) {
    const auto map = logarithm ? logarithm_map : exponential_map;
    const std::unique_ptr<double[]> moved(new double[rows]);  // each row's share of dL/dcurv
    with_type(type, [&](auto kind) {
        using F = std::remove_const_t<std::remove_pointer_t<decltype(kind)>>;
        for_rows(rows, threads, [&](int64_t i) {
            const F* const row = row_of(v, kind, width, i);
            const float* const g = grad + i * width;
            const double along = dot(g, row, width), square = dot(row, row, width);
            const Stretch at = map(std::sqrt(curv * square));
            const Lanes f = all(static_cast<float>(at.f)), radial = all(static_cast<float>(along * curv * at.slope));
            F* const out = static_cast<F*>(dv) + i * width;
            for_lanes(0, width, [&](int64_t k, int64_t n) { store(out + k, load(g + k, n) * f + load(row + k, n) * radial, n); });
            moved[i] = along * at.slope * square / 2;  // dr/dc = |v|^2 / (2 r)
        });
    });
    double total = 0;
    for (int64_t i = 0; i < rows; ++i) total += moved[i];
    return total;
}

// -- the best texts of a rank --------------------------------------------------------------------------------------

// NaN beats every number, so that what is wrong in the features shows.
template <typename Number>
INLINE auto beats(Number candidate, Number other) {
    return (candidate > other) | ((candidate != candidate) & (other == other));
}

// Keeps falling order; what comes later stays behind its equals.
void insert(float candidate, int64_t column, int64_t k, float* value, int64_t* index) {
    int64_t place = k - 1;
    for (; place > 0 && beats(candidate, value[place - 1]); --place) {
        value[place] = value[place - 1];
        index[place] = index[place - 1];
    }
    value[place] = candidate;
    index[place] = column;
}

template <bool LORENTZ>
void keep_best_of_row(const Tile& t, const int64_t* columns, int64_t i, int64_t k, float* value, int64_t* index) {
    const Row x = LORENTZ ? Row(t.x, i) : Row();
    const float* const line = t.product + i * t.stride;
    Lanes worst = all(value[k - 1]);
    for_lanes(0, t.cols, [&](int64_t j, int64_t n) {
        Lanes candidates = load(line + j, n);
        if constexpr (LORENTZ) candidates = apart(candidates, x, t.y, j, n).u;
        candidates = candidates * t.factor;
        Ints better = beats(candidates, worst);
        if (n < LANES) better &= LANE < static_cast<int32_t>(n);
        if (!any(better)) return;
        for (int64_t lane = 0; lane < n; ++lane) {
            const float candidate = candidates[lane];
            if (beats(candidate, value[k - 1])) insert(candidate, columns[j + lane], k, value, index);
        }
        worst = all(value[k - 1]);
    });
}

void keep_best(
    const Tile* t, const int64_t* columns, int64_t k, float* value, int64_t* index, int64_t value_stride, int32_t threads) {
    const auto kernel = t->lorentz ? keep_best_of_row<true> : keep_best_of_row<false>;
    for_rows(t->rows, threads, [&](int64_t i) {
        kernel(*t, columns, i, k, value + i * value_stride, index + i * value_stride);
    });
}

// The product is summed as double, so that 1 - cosine keeps its digits without the h of rounded vectors.
template <typename F, typename G>
void keep_best_of_list(const Lists& l, int64_t i) {
    const F* const v = static_cast<const F*>(l.v) + i * l.v_stride;
    const double length = l.v_norm ? l.v_norm[i] : 1;
    for (int64_t e = l.indptr[i]; e < l.indptr[i + 1]; ++e) {
        const int64_t j = l.indices[e], at = (i * l.ranks + l.text_rank[j]) * l.k;
        const double lengths = length * (l.w_norm ? l.w_norm[j] : 1);
        const double product = dot(v, static_cast<const G*>(l.w) + j * l.w_stride, l.width) / (lengths == 0 ? 1 : lengths);
        float candidate = static_cast<float>(product);
        if (l.lorentz) {
            const float difference = l.x.a[i] * l.y.b[j] - l.x.b[i] * l.y.a[j];
            const float u = difference * difference * 0.5f + l.x.s[i] * l.y.s[j] * static_cast<float>(1 - product);
            candidate = u < 0 ? 0 : u;
        }
        candidate *= l.factor;
        float* const value = l.value + at;
        int64_t* const index = l.index + at;
        int64_t place = l.k;
        while (place > 0 && (beats(candidate, value[place - 1]) ||
                             (index[place - 1] >= 0 && j < index[place - 1] && !beats(value[place - 1], candidate)))) {
            --place;
        }
        if (place == l.k) continue;
        for (int64_t p = l.k - 1; p > place; --p) {
            value[p] = value[p - 1];
            index[p] = index[p - 1];
        }
        value[place] = candidate;
        index[place] = j;
    }
}

void keep_best_of_lists(const Lists* l, int32_t threads) {
    with_type(l->v_type, [&](auto v) {
        with_type(l->w_type, [&](auto w) {
            using F = std::remove_const_t<std::remove_pointer_t<decltype(v)>>;
            using G = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
            for_rows(l->images, threads, [&](int64_t i) { keep_best_of_list<F, G>(*l, i); });
        });
    });
}

// -- elementwise ---------------------------------------------------------------------------------------------------

void exponentials(const float* x, float* y, int64_t count) {
    for_lanes(0, count, [&](int64_t k, int64_t n) { store(y + k, exponential(load(x + k, n)), n); });
}

void logarithms(const float* x, float* y, int64_t count) {
    for_lanes(0, count, [&](int64_t k, int64_t n) { store(y + k, log_one_plus(load(x + k, n)), n); });
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

extern const Kernels JOIN(kernels_, INSTRUCTION_SET);
const Kernels JOIN(kernels_, INSTRUCTION_SET) = {
    TEXT(INSTRUCTION_SET), infonce_forward, infonce_backward, norms,     unit_rows,    add_rows,    chain_rule,
    map_forward,           map_backward,    keep_best,        keep_best_of_lists, exponentials, logarithms,
};
