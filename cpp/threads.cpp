#include "threads.hpp"

#include <atomic>
#include <climits>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastsoftmax {

namespace {

std::atomic<int> limit{INT_MAX};

#ifdef _OPENMP
// A parallel region in the child of a process that has run one hangs under libgomp: its threads are not there any more.
std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_guard = [] {
#if defined(__unix__) || defined(__APPLE__)
    return pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
    return 0;
#endif
}();

#define FASTSOFTMAX_TEXT(x) #x
#define FASTSOFTMAX_VALUE(x) FASTSOFTMAX_TEXT(x)
#endif

}  // namespace

void set_num_threads(int count) { limit = count; }

#ifdef _OPENMP

int get_num_threads() {
    if (forked || omp_in_parallel()) return 1;
    const int allowed = omp_get_max_threads(), set = limit;
    return allowed < set ? allowed : set;
}

const char* openmp_version() { return FASTSOFTMAX_VALUE(_OPENMP); }

void run_parts(int parts, void (*call)(const void* body, int part), const void* body) {
    if (parts == 1) return call(body, 0);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; ++part) call(body, part);
}

#else

int get_num_threads() { return 1; }

const char* openmp_version() { return ""; }

void run_parts(int parts, void (*call)(const void* body, int part), const void* body) {
    for (int part = 0; part < parts; ++part) call(body, part);
}

#endif

}  // namespace fastsoftmax
