// The interface of a SIMD target: one table of functions over plain pointers. The layers above see nothing else of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastsoftmax {

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// An array with one element for each enumerator of Key. Its functions are always inlined, so that no copy compiled for
// one target serves another.
template <class Key, class Value, int count>
struct Table {
    Value values[count];

    [[gnu::always_inline]] constexpr Value& operator[](Key key) { return values[static_cast<int>(key)]; }
    [[gnu::always_inline]] constexpr const Value& operator[](Key key) const { return values[static_cast<int>(key)]; }
};

// The types that arrays may have. Kernels compute in float32 or float64; arrays of other types are converted to these,
// and results to any floating type. But some kernels read and write rows of halves themselves.
enum class ElementType : int {
    float16,
    bfloat16,
    float32,
    float64,
    boolean,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
};
constexpr int floating_types = 4;  // the first ones
constexpr int element_types = 13;

enum class Operation : int {
    softmax,
    log_softmax,
    logsumexp,
    softmax_grad,
    log_softmax_grad,
    cross_entropy,
    cross_entropy_grad,
    entropy,
    log_softmax_at,
    log_softmax_top_k,
    kl_divergence,
    kl_divergence_grad,
};
constexpr int operations = 12;

// How many numbers an array has for each slice: none, one, or as many as the slices' own axes have elements.
enum class PerSlice { none, one, own };

// Which arrays an operation reads, writes and keeps. The layers above look at this, never at which operation it is.
struct Signature {
    const char* name;
    bool second = false;               // reads a second array with the class axis beside the scores
    PerSlice labels = PerSlice::none;  // labels of each slice: a loss's, with coefficients, or those picked
    bool output = false;               // writes an array with the class axis
    bool second_output = false;        // and a second one, if the call has an array for it
    PerSlice value = PerSlice::none;   // writes numbers for each slice
    PerSlice sign = PerSlice::none;    // and their signs, if the call has an array for them
    double masked_scores = 0;          // stands for a masked entry of the scores
    double masked_second = 0;          // and for one of the second array
    double masked_output = 0;          // what a masked entry of the output becomes
    bool keeps_exponentials = false;   // exponentials may be kept where the results will be written
    bool keeps_both = false;           // exponentials of both arrays are kept in memory of their own
    bool rows_of_halves = false;       // reads and writes rows of float16 and bfloat16 itself
    bool sums_exponentials = false;    // of scores: without a temperature it takes lines and rows of halves itself
    int state = 0;                     // size of a block's state, in doubles
    // The value of a slice in which no entry takes part; it replaces the kernel's NaN.
    double value_of_none = __builtin_nan("");
};

// An array as a kernel walks it, with strides in bytes: from slice to slice and, in lines, from class to class.
struct Strided {
    std::byte* data = nullptr;
    std::ptrdiff_t slice_stride = 0, class_stride = 0;
};

// Memory that tiles prefetch while they compute, because it is needed soon: a cache line for each class of each tile.
struct Ahead {
    const std::byte* data = nullptr;
    std::ptrdiff_t tile_stride = 0, class_stride = 0;
};

// Neighbouring slices at constant strides, and what an operation needs to know of them. Pointers to per-slice numbers
// point to those of the run's first slice.
struct Run {
    std::ptrdiff_t slices = 0;
    std::ptrdiff_t classes = 0;
    std::ptrdiff_t origin = 0;  // the class that arrays begin with; not 0 if the run is a later block of a slice
    double temperature = 1;
    Strided x;             // scores; for the gradients of the transforms: y or logp
    Strided dy;            // the second array: dy, or the scores of q in a divergence
    Strided out;           // results with the class axis, if there are any
    Strided second_out;    // the Hessian, if it is asked for
    void* kept = nullptr;  // memory for exponentials, unless they are kept elsewhere
    bool stream = false;   // the results of all runs are too large for the caches
    bool measured = true;  // false: the block to be written was not measured here, so its exponentials are not kept
    Ahead scores_ahead, dy_ahead, results_ahead;

    double* value = nullptr;  // logsumexp, entropy, divergence, or the loss before any reduction
    double* sign = nullptr;   // of logsumexp's sum; null: not wanted
    // If not null, logsumexp stores its sums here in place of its value: for each slice `parts_of_sums` numbers of the
    // type computed in, a class stride apart.
    Strided sums;
    // Cross-entropy: loss = chosen * -log p[label] + sum over classes of terms * -log p; its gradient times `scale`.
    const std::int64_t* label = nullptr;  // null: only `terms` count; a label that is no class: its slice is ignored
    const double* chosen = nullptr;
    const double* scale = nullptr;         // only for the gradient
    const double* exponent = nullptr;      // of a power of two that also multiplies the gradient; null: none
    const double* second_scale = nullptr;  // the same two for the Hessian
    const double* second_exponent = nullptr;
    const void* terms = nullptr;  // in the type computed in, one a class; null: none
    double sum_of_terms = 0;
    bool own_terms = false;  // each slice has its own terms, in rows or tiles like the scores
};

// The state of an operation after measuring a block of a slice. The states of all blocks, merged in order, determine
// every result. Sums have two parts; for float the first is enough. Like the three structs below it, this one has no
// constructor, which would be a weak symbol in every target.
struct Statistics {
    double reference;    // the slice's largest score, from which exponentials take their reference, unless it is fixed;
                         // in the gradients of the transforms an integer: the sum is in units of 2^reference
    double max;          // the largest score of the block that is not NaN
    double rest[2];      // the sum of all others' exponentials; in softmax, of all; in a loss, of all but the label's
    double only;         // in softmax: the only exponential that is not 0, unless there are several
    double weighed[2];   // in the entropy: the sum of e (reference - x) / temperature, e the exponential of score x
    double label_score;  // in a loss: read before anything is written
    double others[2];    // with a Hessian: the sum of all, or of all but the largest if that may be above half of it
    bool several;        // in softmax: several exponentials are not 0
    bool near;           // the fixed reference suits the slice
    bool value_near;     // in a loss: it suits at least the value
};

// The statistics of the pieces of a slice so far; an element of a NumPy array. Sums have two parts, and are by the
// reference of the largest score.
struct Total {
    double max;         // the largest score that is not NaN; NaN: no entry has taken part
    double rest[2];     // the sum of the exponentials of all others
    double sum[2];      // of all, as softmax adds them
    double weighed[2];  // for the entropy, as in Statistics
    // How many exponentials are not 0 (2 for several), by this reference and by the fixed one.
    std::int64_t nonzero, near_nonzero;
    std::int64_t classes;
};

// The weighed sum of a block: sum * 2^reference * exp(shift), unless an infinite term decides.
struct WeighedSum {
    double shift, reference;
    double sum[2];
    bool some;                // some term takes part
    bool positive, negative;  // there is an infinite term of that sign
    bool undefined;           // there is a NaN among the terms
};

// The same without rounding: `sum` in digits of 32 bits, of which the first has the weight 2^-exact_bits. The digits
// have room for carries; smaller parts are dropped.
constexpr int exact_bits = 32768, exact_digits = exact_bits / 32 + 8;
struct ExactSum {
    double shift, reference;
    std::int64_t digits[exact_digits];
};

// Slices of more classes than this are summed in blocks of this many, from the first class on. This is a part of the
// order of summation, so it must not depend on anything. 16384 floats are half of the smallest second-level cache in
// use.
constexpr std::ptrdiff_t block_classes = 16384;

// Slices of at most this many classes go through tiles: a pack holds one class of many slices, where a row would leave
// most of a pack empty.
constexpr std::ptrdiff_t few_classes = 56;

// Bytes of neighbours' exponentials that lines keep at a time: half of a second-level cache of 1 MiB. With a quarter of
// this, axis 0 of (1000, 4096) took 1.4 times as long.
constexpr std::ptrdiff_t lines_room = 524288;

// Bytes of rows that are computed together, unless one row has more: half of the smallest first-level cache.
constexpr std::ptrdiff_t rows_room = 16384;

// The sums of a slice: its largest score, and in two parts each the exponential of that and the sum of all others.
constexpr int parts_of_sums = 5;

// Up to this many picks are ranked by comparing each with every other one. More are sorted, which is then faster.
constexpr std::ptrdiff_t most_ranked = 256;

// How many rows are computed together where exponentials of two arrays are kept.
static constexpr std::ptrdiff_t rows_of_both(std::ptrdiff_t classes, std::ptrdiff_t lanes, std::ptrdiff_t width) {
    const std::ptrdiff_t fit = rows_room / (2 * width * (classes > 0 ? classes : 1));
    return fit < 1 ? 1 : fit < lanes ? fit : lanes;
}

// Exponentials of rows of at most this many packs are kept on the stack, in rows padded to whole packs: in rows this
// short, partial packs cost the most.
constexpr std::ptrdiff_t most_padded_packs = 13;

// One long row, the run's only slice, in blocks that threads may share. Each block is measured, the blocks are merged
// in order, the slice's own numbers are concluded, and each block is written. A block is the `count` classes from the
// run's origin on. Measuring may keep exponentials for writing: in the output, if that is another row than the scores;
// for halves in run.kept, unless it is null.
struct Blocks {
    // Returns the largest score of a block; that of all blocks is the slice's reference. Null: no reference is needed.
    double (*largest)(const Run&, std::ptrdiff_t count);
    Statistics (*measure)(const Run&, double reference, std::ptrdiff_t count);
    void (*merge)(const Run&, Statistics& left, const Statistics& right);
    void (*conclude)(const Run&, Statistics&);
    void (*write)(const Run&, const Statistics&, std::ptrdiff_t count);
};

// One operation.
struct Kernel {
    Signature signature;

    // Slices of each element type in place; null: these are gathered first. In rows the classes are contiguous, in
    // lines the neighbouring slices.
    Table<ElementType, void (*)(const Run&), floating_types> rows, lines;
    // Tiles of float or double: a pack of slices at a time, class by class. Results take the place of the scores.
    Table<ElementType, void (*)(const Run&), floating_types> tiles;
    // Rows in blocks: by the fixed reference, if the target and the operation use it, after which the slice may turn
    // out to be far from it; and by the slice's own reference, or none.
    Table<ElementType, Blocks, floating_types> near_blocks, blocks;
};

// log|sum of b exp(x)| and its sign: measure each block, merge them in order, conclude.
struct WeighedKernel {
    Signature signature;
    WeighedSum (*measure)(const double* x, const double* b, std::ptrdiff_t count);
    void (*merge)(WeighedSum& left, const WeighedSum& right);
    void (*conclude)(const WeighedSum&, double* log, double* sign);
    // For a sum that is nothing beside its terms: add each block exactly, then round.
    void (*add_exactly)(ExactSum& sum, const double* x, const double* b, std::ptrdiff_t count);
    WeighedSum (*round_exact)(ExactSum& sum);
};

// The functions for totals of pieces.
struct PiecesKernel {
    Signature signature;
    // Blocks measured and merged as in softmax, which adds all exponentials; as in the entropy, which adds all except
    // the largest; and as in softmax by the fixed reference.
    Table<ElementType, Blocks, floating_types> all, rest, near_all;
    // Rescales a total to the reference of a score that is at least as large as its largest.
    Table<ElementType, void (*)(Total&, double largest, double temperature), floating_types> raise;
    // Convert a total to the statistics of a slice, by a reference of its own or by the fixed one, which may put its
    // sums out of range. `all`: as softmax needs them; otherwise as all other operations do.
    Table<ElementType, Statistics (*)(const Total&, bool all, double temperature), floating_types> own, near;
    // Converts a total of exponentials in float to one of exponentials in double.
    void (*widen)(Total&, double temperature);
};

// Keys: scores as integers in the same order. Sampling uses histograms of scores, whose bins are ranges of keys.

// The key of a score, which must not be NaN. Equal scores, also 0 and -0, have equal keys.
[[gnu::always_inline]] constexpr std::int64_t key_of(float x) {
    const auto bits = __builtin_bit_cast(std::int32_t, x + 0.0f);
    return bits ^ (bits >> 31 & INT32_MAX);
}
[[gnu::always_inline]] constexpr std::int64_t key_of(double x) {
    const auto bits = __builtin_bit_cast(std::int64_t, x + 0.0);
    return bits ^ (bits >> 63 & INT64_MAX);
}

// The score that has a key.
template <class T>
[[gnu::always_inline]] constexpr T score_of(std::int64_t key) {
    if constexpr (sizeof(T) == 4) {
        const auto bits = static_cast<std::int32_t>(key);
        return __builtin_bit_cast(float, bits ^ (bits >> 31 & INT32_MAX));
    } else {
        return __builtin_bit_cast(double, key ^ (key >> 63 & INT64_MAX));
    }
}

// The distance of two keys, which may be too large for int64, and the key at a distance.
[[gnu::always_inline]] constexpr std::uint64_t keys_between(std::int64_t from, std::int64_t to) {
    return static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from);
}
[[gnu::always_inline]] constexpr std::int64_t advanced(std::int64_t key, std::uint64_t keys) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(key) + keys);
}

// A range of keys, cut into bins of 2^shift keys.
struct Bracket {
    std::int64_t low, high;  // both are in the range
    int shift;
    int weight_bits;  // an exponential weighs less than 2^weight_bits
};
struct Bin {
    std::int64_t weight, count;
};

// Which classes may be drawn. Each rule applies to the classes that the one before it left: the `top_k` most probable
// ones; the fewest whose sum reaches `top_p`; those with at least `min_p` times the largest probability.
struct Truncation {
    std::int64_t top_k = INT64_MAX;
    double top_p = 1, min_p = 0;
};

// A sum that reaches this fraction of another counts as reaching it, because rounding may make it fall short.
template <class T>
constexpr double sums_reach = 1 - (sizeof(T) == 4 ? 0x1p-21 : 0x1p-46);

// The kernels that sampling applies to blocks of scores of T; see operations/sampling.hpp.
template <class T>
struct Sampling {
    using Weigh = std::int64_t(const T* x, std::ptrdiff_t count, double max, double temperature, const Bracket& bracket,
                               std::int64_t least, bool above, Bin* bins);
    double (*largest)(const T* x, std::ptrdiff_t count);
    double (*mass)(const T* x, std::ptrdiff_t count, double max, double temperature, std::int64_t least, T* to,
                   const std::byte* next, std::ptrdiff_t next_bytes);
    std::ptrdiff_t (*collect)(const T* x, std::ptrdiff_t count, double max, double temperature, const Bracket& bracket,
                              std::ptrdiff_t most, T* scores, std::uint16_t* places, double* above);
    Weigh *by_number, *by_mass;
    // Tiles of few classes.
    std::uint32_t (*undefined)(const T* tile, std::ptrdiff_t classes);
    void (*draw)(const T* tile, std::ptrdiff_t classes, int count, double temperature, const Truncation& truncation,
                 const double* uniform, std::ptrdiff_t draws, std::int64_t* to);
};

struct SamplingKernel {
    Signature signature;
    Sampling<float> in_float;
    Sampling<double> in_double;
};

// Convert elements of any type to rows and tiles of T, and back. Strides are in bytes.
template <class T>
struct Conversions {
    Table<ElementType,
          void (*)(const std::byte* from, std::ptrdiff_t stride, bool swapped, std::ptrdiff_t count, T* to),
          element_types>
        gather_row;
    Table<ElementType, void (*)(const T* from, std::ptrdiff_t count, std::byte* to, std::ptrdiff_t stride),
          floating_types>
        scatter_row;
    Table<ElementType,
          void (*)(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride, bool swapped,
                   std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes, T* to),
          element_types>
        gather_tiles;
    Table<ElementType,
          void (*)(const T* from, std::ptrdiff_t slices, std::ptrdiff_t classes, std::ptrdiff_t tile_classes,
                   std::byte* to, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride),
          floating_types>
        scatter_tiles;
};

// Gathers the scores at `numbers` labels of each of some neighbouring slices, of any type. A label that is no class
// gives NaN; the function then returns false. Strides are in bytes.
using GatherAt = bool (*)(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride, bool swapped,
                          std::ptrdiff_t slices, std::ptrdiff_t classes, const std::int64_t* labels,
                          std::ptrdiff_t numbers, double* to);

// A class of a slice, and its score.
struct Pick {
    double score;
    std::int64_t label;
};

// The scores of a slice that passed a threshold, class after class.
struct Picks {
    Pick* begin;  // there is memory for one more than `room`
    std::ptrdiff_t count, room;
    double threshold;  // to be exceeded
};

// Selects the largest scores of a block, whose packs are taken in groups. `largest_of_groups` gives the largest score
// of each lane of each group, in the type computed in. `raised` gives a threshold that at least k of these pass, or the
// given one if fewer pass that. `pick` adds the scores that pass it, beginning with a group; it returns the group for
// which there was no room, or the number of groups.
struct Selection {
    Table<ElementType, void (*)(const void* x, std::ptrdiff_t count, std::ptrdiff_t group, void* largest),
          floating_types>
        largest_of_groups;
    Table<ElementType, double (*)(const void* largest, std::ptrdiff_t groups, std::ptrdiff_t k, double threshold),
          floating_types>
        raised;
    Table<ElementType,
          std::ptrdiff_t (*)(const void* x, std::ptrdiff_t count, std::ptrdiff_t group, const void* largest,
                             std::ptrdiff_t origin, std::ptrdiff_t first_group, Picks& picks),
          floating_types>
        pick;
    // Gives the labels of the k largest picks, largest first. There are at most `most_ranked` picks, ordered by label.
    Table<ElementType, void (*)(const Picks&, std::ptrdiff_t k, std::int64_t* labels), floating_types> rank;
    // Gives the k largest scores and their labels for the first `count` slices of a tile. Successive picks of a slice
    // are `step` numbers apart.
    Table<ElementType,
          void (*)(const void* tile, std::ptrdiff_t classes, int count, std::ptrdiff_t k, std::ptrdiff_t step,
                   double* scores, std::int64_t* labels),
          floating_types>
        largest_of_tile;
};

// exp and log1p in T by themselves, for the tests of their error. Results of exp are too large by the factor that it
// returns.
template <class T>
struct Functions {
    double (*exp)(const T* x, std::ptrdiff_t count, T* to);
    void (*log1p)(const double* x, std::ptrdiff_t count, T* to);
};

struct Kernels {
    const char* name;
    Table<Operation, Kernel, operations> of;
    WeighedKernel weighed;
    SamplingKernel sampling;
    PiecesKernel pieces;
    Conversions<float> to_float;
    Conversions<double> to_double;
    Table<ElementType, GatherAt, element_types> gather_at;
    Selection selection;
    // Computes log-probabilities of `numbers` scores of each slice from the sums of a run's slices. The numbers of a
    // slice follow each other if `step` is 0, else they are `step` apart. Both arrays have room for a pack more.
    Table<ElementType,
          void (*)(const Run&, std::ptrdiff_t numbers, std::ptrdiff_t step, const double* scores, double* results),
          floating_types>
        log_probabilities;
    Functions<float> float_functions;
    Functions<double> double_functions;
};

}  // namespace fastsoftmax
