// As many fp32 numbers at a time as a register holds, in the vectors of GCC and Clang: one source for every instruction
// set, compiled once for each.
//
// NaN goes through every function here: what is wrong in the features must show in the loss.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef float Floats __attribute__((vector_size(2 * LANES)));  // half as many, so that as doubles they fill a register
typedef double Doubles __attribute__((vector_size(4 * LANES)));
constexpr int64_t HALF = LANES / 2;

constexpr float MASKED = -1e30f;  // finite: exp(MASKED - MASKED) is a number
// Known to the compiler: what a file must compute at load time would run on processors that lack its instructions.
#if defined(__AVX512F__)
constexpr Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX__)
constexpr Ints LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr Ints LANE = {0, 1, 2, 3};
#endif

INLINE Lanes all(float x) { return x - Lanes{}; }  // not Lanes{} + x, which turns -0 into 0

// x as it is rounded: the compiler may not fuse the product that made it with the sum that takes it. Forward and backward
// must make the same logit to the last bit, or exp(logit - lse) is not a share of 1.
INLINE Lanes rounded(Lanes x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

// -- memory: n numbers of a row that may end before the lanes do -------------------------------------------------

template <typename Vector, typename Number>
INLINE Vector load_as(const Number* p, int64_t n) {
    Vector v = {};
    if (n >= int64_t(sizeof v / sizeof(Number))) {
        std::memcpy(&v, p, sizeof v);
    } else {
        std::memcpy(&v, p, n * sizeof(Number));
    }
    return v;
}

template <typename Vector, typename Number>
INLINE void store_as(Number* p, const Vector& v, int64_t n) {
    if (n >= int64_t(sizeof v / sizeof(Number))) {
        std::memcpy(p, &v, sizeof v);
    } else {
        std::memcpy(p, &v, n * sizeof(Number));
    }
}

INLINE Lanes load(const float* p, int64_t n) { return load_as<Lanes>(p, n); }

INLINE Lanes load(const uint16_t* p, int64_t n) {  // bfloat16: the upper half of an fp32
    return (Lanes)(__builtin_convertvector(load_as<Halves>(p, n), Words) << 16);
}

INLINE Doubles load_doubles(const float* p, int64_t n) { return __builtin_convertvector(load_as<Floats>(p, n), Doubles); }

INLINE Doubles load_doubles(const uint16_t* p, int64_t n) {
    const Lanes v = load(p, n < HALF ? n : HALF);
    Floats half;
    std::memcpy(&half, &v, sizeof half);
    return __builtin_convertvector(half, Doubles);
}

INLINE void store(float* p, Lanes v, int64_t n) { store_as(p, v, n); }

INLINE void store(uint16_t* p, Lanes v, int64_t n) {  // to nearest, ties to even; NaN stays one
    const Words bits = (Words)v;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words kept = v == v ? rounded : (bits >> 16) | 0x40u;
    store_as(p, __builtin_convertvector(kept, Halves), n);
}

// -- what a row adds up to ---------------------------------------------------------------------------------------

INLINE float sum(const Lanes& v) {
    float part[LANES];
    std::memcpy(part, &v, sizeof part);
    for (int64_t width = LANES / 2; width; width /= 2) {
        for (int64_t k = 0; k < width; ++k) part[k] += part[k + width];
    }
    return part[0];
}

INLINE double sum(const Doubles& v) {
    double total = 0;
    for (int64_t k = 0; k < HALF; ++k) total += v[k];
    return total;
}

INLINE float largest(const Lanes& v) {
    float top = v[0];
    for (int64_t k = 1; k < LANES; ++k) top = v[k] > top ? v[k] : top;
    return top;
}

INLINE Lanes maximum(Lanes a, Lanes b) { return a > b ? a : b; }

INLINE bool any(Ints mask) {
    int64_t halves[HALF], found = 0;
    std::memcpy(halves, &mask, sizeof mask);
    for (int64_t k = 0; k < HALF; ++k) found |= halves[k];
    return found != 0;
}

// -- functions, within 2 units in the last place (tests/kernels/test_cpu.py) --------------------------------------
// The polynomials are weighted least-squares fits on Chebyshev nodes, reweighted towards the smallest largest error.

INLINE Lanes square_root(Lanes x) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX__)
    return (Lanes)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE__)
    return (Lanes)_mm_sqrt_ps((__m128)x);
#else
    for (int64_t k = 0; k < LANES; ++k) x[k] = __builtin_sqrtf(x[k]);
    return x;
#endif
}

// e^x for x <= 88; 0 where x < -87.3, below which a result would be denormal. x above 88 gives e^88.
INLINE Lanes exponential(Lanes x) {
    constexpr float LEAST = -87.3f, MOST = 88.0f, LOG2_E = 1.44269504088896341f;
    constexpr float LN2_HIGH = 0x1.63p-1f, LN2_LOW = -0x1.bd0106p-13f;  // a product with the first is exact
    constexpr float SHIFT = 0x1.8p23f + 127;  // n + SHIFT holds n + 127, an exponent, in its lowest bits
    const Lanes y = x < LEAST ? all(LEAST) : x > MOST ? all(MOST) : x;
    const Lanes shifted = y * LOG2_E + SHIFT;
    const Lanes n = shifted - SHIFT;
    const Lanes f = (y - n * LN2_HIGH) - n * LN2_LOW;  // |f| <= ln(2) / 2
    Lanes p = all(0x1.6db400p-10f);
    p = p * f + 0x1.123b48p-7f;
    p = p * f + 0x1.55545ep-5f;
    p = p * f + 0x1.555490p-3f;
    p = p * f + 0x1p-1f;
    p = (p * f) * f + f;
    const Lanes two_to_n = (Lanes)((Ints)shifted << 23);
    return x < LEAST ? Lanes{} : p * two_to_n + two_to_n;
}

// log(1 + t) for 0 <= t < 2^96: exact in its first digits however small t is.
INLINE Lanes log_one_plus(Lanes t) {
    constexpr float LN2_HIGH = 0x1.62e4p-1f, LN2_LOW = 0x1.7f7d1cp-20f;
    constexpr int32_t TWO_THIRDS = 0x3f2aaaab;
    const Ints exponent = ((Ints)(t + 1.0f) - TWO_THIRDS) & ~0x7fffff;
    const Lanes half_to_n = (Lanes)(0x3f800000 - exponent);
    const Lanes f = t * half_to_n + (half_to_n - 1.0f);  // (1 + t) / 2^n - 1, between -1/3 and 1/3
    const Lanes n = __builtin_convertvector(exponent >> 23, Lanes);
    Lanes p = all(-0.13333648443222046f);
    p = p * f + 0.1402530074119568f;
    p = p * f - 0.12072961032390594f;
    p = p * f + 0.13997302949428558f;
    p = p * f - 0.16689904034137726f;
    p = p * f + 0.20010961592197418f;
    p = p * f - 0.24999496340751648f;
    p = p * f + 0.3333320617675781f;
    p = p * f - 0.5f;
    return n * LN2_HIGH + (f + (rounded((p * f) * f) + n * LN2_LOW));
}

}  // namespace
