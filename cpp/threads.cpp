#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "processors.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): that of POSIX
#endif
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastsoftmax {

// OpenMP only says how many threads a call may use. Its own threads would make the caller wait, at the end of each
// region, even for those that have no processor; docs/design.md has the figures.

namespace {

std::atomic<int> limit{INT_MAX};
thread_local int limit_here = INT_MAX;

// The threads of a process do not live on in its forked child.
std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_guard = []() noexcept {
#if defined(__unix__) || defined(__APPLE__)
    return pthread_atfork(nullptr, nullptr, [] { forked = true; });
#else
    return 0;
#endif
}();

}  // namespace

int set_num_threads(int count) { return limit.exchange(count); }

int set_num_threads_here(int count) { return std::exchange(limit_here, count); }

#ifdef _OPENMP

int get_num_threads() {
    if (forked || omp_in_parallel()) return 1;
    // OpenMP does not know CPU quotas. OMP_NUM_THREADS overrides the quota, because somebody chose it.
    static const int quota = std::getenv("OMP_NUM_THREADS") ? INT_MAX : processors_within_quota();
    return std::min<int>({omp_get_max_threads(), omp_get_thread_limit(), quota, limit, limit_here});
}

#define FASTSOFTMAX_TEXT(x) #x
#define FASTSOFTMAX_VALUE(x) FASTSOFTMAX_TEXT(x)

const char* openmp_version() { return FASTSOFTMAX_VALUE(_OPENMP); }

#else

int get_num_threads() {
    static const int processors = std::min(allowed_processors(), processors_within_quota());
    return forked ? 1 : std::min<int>({processors, limit, limit_here});
}

const char* openmp_version() { return ""; }

#endif

// A chunk takes 3 to 15 us, so the cost of sharing it, less than 1 us, is small in comparison.
const std::ptrdiff_t elements_per_chunk = 8192;

namespace {

// bench/NOTES.md has the measurements that these come from.

// A call on fewer elements does not wake sleeping threads: waking them costs the caller 5 to 20 us, and they start 10
// to 50 us later.
constexpr std::ptrdiff_t elements_worth_waking = 32 * 8192;

// If calls follow each other within this time, a thread without work spins for as long before it sleeps.
constexpr std::chrono::milliseconds patience{6};

// A spinning thread that sees the clock jump by more than this had lost its processor.
constexpr std::chrono::microseconds jump{500};

// The balance never exceeds the credit, and sharing ends when it falls below minus the debt; losses count twice. So a
// time slice (4 ms) lost now and then changes nothing, but several in a row end sharing.
constexpr std::chrono::milliseconds most_credit{10}, most_debt{1};

// How long calls then keep to one thread: the first time, and at most. The time doubles whenever sharing fails again
// soon. One lost time slice in such a period makes no difference to a mean or a 99th percentile.
constexpr std::chrono::milliseconds first_rest{100}, longest_rest{800};

// At its end, a call spins for the time of a chunk and this much more before it sleeps, because sleeping and waking
// take longer.
constexpr std::chrono::microseconds join_spin{10};

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::int64_t;

Nanoseconds now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

constexpr Nanoseconds in_ns(std::chrono::nanoseconds time) { return time.count(); }

// Tells the processor that this loop waits.
void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

// Whether `ready()` becomes true within 1 or 2 us: asks a few dozen times.
template <class Ready>
bool look(Ready ready) {
    for (int i = 0; i < 32; ++i) {
        if (ready()) return true;
        pause();
    }
    return false;
}

// Wakes threads that sleep until something is ready. Ringing costs next to nothing if nobody sleeps.
class Bell {
  public:
    template <class Ready>
    void sleep_until(Ready ready) {
        std::unique_lock lock(mutex_);
        ++sleeping_;
        rung_.wait(lock, ready);
        --sleeping_;
    }

    // To be called after `ready` has become true.
    void ring(int threads) {
        if (sleeping_ == 0) return;
        // A thread that has found nothing ready holds the lock until it sleeps; once the lock is free, it can be woken.
        {
            const std::scoped_lock lock(mutex_);
        }
        for (int i = 0; i < threads; ++i) rung_.notify_one();
    }

  private:
    std::mutex mutex_;
    std::condition_variable rung_;
    std::atomic<int> sleeping_{0};
};

#ifdef __linux__

int current_processor() { return sched_getcpu(); }

int current_thread() {
    static thread_local const int id = static_cast<int>(syscall(SYS_gettid));
    return id;
}

// Moves the calling thread, if it is on this processor, to another one that the thread `caller` may use; returns false
// if there is none. If idle processors sleep deeply, as on virtual machines, Linux keeps waking a thread on its waker's
// processor while others are free.
bool leave_processor(int processor, int caller) {
    if (current_processor() != processor) return true;
    cpu_set_t others;
    if (sched_getaffinity(caller, sizeof others, &others) != 0) return false;
    CPU_CLR(processor, &others);
    return sched_setaffinity(0, sizeof others, &others) == 0;
}

#else

int current_processor() { return 0; }
int current_thread() { return 0; }
bool leave_processor(int, int) { return true; }

#endif

// The shared work of one call. Threads take chunks of it by counting down a ticket; once the last one is taken, the
// caller only waits for chunks that others have begun.
class alignas(64) Job {
  public:
    // Reserves the job for the calling thread, until `release`; returns whether it was free.
    bool acquire() { return !busy_.exchange(true); }
    void release() { busy_ = false; }

    void post(std::ptrdiff_t count, std::ptrdiff_t chunk, int helpers, RangeBody call, const void* body) {
        call_ = call;
        body_ = body;
        count_ = count;
        chunk_ = chunk;
        chunks_ = (count + chunk - 1) / chunk;
        helpers_ = helpers;
        std::fegetenv(&environment_);
        processor_ = current_processor();
        caller_ = current_thread();
        done_ = 0;
        ticket_ = static_cast<std::uint64_t>(helpers) * place + static_cast<std::uint64_t>(chunks_);
    }

    // Computes chunks until none is left. Returns the time of the fastest, because others may have been interrupted; 0
    // if it computed none, or only the last of all.
    Nanoseconds work(int thread) {
        Nanoseconds least = 0, begin = now();
        for (std::uint64_t ticket = ticket_; chunks_of(ticket) > 0;) {
            if (!ticket_.compare_exchange_weak(ticket, ticket - 1)) continue;
            compute(ticket, thread);
            const Nanoseconds end = now();
            const bool last = chunks_of(ticket) == 1;  // its work may be smaller, like the last block of a row
            if (!last && (least == 0 || end - begin < least)) least = end - begin;
            begin = end;
            ticket = ticket_;
        }
        return least;
    }

    // Whether there is work and a place for a helper.
    bool wants_help() const { return wanted(ticket_); }
    bool leave_caller() const { return leave_processor(processor_, caller_); }

    // Computes chunks as a helper, if one is still wanted. A ticket holds both numbers, so that a helper takes its
    // place and its first chunk in one step: a thread that is stopped before that holds nobody up, and one that comes
    // late helps with whatever is posted by then.
    void help() {
        std::uint64_t ticket = ticket_;
        do {
            if (!wanted(ticket)) return;
        } while (!ticket_.compare_exchange_weak(ticket, ticket - place - 1));
        // Adopts the caller's rounding and treatment of subnormal numbers: bits must not depend on who computes.
        std::fesetenv(&environment_);
        const int thread = static_cast<int>(ticket / place);
        compute(ticket, thread);
        work(thread);
        ++done_;
        all_done_.ring(1);
    }

    // Whether all helpers that joined have finished; only meaningful once no chunk is left.
    bool is_done() const { return done_ == helpers_ - static_cast<int>(ticket_ / place); }
    void sleep_until_done() {
        all_done_.sleep_until([this] { return is_done(); });
    }
    std::ptrdiff_t chunks() const { return chunks_; }

  private:
    // The ticket: places for helpers in its upper half, chunks that nobody has begun in the lower.
    static constexpr std::uint64_t place = std::uint64_t{1} << 32;
    static std::uint64_t chunks_of(std::uint64_t ticket) { return ticket % place; }
    static bool wanted(std::uint64_t ticket) { return chunks_of(ticket) > 0 && ticket >= place; }

    void compute(std::uint64_t ticket, int thread) const {
        const std::ptrdiff_t begin = (chunks_ - static_cast<std::ptrdiff_t>(chunks_of(ticket))) * chunk_;
        call_(body_, begin, std::min(begin + chunk_, count_), thread);
    }

    std::atomic<bool> busy_{false};
    RangeBody call_ = nullptr;
    const void* body_ = nullptr;
    std::ptrdiff_t count_ = 0, chunk_ = 0, chunks_ = 0;
    int helpers_ = 0;
    std::fenv_t environment_ = {};
    std::atomic<int> processor_{0}, caller_{0};
    Bell all_done_;
    // In cache lines of their own, because all threads write them.
    alignas(64) std::atomic<std::uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
};

// Tells whether sharing pays at present. All times are of one clock, in nanoseconds. Threads that race here lose an
// update or two, which does no harm.
class Balance {
  public:
    bool resting() const { return now() < rest_until_; }

    // Notes a call, and returns whether it follows the last one closely.
    bool call_comes_soon() {
        const Nanoseconds time = now();
        const bool soon = time - last_call_ < in_ns(patience);
        last_call_ = time;
        soon_ = soon;
        return soon;
    }
    bool next_comes_soon() const { return soon_; }
    void call_ended(Nanoseconds time) { last_call_ = time; }

    // Adds the time that sharing gained; below 0: that it lost.
    void add(Nanoseconds gain) {
        const Nanoseconds balance = std::min(balance_ + (gain < 0 ? 2 * gain : gain), in_ns(most_credit));
        balance_ = balance;
        if (balance < -in_ns(most_debt)) rest();
    }

    // Lets calls keep to one thread for a while.
    void rest() {
        const Nanoseconds time = now();
        if (time < rest_until_) return;
        const bool again = time < rest_until_ + 2 * rest_;
        rest_ = again ? std::min(2 * rest_, in_ns(longest_rest)) : in_ns(first_rest);
        rest_until_ = time + rest_;
        balance_ = 0;
    }

  private:
    std::atomic<Nanoseconds> balance_{0}, rest_{0}, rest_until_{0}, last_call_{0};
    std::atomic<bool> soon_{false};
};

// The process's threads. They start with the first call that wants them, and are never ended: at the end of the process
// they sleep, or compute for a thread that is still in a call.
class Pool {
  public:
    static Pool& get() {
        // In static memory, because an allocation can fail; macOS has a `new` with this alignment only since 10.13.
        alignas(Pool) static std::byte memory[sizeof(Pool)];
        static Pool* const pool = new (memory) Pool;
        return *pool;
    }

    // Whether it pays at present to share a call on this many elements.
    bool is_worth_sharing(std::ptrdiff_t elements) {
        const bool soon = balance_.call_comes_soon();
        if (balance_.resting()) return false;
        return soon || waiting_ > 0 || elements >= elements_worth_waking;
    }

    // Computes with helpers. Does nothing and returns false if all jobs are taken: with that many callers, each thread
    // has enough work of its own.
    bool share(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, RangeBody call, const void* body) {
        Job* const job = std::find_if(std::begin(jobs_), std::end(jobs_), [](Job& each) { return each.acquire(); });
        if (job == std::end(jobs_)) return false;
        const int helpers = threads - 1, missing = helpers - waiting_;
        const Nanoseconds begin = now();
        job->post(count, chunk, helpers, call, body);
        ++posted_;
        if (missing > 0) {
            posted_bell_.ring(missing);
            start(helpers);
        }
        const Nanoseconds of_a_chunk = job->work(0), own_end = now();
        while (!look([job] { return job->is_done(); }))
            if (now() > own_end + of_a_chunk + in_ns(join_spin)) job->sleep_until_done();
        const Nanoseconds end = now();
        // Compared with the time that this thread would have taken for all chunks.
        if (of_a_chunk > 0) balance_.add(of_a_chunk * job->chunks() - (end - begin));
        balance_.call_ended(end);
        job->release();
        return true;
    }

  private:
    Job jobs_[16];
    std::atomic<unsigned> posted_{0};
    Bell posted_bell_;
    std::atomic<int> waiting_{0}, started_{0};
    std::mutex starting_;
    Balance balance_;

    // Starts threads until there are this many. If the system refuses one, the others suffice.
    void start(int helpers) {
        if (started_ >= helpers) return;
        const std::unique_lock lock(starting_, std::try_to_lock);
        if (!lock) return;
#if defined(__unix__) || defined(__APPLE__)
        // The new threads block all signals, which are for the threads of the program.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
        try {
            for (; started_ < helpers; ++started_) std::thread([this] { serve(); }).detach();
        } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
        }
#if defined(__unix__) || defined(__APPLE__)
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    }

    // The loop of a helper.
    [[noreturn]] void serve() {
        for (;;) {
            const unsigned seen = posted_;
            for (Job& job : jobs_) {
                if (!job.wants_help()) continue;
                if (job.leave_caller())
                    job.help();
                else
                    balance_.rest();
            }
            const auto posted = [&] { return posted_ != seen; };
            ++waiting_;
            const bool found = wait_for(posted);
            --waiting_;
            if (!found) posted_bell_.sleep_until(posted);
        }
    }

    template <class Ready>
    bool wait_for(Ready ready) {
        const Nanoseconds begin = now();
        Nanoseconds last = begin;
        while (!look(ready)) {
            const Nanoseconds time = now();
            if (time - last > in_ns(jump)) balance_.add(last - time);
            last = time;
            if (!balance_.next_comes_soon() || time - begin > in_ns(patience) || balance_.resting()) return false;
        }
        return true;
    }
};

}  // namespace

int threads_for(std::ptrdiff_t elements) {
    const std::ptrdiff_t worth = elements / (2 * elements_per_chunk);
    if (worth < 2) return 1;
    const int threads = static_cast<int>(std::min<std::ptrdiff_t>(worth, get_num_threads()));
    return threads > 1 && Pool::get().is_worth_sharing(elements) ? threads : 1;
}

void run_shared(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, RangeBody call, const void* body) {
    chunk = std::max(chunk, count / INT_MAX + 1);  // a ticket counts no further
    if (threads == 1 || count <= chunk || !Pool::get().share(count, chunk, threads, call, body))
        call(body, 0, count, 0);
}

}  // namespace fastsoftmax
