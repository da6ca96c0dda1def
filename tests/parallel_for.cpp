// Calls parallel_for from many threads at once, with any size, number of threads, rounding mode and treatment of
// subnormal numbers. Arguments: callers, seconds. Prints how many calls were made, and how many of them were shared.
#include "threads.hpp"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

constexpr int most_threads = 6;

std::atomic<long> calls{0}, shared{0};

void check(bool holds, const char* promise) {
    if (holds) return;
    std::fprintf(stderr, "not kept: %s\n", promise);
    std::_Exit(1);
}

bool flushes() {
#ifdef __SSE2__
    return _MM_GET_FLUSH_ZERO_MODE() == _MM_FLUSH_ZERO_ON;
#else
    return false;
#endif
}

void flush(bool on) {
#ifdef __SSE2__
    _MM_SET_FLUSH_ZERO_MODE(on ? _MM_FLUSH_ZERO_ON : _MM_FLUSH_ZERO_OFF);
#else
    static_cast<void>(on);
#endif
}

void keep_calling(unsigned seed, std::chrono::steady_clock::time_point end) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
    while (std::chrono::steady_clock::now() < end) {
        const std::ptrdiff_t count = 1 + below(200), chunk = 1 + below(9);
        const int threads = 1 + below(most_threads), work = below(3) ? below(50) : below(3000);
        const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
        const int mode = modes[below(4)];
        std::fesetround(mode);
        flush(below(2));
        const bool flushed = flushes();
        const auto self = std::this_thread::get_id();
        // Not atomic, so that ThreadSanitizer reports increments that nothing orders.
        std::vector<int> times(static_cast<std::size_t>(count));
        std::atomic<bool> taken[most_threads] = {};
        std::mutex mutex;
        std::set<std::thread::id> ids{self};
        const auto body = [&](std::ptrdiff_t begin, std::ptrdiff_t end_of_range, int thread) {
            check(0 <= begin && begin < end_of_range && end_of_range <= count, "ranges within [0, count)");
            check(0 <= thread && thread < threads, "numbers of threads below `threads`");
            check(!taken[thread].exchange(true), "different numbers at the same time");
            check((thread == 0) == (std::this_thread::get_id() == self), "the caller is number 0");
            check(std::fegetround() == mode && flushes() == flushed, "the caller's rounding and flushing");
            for (std::ptrdiff_t i = begin; i < end_of_range; ++i) ++times[static_cast<std::size_t>(i)];
            for (volatile int i = 0; i < work; i = i + 1) continue;
            if (thread > 0) {
                const std::lock_guard lock(mutex);
                ids.insert(std::this_thread::get_id());
            }
            taken[thread] = false;
        };
        fastsoftmax::parallel_for(count, chunk, threads, body);
        for (const int n : times) check(n == 1, "each index once");
        check(ids.size() <= static_cast<std::size_t>(threads), "no more threads than asked for");
        ++calls;
        shared += ids.size() > 1;
        // A pause now and then, long enough for helpers to fall asleep.
        if (below(64) == 0) std::this_thread::sleep_for(std::chrono::microseconds(below(9000)));
    }
}

}  // namespace

int main(int, char** arguments) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[2]));
    std::vector<std::thread> callers;
    for (int i = 0; i < std::atoi(arguments[1]); ++i) callers.emplace_back(keep_calling, i, end);
    for (std::thread& caller : callers) caller.join();
    std::printf("%ld %ld\n", calls.load(), shared.load());
}
