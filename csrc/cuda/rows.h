// What happens to one row of features, written for a team of lanes: a warp or a block on a GPU, threads of the host
// in the tests. The same lines run on both; only sums over a team, and conversions of 16-bit numbers, differ.
//
// D embed; width >= D columns of the rounded unit rows, zeros from D on
// A lane holds FEATURES features of its row in registers, in packets of 16 bytes: its packet p starts at feature
// (p * lanes + lane) * 16 / sizeof(T), so neighbouring lanes read neighbouring packets.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define ROWS_FN __host__ __device__ __forceinline__
#define ROWS_UNROLL _Pragma("unroll")
#else
#define ROWS_FN inline
#define ROWS_UNROLL
#endif

namespace bioclip_hc {

// -- numbers ------------------------------------------------------------------------------------------------------

struct Half {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

ROWS_FN uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

ROWS_FN float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

ROWS_FN float widen(float x) { return x; }

ROWS_FN float widen(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

ROWS_FN float widen(Half x) {
#ifdef __CUDA_ARCH__
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#else
    const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 0x3ffu;
    if (exponent == 0) return std::copysign(static_cast<float>(fraction) * 0x1p-24f, float_of(sign));
    return float_of(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
#endif
}

// To the nearest number of T, ties to even; too large for T becomes infinity, NaN stays NaN.
template <class T>
ROWS_FN T narrow(float x);

template <>
ROWS_FN float narrow<float>(float x) {
    return x;
}

template <>
ROWS_FN BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
    BFloat16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    const uint32_t bits = bits_of(x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
#endif
}

template <>
ROWS_FN Half narrow<Half>(float x) {
#ifdef __CUDA_ARCH__
    Half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    uint32_t half;
    if (size > 0x7f800000u) {
        half = 0x7e00u;
    } else if (size >= 0x47800000u) {  // from 2^16 on; from 65520 on rounding makes it infinity
        half = 0x7c00u;
    } else if (size < 0x38800000u) {  // under 2^-14: added to 1/2, the last place of the sum is fp16's least step
        half = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
    } else {
        half = (size - (112u << 23) + 0xfffu + (size >> 13 & 1)) >> 13;
    }
    return {static_cast<uint16_t>(sign | half)};
#endif
}

// To the nearest number with ten bits of fraction, as tensor cores take fp32. Not for NaN, whose bits may be all
// ones.
ROWS_FN float round_tf32(float x) { return x == x ? float_of((bits_of(x) + 0x1000u) & 0xffffe000u) : x; }

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packet {
    T at[N];
};

template <class T>
constexpr int PACKET = 16 / sizeof(T);

// -- a row's radius -----------------------------------------------------------------------------------------------

// What v is, as in bioclip_hc.kernels.triton_tiles.SPACES.
enum Space : int { UNIT, SPHERE, TANGENT, HYPERBOLOID };

constexpr float MAX_RADIUS = 11.09035488919195f;  // asinh(2^15), reference.MAX_RADIUS: MERU's clamp of exp_map0
constexpr int FIELDS = 6;                         // norm, r, s, a, b, h: the columns of `polar`

struct Radius {
    float r, s;  // sqrt(c) d(0, x) and its sinh
};

// Comparisons are written so that NaN stays NaN: a row that is not finite must not look like one that is.
ROWS_FN Radius radius_of(float norm, float curv, int space) {
    const float t = sqrtf(curv) * norm;
    if (space == TANGENT) {
        const float r = t > MAX_RADIUS ? MAX_RADIUS : t;
        return {r, sinhf(r)};
    }
    if (space == HYPERBOLOID) return {asinhf(t), t};
    return {0.0f, 0.0f};
}

// What a row is multiplied by to have unit length: 1 for rows taken as they are, and for zero rows, which stay
// zero.
ROWS_FN float inverse_of(float norm, int space) { return space != UNIT && norm > 0.0f ? 1.0f / norm : 1.0f; }

// -- how a row is worked on ---------------------------------------------------------------------------------------

constexpr int WARP = 32, BLOCK = 256;  // lanes of a team
constexpr int HELD = 32;               // features that a lane holds at most: with more, registers spill

enum class Way { SHORT, LONG, WIDE, LOOSE };  // a warp holds a row of 512, of 1024; a block of 8192; not held

// is_aligned: whether rows can be read and written packet by packet.
ROWS_FN Way way_of(bool is_aligned, int width) {
    if (!is_aligned || width > BLOCK * HELD) return Way::LOOSE;
    return width <= WARP * HELD / 2 ? Way::SHORT : width <= WARP * HELD ? Way::LONG : Way::WIDE;
}

// Whether a row that starts any number of steps after the pointer starts at a multiple of 16 bytes.
ROWS_FN bool starts_aligned(const void* pointer, int64_t step_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && step_bytes % 16 == 0;
}

// Dtype codes of the C interface.
enum Dtype : int { HALF, BFLOAT16, FLOAT };

// What `call` makes of a value of the C++ type that a dtype code stands for; false for a code that stands for none.
template <class Call>
bool with_type(int dtype, Call call) {
    switch (dtype) {
        case HALF:
            return call(Half{});
        case BFLOAT16:
            return call(BFloat16{});
        case FLOAT:
            return call(float{});
    }
    return false;
}

}  // namespace bioclip_hc
