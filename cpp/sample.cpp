// Sampling: measures slices, selects the classes that are left to draw from, and draws.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numeric>

#include "batch.hpp"
#include "operations.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Classes are summed in blocks of this many, from the first class on; this is a part of the order of summation. A draw
// computes the exponentials of one block again.
constexpr std::ptrdiff_t block_size = 4096;
// Within a block, a draw first goes through sums of this many classes.
constexpr std::ptrdiff_t step_size = 64;
constexpr std::ptrdiff_t most_lanes = lanes_of(ElementType::float32);

// Selection refines a histogram of at most this many bins. If a slice has many blocks, a sample is inspected first: the
// first classes of each block.
constexpr std::ptrdiff_t most_bins = 2048;
constexpr std::ptrdiff_t inspected_part = 32, blocks_to_inspect = 8;
// Candidates are collected if no block has more of them than this.
constexpr std::ptrdiff_t most_collected = 512;

template <class T>
const Sampling<T>& sampling() {
    if constexpr (sizeof(T) == 4)
        return kernels().sampling.in_float;
    else
        return kernels().sampling.in_double;
}

// The key of -inf; finite scores have larger ones.
template <class T>
constexpr std::int64_t lowest_key = key_of(-std::numeric_limits<T>::infinity());

// The key of the smallest finite score that is not below a bound.
template <class T>
std::int64_t key_from(double bound) {
    if (!(bound > -std::numeric_limits<T>::max())) return lowest_key<T> + 1;
    const T nearest = static_cast<T>(bound);
    return key_of(nearest) + (static_cast<double>(nearest) < bound ? 1 : 0);
}

// The classes of a slice that are left: those with larger keys than `least`, and those with this key up to class
// `last`.
struct Left {
    std::int64_t least;
    std::ptrdiff_t last;

    // Calls f(begin, end, least) for parts of [begin, end). In each part, the classes with keys of at least `least` are
    // left.
    template <class F>
    void for_parts(std::ptrdiff_t begin, std::ptrdiff_t end, F f) const {
        const std::ptrdiff_t middle = std::clamp(last + 1, begin, end);
        if (begin < middle) f(begin, middle, least);
        if (middle < end) f(middle, end, least + 1);
    }
};

// How many bits at the end of keys tell nothing, because the scores are halves.
int grain_of(ElementType type) { return type == ElementType::bfloat16 ? 16 : type == ElementType::float16 ? 13 : 0; }

// Where the scores of a slice are: in the array, and, unless `lane` is null, gathered in a tile with its neighbours'.
struct Source {
    Offsets at;
    const void* lane;
};

// Constants of a call, the same for all its slices.
struct Call {
    Call(const Slices& slices, double temperature_, const Truncation& truncation_)
        : batch(kernels().sampling.signature, slices, {.temperature = temperature_, .in_order = true}),
          plan(batch.plan),
          temperature(temperature_),
          truncation(truncation_),
          truncates(truncation.top_k < plan.classes || truncation.top_p < 1 || truncation.min_p > 0),
          blocks((plan.classes + block_size - 1) / block_size),
          room(std::min((plan.classes + step_size - 1) / step_size * step_size, block_size) + most_lanes),
          bins(std::clamp<std::ptrdiff_t>(plan.classes / 4, 32, most_bins)),
          collected(std::min(most_collected, room)) {}

    const Batch batch;
    const Plan& plan;
    const double temperature;
    const Truncation truncation;
    const bool truncates;
    const std::ptrdiff_t blocks;  // of a slice
    const std::ptrdiff_t room;    // for the elements of a block, in whole steps, and a pack more
    const std::ptrdiff_t bins;
    const std::ptrdiff_t collected;  // the most that are collected from a block

    std::ptrdiff_t begin_of(std::ptrdiff_t block) const { return block * block_size; }
    std::ptrdiff_t end_of(std::ptrdiff_t block) const { return std::min((block + 1) * block_size, plan.classes); }

    // Returns the scores of a slice, in place or copied to the buffer.
    template <class T>
    const T* scores(const Source& source, std::ptrdiff_t begin, std::ptrdiff_t end, double* buffer) const {
        const std::ptrdiff_t place = source.at[Role::scores];
        if (plan.loop == Loop::rows && plan.type() == plan.computed())
            return reinterpret_cast<const T*>(plan.slices.arrays[Role::scores].data + place) + begin;
        auto* const to = reinterpret_cast<T*>(buffer);
        if (const auto* lane = static_cast<const T*>(source.lane))
            for (std::ptrdiff_t c = begin; c < end; ++c) to[c - begin] = lane[c * plan.lanes()];
        else
            batch.transport.gather_block(Role::scores, source.at, begin, end, to);
        return to;
    }

    // Calls f.operator()<T>(source, slice, memory) for each slice, on `threads` threads; the memory has `doubles`
    // doubles.
    template <class F>
    void for_slices(int threads, std::ptrdiff_t doubles, F f) const {
        Scratch memory = batch.memory_for_runs(threads, doubles);
        batch.for_runs(0, plan.units, threads, plan.at_once, memory,
                       [&](const Offsets& first, std::ptrdiff_t position, std::ptrdiff_t length, double* own) {
                           const Workspace workspace = plan.workspace(own);
                           const bool tiles = plan.loop == Loop::tiles;
                           if (tiles) batch.transport.gather(Role::scores, first, length, workspace.x);
                           plan.in_type([&]<class T> {
                               const auto* x = reinterpret_cast<const T*>(workspace.x);
                               for (std::ptrdiff_t i = 0; i < length; ++i) {
                                   const std::ptrdiff_t lane = i % plan.lanes();
                                   const Source source = {plan.slices.batch.moved(first, i),
                                                          tiles ? x + (i - lane) * plan.classes + lane : nullptr};
                                   f.template operator()<T>(source, position + i, workspace.extra);
                               }
                           });
                       });
    }
};

// The threads that share a slice, or the one that has it to itself, and their memory. Each has two blocks and bins,
// with one more for the classes above them. The first also has, for each block, a factor, the scores collected from it
// with their number and places, and the sum of what lies above these.
struct Team {
    const Call& call;
    int threads;
    double* memory;

    static std::ptrdiff_t size(const Call& call) {
        const std::ptrdiff_t place = sizeof(std::uint16_t), of_block = call.collected + call.collected * place / 8 + 2;
        return 2 * call.room + call.blocks + (call.truncates ? 2 * (call.bins + 1) + call.blocks * of_block : 0);
    }
    double* buffer(int thread) const { return memory + thread * size(call); }
    double* exponentials(int thread) const { return buffer(thread) + call.room; }
    double* factors() const { return memory + 2 * call.room; }
    Bin* bins(int thread) const { return reinterpret_cast<Bin*>(buffer(thread) + 2 * call.room + call.blocks); }
    double* scores() const { return memory + 2 * call.room + call.blocks + 2 * (call.bins + 1); }
    std::ptrdiff_t* counts() const {
        return reinterpret_cast<std::ptrdiff_t*>(scores() + call.blocks * call.collected);
    }
    double* above() const { return reinterpret_cast<double*>(counts() + call.blocks); }
    std::uint16_t* places() const { return reinterpret_cast<std::uint16_t*>(above() + call.blocks); }

    // Calls f(block, thread) for each block of a slice.
    template <class F>
    void for_blocks(F f) const {
        parallel_for(call.blocks, threads > 1 ? 2 : call.blocks, threads,
                     [&](std::ptrdiff_t from, std::ptrdiff_t to, int thread) {
                         for (std::ptrdiff_t b = from; b < to; ++b) f(b, thread);
                     });
    }
};

// One slice, while it is measured. For each block it has the largest score, and the sum of the exponentials that are
// left, relative to the exponential of that score.
template <class T>
class Slice {
  public:
    Slice(const Team& team_, const Source& source, double* max_, double* sum)
        : team(team_),
          call(team.call),
          max(max_),
          left{lowest_key<T>, call.plan.classes - 1},
          source_(source),
          sum_(sum) {}

    const Team& team;
    const Call& call;
    double* const max;
    double top = 0;  // the largest score of all
    Left left;

    // Measures all classes, in one pass. Returns false if there are no probabilities.
    bool measure() {
        const Array& array = call.plan.slices.arrays[Role::scores];
        const Axis& classes = call.plan.slices.classes.last();
        const bool dense = call.plan.slices.classes.count == 1 && classes.strides[Role::scores] == bytes_of(array.type);
        team.for_blocks([&](std::ptrdiff_t b, int thread) {
            const std::ptrdiff_t begin = call.begin_of(b), end = call.end_of(b);
            const T* x = scores(begin, end, thread);
            max[b] = sampling<T>().largest(x, end - begin);
            const bool fetches = dense && b + 1 < call.blocks;
            const std::byte* next = array.data + source_.at[Role::scores] + end * bytes_of(array.type);
            sum_[b] = sampling<T>().mass(x, end - begin, max[b], call.temperature, lowest_key<T>, nullptr,
                                         fetches ? next : nullptr, bytes_of(array.type));
        });
        top = *std::max_element(max, max + call.blocks);
        if (!std::isfinite(top) || std::any_of(sum_, sum_ + call.blocks, [](double s) { return std::isnan(s); }))
            return false;
        set_factors();
        return true;
    }

    // Measures the classes that are left.
    void measure_left() {
        for (std::ptrdiff_t b = 0; b < call.blocks; ++b) sum_[b] = collected_ && all_above_ ? team.above()[b] : 0;
        for_left(left.least, block_size,
                 [&](std::ptrdiff_t b, const T* x, std::ptrdiff_t count, std::int64_t least, int) {
                     sum_[b] += sampling<T>().mass(x, count, max[b], call.temperature, least, nullptr, nullptr, 0);
                 });
    }

    // The sum of all that is left, relative to the largest exponential.
    double total() const { return std::inner_product(sum_, sum_ + call.blocks, team.factors(), 0.0); }

    // Replaces the sum of each block by that of everything up to its end.
    void accumulate() {
        double sum = 0;
        for (std::ptrdiff_t b = 0; b < call.blocks; ++b) sum_[b] = sum += sum_[b] * team.factors()[b];
    }

    // Calls f(block, scores, count, least, thread) for parts of the slice. In a part, the classes with keys of at least
    // `least` are left. The parts consist of the collected classes, if classes have been collected; otherwise, of the
    // first `classes_of_block` classes of each block that has a key of at least `key`.
    template <class F>
    void for_left(std::int64_t key, std::ptrdiff_t classes_of_block, F f) const {
        if (collected_) {
            for (std::ptrdiff_t b = 0; b < call.blocks; ++b) {
                const T* x = collected(b);
                const std::uint16_t *first = places(b), *end = first + team.counts()[b];
                const std::ptrdiff_t last = std::min(left.last - call.begin_of(b), block_size);
                const std::ptrdiff_t some = std::upper_bound(first, end, last) - first, all = end - first;
                if (some > 0) f(b, x, some, left.least, 0);
                if (some < all) f(b, x + some, all - some, left.least + 1, 0);
            }
            return;
        }
        // Parts of blocks are not worth sharing among threads.
        const Team one = {call, classes_of_block < block_size ? 1 : team.threads, team.memory};
        one.for_blocks([&](std::ptrdiff_t b, int thread) {
            if (!has(b, key)) return;
            const std::ptrdiff_t first = call.begin_of(b);
            left.for_parts(first, std::min(first + classes_of_block, call.end_of(b)),
                           [&](std::ptrdiff_t begin, std::ptrdiff_t end, std::int64_t least) {
                               f(b, scores(begin, end, thread), end - begin, least, thread);
                           });
        });
    }

    // Collects the classes within the bracket, unless there are too many. From then on only these are looked at: all
    // classes above the bracket are left, and only their sum is kept.
    void collect(const Bracket& bracket) {
        if (collected_) return;
        all_above_ = bracket.high < key_of(static_cast<T>(top));
        std::atomic<bool> fit = true;
        team.for_blocks([&](std::ptrdiff_t b, int thread) {
            const std::ptrdiff_t begin = call.begin_of(b), end = call.end_of(b);
            std::ptrdiff_t& count = team.counts()[b] = 0;
            team.above()[b] = 0;
            if (!fit.load(std::memory_order_relaxed) || !has(b, bracket.low)) return;
            count =
                sampling<T>().collect(scores(begin, end, thread), end - begin, max[b], call.temperature, bracket,
                                      call.collected, collected(b), places(b), all_above_ ? team.above() + b : nullptr);
            if (count > call.collected) fit.store(false, std::memory_order_relaxed);
        });
        collected_ = fit;
    }
    // The sum of the exponentials above the collected ones, relative to the largest exponential.
    double above() const { return std::inner_product(team.above(), team.above() + call.blocks, team.factors(), 0.0); }
    void drop_collected() { collected_ = false; }
    void leave_from(std::int64_t least) {
        left = {least, call.plan.classes - 1};
        collected_ = collected_ && !all_above_;
    }
    bool has_collected() const { return collected_; }

    // Returns the `count`-th class with this key, among those up to left.last.
    std::ptrdiff_t find(std::int64_t key, std::int64_t count) const {
        for (std::ptrdiff_t b = 0; b < call.blocks; ++b) {
            if (!has(b, key)) continue;
            const std::ptrdiff_t begin = call.begin_of(b), end = call.end_of(b);
            const T* x = collected_ ? collected(b) : scores(begin, end, 0);
            const std::ptrdiff_t length = collected_ ? team.counts()[b] : end - begin;
            Bin bin = {};
            const Bracket bracket = {key, key, 0, 0};
            sampling<T>().by_number(x, length, top, call.temperature, bracket, key, false, &bin);
            if (bin.count < count) {
                count -= bin.count;
                continue;
            }
            for (std::ptrdiff_t i = 0; i < length; ++i)
                if (key_of(x[i]) == key && --count == 0) return begin + (collected_ ? places(b)[i] : i);
        }
        return call.plan.classes - 1;  // another thread has changed the scores
    }

  private:
    const Source& source_;
    double* const sum_;
    bool collected_ = false, all_above_ = false;

    bool has(std::ptrdiff_t block, std::int64_t key) const { return key_of(static_cast<T>(max[block])) >= key; }
    const T* scores(std::ptrdiff_t begin, std::ptrdiff_t end, int thread) const {
        return call.scores<T>(source_, begin, end, team.buffer(thread));
    }
    T* collected(std::ptrdiff_t block) const {
        return reinterpret_cast<T*>(team.scores()) + block * team.call.collected;
    }
    std::uint16_t* places(std::ptrdiff_t block) const { return team.places() + block * team.call.collected; }

    // Computes the exponential of each block's largest score, relative to that of the largest score of all; in double,
    // because the whole block would share an error.
    void set_factors() {
        double* const factors = team.factors();
        factors[0] = 1;
        if (call.blocks == 1) return;
        double *const scores = team.buffer(0), *const e = team.exponentials(0);
        constexpr std::ptrdiff_t most = step_size - 1;
        for (std::ptrdiff_t b = 0; b < call.blocks; b += most) {
            const std::ptrdiff_t some = std::min(most, call.blocks - b);
            std::copy_n(max + b, some, scores);
            scores[some] = top;
            sampling<double>().mass(scores, some + 1, top, call.temperature, lowest_key<double>, e, nullptr, 0);
            for (std::ptrdiff_t i = 0; i < some; ++i) factors[b + i] = e[i] / e[some];
        }
    }
};

// Finds the fewest classes, in the order of falling key and then rising index, that together weigh as much as wanted.
// Each class weighs 1 (by number) or its exponential (by mass).
template <class T>
class Selection {
  public:
    explicit Selection(Slice<T>& slice) : slice_(slice), call_(slice.call), team_(slice.team) {
        grain_ = grain_of(call_.plan.type());
        bracket_.weight_bits = 61;
        for (std::ptrdiff_t c = call_.plan.classes; c > 0; c /= 2) --bracket_.weight_bits;
    }

    // Each returns whether anything is cut off.
    bool keep_most_probable(std::int64_t classes) {
        weigh_ = sampling<T>().by_number;
        return select(classes, lowest_key<T> + 1, lowest_key<T> + 1);
    }
    bool keep_part(double part) {
        weigh_ = sampling<T>().by_mass;
        const double total = slice_.total();
        unit_ = static_cast<double>(weight_of(key_of(static_cast<T>(slice_.top))));
        mass_ = total * unit_;
        const auto wanted = static_cast<std::int64_t>(part * sums_reach<T> * mass_) + 1;
        // All classes with exponentials below this together have less than may be cut off.
        const double least = (1 - part) * total / static_cast<double>(call_.plan.classes);
        const auto key_at = [&](double e) { return key_from<T>(slice_.top + call_.temperature * std::log(e)); };
        return select(wanted, key_at(least / 2), key_at(least / 1024));
    }

  private:
    Slice<T>& slice_;
    const Call& call_;
    const Team& team_;
    typename Sampling<T>::Weigh* weigh_ = nullptr;
    double mass_ = 0, unit_ = 0;  // the weight of all classes; of the largest
    Bracket bracket_ = {};
    int grain_;

    bool by_mass() const { return mass_ > 0; }

    std::int64_t weight_of(std::int64_t key) const {
        const T score = score_of<T>(key);
        const Bracket one = {key, key, 0, bracket_.weight_bits};
        Bin bin = {};
        weigh_(&score, 1, slice_.top, call_.temperature, one, lowest_key<T>, false, &bin);
        return bin.weight;
    }

    // The bins of the bracket, from the lowest on.
    const Bin* bins() const { return team_.bins(0) + 1; }
    std::ptrdiff_t count_bins() const {
        return static_cast<std::ptrdiff_t>(keys_between(bracket_.low, bracket_.high) >> bracket_.shift) + 1;
    }

    // Fills the bins from the first `classes_of_block` classes of each block. If `above`, returns the weight of the
    // classes above the bracket.
    std::int64_t fill_bins(std::ptrdiff_t classes_of_block, bool above) {
        const std::uint64_t keys = keys_between(bracket_.low, bracket_.high);
        bracket_.shift = grain_;
        while (keys >> bracket_.shift >= static_cast<std::uint64_t>(call_.bins)) ++bracket_.shift;
        const std::ptrdiff_t count = count_bins();
        for (int i = 0; i < team_.threads; ++i) std::fill_n(team_.bins(i), count + 1, Bin{});
        slice_.for_left(bracket_.low, classes_of_block,
                        [&](std::ptrdiff_t, const T* x, std::ptrdiff_t length, std::int64_t least, int thread) {
                            Bin* const own = team_.bins(thread);
                            own->weight +=
                                weigh_(x, length, slice_.top, call_.temperature, bracket_, least, above, own + 1);
                        });
        Bin* const all = team_.bins(0);
        for (int i = 1; i < team_.threads; ++i)
            for (std::ptrdiff_t j = 0; j <= count; ++j) {
                all[j].weight += team_.bins(i)[j].weight;
                all[j].count += team_.bins(i)[j].count;
            }
        return all->weight;
    }

    // Narrows the bracket to its bins from `first` to `last`.
    void enter(std::ptrdiff_t first, std::ptrdiff_t last) {
        const auto keys = [&](std::ptrdiff_t bins) { return static_cast<std::uint64_t>(bins) << bracket_.shift; };
        if (last + 1 < count_bins()) bracket_.high = advanced(bracket_.low, keys(last + 1) - 1);
        bracket_.low = advanced(bracket_.low, keys(first));
    }

    // Narrows the bracket to where the last class to be left should lie: within three standard errors of an estimate
    // from the first classes of each block. Returns whether many classes may be above its lower end.
    bool narrow(std::int64_t wanted) {
        fill_bins(block_size / inspected_part, false);
        const auto target = static_cast<double>(wanted);
        const std::ptrdiff_t count = count_bins();
        double below = 0, above = 0;
        for (std::ptrdiff_t j = 0; j < count; ++j) above += static_cast<double>(bins()[j].weight) * inspected_part;
        std::ptrdiff_t from = 0, to = count - 1;
        for (std::ptrdiff_t j = 0; j < count; ++j) {
            // The weight above the lower edge of this bin: by number it is estimated; by mass it is that of all classes
            // less an estimate of what lies below.
            if (bins()[j].count == 0) continue;
            const double weight = static_cast<double>(bins()[j].weight) / static_cast<double>(bins()[j].count);
            const double known = by_mass() ? mass_ - below : above, spread = by_mass() ? below : above;
            const double margin = 3 * std::sqrt(inspected_part * weight * spread) + inspected_part * weight;
            if (known - margin >= target) from = j;
            if (known + margin < target) {
                to = std::max<std::ptrdiff_t>(j - 1, 0);
                break;
            }
            below += static_cast<double>(bins()[j].weight) * inspected_part;
            above -= static_cast<double>(bins()[j].weight) * inspected_part;
        }
        std::int64_t candidates = 0;
        for (std::ptrdiff_t j = from; j < count; ++j) candidates += bins()[j].count * inspected_part;
        enter(from, to);
        return candidates > call_.blocks * call_.collected / 2;
    }

    // Leaves the first classes, by falling key, that weigh `wanted`. If all those with keys of at least `low` weigh
    // less, nothing is cut off. Returns whether anything is.
    bool select(std::int64_t wanted, std::int64_t low, std::int64_t inspect_from) {
        const std::int64_t top = key_of(static_cast<T>(slice_.top));
        const auto widen = [&](std::int64_t from) {
            bracket_.low = std::min(std::max(from, slice_.left.least), top) >> grain_ << grain_;
            bracket_.high = top;
        };
        std::int64_t above = 0;
        std::ptrdiff_t bin = 0;
        const auto find_bin = [&] {
            for (bin = count_bins() - 1; bin >= 0 && above + bins()[bin].weight < wanted; --bin)
                above += bins()[bin].weight;
            return bin >= 0;
        };
        bool found = false;
        if (!slice_.has_collected() && call_.blocks >= blocks_to_inspect) {
            widen(inspect_from);
            const Bracket whole = bracket_;
            const bool many = narrow(wanted);
            Bracket collected = bracket_;
            if (!(by_mass() && many)) collected.high = whole.high;
            slice_.collect(collected);
            above = fill_bins(block_size, true);
            if (slice_.has_collected() && collected.high < whole.high)
                above = static_cast<std::int64_t>(slice_.above() * unit_);
            found = above < wanted && find_bin();
            if (!found) slice_.drop_collected();
        }
        if (!found) {
            widen(low);
            slice_.collect(bracket_);
            above = fill_bins(block_size, true);
            if (!find_bin()) {
                slice_.drop_collected();
                return false;
            }
        }
        // If another thread changes the scores, the result need not be right, but the loop has to end.
        do {
            const Bin last = bins()[bin];
            const bool one_key = bracket_.shift == grain_;
            enter(bin, bin);
            // One class, or all classes of the bin: their keys need not be told apart.
            if (last.count == 1 || (!by_mass() && above + last.weight == wanted))
                return leave(bracket_.low, last.count, last.count);
            if (one_key) {
                const std::int64_t count = std::max<std::int64_t>(last.count, 1);
                const std::int64_t weight = std::max<std::int64_t>(last.weight / count, 1);
                const std::int64_t key =
                    bracket_.low < 0 ? bracket_.low + (std::int64_t{1} << grain_) - 1 : bracket_.low;
                return leave(key, (wanted - above + weight - 1) / weight, last.count);
            }
            fill_bins(block_size, false);
        } while (find_bin());
        return leave(bracket_.low, 1, 1);
    }

    // Leaves the classes with larger keys than this one, and the first `count` of the `of` classes with this key.
    bool leave(std::int64_t key, std::int64_t count, std::int64_t of) {
        Left& left = slice_.left;
        key = std::max(key, left.least);
        const std::ptrdiff_t last = count < of ? slice_.find(key, count) : call_.plan.classes - 1;
        left.last = key == left.least ? std::min(left.last, last) : last;
        left.least = key;
        return true;
    }
};

template <class T>
void truncate(Slice<T>& slice) {
    const Truncation& t = slice.call.truncation;
    bool cut = false;
    if (t.top_k < slice.call.plan.classes) cut = Selection<T>(slice).keep_most_probable(t.top_k);
    if (t.top_p < 1) {
        if (cut) slice.measure_left();
        cut |= Selection<T>(slice).keep_part(t.top_p);
    }
    if (t.min_p > 0) {
        const std::int64_t least = key_from<T>(slice.top + slice.call.temperature * std::log(t.min_p));
        if (least > slice.left.least) {
            slice.leave_from(least);
            cut = true;
        }
    }
    if (cut) slice.measure_left();
}

// The exponentials of a block. Finds the class at a given part of their sum.
template <class T>
class Found {
  public:
    explicit Found(double* memory) : e_(reinterpret_cast<T*>(memory)) {}

    T* exponentials() { return e_; }

    void set(std::ptrdiff_t count) {
        count_ = count;
        total_ = 0;
        std::fill(e_ + count, e_ + (count + step_size - 1) / step_size * step_size, T(0));
        for (std::ptrdiff_t s = 0; s * step_size < count; ++s) {
            const T* e = e_ + s * step_size;
            double sums[4] = {};
            for (std::ptrdiff_t c = 0; c < step_size; c += 4)
                for (int k = 0; k < 4; ++k) sums[k] += static_cast<double>(e[c + k]);
            total_ += step_[s] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }

    // Returns the first class at which the cumulated sum exceeds this part of the total, or else the last class that is
    // left.
    std::ptrdiff_t at(double part) const {
        const double limit = part * total_;
        double sum = 0;
        std::ptrdiff_t s = 0;
        for (; (s + 1) * step_size < count_ && sum + step_[s] <= limit; ++s) sum += step_[s];
        for (std::ptrdiff_t c = s * step_size; c < count_; ++c) {
            sum += static_cast<double>(e_[c]);
            if (sum > limit && e_[c] > 0) return c;
        }
        std::ptrdiff_t last = count_ - 1;
        while (last > 0 && !(e_[last] > 0)) --last;
        return last;
    }

  private:
    T* const e_;
    std::ptrdiff_t count_ = 0;
    double step_[block_size / step_size], total_ = 0;
};

}  // namespace

class Sampler::Work {
  public:
    Work(const Slices& slices, double temperature, const Truncation& truncation)
        : call_(slices, temperature, truncation), threads_(call_.batch.threads_for(call_.plan.count)) {}
    virtual ~Work() = default;

    virtual std::ptrdiff_t find_undefined() const = 0;
    virtual void draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const = 0;

  protected:
    const Call call_;
    const int threads_;
};

class Sampler::OfBlocks : public Work {
  public:
    OfBlocks(const Slices& slices, double temperature, const Truncation& truncation)
        : Work(slices, temperature, truncation),
          max_(allocated<double>(call_.blocks)),
          sum_(allocated<double>(call_.blocks)),
          left_(allocated<Left>(call_.truncates ? 1 : 0)) {
        if (call_.blocks == 0) return;
        const std::ptrdiff_t size = Team::size(call_);
        if (!call_.batch.shares_slices(threads_)) {
            call_.for_slices(threads_, size, [&]<class T>(const Source& source, std::ptrdiff_t slice, double* memory) {
                measure<T>({call_, 1, memory}, source, slice);
            });
            return;
        }
        Scratch memory(size, threads_);
        const Team team = {call_, threads_, memory.get()};
        call_.plan.in_type([&]<class T> {
            for (std::ptrdiff_t i = 0; i < call_.plan.count; ++i)
                measure<T>(team, {call_.plan.slices.batch.at(i), nullptr}, i);
        });
    }

    std::ptrdiff_t find_undefined() const override {
        for (std::ptrdiff_t i = 0; i < call_.plan.count; ++i)
            if (call_.blocks == 0 || std::isnan(sum_[(i + 1) * call_.blocks - 1])) return i;
        return -1;
    }

    void draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const override {
        if (draws == 0) return;
        call_.for_slices(threads_, 2 * call_.room + draws,
                         [&]<class T>(const Source& source, std::ptrdiff_t slice, double* memory) {
                             draw_from<T>(source, slice, uniform + slice * draws, draws, to + slice * draws, memory);
                         });
    }

  private:
    // For each block of each slice, the largest score of the block, and the sum of all that is left up to its end. If a
    // slice has no probabilities, the sum of its last block is NaN.
    const std::unique_ptr<double[]> max_, sum_;
    const std::unique_ptr<Left[]> left_;  // of each slice, if any may have classes cut off

    template <class Value>
    std::unique_ptr<Value[]> allocated(std::ptrdiff_t per_slice) const {
        if (per_slice > 0 && call_.plan.count > PTRDIFF_MAX / 64 / per_slice) throw std::bad_alloc();
        return std::unique_ptr<Value[]>(new Value[call_.plan.count * per_slice]);
    }

    template <class T>
    void measure(const Team& team, const Source& source, std::ptrdiff_t i) {
        double* const sum = sum_.get() + i * call_.blocks;
        Slice<T> slice(team, source, max_.get() + i * call_.blocks, sum);
        if (!slice.measure()) {
            sum[call_.blocks - 1] = std::numeric_limits<double>::quiet_NaN();
            return;
        }
        if (call_.truncates) {
            truncate(slice);
            left_[i] = slice.left;
        }
        slice.accumulate();
    }

    // Draws in the order of the numbers, so that the exponentials of a block are computed only once.
    template <class T>
    void draw_from(const Source& source, std::ptrdiff_t i, const double* uniform, std::ptrdiff_t draws,
                   std::int64_t* to, double* memory) const {
        const double *const max = max_.get() + i * call_.blocks, *const sum = sum_.get() + i * call_.blocks;
        const Left left = call_.truncates ? left_[i] : Left{lowest_key<T>, call_.plan.classes - 1};
        Found<T> found(memory + call_.room);
        auto* const order = reinterpret_cast<std::ptrdiff_t*>(memory + 2 * call_.room);
        std::iota(order, order + draws, std::ptrdiff_t{0});
        std::sort(order, order + draws, [&](std::ptrdiff_t a, std::ptrdiff_t b) { return uniform[a] < uniform[b]; });
        std::ptrdiff_t block = -1;
        for (std::ptrdiff_t d = 0; d < draws; ++d) {
            const double limit = uniform[order[d]] * sum[call_.blocks - 1];
            std::ptrdiff_t b = std::upper_bound(sum, sum + call_.blocks, limit) - sum;
            // If the limit is rounded up to the whole sum, the draw is from the last block that has anything left.
            if (b == call_.blocks) b = std::lower_bound(sum, sum + call_.blocks, sum[call_.blocks - 1]) - sum;
            if (b != block) {
                block = b;
                left.for_parts(call_.begin_of(b), call_.end_of(b),
                               [&](std::ptrdiff_t begin, std::ptrdiff_t end, std::int64_t least) {
                                   sampling<T>().mass(call_.scores<T>(source, begin, end, memory), end - begin, max[b],
                                                      call_.temperature, least,
                                                      found.exponentials() + (begin - call_.begin_of(b)), nullptr, 0);
                               });
                found.set(call_.end_of(b) - call_.begin_of(b));
            }
            const double before = b > 0 ? sum[b - 1] : 0;
            to[order[d]] = call_.begin_of(b) + found.at((limit - before) / (sum[b] - before));
        }
    }
};

// Slices of few classes are visited twice, in tiles; nothing is kept of them between the visits.
class Sampler::OfFewClasses : public Work {
  public:
    OfFewClasses(const Slices& slices, double temperature, const Truncation& truncation)
        : Work(slices, temperature, truncation) {
        for_tiles([&]<class T>(const T* tile, std::ptrdiff_t slice, int count) {
            const std::uint32_t undefined = sampling<T>().undefined(tile, call_.plan.classes) & ((1u << count) - 1);
            if (undefined == 0) return;
            const std::ptrdiff_t here = slice + std::countr_zero(undefined);
            for (std::ptrdiff_t first = undefined_; first < 0 || here < first;)
                if (undefined_.compare_exchange_weak(first, here)) break;
        });
    }

    std::ptrdiff_t find_undefined() const override { return undefined_; }

    void draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const override {
        for_tiles([&]<class T>(const T* tile, std::ptrdiff_t slice, int count) {
            sampling<T>().draw(tile, call_.plan.classes, count, call_.temperature, call_.truncation,
                               uniform + slice * draws, draws, to + slice * draws);
        });
    }

  private:
    std::atomic<std::ptrdiff_t> undefined_ = -1;  // the first slice without probabilities

    // Calls f.operator()<T>(tile, slice, count) for each tile, which has `count` slices from `slice` on.
    template <class F>
    void for_tiles(F f) const {
        const Plan& plan = call_.plan;
        Scratch memory = call_.batch.memory_for_runs(threads_);
        call_.batch.for_runs(0, plan.units, threads_, plan.at_once, memory,
                             [&](const Offsets& first, std::ptrdiff_t position, std::ptrdiff_t length, double* own) {
                                 std::byte* const tiles = plan.workspace(own).x;
                                 call_.batch.transport.gather(Role::scores, first, length, tiles);
                                 plan.in_type([&]<class T> {
                                     for (std::ptrdiff_t i = 0; i < length; i += plan.unit)
                                         f.template operator()<T>(reinterpret_cast<const T*>(tiles) + i * plan.classes,
                                                                  position + i,
                                                                  static_cast<int>(std::min(plan.unit, length - i)));
                                 });
                             });
    }
};

Sampler::Sampler(const Slices& slices, double temperature, const Truncation& truncation)
    : work_([&]() -> std::unique_ptr<const Work> {
          const std::ptrdiff_t classes = slices.classes.size();
          if (0 < classes && classes <= few_classes)
              return std::make_unique<const OfFewClasses>(slices, temperature, truncation);
          return std::make_unique<const OfBlocks>(slices, temperature, truncation);
      }()) {}
Sampler::~Sampler() = default;

std::ptrdiff_t Sampler::find_undefined() const { return work_->find_undefined(); }

void Sampler::draw(const double* uniform, std::ptrdiff_t draws, std::int64_t* to) const {
    work_->draw(uniform, draws, to);
}

}  // namespace fastsoftmax
