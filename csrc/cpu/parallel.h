// Work shared out over threads in parts that do not depend on how many threads there are, so that results do not either.

#pragma once

#include <cstdint>

// work(context, part) for every part in [0, parts), on at most `threads` threads.
void for_each_part(int64_t parts, int32_t threads, void (*work)(void*, int64_t), void* context);

template <typename Work>
void in_parallel(int64_t parts, int32_t threads, Work work) {
    for_each_part(parts, threads, [](void* context, int64_t part) { (*static_cast<Work*>(context))(part); }, &work);
}
