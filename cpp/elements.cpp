#include "elements.hpp"

#include "targets.hpp"

namespace fastsoftmax {

double read_double(const Array& array, std::ptrdiff_t offset) {
    double element;
    kernels().in_double.gather_row[array.type](array.data + offset, 0, array.swapped, 1, &element);
    return element;
}

void write_double(const Array& array, std::ptrdiff_t offset, double element) {
    kernels().in_double.scatter_row[array.type](&element, 1, array.data + offset, 0);
}

namespace {

template <class I>
std::int64_t read_as(const std::byte* p, bool swapped) {
    unsigned char bytes[sizeof(I)];
    for (std::size_t i = 0; i < sizeof(I); ++i) bytes[i] = static_cast<unsigned char>(p[swapped ? sizeof(I) - 1 - i : i]);
    I element;
    __builtin_memcpy(&element, bytes, sizeof element);
    return static_cast<std::int64_t>(element);
}

}  // namespace

std::int64_t read_index(const Array& array, std::ptrdiff_t offset) {
    const std::byte* p = array.data + offset;
    switch (array.type) {
        case int8: return read_as<std::int8_t>(p, array.swapped);
        case int16: return read_as<std::int16_t>(p, array.swapped);
        case int32: return read_as<std::int32_t>(p, array.swapped);
        case uint8: return read_as<std::uint8_t>(p, array.swapped);
        case uint16: return read_as<std::uint16_t>(p, array.swapped);
        case uint32: return read_as<std::uint32_t>(p, array.swapped);
        default: return read_as<std::int64_t>(p, array.swapped);
    }
}

}  // namespace fastsoftmax
