// Compiled once per target with its own flags; FASTSOFTMAX_TARGET_NAME is the target's name. Everything but the table
// is local to the file, so that the linker can never take another target's copy.
#include "gather.hpp"
#include "rows.hpp"
#include "tiles.hpp"
#include "weighed.hpp"

namespace {

using namespace fastsoftmax;

template <Operation op, class T>
void fill_kernels(KernelsIn<T>& k) {
    k.rows[op] = ::rows<op, T>;
    k.tiles[op] = ::tiles<op, T>;
    k.measure[op] = ::measure_row<op, T>;
    k.conclude[op] = ::conclude_row<op, T>;
    k.write[op] = ::write_row<op, T>;
}

template <Operation op>
void fill_operation(Kernels& k) {
    k.merge[op] = ::merge_row<op>;
    fill_kernels<op>(k.in_float);
    fill_kernels<op>(k.in_double);
}

template <class E, int element>
void fill_gather(Kernels& k) {
    k.in_float.gather_row[element] = ::gather_row<E, float>;
    k.in_float.gather_tiles[element] = ::gather_tiles<E, float>;
    k.in_double.gather_row[element] = ::gather_row<E, double>;
    k.in_double.gather_tiles[element] = ::gather_tiles<E, double>;
}

template <class E, int element>
void fill_scatter(Kernels& k) {
    k.in_float.scatter_row[element] = ::scatter_row<E, float>;
    k.in_float.scatter_tiles[element] = ::scatter_tiles<E, float>;
    k.in_double.scatter_row[element] = ::scatter_row<E, double>;
    k.in_double.scatter_tiles[element] = ::scatter_tiles<E, double>;
}

// With reference exponent_bias the exponential is the plain one, but for its factor, down to the smallest normal
// number.
template <class T>
double plain_exp(const T* x, std::ptrdiff_t count, T* to) {
    const Exponential<T> exp(broadcast(T(ExpConstants<T>::exponent_bias)));
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = lane(exp(broadcast(x[i])).rounded(), 0);
    return ExpConstants<T>::factor;
}

// Of numbers below 2^60.
template <class T>
void plain_log1p(const double* x, std::ptrdiff_t count, T* to) {
    const double one = 1 / double{log_unit<T>};
    const Two<Pack<T>> top = {broadcast(static_cast<T>(one)), broadcast(T(0))};
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const double scaled = x[i] * one;
        const T high = static_cast<T>(scaled);
        const Two<Pack<T>> log = log1p_ratio({broadcast(high), broadcast(static_cast<T>(scaled - high))}, top);
        to[i] = lane(log.high + log.low, 0) * log_unit<T>;
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
    fill_gather<bool, boolean>(k);
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
    k.measure_weighed = ::measure_weighed;
    k.merge_weighed = ::merge_weighed;
    k.conclude_weighed = ::conclude_weighed;
    k.add_exactly = ::add_exactly;
    k.round_exact = ::round_exact;
    k.in_float.exp = plain_exp<float>;
    k.in_double.exp = plain_exp<double>;
    k.in_float.log1p = plain_log1p<float>;
    k.in_double.log1p = plain_log1p<double>;
    return k;
}

}  // namespace

namespace fastsoftmax {
// Called only once the machine is known to have the target.
extern Kernels FASTSOFTMAX_TARGET_FUNCTION();
Kernels FASTSOFTMAX_TARGET_FUNCTION() { return make_kernels(); }
}  // namespace fastsoftmax
