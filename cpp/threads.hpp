// Threads: how many, and sharing work among them.
#pragma once

#include <cstddef>

namespace fastsoftmax {

// The smaller of what was set (at first: no limit) and what OpenMP allows the calling thread, without it the number of
// processors; 1 in a forked child and inside a parallel region.
int get_num_threads();

// Returns what was set before.
int set_num_threads(int count);

// So many elements pay for another thread.
extern const std::ptrdiff_t elements_per_thread;

// "201511" for OpenMP 4.5, and so on; empty without it.
const char* openmp_version();

void run_parts(int parts, void (*call)(const void* body, int part), const void* body);

// Calls body(part) for each part in [0, parts), each on a thread of its own; 1 part on the calling thread. `body` must
// not throw.
template <class Body>
void parallel_for(int parts, const Body& body) {
    run_parts(parts, [](const void* b, int part) { (*static_cast<const Body*>(b))(part); }, &body);
}

}  // namespace fastsoftmax
