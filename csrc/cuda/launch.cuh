// Teams of lanes on a GPU, and the launch of a kernel that gives every row a team.

#pragma once

#include <cuda_runtime_api.h>

#include "rows.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace bioclip_hc {

constexpr int THREADS = BLOCK;  // of a block: eight rows with a warp each, or one
constexpr int RESIDENT = 2;     // blocks of a multiprocessor for which registers must do; 128 a thread

// LANES neighbouring threads that share a row. Sums are taken in the same order every time.
template <int LANES>
struct Team {
    static_assert(LANES == WARP || LANES == THREADS);
    static constexpr int lanes = LANES;
    int lane;

    // The sum of x over the team, the same bits on every lane. All lanes must call it.
    __device__ float sum(float x) const {
#pragma unroll
        for (int distance = WARP / 2; distance; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
        if constexpr (LANES > WARP) {
            __shared__ float parts[LANES / WARP];
            __syncthreads();  // every lane has read the parts of the sum before
            if (lane % WARP == 0) parts[lane / WARP] = x;
            __syncthreads();
            x = 0.0f;
#pragma unroll
            for (float part : parts) x += part;
        }
        return x;
    }
};

// The row of this thread, of which its team takes care.
template <int LANES>
__device__ int64_t row_of_thread() {
    return static_cast<int64_t>(blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES;
}

template <int LANES>
__device__ Team<LANES> team_of_thread() {
    return {static_cast<int>(threadIdx.x) % LANES};
}

// Queue a kernel of teams of LANES for a call's rows.
template <int LANES, class Call>
void launch(void (*kernel)(Call), const Call& call, cudaStream_t stream) {
    constexpr int64_t per_block = THREADS / LANES;
    kernel<<<static_cast<unsigned>((call.rows + per_block - 1) / per_block), THREADS, 0, stream>>>(call);
}

}  // namespace bioclip_hc
