// Compiled once per target with its own flags; FASTSOFTMAX_TARGET_NAME is the target's name. Everything but the table
// is local to the file, so that the linker can never take another target's copy.
#include "gather.hpp"
#include "loops/lines.hpp"
#include "loops/rows.hpp"
#include "operations/cross_entropy.hpp"
#include "operations/entropy.hpp"
#include "operations/gradient_loops.hpp"
#include "operations/logs.hpp"
#include "operations/softmax.hpp"
#include "weighed.hpp"

namespace {

using namespace fastsoftmax;

// Whether the fixed reference may do: scores as they are, and labels only.
bool is_plain(const Run& run) {
    return run.temperature == 1 && !run.terms && 0 < run.classes && run.classes <= block_classes;
}

template <class Op, class T>
void rows(const Run& run) {
    if (!is_plain(run)) return general_rows<Op::operation, T>(run);
    if (run.classes <= few_classes) return near_tiles<Op, T>(run);
    near_rows<Op, T>(run);
}

template <class Op, class T>
void tiles(const Run& run) {
    if (!is_plain(run)) return general_tiles<Op::operation, T>(run);
    near_gathered_tiles<Op, T>(run);
}

template <class Op, class T>
constexpr Loops<T> loops_of = {::tiles<Op, T>,
                               ::measure_row<Op::operation, T>,
                               ::conclude_row<Op::operation, T>,
                               ::write_row<Op::operation, T>,
                               ::measure_near<Op, T>,
                               ::merge_near<Op, T>,
                               ::conclude_near<Op, T>,
                               ::write_near<Op, T>};

template <class Op>
void fill_exponentials(Kernels& k) {
    constexpr Operation op = Op::operation;
    Kernel& kernel = k.of[op];
    kernel.signature = signature<op>;
    kernel.merge = ::merge<op>;
    kernel.rows[ElementType::float16] = ::near_tiles<Op, Half>;
    kernel.rows[ElementType::bfloat16] = ::near_tiles<Op, BFloat16>;
    kernel.rows[ElementType::float32] = ::rows<Op, float>;
    kernel.rows[ElementType::float64] = ::rows<Op, double>;
    kernel.lines[ElementType::float32] = ::near_lines<Op, float>;
    kernel.lines[ElementType::float64] = ::near_lines<Op, double>;
    kernel.in_float = loops_of<Op, float>;
    kernel.in_double = loops_of<Op, double>;
}

template <Operation op, class T>
constexpr Loops<T> gradient_loops_of = {::gradient_tiles<op, T>, ::measure_gradient_row<op, T>, ::conclude_gradient_row,
                                        ::write_gradient_row<op, T>};

template <Operation op>
void fill_gradient(Kernels& k) {
    k.of[op] = {signature<op>, {}, {}, ::merge_sums, gradient_loops_of<op, float>, gradient_loops_of<op, double>};
    k.of[op].rows[ElementType::float16] = ::gradient_rows<op, Half>;
    k.of[op].rows[ElementType::bfloat16] = ::gradient_rows<op, BFloat16>;
    k.of[op].rows[ElementType::float32] = ::gradient_rows<op, float>;
    k.of[op].rows[ElementType::float64] = ::gradient_rows<op, double>;
}

template <class T>
constexpr Loops<T> entropy_loops_of = {::entropy_tiles<T>, ::measure_entropy_row<T>, ::conclude_entropy_row<T>,
                                       nullptr};

void fill_entropy(Kernels& k) {
    Kernel& kernel = k.of[Operation::entropy];
    kernel = {signature<Operation::entropy>, {}, {}, ::merge_entropies, entropy_loops_of<float>,
              entropy_loops_of<double>};
    kernel.rows[ElementType::float32] = ::entropy_rows<float>;
    kernel.rows[ElementType::float64] = ::entropy_rows<double>;
}

template <class E, ElementType element>
void fill_gather(Kernels& k) {
    k.to_float.gather_row[element] = ::gather_row<E, float>;
    k.to_float.gather_tiles[element] = ::gather_tiles<E, float>;
    k.to_double.gather_row[element] = ::gather_row<E, double>;
    k.to_double.gather_tiles[element] = ::gather_tiles<E, double>;
}

template <class E, ElementType element>
void fill_scatter(Kernels& k) {
    k.to_float.scatter_row[element] = ::scatter_row<E, float>;
    k.to_float.scatter_tiles[element] = ::scatter_tiles<E, float>;
    k.to_double.scatter_row[element] = ::scatter_row<E, double>;
    k.to_double.scatter_tiles[element] = ::scatter_tiles<E, double>;
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
    fill_exponentials<Softmax>(k);
    fill_exponentials<LogSoftmax>(k);
    fill_exponentials<LogSumExp>(k);
    fill_gradient<Operation::softmax_grad>(k);
    fill_gradient<Operation::log_softmax_grad>(k);
    fill_exponentials<CrossEntropy<false>>(k);
    fill_exponentials<CrossEntropy<true>>(k);
    fill_entropy(k);
    fill_gather<Half, ElementType::float16>(k);
    fill_gather<BFloat16, ElementType::bfloat16>(k);
    fill_gather<float, ElementType::float32>(k);
    fill_gather<double, ElementType::float64>(k);
    fill_gather<bool, ElementType::boolean>(k);
    fill_gather<std::int8_t, ElementType::int8>(k);
    fill_gather<std::int16_t, ElementType::int16>(k);
    fill_gather<std::int32_t, ElementType::int32>(k);
    fill_gather<std::int64_t, ElementType::int64>(k);
    fill_gather<std::uint8_t, ElementType::uint8>(k);
    fill_gather<std::uint16_t, ElementType::uint16>(k);
    fill_gather<std::uint32_t, ElementType::uint32>(k);
    fill_gather<std::uint64_t, ElementType::uint64>(k);
    fill_scatter<Half, ElementType::float16>(k);
    fill_scatter<BFloat16, ElementType::bfloat16>(k);
    fill_scatter<float, ElementType::float32>(k);
    fill_scatter<double, ElementType::float64>(k);
    k.weighed = {weighed_signature,  ::measure_weighed, ::merge_weighed,
                 ::conclude_weighed, ::add_exactly,     ::round_exact};
    k.float_functions = {plain_exp<float>, plain_log1p<float>};
    k.double_functions = {plain_exp<double>, plain_log1p<double>};
    return k;
}

}  // namespace

namespace fastsoftmax {
// Called only once the machine is known to have the target.
extern Kernels FASTSOFTMAX_TARGET_FUNCTION();
Kernels FASTSOFTMAX_TARGET_FUNCTION() { return make_kernels(); }
}  // namespace fastsoftmax
