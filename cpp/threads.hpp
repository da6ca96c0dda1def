// Threads: how many a call should use, and sharing its work among them.
#pragma once

#include <cstddef>

namespace fastsoftmax {

// The most that a call may use: the smallest of the limits set here (at first: none) and what OpenMP allows the calling
// thread, without OpenMP the number of processors that this process may use; 1 in a forked child and inside a parallel
// region.
int get_num_threads();

// Returns the limit set before.
int set_num_threads(int count);

// A further limit, which holds only for calls from the calling thread. Returns the limit set before.
int set_num_threads_here(int count);

// "201511" for OpenMP 4.5, and so on; empty without it.
const char* openmp_version();

// How many threads a call on this many elements should use now: no more than pay, and only one for a while after a
// second one has cost more than it brought, because other processes wanted its processor.
int threads_for(std::ptrdiff_t elements);

// Work of fewer elements is not divided further.
extern const std::ptrdiff_t elements_per_chunk;

using RangeBody = void (*)(const void* body, std::ptrdiff_t begin, std::ptrdiff_t end, int thread);
void run_shared(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, RangeBody call, const void* body);

// Calls body(begin, end, thread) for ranges that make up [0, count): chunks of this size, which go to whichever thread
// comes next, or everything at once on the calling thread. Ranges that run at the same time have different numbers
// `thread`, all below `threads`; the caller's is 0. `body` must not throw.
template <class Body>
void parallel_for(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, const Body& body) {
    const RangeBody call = [](const void* b, std::ptrdiff_t begin, std::ptrdiff_t end, int thread) {
        (*static_cast<const Body*>(b))(begin, end, thread);
    };
    run_shared(count, chunk, threads, call, &body);
}

}  // namespace fastsoftmax
