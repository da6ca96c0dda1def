#include "batch.hpp"

#include <cstdint>
#include <cstdlib>
#include <limits>

#include "targets.hpp"

namespace fastsoftmax {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Gathered slices are taken together up to this size (half of a first-level cache), and up to so many tiles: where
// classes are apart in memory, lines of one class are then 1 KiB long. Lines of 4 KiB took 1.3 times as long on 80 MB.
constexpr std::ptrdiff_t bytes_at_once = 16384, tiles_at_once = 16;
// There they may take this much (half of the smallest second-level cache in use): shorter lines cost more.
constexpr std::ptrdiff_t strided_bytes_at_once = 262144;
// Of a gathered slice in blocks, exponentials are kept up to so many classes: beyond, they would leave the caches.
constexpr std::ptrdiff_t most_kept = 262144;
// Views without strides have shapes of any size. Up to this, which takes months, no size in bytes overflows.
constexpr std::ptrdiff_t most_of_each = PTRDIFF_MAX / 1024;

std::ptrdiff_t bytes_of(ElementType type) {
    constexpr std::ptrdiff_t bytes[element_types] = {2, 2, 4, 8, 1, 1, 2, 4, 8, 1, 2, 4, 8};
    return bytes[type];
}

bool computed_in_float(ElementType type) { return type == float16 || type == bfloat16 || type == float32; }

template <class T>
const KernelsIn<T>& kernels_in() {
    if constexpr (sizeof(T) == 4)
        return kernels().in_float;
    else
        return kernels().in_double;
}

}  // namespace

Batch::Batch(Operation operation, Slices& slices, double temperature, bool in_order, bool whole_rows)
    : operation_(operation), slices_(slices), temperature_(temperature), classes_(slices.classes.size()) {
    if (std::max(classes_, slices.batch.size()) > most_of_each) throw std::bad_alloc();
    slices.classes.simplify();
    if (!in_order) sort_batch();
    slices.batch.simplify();
    in_float_ = computed_in_float(slices.arrays[scores].type);
    if (has_dy()) in_float_ = in_float_ && computed_in_float(slices.arrays[second].type);
    if (has_output()) in_float_ = in_float_ && computed_in_float(slices.arrays[output].type);
    if (operation == logsumexp) in_float_ = in_float_ && computed_in_float(slices.arrays[value].type);
    // Outside this range the parts of the reciprocal of the temperature are no normal floats.
    in_float_ = in_float_ && temperature > 0x1p-100 && temperature < 0x1p100;
    choose_loop(in_order, whole_rows);
    count_ = slices.batch.size();
    if (count_ == 0) return;
    along_ = slices.batch.last().size;
    units_along_ = (along_ + unit_ - 1) / unit_;
    units_ = count_ / along_ * units_along_;
    at_once_ = std::min(at_once_, unit_ * units_along_);
}

// Neighbours in memory become neighbours in the loop, where the order of slices is free.
void Batch::sort_batch() {
    const auto distance = [](const Axis& axis) {
        return std::abs(axis.strides[scores]) + std::abs(axis.strides[output]);
    };
    const auto further = [&](const Axis& a, const Axis& b) { return distance(a) > distance(b); };
    const auto begin = slices_.batch.axis.begin(), end = begin + slices_.batch.count;
    // std::stable_sort would allocate.
    for (auto axis = begin; axis != end; ++axis)
        std::rotate(std::upper_bound(begin, axis, *axis, further), axis, axis + 1);
}

bool Batch::rows_in_place() const {
    if (slices_.has(mask) || slices_.classes.count > 1) return false;
    for (const Role r : {scores, has_dy() ? second : scores, has_output() ? output : scores}) {
        const Array& array = slices_.arrays[r];
        if (array.type != (in_float_ ? float32 : float64) || array.swapped) return false;
        if (slices_.classes.last().strides[r] != width()) return false;
        bool aligned = reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(width()) == 0;
        for (int i = 0; i < slices_.batch.count; ++i)
            aligned = aligned && slices_.batch.axis[i].strides[r] % width() == 0;
        if (!aligned) return false;
    }
    return true;
}

// Of few classes, gradients in float alone take rows: one behind the other.
bool Batch::takes_rows() const {
    if (!rows_in_place()) return false;
    if (classes_ > few_classes) return true;
    bool dense = has_dy() && in_float_ && temperature_ == 1 && slices_.batch.count > 0;
    for (const Role r : {scores, second, output})
        dense = dense && slices_.batch.last().strides[r] == classes_ * width();
    return dense;
}

void Batch::choose_loop(bool in_order, bool whole_rows) {
    if (takes_rows()) {
        loop_ = Loop::rows;
        in_blocks_ = classes_ > block_classes && !whole_rows;
        at_once_ = in_blocks_ ? 1 : std::numeric_limits<std::ptrdiff_t>::max();
        return;
    }
    // An axis of neighbouring slices that are contiguous becomes the last one, unless that breaks the order asked for.
    Axes& batch = slices_.batch;
    const std::ptrdiff_t bytes = bytes_of(slices_.arrays[scores].type);
    const bool strided_classes = slices_.classes.last().strides[scores] != bytes;
    bool neighbours = false;
    for (int i = batch.count - 1; strided_classes && !neighbours && i >= (in_order ? batch.count - 1 : 0); --i) {
        // Fewer neighbours than half a pack are better taken row by row.
        if (i < 0 || batch.axis[i].strides[scores] != bytes || batch.axis[i].size < lanes() / 2) continue;
        std::rotate(batch.axis.begin() + i, batch.axis.begin() + i + 1, batch.axis.begin() + batch.count);
        neighbours = true;
    }
    if (classes_ > block_classes) {
        // A tile of slices this long would be large beside the batch.
        in_blocks_ = !whole_rows;
        unit_ = at_once_ = in_blocks_ && neighbours ? lanes() : 1;
        return;
    }
    const std::ptrdiff_t slice_bytes = std::max<std::ptrdiff_t>(classes_, 1) * width();
    if (neighbours || classes_ <= few_classes) {
        loop_ = Loop::tiles;
        unit_ = lanes();
        // Gradients of the transforms, and terms of losses, lie beside the scores.
        const std::ptrdiff_t arrays = has_dy() || whole_rows ? 2 : 1;
        const std::ptrdiff_t most = (neighbours ? strided_bytes_at_once : bytes_at_once) / arrays;
        at_once_ = unit_ * std::clamp<std::ptrdiff_t>(most / (slice_bytes * unit_), 1, tiles_at_once);
    } else {
        const std::ptrdiff_t arrays = has_dy() ? 2 : 1;
        at_once_ = std::clamp<std::ptrdiff_t>(bytes_at_once / (arrays * slice_bytes), 1, lanes());
    }
}

int Batch::threads_for(std::ptrdiff_t slices) const {
    return fastsoftmax::threads_for(slices * std::max<std::ptrdiff_t>(classes_, 1));
}

// Units for a thread at a time: an eighth of its share, so that one that is held up leaves little to the others' end;
// in whole groups of slices that are taken at once, if these are enough for all threads.
std::ptrdiff_t Batch::units_per_chunk(std::ptrdiff_t units, int threads) const {
    const std::ptrdiff_t elements = unit_ * std::max<std::ptrdiff_t>(classes_, 1);
    const std::ptrdiff_t group = loop_ == Loop::rows ? 1 : at_once_ / unit_;
    const std::ptrdiff_t chunk = std::max<std::ptrdiff_t>({elements_per_chunk / elements, units / (8 * threads), 1});
    return std::min((chunk + group - 1) / group * group, (units + threads - 1) / threads);
}

bool Batch::shares_slices(int threads) const {
    return threads > 1 && in_blocks_ && units_ < 4 * static_cast<std::ptrdiff_t>(threads);
}

// Doubles for so many elements, in whole cache lines.
std::ptrdiff_t Batch::in_doubles(std::ptrdiff_t elements) const { return (elements * width() + 63) / 64 * 8; }

// Doubles for one array's rows, block or tiles.
std::ptrdiff_t Batch::operand_size() const { return in_doubles(in_blocks_ ? block_classes : classes_ * at_once_); }

std::ptrdiff_t Batch::arrays_size() const { return loop_ == Loop::rows ? 0 : (has_dy() ? 2 : 1) * operand_size(); }

std::ptrdiff_t Batch::scratch_size() const {
    return arrays_size() + statistics_size() + (keeps_exponentials() ? in_doubles(classes_) : 0);
}

// Of each slice of a unit: of the whole, then of each block.
std::ptrdiff_t Batch::statistics_size() const {
    constexpr std::ptrdiff_t doubles = sizeof(Statistics) / sizeof(double);
    return in_blocks_ ? unit_ * (blocks_of_slice() + 1) * doubles : 0;
}

// Whether a gathered slice has a row for its results, where kernels may keep exponentials between measuring and
// writing.
bool Batch::keeps_exponentials() const {
    const bool exponentials = operation_ == softmax || operation_ == cross_entropy_grad;
    return exponentials && in_blocks_ && loop_ == Loop::gathered_rows && unit_ == 1 && classes_ <= most_kept;
}

Strided Batch::strided(Role role, const Offsets& offsets) const {
    return {slices_.arrays[role].data + offsets[role], slices_.batch.last().strides[role]};
}

// Where tiles of the array in `role` lie, from so many slices on.
Ahead Batch::ahead(Role role, const Offsets& offsets, std::ptrdiff_t slices) const {
    const Array& array = slices_.arrays[role];
    const std::ptrdiff_t slice_stride = slices_.batch.last().strides[role], line = lanes() * bytes_of(array.type);
    const bool neighbours = slice_stride == bytes_of(array.type);
    return {array.data + offsets[role] + slices * slice_stride, lanes() * slice_stride,
            neighbours ? slices_.classes.last().strides[role] : line};
}

// The run from its slice i on, as far as what is one value a slice goes.
Run Batch::advanced(Run run, std::ptrdiff_t i) {
    if (run.value) run.value += i;
    if (run.target) run.target += i;
    if (run.chosen) run.chosen += i;
    if (run.scale) run.scale += i;
    if (run.exponent) run.exponent += i;
    return run;
}

// The run's arrays in place, or gathered in scratch.
void Batch::set_arrays(Run& run, const Offsets& offsets, double* scratch) const {
    run.classes = classes_;
    run.temperature = temperature_;
    if (loop_ == Loop::rows) {
        run.x = strided(scores, offsets);
        if (has_dy()) run.dy = strided(second, offsets);
        if (has_output()) run.out = strided(output, offsets);
    } else {
        run.x = run.out = {reinterpret_cast<std::byte*>(scratch), classes_ * width()};
        run.dy = {reinterpret_cast<std::byte*>(scratch + operand_size()), classes_ * width()};
    }
}

void Batch::apply(Run run, const Offsets& offsets, std::ptrdiff_t length, double* scratch) const {
    if (in_blocks_) return apply_blocks(run, offsets, length, 1, scratch);
    set_arrays(run, offsets, scratch);
    run.slices = length;
    in_type([&](auto* pointer) {
        using T = std::remove_pointer_t<decltype(pointer)>;
        const KernelsIn<T>& k = kernels_in<T>();
        if (loop_ == Loop::rows) return k.rows[operation_](run);
        gather(scores, offsets, length, scratch);
        if (has_dy()) gather(second, offsets, length, scratch + operand_size());
        if (loop_ == Loop::tiles) {
            run.scores_ahead = ahead(scores, offsets, length);
            if (has_dy()) run.dy_ahead = ahead(second, offsets, length);
            run.results_ahead = has_output() ? ahead(output, offsets, 0) : run.scores_ahead;
        }
        (loop_ == Loop::tiles ? k.tiles : k.rows)[operation_](run);
        if (!has_output()) return;
        T* results = reinterpret_cast<T*>(scratch);
        if (loop_ == Loop::tiles) return scatter_tiles(offsets, length, results);
        if (one_after_another(output)) {
            const Array& array = slices_.arrays[output];
            return k.scatter_row[array.type](results, length * classes_, array.data + offsets[output],
                                             bytes_of(array.type));
        }
        for (std::ptrdiff_t i = 0; i < length; ++i)
            scatter_row(slices_.batch.moved(offsets, i), 0, classes_, results + i * classes_);
    });
}

// Whether rows of the array in `role` make up one long row, all of it present.
bool Batch::one_after_another(Role role) const {
    const std::ptrdiff_t bytes = bytes_of(slices_.arrays[role].type);
    return !slices_.has(mask) && slices_.classes.count <= 1 && slices_.classes.last().strides[role] == bytes &&
           slices_.batch.last().strides[role] == classes_ * bytes;
}

// The score of slice i's target, 0 without one.
double Batch::target_score(const Run& run, const Offsets& offsets, std::ptrdiff_t i) const {
    double score = 0;
    const std::int64_t target = run.target ? run.target[i] : -1;
    if (is_class(target, classes_)) gather_doubles(scores, slices_.batch.moved(offsets, i), target, target + 1, &score);
    return score;
}

void Batch::apply_blocks(Run run, const Offsets& offsets, std::ptrdiff_t length, int threads, double* scratch) const {
    const std::ptrdiff_t blocks = blocks_of_slice();
    auto* measured = reinterpret_cast<Statistics*>(scratch + arrays_size());
    auto* results = reinterpret_cast<std::byte*>(scratch + arrays_size() + statistics_size());
    const std::ptrdiff_t stride = blocks + 1;
    set_arrays(run, offsets, scratch);
    run.slices = 1;
    in_type([&](auto* pointer) {
        using T = std::remove_pointer_t<decltype(pointer)>;
        const KernelsIn<T>& k = kernels_in<T>();
        // Calls body(run, offsets, i, block, begin, end) for each block of each slice, its arrays at hand. A block of
        // all slices comes before the next: neighbours share cache lines.
        const auto for_blocks = [&](const auto& body) {
            parallel_for(blocks, 1, threads, [&](std::ptrdiff_t first_block, std::ptrdiff_t last_block, int thread) {
                double* own = scratch + thread * scratch_size();
                for (std::ptrdiff_t b = first_block; b < last_block; ++b) {
                    const std::ptrdiff_t begin = b * block_classes, end = std::min(begin + block_classes, classes_);
                    for (std::ptrdiff_t i = 0; i < length; ++i) {
                        const Offsets at = slices_.batch.moved(offsets, i);
                        Run one = advanced(run, i);
                        set_arrays(one, at, own);
                        if (loop_ == Loop::gathered_rows) {
                            // Class `begin` is the first in scratch.
                            T* x = reinterpret_cast<T*>(own);
                            T* dy = reinterpret_cast<T*>(own + operand_size());
                            one.x.data = reinterpret_cast<std::byte*>(x - begin);
                            one.out.data = keeps_exponentials() ? results : one.x.data;
                            one.dy.data = reinterpret_cast<std::byte*>(dy - begin);
                            gather_row(scores, at, begin, end, x);
                            if (has_dy()) gather_row(second, at, begin, end, dy);
                        }
                        body(one, at, i, b, begin, end);
                    }
                }
            });
        };
        for_blocks([&](const Run& one, const Offsets&, std::ptrdiff_t i, std::ptrdiff_t b, std::ptrdiff_t begin,
                       std::ptrdiff_t end) { measured[i * stride + 1 + b] = k.measure[operation_](one, begin, end); });
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const Run one = advanced(run, i);
            Statistics& all = measured[i * stride] = measured[i * stride + 1];
            for (std::ptrdiff_t b = 1; b < blocks; ++b)
                kernels().merge[operation_](one, all, measured[i * stride + 1 + b]);
            all.target_score = target_score(run, offsets, i);
            k.conclude[operation_](one, all);
        }
        if (!has_output()) return;
        for_blocks([&](const Run& one, const Offsets& at, std::ptrdiff_t i, std::ptrdiff_t b, std::ptrdiff_t begin,
                       std::ptrdiff_t end) {
            k.write[operation_](one, measured[i * stride], measured[i * stride + 1 + b], begin, end);
            if (loop_ == Loop::gathered_rows) scatter_row(at, begin, end, reinterpret_cast<T*>(one.out.data) + begin);
        });
    });
}

void Batch::gather(Role role, const Offsets& offsets, std::ptrdiff_t length, double* to) const {
    in_type([&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        T* gathered = reinterpret_cast<T*>(to);
        if (loop_ == Loop::tiles) return gather_tiles(role, offsets, length, gathered);
        if (one_after_another(role)) {
            const Array& array = slices_.arrays[role];
            return kernels_in<T>().gather_row[array.type](array.data + offsets[role], bytes_of(array.type),
                                                          array.swapped, length * classes_, gathered);
        }
        for (std::ptrdiff_t i = 0; i < length; ++i)
            gather_row(role, slices_.batch.moved(offsets, i), 0, classes_, gathered + i * classes_);
    });
}

void Batch::gather_doubles(Role role, const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end,
                           double* to) const {
    gather_row(role, offsets, begin, end, to);
}

// What stands for an entry that the mask leaves out: a score of -inf, a y or a gradient of 0, take no part.
double Batch::fill_of(Role role) const { return role == scores && operation_ != softmax_grad ? -infinity : 0; }

namespace {

template <class T>
void fill_masked(const std::byte* present, std::ptrdiff_t stride, std::ptrdiff_t count, double fill, T* to,
                 std::ptrdiff_t step) {
    for (std::ptrdiff_t i = 0; i < count; ++i)
        if (present[i * stride] == std::byte{0}) to[i * step] = static_cast<T>(fill);
}

}  // namespace

template <class T>
void Batch::gather_row(Role role, const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, T* to) const {
    const Array& array = slices_.arrays[role];
    const Offsets strides = slices_.classes.last().strides;
    slices_.classes.for_stretches(begin, end, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t length) {
        T* there = to + (c - begin);
        kernels_in<T>().gather_row[array.type](array.data + offsets[role] + at[role], strides[role], array.swapped,
                                               length, there);
        if (slices_.has(mask))
            fill_masked(slices_.arrays[mask].data + offsets[mask] + at[mask], strides[mask], length, fill_of(role),
                        there, 1);
    });
}

template <class T>
void Batch::scatter_row(const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, T* from) const {
    const Array& array = slices_.arrays[output];
    const Offsets strides = slices_.classes.last().strides;
    const double fill = operation_ == log_softmax ? -infinity : 0;
    slices_.classes.for_stretches(begin, end, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t length) {
        T* there = from + (c - begin);
        if (slices_.has(mask))
            fill_masked(slices_.arrays[mask].data + offsets[mask] + at[mask], strides[mask], length, fill, there, 1);
        kernels_in<T>().scatter_row[array.type](there, length, array.data + offsets[output] + at[output],
                                                strides[output]);
    });
}

template <class T>
void Batch::gather_tiles(Role role, const Offsets& offsets, std::ptrdiff_t length, T* to) const {
    const Array& array = slices_.arrays[role];
    const std::ptrdiff_t class_stride = slices_.classes.last().strides[role];
    slices_.classes.for_stretches(0, classes_, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t stretch) {
        kernels_in<T>().gather_tiles[array.type](array.data + offsets[role] + at[role],
                                                 slices_.batch.last().strides[role], class_stride, array.swapped,
                                                 length, stretch, classes_, to + c * lanes());
    });
    if (slices_.has(mask)) fill_tiles(offsets, length, fill_of(role), to);
}

template <class T>
void Batch::scatter_tiles(const Offsets& offsets, std::ptrdiff_t length, T* from) const {
    if (slices_.has(mask)) fill_tiles(offsets, length, operation_ == log_softmax ? -infinity : 0, from);
    const Array& array = slices_.arrays[output];
    const std::ptrdiff_t class_stride = slices_.classes.last().strides[output];
    slices_.classes.for_stretches(0, classes_, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t stretch) {
        kernels_in<T>().scatter_tiles[array.type](from + c * lanes(), length, stretch, classes_,
                                                  array.data + offsets[output] + at[output],
                                                  slices_.batch.last().strides[output], class_stride);
    });
}

template <class T>
void Batch::fill_tiles(const Offsets& offsets, std::ptrdiff_t length, double fill, T* tiles) const {
    const Offsets along = slices_.batch.last().strides;
    const Offsets strides = slices_.classes.last().strides;
    slices_.classes.for_stretches(0, classes_, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t stretch) {
        for (std::ptrdiff_t s = 0; s < length; ++s) {
            T* slice = tiles + s / lanes() * classes_ * lanes() + s % lanes();
            fill_masked(slices_.arrays[mask].data + offsets[mask] + at[mask] + s * along[mask], strides[mask], stretch,
                        fill, slice + c * lanes(), lanes());
        }
    });
}

}  // namespace fastsoftmax
