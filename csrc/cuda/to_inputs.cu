#include "to_inputs.h"

#include "launch.cuh"

namespace bioclip_hc {
namespace {

// FEATURES held by a lane; 0 = the row is not held.
template <int FEATURES, int LANES, class T>
__global__ __launch_bounds__(THREADS, RESIDENT) void to_inputs(const ToInputs call) {
    const int64_t row = row_of_thread<LANES>();
    if (row < call.rows) to_input_at<FEATURES, T>(team_of_thread<LANES>(), call, row);  // the same for a whole team
}

template <class T>
void queue(const ToInputs& call, cudaStream_t stream) {
    switch (way_of<T>(call)) {
        case Way::SHORT:
            return launch<WARP>(to_inputs<HELD / 2, WARP, T>, call, stream);
        case Way::LONG:
            return launch<WARP>(to_inputs<HELD, WARP, T>, call, stream);
        case Way::WIDE:
            return launch<BLOCK>(to_inputs<HELD, BLOCK, T>, call, stream);
        case Way::LOOSE:
            return launch<WARP>(to_inputs<0, WARP, T>, call, stream);
    }
}

}  // namespace
}  // namespace bioclip_hc

// out (rows, D) of dn (rows, width) and dr (rows,) fp32; strides of v in elements; dtypes 0 fp16, 1 bf16, 2 fp32.
// Returns a cudaError_t; the work is queued on the stream.
EXPORTED int bioclip_hc_to_inputs(int device, void* stream, const void* v, int dtype, int64_t row_stride,
                                  int64_t column_stride, const int32_t* order, const float* dn, const float* dr,
                                  const float* polar, const float* factor, const float* curv, void* out,
                                  int64_t rows, int D, int width, int space) {
    using namespace bioclip_hc;
    if (rows == 0) return cudaSuccess;
    if (const cudaError_t error = cudaSetDevice(device)) return error;
    const ToInputs call{v,          order,         dn, dr,    polar, factor, curv, out, rows,
                        row_stride, column_stride, D,  width, space};
    const bool known = with_type(dtype, [&](auto type) {
        queue<decltype(type)>(call, static_cast<cudaStream_t>(stream));
        return true;
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}
