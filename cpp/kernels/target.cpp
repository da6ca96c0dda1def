// Compiled once per target with its own flags; FASTSOFTMAX_TARGET_NAME is the target's name. Everything but the table is
// local to the file, so that the linker can never take another target's copy.
#include "columns.hpp"
#include "rows.hpp"
#include "weighed.hpp"

namespace {

using namespace fastsoftmax;

template <Operation op, class E, int element>
void fill_kernels(Kernels& k) {
    k.rows[op][element] = ::rows<op, E>;
    k.columns[op][element] = ::columns<op, E>;
    k.measure[op][element] = ::measure_row<op, E>;
    k.conclude[op][element] = ::conclude_long_row<op, E>;
    k.write[op][element] = ::write_row<op, E>;
}

template <Operation op>
void fill_operation(Kernels& k) {
    k.merge[op] = ::merge_row<op>;
    fill_kernels<op, Half, float16>(k);
    fill_kernels<op, BFloat16, bfloat16>(k);
    fill_kernels<op, float, float32>(k);
    fill_kernels<op, double, float64>(k);
}

template <class I>
FASTSOFTMAX_INLINE I bytes_reversed(I bits) {
    if constexpr (sizeof(I) == 2) return static_cast<I>(__builtin_bswap16(bits));
    if constexpr (sizeof(I) == 4) return __builtin_bswap32(bits);
    if constexpr (sizeof(I) == 8) return __builtin_bswap64(bits);
    return bits;
}

template <std::size_t size>
struct BitsOf;
template <>
struct BitsOf<1> {
    using type = std::uint8_t;
};
template <>
struct BitsOf<2> {
    using type = std::uint16_t;
};
template <>
struct BitsOf<4> {
    using type = std::uint32_t;
};
template <>
struct BitsOf<8> {
    using type = std::uint64_t;
};

template <class E, class T>
FASTSOFTMAX_INLINE T converted(E element) {
    if constexpr (std::is_same_v<E, Half> || std::is_same_v<E, BFloat16>)
        return static_cast<T>(to_compute(element));
    else
        return static_cast<T>(element);
}

template <class E, class T>
void gather(const std::byte* from, std::ptrdiff_t stride, bool swapped, std::ptrdiff_t count, T* to) {
    if constexpr (std::is_same_v<E, Half> || std::is_same_v<E, BFloat16> || std::is_same_v<E, T>) {
        if (stride == static_cast<std::ptrdiff_t>(sizeof(E)) && !swapped && std::is_same_v<Compute<E>, T>) {
            const E* p = reinterpret_cast<const E*>(from);
            std::ptrdiff_t i = 0;
            for (; i + pack_lanes<E> <= count; i += pack_lanes<E>) store_pack(to + i, load(p + i));
            from += i * stride;
            to += i;
            count -= i;
        }
    }
    using Bits = typename BitsOf<sizeof(E)>::type;
    for (std::ptrdiff_t i = 0; i < count; ++i, from += stride) {
        Bits bits;
        __builtin_memcpy(&bits, from, sizeof bits);
        if (swapped) bits = bytes_reversed(bits);
        to[i] = converted<E, T>(same_bits<E>(bits));
    }
}

template <class T, class E>
void scatter(const T* from, std::ptrdiff_t count, std::byte* to, std::ptrdiff_t stride) {
    for (std::ptrdiff_t i = 0; i < count; ++i, to += stride) {
        E element;
        if constexpr (std::is_same_v<E, double>)
            element = static_cast<double>(from[i]);
        else
            element = from_compute<E>(static_cast<float>(from[i]));
        __builtin_memcpy(to, &element, sizeof element);
    }
}

template <class E, int element>
void fill_gather(Kernels& k) {
    k.gather_float[element] = gather<E, float>;
    k.gather_double[element] = gather<E, double>;
}

template <class E, int element>
void fill_scatter(Kernels& k) {
    k.scatter_float[element] = scatter<float, E>;
    k.scatter_double[element] = scatter<double, E>;
}

// With reference exponent_bias the exponential is the plain one, down to the smallest normal number.
template <class T>
void plain_exp(const T* x, std::ptrdiff_t count, T* to) {
    const Exponential<T> exp(broadcast(T(ExpConstants<T>::exponent_bias)));
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = lane(exp(broadcast(x[i])), 0);
}

template <class T>
void plain_log1p(const double* x, std::ptrdiff_t count, T* to) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if constexpr (sizeof(T) == 4) {
            to[i] = static_cast<float>(lane(log1p_short(broadcast(x[i])), 0));
        } else {
            const Double2 log = log1p_long({broadcast(x[i]), broadcast(0.0)});
            to[i] = lane(log.high + log.low, 0);
        }
    }
}

Kernels make_kernels() {
    Kernels k{};
    k.name = FASTSOFTMAX_TARGET_NAME;
    fill_operation<softmax>(k);
    fill_operation<log_softmax>(k);
    fill_operation<logsumexp>(k);
    fill_operation<softmax_grad>(k);
    fill_operation<log_softmax_grad>(k);
    fill_operation<cross_entropy>(k);
    fill_operation<cross_entropy_grad>(k);
    fill_gather<Half, float16>(k);
    fill_gather<BFloat16, bfloat16>(k);
    fill_gather<float, float32>(k);
    fill_gather<double, float64>(k);
    fill_gather<std::uint8_t, boolean>(k);
    fill_gather<std::int8_t, int8>(k);
    fill_gather<std::int16_t, int16>(k);
    fill_gather<std::int32_t, int32>(k);
    fill_gather<std::int64_t, int64>(k);
    fill_gather<std::uint8_t, uint8>(k);
    fill_gather<std::uint16_t, uint16>(k);
    fill_gather<std::uint32_t, uint32>(k);
    fill_gather<std::uint64_t, uint64>(k);
    fill_scatter<Half, float16>(k);
    fill_scatter<BFloat16, bfloat16>(k);
    fill_scatter<float, float32>(k);
    fill_scatter<double, float64>(k);
    k.logsumexp_weighed = ::logsumexp_weighed;
    k.exp_float = plain_exp<float>;
    k.exp_double = plain_exp<double>;
    k.log1p_float = plain_log1p<float>;
    k.log1p_double = plain_log1p<double>;
    return k;
}

}  // namespace

namespace fastsoftmax {
// Called only once the machine is known to have the target.
extern Kernels FASTSOFTMAX_TARGET_FUNCTION();
Kernels FASTSOFTMAX_TARGET_FUNCTION() { return make_kernels(); }
}  // namespace fastsoftmax
