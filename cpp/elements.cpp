#include "elements.hpp"

#include <utility>

#include "targets.hpp"

namespace fastsoftmax {

void read_doubles(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, double* to) {
    kernels().in_double.gather_row[array.type](array.data + offset, stride, array.swapped, count, to);
}

void write_doubles(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count,
                   const double* from) {
    kernels().in_double.scatter_row[array.type](from, count, array.data + offset, stride);
}

namespace {

template <class I>
void read_as(const Array& array, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t count, std::int64_t* to) {
    const std::byte* p = array.data + offset;
    if (!array.swapped && stride == sizeof(I)) {
        // As they are in memory: a loop that the compiler turns into one of vectors.
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            I element;
            __builtin_memcpy(&element, p + i * sizeof element, sizeof element);
            to[i] = static_cast<std::int64_t>(element);
        }
        return;
    }
    for (std::ptrdiff_t i = 0; i < count; ++i, p += stride) {
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
        case int8:
            return read_as<std::int8_t>(array, offset, stride, count, to);
        case int16:
            return read_as<std::int16_t>(array, offset, stride, count, to);
        case int32:
            return read_as<std::int32_t>(array, offset, stride, count, to);
        case uint8:
            return read_as<std::uint8_t>(array, offset, stride, count, to);
        case uint16:
            return read_as<std::uint16_t>(array, offset, stride, count, to);
        case uint32:
            return read_as<std::uint32_t>(array, offset, stride, count, to);
        default:
            return read_as<std::int64_t>(array, offset, stride, count, to);
    }
}

}  // namespace fastsoftmax
