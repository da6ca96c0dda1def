// Describes the arrays of one call as a batch of slices: the class axes make up a slice, the other axes the batch.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.hpp"

namespace fastsoftmax {

// The part that an array plays in a call.
enum class Role : int {
    scores,  // x, logits; y or logp of the gradients
    second,  // dy, b, or the class probabilities
    output,
    second_output,  // the Hessian
    mask,
    // Per slice: strides of class axes are 0.
    value,
    sign,
    label,
    upstream,
};
constexpr int roles = 9;

constexpr bool is_per_slice(Role role) { return role >= Role::value; }

struct Array {
    std::byte* data = nullptr;  // null: the call has none
    ElementType type = ElementType::float32;
    bool swapped = false;  // in the other byte order
};

constexpr std::ptrdiff_t bytes_of(ElementType type) {
    constexpr Table<ElementType, std::ptrdiff_t, element_types> bytes = {{2, 2, 4, 8, 1, 1, 2, 4, 8, 1, 2, 4, 8}};
    return bytes[type];
}

constexpr bool is_class(std::int64_t index, std::ptrdiff_t classes) { return 0 <= index && index < classes; }

using Offsets = Table<Role, std::ptrdiff_t, roles>;  // in bytes

struct Axis {
    std::ptrdiff_t size;
    Offsets strides;
};

constexpr int most_axes = 64;  // as NumPy

struct Axes {
    int count = 0;
    std::array<Axis, most_axes> axis;

    Axes() = default;
    // Copies only the axes in use: most calls have one or two.
    Axes(const Axes& other) { *this = other; }
    Axes& operator=(const Axes& other) {
        count = other.count;
        std::copy(other.axis.begin(), other.axis.begin() + count, axis.begin());
        return *this;
    }

    std::ptrdiff_t size() const {
        std::ptrdiff_t product = 1;
        for (int i = 0; i < count; ++i) product *= axis[i].size;
        return product;
    }

    void append(const Axis& next) { axis[count++] = next; }

    // Drops axes of one element, and joins neighbouring axes that can be walked as one in every array.
    void simplify() {
        int kept = 0;
        for (int i = 0; i < count; ++i) {
            if (axis[i].size == 1) continue;
            if (kept > 0 && joins(axis[kept - 1], axis[i])) {
                const std::ptrdiff_t size = axis[kept - 1].size * axis[i].size;
                axis[kept - 1] = axis[i];
                axis[kept - 1].size = size;
            } else {
                axis[kept++] = axis[i];
            }
        }
        count = kept;
    }

    // The offsets of the element at `index`, in C order.
    Offsets at(std::ptrdiff_t index) const {
        Offsets offsets{};
        for (int i = count - 1; i >= 0; --i) {
            const std::ptrdiff_t along = index % axis[i].size;
            index /= axis[i].size;
            add(offsets, axis[i].strides, along);
        }
        return offsets;
    }

    // The last axis; without any, an axis of one element with strides of 0.
    const Axis& last() const { return count ? axis[count - 1] : none; }

    // The offsets of the place that is `elements` further along the last axis.
    Offsets moved(Offsets offsets, std::ptrdiff_t elements) const {
        if (count) add(offsets, axis[count - 1].strides, elements);
        return offsets;
    }

    // Calls f(offsets, position, length) for each stretch of [begin, end) along the last axis.
    template <class F>
    void for_stretches(std::ptrdiff_t begin, std::ptrdiff_t end, F f) const {
        const std::ptrdiff_t size = last().size;
        while (begin < end) {
            const std::ptrdiff_t rest = size - begin % size;
            const std::ptrdiff_t length = rest < end - begin ? rest : end - begin;
            f(at(begin), begin, length);
            begin += length;
        }
    }

  private:
    static constexpr Axis none = {1, {}};

    static void add(Offsets& offsets, const Offsets& strides, std::ptrdiff_t steps) {
        for (int r = 0; r < roles; ++r) offsets.values[r] += steps * strides.values[r];
    }

    static bool joins(const Axis& outer, const Axis& inner) {
        for (int r = 0; r < roles; ++r)
            if (outer.strides.values[r] != inner.strides.values[r] * inner.size) return false;
        return true;
    }
};

struct Slices {
    Table<Role, Array, roles> arrays;
    Axes batch, classes;
    Axes own;  // of arrays with several numbers for each slice; all other arrays have strides of 0 along them

    bool has(Role role) const { return arrays[role].data != nullptr; }
};

}  // namespace fastsoftmax
