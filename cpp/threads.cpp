#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <climits>
#include <exception>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastsoftmax {

namespace {

std::atomic<int> limit{INT_MAX};

// A parallel region in the child of a process that has run one hangs under libgomp: its threads are not there any more.
// Without OpenMP the child has one thread all the same, as is promised.
std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_guard = [] {
#if defined(__unix__) || defined(__APPLE__)
    return pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
    return 0;
#endif
}();

}  // namespace

int set_num_threads(int count) { return limit.exchange(count); }

#ifdef _OPENMP

// A thread that waits for work in its loop begins after about 5 us.
const std::ptrdiff_t elements_per_thread = 16384;

int get_num_threads() {
    if (forked || omp_in_parallel()) return 1;
    return std::min<int>({omp_get_max_threads(), omp_get_thread_limit(), limit});
}

#define FASTSOFTMAX_TEXT(x) #x
#define FASTSOFTMAX_VALUE(x) FASTSOFTMAX_TEXT(x)

const char* openmp_version() { return FASTSOFTMAX_VALUE(_OPENMP); }

namespace {

// So many threads at once, each started by the one before.
bool can_start(int threads) {
    if (threads == 0) return true;
    bool others = false;
    try {
        std::thread([&] { others = can_start(threads - 1); }).join();
    } catch (const std::exception&) {
    }
    return others;
}

// OpenMP ends the process where it cannot start a thread, for want of memory or by a limit of the system. libgomp
// keeps, for each thread that calls, those of its last team.
bool may_run(int parts) {
    static thread_local int kept = 1;
    if (parts > kept && !can_start(parts - kept)) return false;
    kept = parts;
    return true;
}

}  // namespace

void run_parts(int parts, void (*call)(const void* body, int part), const void* body) {
    if (parts > 1 && may_run(parts)) {
#pragma omp parallel for num_threads(parts) schedule(static, 1)
        for (int part = 0; part < parts; ++part) call(body, part);
    } else {
        for (int part = 0; part < parts; ++part) call(body, part);
    }
}

#else

// Threads that live as long as the call: nothing to keep over a fork, nothing to end with the process.
const std::ptrdiff_t elements_per_thread = 131072;

int get_num_threads() {
    static const int processors = std::max<int>(std::thread::hardware_concurrency(), 1);
    return forked ? 1 : std::min<int>(processors, limit);
}

const char* openmp_version() { return ""; }

namespace {

// Half of the parts on another thread, which halves them in turn. One that cannot be had: here, after the others.
void run_range(int begin, int end, void (*call)(const void* body, int part), const void* body) {
    if (end - begin == 1) return call(body, begin);
    const int middle = begin + (end - begin) / 2;
    std::thread other;
    try {
        other = std::thread(run_range, middle, end, call, body);
    } catch (const std::exception&) {
    }
    run_range(begin, middle, call, body);
    if (other.joinable())
        other.join();
    else
        run_range(middle, end, call, body);
}

}  // namespace

void run_parts(int parts, void (*call)(const void* body, int part), const void* body) {
    run_range(0, parts, call, body);
}

#endif

}  // namespace fastsoftmax
