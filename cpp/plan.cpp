#include "plan.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

namespace fastsoftmax {

namespace {

// The most bytes (half of a first-level cache) and the most tiles that are gathered together. If neighbouring slices
// are contiguous, 16 tiles take 1 KiB of each class. With 4 KiB, 80 MB took 1.3 times as long.
constexpr std::ptrdiff_t bytes_at_once = 16384, tiles_at_once = 16;
// If neighbouring slices are contiguous, the limit is this many bytes (half of the smallest second-level cache in use),
// because it costs time to read less of a class at once.
constexpr std::ptrdiff_t strided_bytes_at_once = 262144;
// If exponentials of a slice in blocks cannot be kept in the memory of its results, they are kept apart, up to this
// many classes: those of longer slices would leave the caches.
constexpr std::ptrdiff_t most_kept = 262144;
// A broadcast view can have any shape. Larger ones are refused, because their size in bytes could overflow; computing
// one of this size would already take months.
constexpr std::ptrdiff_t most_of_each = PTRDIFF_MAX / 1024;

bool computed_in_float(const Array& array) {
    return array.type == ElementType::float16 || array.type == ElementType::bfloat16 ||
           array.type == ElementType::float32;
}

std::ptrdiff_t numbers_of(PerSlice kind, const Slices& slices) {
    return kind == PerSlice::none ? 0 : kind == PerSlice::one ? 1 : slices.own.size();
}

}  // namespace

Plan::Plan(const Signature& signature, const Slices& given, const Demands& demands)
    : slices(given), count(given.batch.size()), classes(given.classes.size()) {
    if (std::max(classes, count) > most_of_each) throw std::bad_alloc();
    slices.classes.simplify();
    if (!demands.in_order) sort_batch();
    slices.batch.simplify();
    slices.own.simplify();
    in_float = computed_in_float(slices.arrays[Role::scores]) && suits_float(demands.temperature);
    if (signature.second) in_float = in_float && computed_in_float(slices.arrays[Role::second]);
    for (const Role role : {Role::output, Role::second_output, Role::value})
        if (slices.has(role)) in_float = in_float && computed_in_float(slices.arrays[role]);
    choose_loop(signature, demands);
    if (signature.labels != PerSlice::none || signature.value != PerSlice::none)
        at_once = std::min(at_once, slices_per_call);
    if (count > 0) {
        along = slices.batch.last().size;
        units_along = (along + unit - 1) / unit;
        units = count / along * units_along;
        at_once = std::min(at_once, unit * units_along);
    }
    choose_sizes(signature, demands);
}

// Sorts the batch axes by stride, so that neighbours in memory become neighbours in the loop.
void Plan::sort_batch() {
    const auto distance = [](const Axis& axis) {
        return std::abs(axis.strides[Role::scores]) + std::abs(axis.strides[Role::output]);
    };
    const auto further = [&](const Axis& a, const Axis& b) { return distance(a) > distance(b); };
    const auto begin = slices.batch.axis.begin(), end = begin + slices.batch.count;
    // std::stable_sort would allocate.
    for (auto axis = begin; axis != end; ++axis)
        std::rotate(std::upper_bound(begin, axis, *axis, further), axis, axis + 1);
}

// Whether a kernel can take the arrays in place, with elements contiguous along the last of the axes `contiguous`.
bool Plan::in_place(const Signature& signature, const Axes& contiguous) const {
    if (slices.has(Role::mask) || slices.classes.count > 1 || contiguous.count == 0) return false;
    if (static_cast<int>(type()) >= floating_types) return false;
    const std::ptrdiff_t bytes = bytes_of(type());
    const auto aligned = [&](std::ptrdiff_t place) { return (place & (bytes - 1)) == 0; };
    for (const Role role : {Role::scores, Role::second, Role::output, Role::second_output}) {
        if ((role == Role::second && !signature.second) || (role == Role::output && !signature.output)) continue;
        if (role == Role::second_output && !slices.has(role)) continue;
        const Array& array = slices.arrays[role];
        if (array.type != type() || array.swapped) return false;
        if (contiguous.last().strides[role] != bytes) return false;
        if (!aligned(reinterpret_cast<std::intptr_t>(array.data)) || !aligned(slices.classes.last().strides[role]))
            return false;
        for (int i = 0; i < slices.batch.count; ++i)
            if (!aligned(slices.batch.axis[i].strides[role])) return false;
    }
    return true;
}

// Whether scores enter exponentials as they are, and no class has a coefficient except the label.
bool Plan::is_plain(const Signature& signature, const Demands& demands) const {
    return signature.sums_exponentials && demands.temperature == 1 && !demands.whole_slices && classes > 0;
}

// Whether kernels take rows in place. Those of few classes have to follow each other in memory.
bool Plan::takes_rows(const Signature& signature, const Demands& demands) const {
    const bool plain = is_plain(signature, demands);
    if (!in_place(signature, slices.classes) || (demands.as_rows && classes <= few_classes)) return false;
    if (bytes_of(type()) != width() && !halves()) return false;
    if (demands.in_blocks) return true;
    if (classes > few_classes) return !halves() || plain || (signature.rows_of_halves && classes <= block_classes);
    if (!plain && (halves() || !(signature.rows_of_halves && in_float && demands.temperature == 1))) return false;
    if (slices.batch.count == 0) return plain;
    for (const Role role : {Role::scores, Role::second, Role::output, Role::second_output})
        if (slices.has(role) && slices.batch.last().strides[role] != classes * bytes_of(type())) return false;
    return true;
}

bool Plan::takes_lines(const Signature& signature, const Demands& demands) const {
    return is_plain(signature, demands) && !demands.as_rows && classes <= block_classes &&
           bytes_of(type()) == width() && in_place(signature, slices.batch);
}

void Plan::choose_loop(const Signature& signature, const Demands& demands) {
    if (takes_rows(signature, demands)) {
        loop = Loop::rows;
        in_blocks = demands.in_blocks || (classes > block_classes && !demands.whole_slices);
        at_once = in_blocks ? 1 : std::numeric_limits<std::ptrdiff_t>::max();
        return;
    }
    // An axis along which neighbouring slices are contiguous becomes the last one, if the demanded order allows it.
    Axes& batch = slices.batch;
    const std::ptrdiff_t bytes = bytes_of(slices.arrays[Role::scores].type);
    const bool strided_classes = slices.classes.last().strides[Role::scores] != bytes;
    bool neighbours = false;
    for (int i = batch.count - 1; strided_classes && !neighbours && i >= (demands.in_order ? batch.count - 1 : 0);
         --i) {
        // Fewer neighbours than half a pack are better taken row by row.
        if (i < 0 || batch.axis[i].strides[Role::scores] != bytes || batch.axis[i].size < lanes() / 2) continue;
        std::rotate(batch.axis.begin() + i, batch.axis.begin() + i + 1, batch.axis.begin() + batch.count);
        neighbours = true;
    }
    if (classes > block_classes || demands.in_blocks) {
        // A tile of slices this long could be much larger than the batch.
        in_blocks = !demands.whole_slices;
        unit = at_once = in_blocks && neighbours ? lanes() : 1;
        return;
    }
    const std::ptrdiff_t slice_bytes = std::max<std::ptrdiff_t>(classes, 1) * width();
    if (neighbours && takes_lines(signature, demands)) {
        loop = Loop::lines;
        unit = std::clamp<std::ptrdiff_t>(lines_room / (slice_bytes * lanes()), 1, tiles_at_once) * lanes();
        at_once = std::numeric_limits<std::ptrdiff_t>::max();
    } else if (neighbours || classes <= few_classes) {
        loop = Loop::tiles;
        unit = lanes();
        // A second array, or the terms of a loss, need as much room as the scores.
        const std::ptrdiff_t arrays = signature.second || demands.whole_slices ? 2 : 1;
        const std::ptrdiff_t most = (neighbours ? strided_bytes_at_once : bytes_at_once) / arrays;
        at_once = unit * std::clamp<std::ptrdiff_t>(most / (slice_bytes * unit), 1, tiles_at_once);
    } else {
        const std::ptrdiff_t arrays = signature.second ? 2 : 1;
        at_once = std::clamp<std::ptrdiff_t>(bytes_at_once / (arrays * slice_bytes), 1, lanes());
    }
}

// How many doubles `elements` take, in whole cache lines.
std::ptrdiff_t Plan::in_doubles(std::ptrdiff_t elements) const { return (elements * width() + 63) / 64 * 8; }

void Plan::choose_sizes(const Signature& signature, const Demands& demands) {
    const bool halves_in_blocks = in_blocks && loop == Loop::rows && halves();
    if (loop == Loop::gathered_rows || loop == Loop::tiles || halves_in_blocks) {
        sizes_.x = in_doubles(in_blocks ? std::min(block_classes, classes) : classes * at_once);
        if (signature.second) sizes_.second = sizes_.x;
        if (slices.has(Role::second_output)) sizes_.second_output = sizes_.x;
    }
    if (in_blocks) {
        sizes_.statistics = unit * (blocks() + 1) * signature.state;
        const bool apart = halves_in_blocks || (loop == Loop::gathered_rows && unit == 1);
        if (signature.keeps_exponentials && apart && classes <= most_kept && !demands.in_blocks)
            sizes_.kept = in_doubles(classes);
    } else if (signature.sums_exponentials && !demands.whole_slices) {
        sizes_.kept = kept_size(signature);
    } else if (signature.keeps_both) {
        const std::ptrdiff_t row = (classes + lanes() - 1) / lanes() * lanes();
        sizes_.kept =
            in_doubles(2 * (loop == Loop::tiles ? lanes() * classes : row * rows_of_both(classes, lanes(), width())));
    }
    const std::ptrdiff_t results = std::min(at_once, std::max<std::ptrdiff_t>(count, 1));
    sizes_.value = results * numbers_of(signature.value, slices);
    if (slices.has(Role::sign)) sizes_.sign = results * numbers_of(signature.sign, slices);
}

// How many doubles loops by the fixed reference need: for a row of halves as floats and for exponentials of rows that
// cannot be kept in the results; or, in tiles and lines, for the exponentials of neighbours and for tiles.
std::ptrdiff_t Plan::kept_size(const Signature& signature) const {
    const std::ptrdiff_t width = (classes + lanes() - 1) / lanes() * lanes();
    const std::ptrdiff_t tile = lanes() * classes;
    if (!signature.output && (loop == Loop::tiles || loop == Loop::lines)) return in_doubles(tile);
    if (loop == Loop::tiles) return in_doubles(3 * tile);
    if (loop == Loop::lines) {
        const std::ptrdiff_t most = (along + lanes() - 1) / lanes() * lanes() * classes;
        return in_doubles(std::min(most, std::max(lines_room / this->width(), tile)) + 2 * tile);
    }
    const bool of_halves = loop == Loop::rows && halves();
    const bool takes_place = signature.output && slices.arrays[Role::scores].data == slices.arrays[Role::output].data;
    const bool waits = keeps_rows(signature, classes, lanes(), of_halves || takes_place || loop == Loop::gathered_rows);
    const bool writes_second = slices.has(Role::second_output);
    return in_doubles((of_halves ? width + (writes_second ? width : 0) : 0) +
                      (waits ? std::max(width, rows_room / this->width()) : 0));
}

Workspace Plan::workspace(double* memory) const {
    const auto part = [&](std::ptrdiff_t size) {
        double* begin = size > 0 ? memory : nullptr;
        memory += size;
        return begin;
    };
    Workspace w;
    w.x = reinterpret_cast<std::byte*>(part(sizes_.x));
    w.second = reinterpret_cast<std::byte*>(part(sizes_.second));
    w.second_output = reinterpret_cast<std::byte*>(part(sizes_.second_output));
    w.statistics = reinterpret_cast<Statistics*>(part(sizes_.statistics));
    w.kept = reinterpret_cast<std::byte*>(part(sizes_.kept));
    w.value = part(sizes_.value);
    w.sign = part(sizes_.sign);
    w.extra = memory;
    return w;
}

}  // namespace fastsoftmax
