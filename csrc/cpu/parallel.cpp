// Threads come from the OpenMP runtime that torch has loaded: a pool of our own would fight with its pool, whose threads
// spin for a while after each product. Where there is none, threads are started for the occasion.

#include "parallel.h"

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

extern "C" {  // GNU's OpenMP ABI, which LLVM's and Intel's runtimes offer too; weak: there may be none
__attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
}

namespace {

struct Job {
    std::atomic<int64_t> next{0};
    int64_t parts;
    void (*work)(void*, int64_t);
    void* context;
};

void run(void* argument) {
    Job& job = *static_cast<Job*>(argument);
    for (int64_t part; (part = job.next.fetch_add(1)) < job.parts;) job.work(job.context, part);
}

}  // namespace

void for_each_part(int64_t parts, int32_t threads, void (*work)(void*, int64_t), void* context) {
    Job job;
    job.parts = parts;
    job.work = work;
    job.context = context;
    const int64_t wanted = threads < parts ? threads : parts;
    if (wanted <= 1) {
        run(&job);
    } else if (GOMP_parallel != nullptr) {
        GOMP_parallel(run, &job, static_cast<unsigned>(wanted), 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (int64_t i = 1; i < wanted; ++i) others.emplace_back(run, &job);
        } catch (const std::exception&) {  // then fewer do it: nothing may leave through the C interface
        }
        run(&job);
        for (std::thread& other : others) other.join();
    }
}
