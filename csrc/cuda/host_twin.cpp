// The row-wise kernels on the host, for tests where no GPU is: the lines of prepare.h and to_inputs.h, run by as
// many threads as a team has lanes. Sums are taken in the order of the GPU's.

#include <array>
#include <barrier>
#include <thread>
#include <type_traits>
#include <vector>

#include "prepare.h"
#include "to_inputs.h"

namespace bioclip_hc {
namespace {

template <int LANES>
struct Meeting {
    std::barrier<> barrier{LANES};
    std::array<float, LANES> values{};
};

template <int LANES>
struct Team {
    static constexpr int lanes = LANES;
    int lane;
    Meeting<LANES>* meeting;

    float sum(float x) const {
        meeting->values[lane] = x;
        meeting->barrier.arrive_and_wait();
        std::array<float, LANES> all = meeting->values;
        meeting->barrier.arrive_and_wait();
        float total = 0.0f;
        for (int warp = 0; warp < LANES; warp += WARP) {
            for (int distance = WARP / 2; distance; distance /= 2) {
                for (int i = 0; i < distance; ++i) all[warp + i] += all[warp + i + distance];
            }
            total += all[warp];
        }
        return total;
    }
};

// `work` with a team and a row, for every row.
template <int LANES, class Work>
void for_rows(int64_t rows, Work work) {
    Meeting<LANES> meeting;
    std::vector<std::thread> threads;
    for (int lane = 0; lane < LANES; ++lane) {
        threads.emplace_back([&meeting, rows, lane, work] {
            for (int64_t row = 0; row < rows; ++row) work(Team<LANES>{lane, &meeting}, row);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

Way last_way;  // of the latest call

// `work` with the features that a lane holds, a team and a row, for every row, as the kernels' launches do it.
template <class Work>
void run(Way way, int64_t rows, Work work) {
    const auto with = [&](auto held) { return [=](auto team, int64_t row) { work(held, team, row); }; };
    last_way = way;
    switch (way) {
        case Way::SHORT:
            return for_rows<WARP>(rows, with(std::integral_constant<int, HELD / 2>{}));
        case Way::LONG:
            return for_rows<WARP>(rows, with(std::integral_constant<int, HELD>{}));
        case Way::WIDE:
            return for_rows<BLOCK>(rows, with(std::integral_constant<int, HELD>{}));
        case Way::LOOSE:
            return for_rows<WARP>(rows, with(std::integral_constant<int, 0>{}));
    }
}

}  // namespace
}  // namespace bioclip_hc

// The interface of prepare.cu and to_inputs.cu; device and stream mean nothing. 0, or 1 for an unknown dtype.
extern "C" int bioclip_hc_prepare(int, void*, const void* v, int in_dtype, int64_t row_stride,
                                  int64_t column_stride, const int32_t* order, const float* curv, void* n,
                                  int out_dtype, float* polar, int64_t rows, int D, int width, int space,
                                  int tf32) {
    using namespace bioclip_hc;
    const Prepare call{v, order, curv, n, polar, rows, row_stride, column_stride, D, width, space, tf32 != 0};
    return !with_type(in_dtype, [&](auto in) {
        return with_type(out_dtype, [&](auto out) {
            using In = decltype(in);
            using Out = decltype(out);
            if constexpr (IS_MULTIPLIED<In, Out>) {
                run(way_of<In>(call), call.rows, [&](auto held, auto team, int64_t row) {
                    prepare_at<decltype(held)::value, In, Out>(team, call, row);
                });
            }
            return IS_MULTIPLIED<In, Out>;
        });
    });
}

extern "C" int bioclip_hc_to_inputs(int, void*, const void* v, int dtype, int64_t row_stride, int64_t column_stride,
                                    const int32_t* order, const float* dn, const float* dr, const float* polar,
                                    const float* factor, const float* curv, void* out, int64_t rows, int D,
                                    int width, int space) {
    using namespace bioclip_hc;
    const ToInputs call{v,          order,         dn, dr,    polar, factor, curv, out, rows,
                        row_stride, column_stride, D,  width, space};
    return !with_type(dtype, [&](auto type) {
        using T = decltype(type);
        run(way_of<T>(call), call.rows,
            [&](auto held, auto team, int64_t row) { to_input_at<decltype(held)::value, T>(team, call, row); });
        return true;
    });
}

extern "C" const char* bioclip_hc_cuda_error(int) { return "an unknown dtype"; }

// How the latest call went about its rows: a Way.
extern "C" int bioclip_hc_last_way() { return static_cast<int>(bioclip_hc::last_way); }
