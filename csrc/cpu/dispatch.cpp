// Which instruction set's kernels run: asked of the processor, once.

#include <cstring>

#include "kernels.h"

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

int64_t bioclip_hc_layout() { return LAYOUT << 48 | int64_t(sizeof(Kernels)) << 32 | int64_t(sizeof(Lists)) << 16 | int64_t(sizeof(Tile)); }

const Kernels* bioclip_hc_kernels(const char* name) {
    const Kernels* able[3];
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        able[count++] = &kernels_avx512;
    }
    if (avx2) able[count++] = &kernels_avx2;
#endif
    able[count++] = &kernels_baseline;
    for (int i = 0; i < count; ++i) {
        if (name == nullptr || std::strcmp(name, able[i]->name) == 0) return able[i];
    }
    return nullptr;
}
