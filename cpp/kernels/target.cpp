// Compiled once for each target, with its own flags; FASTSOFTMAX_TARGET_NAME is its name. Everything except the table
// is local to this file, so that the linker can never take another target's copy.
#include "gather.hpp"
#include "loops/lines.hpp"
#include "loops/rows.hpp"
#include "loops/tiles.hpp"
#include "operations/cross_entropy.hpp"
#include "operations/divergence.hpp"
#include "operations/entropy.hpp"
#include "operations/gradient_loops.hpp"
#include "operations/log_probabilities.hpp"
#include "operations/logs.hpp"
#include "operations/pieces.hpp"
#include "operations/sampling.hpp"
#include "operations/selection.hpp"
#include "operations/softmax.hpp"
#include "operations/weighed_cross_entropy.hpp"
#include "weighed.hpp"

namespace {

using namespace fastsoftmax;

// Whether an operation tries the fixed reference first. Without FMA, it gains too little for its code.
template <class Op>
constexpr bool tries_fixed = has_fma && !requires { Op::searches_largest; };

// And whether the fixed reference may suit a run.
bool may_be_near(const Run& run) { return run.temperature == 1 && 0 < run.classes && run.classes <= block_classes; }

// Computes dense rows of few classes by references of their own.
template <class Op, class E>
void few_own_rows(const Run& run) {
    using T = Compute<E>;
    T tile[Pack<T>::lanes * few_classes], kept[Pack<T>::lanes * few_classes];
    copied_tiles<Op, E>(run, sizeof(E), sizeof(E), sizeof(E), tile, kept);
}

template <class Op, class E>
void rows(const Run& run) {
    if constexpr (is_loss<Op::operation> && std::is_same_v<E, Compute<E>>)
        if (run.terms) return weighed_rows<Op::writes, E>(run);
    const bool few = run.classes <= few_classes;
    if constexpr (tries_fixed<Op>)
        if (may_be_near(run)) return few ? near_tiles<Op, E>(run) : near_rows<Op, E>(run);
    if (few) return few_own_rows<Op, E>(run);
    own_rows_of<Op, E>(run);
}

template <class Op, class T>
void lines(const Run& run) {
    T* const kept = static_cast<T*>(run.kept);
    if constexpr (tries_fixed<Op>)
        near_lines<Op, T>(run);
    else
        copied_tiles<Op, T>(run, run.x.class_stride, run.out.class_stride, run.second_out.class_stride, kept,
                            kept + Pack<T>::lanes * run.classes);
}

template <class Op, class T>
void tiles(const Run& run) {
    if constexpr (is_loss<Op::operation>)
        if (run.terms) return weighed_tiles<Op::writes, T>(run);
    if constexpr (tries_fixed<Op>)
        if (may_be_near(run)) return near_gathered_tiles<Op, T>(run);
    own_tiles<Op, T>(run);
}

template <class Op, class E, class Exp>
constexpr Blocks blocks_of(double (*largest)(const Run&, std::ptrdiff_t)) {
    using T = Compute<E>;
    return {largest, ::measure_block<Op, E, Exp>, ::merge_blocks<Op, T, Exp>, ::conclude_blocks<Op, T, Exp>,
            ::write_block<Op, E, Exp>};
}

template <class Op, class E>
void fill_rows(Kernel& kernel) {
    kernel.rows[element_type<E>] = ::rows<Op, E>;
    if constexpr (tries_fixed<Op>)
        kernel.near_blocks[element_type<E>] = blocks_of<Op, E, FixedExponential<Compute<E>>>(nullptr);
}

template <class Op, class T>
void fill_all(Kernel& kernel) {
    fill_rows<Op, T>(kernel);
    kernel.lines[element_type<T>] = ::lines<Op, T>;
    kernel.tiles[element_type<T>] = ::tiles<Op, T>;
    kernel.blocks[element_type<T>] = blocks_of<Op, T, OwnExponential<T>>(::largest_of_block<T>);
}

template <class Op>
void fill_exponentials(Kernels& k) {
    Kernel& kernel = k.of[Op::operation];
    kernel.signature = signature<Op::operation>;
    fill_rows<Op, Half>(kernel);
    fill_rows<Op, BFloat16>(kernel);
    fill_all<Op, float>(kernel);
    fill_all<Op, double>(kernel);
}

template <Operation op, class T>
void fill_gradient_in(Kernel& kernel) {
    kernel.rows[element_type<T>] = ::gradient_rows<op, T>;
    kernel.tiles[element_type<T>] = ::gradient_tiles<op, T>;
    kernel.blocks[element_type<T>] = {nullptr, ::measure_gradient_row<op, T>, ::merge_sums, ::conclude_gradient_row,
                                      ::write_gradient_row<op, T>};
}

template <Operation op>
void fill_gradient(Kernels& k) {
    Kernel& kernel = k.of[op];
    kernel.signature = signature<op>;
    kernel.rows[ElementType::float16] = ::gradient_rows<op, Half>;
    kernel.rows[ElementType::bfloat16] = ::gradient_rows<op, BFloat16>;
    fill_gradient_in<op, float>(kernel);
    fill_gradient_in<op, double>(kernel);
}

// Log-probabilities of picks use the loops of logsumexp.
template <Operation op>
void fill_log_probabilities(Kernels& k) {
    k.of[op] = k.of[Operation::logsumexp];
    k.of[op].signature = signature<op>;
    k.log_probabilities[ElementType::float32] = ::log_probabilities<float>;
    k.log_probabilities[ElementType::float64] = ::log_probabilities<double>;
}

template <class E>
void fill_selection(Kernels& k) {
    k.selection.largest_of_groups[element_type<E>] = ::largest_of_groups<E>;
    k.selection.raised[element_type<E>] = ::raised<Compute<E>>;
    k.selection.pick[element_type<E>] = ::pick<E>;
    k.selection.rank[element_type<E>] = ::rank<Compute<E>>;
    k.selection.largest_of_tile[element_type<E>] = ::largest_of_tile<Compute<E>>;
}

template <Operation op>
void fill_divergence(Kernels& k) {
    Kernel& kernel = k.of[op];
    kernel.signature = signature<op>;
    kernel.rows[ElementType::float32] = Diverge::rows<float>;
    kernel.rows[ElementType::float64] = Diverge::rows<double>;
    kernel.tiles[ElementType::float32] = Diverge::tiles<float>;
    kernel.tiles[ElementType::float64] = Diverge::tiles<double>;
}

template <class E, ElementType element>
void fill_gather(Kernels& k) {
    k.to_float.gather_row[element] = ::gather_row<E, float>;
    k.to_float.gather_tiles[element] = ::gather_tiles<E, float>;
    k.to_double.gather_row[element] = ::gather_row<E, double>;
    k.to_double.gather_tiles[element] = ::gather_tiles<E, double>;
    k.gather_at[element] = ::gather_at<E>;
}

template <class E, ElementType element>
void fill_scatter(Kernels& k) {
    k.to_float.scatter_row[element] = ::scatter_row<E, float>;
    k.to_float.scatter_tiles[element] = ::scatter_tiles<E, float>;
    k.to_double.scatter_row[element] = ::scatter_row<E, double>;
    k.to_double.scatter_tiles[element] = ::scatter_tiles<E, double>;
}

template <class T>
constexpr Sampling<T> sampling_in = {::largest_score<T>,      ::mass_of_block<T>,     ::collect_scores<T>,
                                     ::weigh_block<T, false>, ::weigh_block<T, true>, ::undefined_in_tile<T>,
                                     ::draw_from_tile<T>};

template <class T>
void fill_pieces(Kernels& k) {
    k.pieces.raise[element_type<T>] = ::raise_total<T>;
    k.pieces.own[element_type<T>] = ::own_state<T>;
    k.pieces.near[element_type<T>] = ::near_state<T>;
}

// With exponent_bias as its reference, Exponential gives exp(x) times its factor, down to the smallest normal number.
template <class T>
double plain_exp(const T* x, std::ptrdiff_t count, T* to) {
    const Exponential<T> exp(broadcast(T(ExpConstants<T>::exponent_bias)));
    for (std::ptrdiff_t i = 0; i < count; ++i) to[i] = lane(exp(broadcast(x[i])).rounded(), 0);
    return ExpConstants<T>::factor;
}

// For numbers below 2^60.
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
    fill_exponentials<Entropy>(k);
    fill_log_probabilities<Operation::log_softmax_at>(k);
    fill_log_probabilities<Operation::log_softmax_top_k>(k);
    fill_selection<Half>(k);
    fill_selection<BFloat16>(k);
    fill_selection<float>(k);
    fill_selection<double>(k);
    fill_divergence<Operation::kl_divergence>(k);
    fill_divergence<Operation::kl_divergence_grad>(k);
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
    k.sampling = {sampling_signature, sampling_in<float>, sampling_in<double>};
    k.pieces.signature = pieces_signature;
    k.pieces.all = k.of[Operation::softmax].blocks;
    k.pieces.rest = k.of[Operation::entropy].blocks;
    k.pieces.near_all = k.of[Operation::softmax].near_blocks;
    k.pieces.widen = ::widen_total;
    fill_pieces<float>(k);
    fill_pieces<double>(k);
    k.float_functions = {plain_exp<float>, plain_log1p<float>};
    k.double_functions = {plain_exp<double>, plain_log1p<double>};
    return k;
}

}  // namespace

namespace fastsoftmax {
// Called only if the machine is known to have the target.
extern Kernels FASTSOFTMAX_TARGET_FUNCTION();
Kernels FASTSOFTMAX_TARGET_FUNCTION() { return make_kernels(); }
}  // namespace fastsoftmax
