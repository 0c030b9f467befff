#include "prepare.h"

#include "launch.cuh"

namespace bioclip_hc {
namespace {

// FEATURES held by a lane; 0 = the row is not held.
template <int FEATURES, int LANES, class In, class Out>
__global__ __launch_bounds__(THREADS, RESIDENT) void prepare(const Prepare call) {
    const int64_t row = row_of_thread<LANES>();
    if (row < call.rows)
        prepare_at<FEATURES, In, Out>(team_of_thread<LANES>(), call, row);  // the same for a whole team
}

template <class In, class Out>
void queue(const Prepare& call, cudaStream_t stream) {
    switch (way_of<In>(call)) {
        case Way::SHORT:
            return launch<WARP>(prepare<HELD / 2, WARP, In, Out>, call, stream);
        case Way::LONG:
            return launch<WARP>(prepare<HELD, WARP, In, Out>, call, stream);
        case Way::WIDE:
            return launch<BLOCK>(prepare<HELD, BLOCK, In, Out>, call, stream);
        case Way::LOOSE:
            return launch<WARP>(prepare<0, WARP, In, Out>, call, stream);
    }
}

}  // namespace
}  // namespace bioclip_hc

// n (rows, width) and polar (rows, 6) of v[order] (rows, D); strides of v in elements; dtypes 0 fp16, 1 bf16, 2
// fp32. Returns a cudaError_t; the work is queued on the stream.
EXPORTED int bioclip_hc_prepare(int device, void* stream, const void* v, int in_dtype, int64_t row_stride,
                                int64_t column_stride, const int32_t* order, const float* curv, void* n,
                                int out_dtype, float* polar, int64_t rows, int D, int width, int space, int tf32) {
    using namespace bioclip_hc;
    if (rows == 0) return cudaSuccess;
    if (const cudaError_t error = cudaSetDevice(device)) return error;
    const Prepare call{v, order, curv, n, polar, rows, row_stride, column_stride, D, width, space, tf32 != 0};
    const bool known = with_type(in_dtype, [&](auto in) {
        return with_type(out_dtype, [&](auto out) {
            using In = decltype(in);
            using Out = decltype(out);
            if constexpr (IS_MULTIPLIED<In, Out>) queue<In, Out>(call, static_cast<cudaStream_t>(stream));
            return IS_MULTIPLIED<In, Out>;
        });
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

// What an error code means.
EXPORTED const char* bioclip_hc_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
