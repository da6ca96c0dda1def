// Decides how many threads a call should use, and shares its work among them.
#pragma once

#include <cstddef>

namespace fastsoftmax {

// The most threads that a call may use: the smallest of the limits set here (at first none), the process's CPU quota
// (with OpenMP, OMP_NUM_THREADS overrides it), and the number that OpenMP allows the calling thread or, without OpenMP,
// the number of processors in the affinity mask. It is 1 in a forked child and inside a parallel region.
int get_num_threads();

// Returns the limit set before.
int set_num_threads(int count);

// A further limit, which holds only for calls from the calling thread. Returns the limit set before.
int set_num_threads_here(int count);

// OpenMP's version as a date, such as "201511" for 4.5; empty without OpenMP.
const char* openmp_version();

// How many threads a call on this many elements should use at present: no more than pay off, and only one for a while
// after sharing has cost more time than it saved, because other processes wanted the processors.
int threads_for(std::ptrdiff_t elements);

// Work on fewer elements than this is not divided further.
extern const std::ptrdiff_t elements_per_chunk;

using RangeBody = void (*)(const void* body, std::ptrdiff_t begin, std::ptrdiff_t end, int thread);
void run_shared(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, RangeBody call, const void* body);

// Calls body(begin, end, thread) for ranges that make up [0, count): chunks of size `chunk`, each on the next thread
// that is free, or everything at once on the calling thread. Ranges that run at the same time have different numbers
// `thread`, all below `threads`; the caller's is 0. `body` must not throw.
template <class Body>
void parallel_for(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, const Body& body) {
    const RangeBody call = [](const void* b, std::ptrdiff_t begin, std::ptrdiff_t end, int thread) {
        (*static_cast<const Body*>(b))(begin, end, thread);
    };
    run_shared(count, chunk, threads, call, &body);
}

}  // namespace fastsoftmax
