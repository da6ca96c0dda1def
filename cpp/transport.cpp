#include "transport.hpp"

#include <cmath>
#include <utility>

#include "targets.hpp"

namespace fastsoftmax {

namespace {

template <class T>
const Conversions<T>& conversions() {
    if constexpr (sizeof(T) == 4)
        return kernels().to_float;
    else
        return kernels().to_double;
}

template <class T>
void fill_masked(const std::byte* present, std::ptrdiff_t stride, std::ptrdiff_t count, double value, T* to,
                 std::ptrdiff_t step) {
    for (std::ptrdiff_t i = 0; i < count; ++i)
        if (present[i * stride] == std::byte{0}) to[i * step] = static_cast<T>(value);
}

template <class I>
void read_as(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::int64_t* to) {
    const std::byte* p = array.data + offset;
    std::ptrdiff_t i = 0;
    if (!array.swapped && stride == sizeof(I)) {
        // Contiguous and in native byte order: this many at a time, so that the compiler uses vectors.
        constexpr std::ptrdiff_t some = 16;
        for (; i + some <= count; i += some, p += some * sizeof(I)) {
            I elements[some];
            __builtin_memcpy(elements, p, sizeof elements);
            std::int64_t converted[some];
            for (std::ptrdiff_t k = 0; k < some; ++k) converted[k] = static_cast<std::int64_t>(elements[k]);
            __builtin_memcpy(to + i, converted, sizeof converted);
        }
    }
    for (; i < count; ++i, p += stride) {
        unsigned char bytes[sizeof(I)];
        __builtin_memcpy(bytes, p, sizeof bytes);
        if (array.swapped)
            for (std::size_t k = 0; k < sizeof(I) / 2; ++k) std::swap(bytes[k], bytes[sizeof(I) - 1 - k]);
        I element;
        __builtin_memcpy(&element, bytes, sizeof element);
        to[i] = static_cast<std::int64_t>(element);
    }
}

}  // namespace

void read_indices(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count,
                  std::int64_t* to) {
    switch (array.type) {
        case ElementType::int8:
            return read_as<std::int8_t>(array, offset, stride, count, to);
        case ElementType::int16:
            return read_as<std::int16_t>(array, offset, stride, count, to);
        case ElementType::int32:
            return read_as<std::int32_t>(array, offset, stride, count, to);
        case ElementType::uint8:
            return read_as<std::uint8_t>(array, offset, stride, count, to);
        case ElementType::uint16:
            return read_as<std::uint16_t>(array, offset, stride, count, to);
        case ElementType::uint32:
            return read_as<std::uint32_t>(array, offset, stride, count, to);
        default:
            return read_as<std::int64_t>(array, offset, stride, count, to);
    }
}

void Transport::gather(Role role, const Offsets& first, std::ptrdiff_t length, void* to) const {
    plan_.in_type([&]<class T> {
        T* gathered = static_cast<T*>(to);
        if (plan_.loop == Loop::tiles) return gather_tiles(role, first, length, gathered);
        if (one_after_another(role)) {
            const Array& from = array(role);
            return conversions<T>().gather_row[from.type](from.data + first[role], bytes_of(from.type), from.swapped,
                                                          length * plan_.classes, gathered);
        }
        for (std::ptrdiff_t i = 0; i < length; ++i)
            gather_row(role, slices().batch.moved(first, i), 0, plan_.classes, gathered + i * plan_.classes);
    });
}

void Transport::scatter(Role role, const Offsets& first, std::ptrdiff_t length, void* from) const {
    plan_.in_type([&]<class T> {
        T* results = static_cast<T*>(from);
        if (plan_.loop == Loop::tiles) return scatter_tiles(role, first, length, results);
        if (one_after_another(role)) {
            const Array& to = array(role);
            return conversions<T>().scatter_row[to.type](results, length * plan_.classes, to.data + first[role],
                                                         bytes_of(to.type));
        }
        for (std::ptrdiff_t i = 0; i < length; ++i)
            scatter_row(role, slices().batch.moved(first, i), 0, plan_.classes, results + i * plan_.classes);
    });
}

void Transport::gather_block(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, void* to) const {
    plan_.in_type([&]<class T> { gather_row(role, at, begin, end, static_cast<T*>(to)); });
}

void Transport::scatter_block(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end,
                              void* from) const {
    plan_.in_type([&]<class T> { scatter_row(role, at, begin, end, static_cast<T*>(from)); });
}

void Transport::gather_doubles(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end,
                               double* to) const {
    gather_row(role, at, begin, end, to);
}

// How many numbers each slice has in an array without the class axis.
std::ptrdiff_t Transport::numbers_in(Role role) const {
    const PerSlice kind = role == Role::value   ? signature_.value
                          : role == Role::sign  ? signature_.sign
                          : role == Role::label ? signature_.labels
                                                : PerSlice::one;
    return kind == PerSlice::own ? slices().own.size() : 1;
}

// Calls f(offset, stride, count, position) for stretches that make up `numbers` numbers of each of `length`
// neighbouring slices in the array in `role`.
template <class F>
void Transport::for_numbers(Role role, const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers, F f) const {
    const Axes& own = slices().own;
    const std::ptrdiff_t to_next_slice = slices().batch.last().strides[role], stride = own.last().strides[role];
    if (numbers == 1) return f(first[role], to_next_slice, length, std::ptrdiff_t{0});
    if (own.count == 1 && numbers * stride == to_next_slice)
        return f(first[role], stride, length * numbers, std::ptrdiff_t{0});
    for (std::ptrdiff_t i = 0; i < length; ++i) {
        const std::ptrdiff_t offset = first[role] + i * to_next_slice;
        own.for_stretches(0, numbers, [&](const Offsets& at, std::ptrdiff_t position, std::ptrdiff_t count) {
            f(offset + at[role], stride, count, i * numbers + position);
        });
    }
}

void Transport::gather_numbers(Role role, const Offsets& first, std::ptrdiff_t length, double* to) const {
    const Array& from = array(role);
    for_numbers(role, first, length, numbers_in(role),
                [&](std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::ptrdiff_t position) {
                    conversions<double>().gather_row[from.type](from.data + offset, stride, from.swapped, count,
                                                                to + position);
                });
}

void Transport::scatter_numbers(Role role, const Offsets& first, std::ptrdiff_t length, const double* from) const {
    scatter_numbers(role, first, length, numbers_in(role), from);
}

void Transport::scatter_numbers(Role role, const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                                const double* from) const {
    const Array& to = array(role);
    for_numbers(role, first, length, numbers,
                [&](std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::ptrdiff_t position) {
                    conversions<double>().scatter_row[to.type](from + position, count, to.data + offset, stride);
                });
}

void Transport::set_values_of_none(const Offsets& first, std::ptrdiff_t length, double* values) const {
    for (std::ptrdiff_t i = 0; i < length; ++i)
        if (std::isnan(values[i]) && !any_present(slices().batch.moved(first, i))) values[i] = signature_.value_of_none;
}

void Transport::gather_labels(const Offsets& first, std::ptrdiff_t length, std::int64_t* to) const {
    gather_labels(first, length, numbers_in(Role::label), to);
}

void Transport::gather_labels(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                              std::int64_t* to) const {
    for_numbers(Role::label, first, length, numbers,
                [&](std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::ptrdiff_t position) {
                    read_indices(array(Role::label), offset, stride, count, to + position);
                });
}

bool Transport::gather_scores_at(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                                 const std::int64_t* labels, double* to) const {
    const Array& scores = array(Role::scores);
    return kernels().gather_at[scores.type](
        scores.data + first[Role::scores], slices().batch.last().strides[Role::scores],
        slices().classes.last().strides[Role::scores], scores.swapped, length, plan_.classes, labels, numbers, to);
}

void Transport::scatter_labels(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                               const std::int64_t* labels) const {
    for_numbers(Role::label, first, length, numbers,
                [&](std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::ptrdiff_t position) {
                    std::byte* to = array(Role::label).data + offset;
                    for (std::ptrdiff_t i = 0; i < count; ++i, to += stride) {
                        const auto label = static_cast<std::intptr_t>(labels[position + i]);
                        __builtin_memcpy(to, &label, sizeof label);
                    }
                });
}

void Transport::gather_presence(const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, bool* present) const {
    const bool masked = slices().has(Role::mask);
    const std::ptrdiff_t stride = slices().classes.last().strides[Role::mask];
    const std::byte* const mask = array(Role::mask).data + at[Role::mask];
    for (std::ptrdiff_t c = begin; c < end; ++c) present[c - begin] = !masked || mask[c * stride] != std::byte{0};
}

void Transport::mask_results_at(const Offsets& first, std::ptrdiff_t length, std::ptrdiff_t numbers,
                                const std::int64_t* labels, double* results) const {
    if (!slices().has(Role::mask)) return;
    const std::byte* const present = array(Role::mask).data + first[Role::mask];
    const std::ptrdiff_t to_next_slice = slices().batch.last().strides[Role::mask];
    const std::ptrdiff_t to_next_class = slices().classes.last().strides[Role::mask];
    for (std::ptrdiff_t i = 0; i < length * numbers; ++i)
        if (is_class(labels[i], plan_.classes) &&
            present[i / numbers * to_next_slice + labels[i] * to_next_class] == std::byte{0})
            results[i] = signature_.masked_output;
}

bool Transport::any_present(const Offsets& at) const {
    if (!slices().has(Role::mask)) return plan_.classes > 0;
    bool any = false;
    const std::ptrdiff_t stride = slices().classes.last().strides[Role::mask];
    slices().classes.for_stretches(0, plan_.classes, [&](const Offsets& along, std::ptrdiff_t, std::ptrdiff_t length) {
        const std::byte* present = array(Role::mask).data + at[Role::mask] + along[Role::mask];
        for (std::ptrdiff_t i = 0; i < length && !any; ++i) any = present[i * stride] != std::byte{0};
    });
    return any;
}

// Whether the rows of the array in `role` make up one long row without a mask.
bool Transport::one_after_another(Role role) const {
    const std::ptrdiff_t bytes = bytes_of(array(role).type);
    return !slices().has(Role::mask) && slices().classes.count <= 1 && slices().classes.last().strides[role] == bytes &&
           slices().batch.last().strides[role] == plan_.classes * bytes;
}

template <class T>
void Transport::gather_row(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, T* to) const {
    const Array& from = array(role);
    const Offsets& strides = slices().classes.last().strides;
    slices().classes.for_stretches(begin, end, [&](const Offsets& along, std::ptrdiff_t c, std::ptrdiff_t length) {
        T* there = to + (c - begin);
        conversions<T>().gather_row[from.type](from.data + at[role] + along[role], strides[role], from.swapped, length,
                                               there);
        if (slices().has(Role::mask))
            fill_masked(array(Role::mask).data + at[Role::mask] + along[Role::mask], strides[Role::mask], length,
                        masked(role), there, 1);
    });
}

template <class T>
void Transport::scatter_row(Role role, const Offsets& at, std::ptrdiff_t begin, std::ptrdiff_t end, T* from) const {
    const Array& to = array(role);
    const Offsets& strides = slices().classes.last().strides;
    slices().classes.for_stretches(begin, end, [&](const Offsets& along, std::ptrdiff_t c, std::ptrdiff_t length) {
        T* there = from + (c - begin);
        if (slices().has(Role::mask))
            fill_masked(array(Role::mask).data + at[Role::mask] + along[Role::mask], strides[Role::mask], length,
                        masked(role), there, 1);
        conversions<T>().scatter_row[to.type](there, length, to.data + at[role] + along[role], strides[role]);
    });
}

template <class T>
void Transport::gather_tiles(Role role, const Offsets& first, std::ptrdiff_t length, T* to) const {
    const Array& from = array(role);
    const std::ptrdiff_t class_stride = slices().classes.last().strides[role];
    slices().classes.for_stretches(
        0, plan_.classes, [&](const Offsets& along, std::ptrdiff_t c, std::ptrdiff_t stretch) {
            conversions<T>().gather_tiles[from.type](from.data + first[role] + along[role],
                                                     slices().batch.last().strides[role], class_stride, from.swapped,
                                                     length, stretch, plan_.classes, to + c * plan_.lanes());
        });
    if (slices().has(Role::mask)) mask_tiles(first, length, masked(role), to);
}

template <class T>
void Transport::scatter_tiles(Role role, const Offsets& first, std::ptrdiff_t length, T* from) const {
    if (slices().has(Role::mask)) mask_tiles(first, length, masked(role), from);
    const Array& to = array(role);
    const std::ptrdiff_t class_stride = slices().classes.last().strides[role];
    slices().classes.for_stretches(
        0, plan_.classes, [&](const Offsets& along, std::ptrdiff_t c, std::ptrdiff_t stretch) {
            conversions<T>().scatter_tiles[to.type](from + c * plan_.lanes(), length, stretch, plan_.classes,
                                                    to.data + first[role] + along[role],
                                                    slices().batch.last().strides[role], class_stride);
        });
}

template <class T>
void Transport::mask_tiles(const Offsets& first, std::ptrdiff_t length, double value, T* tiles) const {
    const Offsets& along = slices().batch.last().strides;
    const Offsets& strides = slices().classes.last().strides;
    const std::ptrdiff_t lanes = plan_.lanes();
    slices().classes.for_stretches(0, plan_.classes, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t stretch) {
        for (std::ptrdiff_t s = 0; s < length; ++s) {
            T* slice = tiles + s / lanes * plan_.classes * lanes + s % lanes;
            fill_masked(array(Role::mask).data + first[Role::mask] + at[Role::mask] + s * along[Role::mask],
                        strides[Role::mask], stretch, value, slice + c * lanes, lanes);
        }
    });
}

}  // namespace fastsoftmax
