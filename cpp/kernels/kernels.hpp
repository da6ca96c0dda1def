// What a target offers: one table of functions over plain pointers. The layers above see only this.
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

// An array with one element for each enumerator of Key. Inlined always: a copy compiled for one target must not serve
// another.
template <class Key, class Value, int count>
struct Table {
    Value values[count];

    [[gnu::always_inline]] constexpr Value& operator[](Key key) { return values[static_cast<int>(key)]; }
    [[gnu::always_inline]] constexpr const Value& operator[](Key key) const { return values[static_cast<int>(key)]; }
};

// Kernels compute float32 and float64; the others are gathered to one of these, and the floating ones scattered back,
// except for rows of halves that a kernel reads and writes itself.
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

// How many numbers each slice has: none, one, or as many as the slices' own axes have elements.
enum class PerSlice { none, one, own };

// What an operation reads, writes and keeps. The layers above ask this and not which operation it is.
struct Signature {
    const char* name;
    bool second = false;               // reads a second array with the class axis beside the scores
    PerSlice labels = PerSlice::none;  // reads labels of each slice, and their coefficients; or picks labels
    bool output = false;               // writes an array with the class axis
    bool second_output = false;        // and another one, if there is an array for it
    PerSlice value = PerSlice::none;   // writes numbers of each slice
    PerSlice sign = PerSlice::none;    // writes their signs, if there is an array for them
    double masked_scores = 0;          // what stands for a masked entry of the scores
    double masked_second = 0;          // and of the second array
    double masked_output = 0;          // what a masked entry of the output becomes
    bool keeps_exponentials = false;   // exponentials may wait where the results will stand
    bool keeps_both = false;           // those of the scores and of the second array wait in memory of their own
    bool rows_of_halves = false;       // reads and writes rows of float16 and bfloat16 itself
    bool sums_exponentials = false;    // by the fixed reference: then it takes lines, and halves of few classes, itself
    int state = 0;                     // doubles that tell of a block of a slice
    // The value where no entry takes part, if the kernel gives NaN there.
    double value_of_none = __builtin_nan("");
};

// An array as a kernel walks it, with strides in bytes: from slice to slice and, in lines, from class to class.
struct Strided {
    std::byte* data = nullptr;
    std::ptrdiff_t slice_stride = 0, class_stride = 0;
};

// Memory that is wanted soon, for tiles to have it fetched while they compute: a cache line for each class of each
// tile.
struct Ahead {
    const std::byte* data = nullptr;
    std::ptrdiff_t tile_stride = 0, class_stride = 0;
};

// Neighbouring slices at constant strides, and what one operation needs of them. Arrays of pointers to one value a
// slice begin at the run's first slice.
struct Run {
    std::ptrdiff_t slices = 0;
    std::ptrdiff_t classes = 0;
    std::ptrdiff_t origin = 0;  // the class that arrays begin with: not the first where the run is a block of a slice
    double temperature = 1;
    Strided x;             // scores; of the gradients of the transforms: y or logp
    Strided dy;            // gradients of the transforms
    Strided out;           // none for logsumexp, entropy and the loss
    Strided second_out;    // none unless asked for: the Hessian
    void* kept = nullptr;  // where rows or lines may keep exponentials
    bool stream = false;   // the results of all runs are too large for the caches
    bool measured = true;  // measuring a block has kept its exponentials, from which it can be written
    Ahead scores_ahead, dy_ahead, results_ahead;

    double* value = nullptr;  // logsumexp, entropy, or the loss before any reduction
    double* sign = nullptr;   // of the sum; null: not wanted
    // Of logsumexp, in place of its value: what the exponentials of each slice sum up to, `parts_of_sums` numbers of
    // the type computed in, where a class stride leads from one to the next.
    Strided sums;
    // Cross-entropy: loss = chosen * -log p[label] + sum over classes of terms * -log p; its gradient times `scale`.
    const std::int64_t* label = nullptr;  // null: only `terms`; an entry that is no class: an ignored slice
    const double* chosen = nullptr;
    const double* scale = nullptr;         // only of the gradient
    const double* exponent = nullptr;      // of a power of two that multiplies it besides; null: none
    const double* second_scale = nullptr;  // likewise of the Hessian
    const double* second_exponent = nullptr;
    const void* terms = nullptr;  // of the type computed in, one a class for all slices; null: none
    double sum_of_terms = 0;
    bool own_terms = false;  // or one a class for each slice, in rows or tiles as the scores are
};

// The state of an operation: what a block of a slice tells of it. Those of all blocks, merged in order, decide every
// result. Sums are two parts, of which float's results need only the first. Neither this nor the next has a
// constructor: it would be a weak symbol of every target.
struct Statistics {
    double reference;    // of exponentials, the largest score of the slice, unless it is fixed; of the gradients of the
                         // transforms an integer: their sum is in units of 2^reference
    double max;          // the largest score of the block that is not NaN
    double rest[2];      // the sum of the exponentials of all others, or in softmax of all, or of all but the label's
    double only;         // of softmax: the only exponential that is not 0
    double weighed[2];   // of the entropy: the sum of exponentials times (the largest score - theirs) / temperature
    double label_score;  // of a loss: read before anything is written
    double others[2];    // with a Hessian: the sum of all but the largest score's, where that may be above half of it
    bool several;        // of softmax: there are several
    bool near;           // the fixed reference suits it
    bool value_near;     // or, of a loss, at least its value
};

// The statistics of a slice of which some pieces are known; an element of a NumPy array. Sums are by the reference of
// the largest score, and have two parts.
struct Total {
    double max;         // the largest score that is not NaN; NaN: nothing has taken part
    double rest[2];     // the sum of the exponentials of all others
    double sum[2];      // of all, as softmax adds them
    double weighed[2];  // of the entropy, as in Statistics
    // Exponentials that are not 0: none, one, or 2 for several; by this reference, and by the fixed one.
    std::int64_t nonzero, near_nonzero;
    std::int64_t classes;
};

// What a block of a slice tells of its weighed sum: sum * 2^reference * exp(shift), unless something infinite decides.
struct WeighedSum {
    double shift, reference;
    double sum[2];
    bool some;                // something takes part
    bool positive, negative;  // there is an infinite term of that sign
    bool undefined;           // there is a NaN
};

// The same sum without rounding: the digits of sum * 2^reference, of 32 bits each with room for what they are to carry,
// the first of weight 2^-exact_bits. Smaller parts are left out.
constexpr int exact_bits = 32768, exact_digits = exact_bits / 32 + 8;
struct ExactSum {
    double shift, reference;
    std::int64_t digits[exact_digits];
};

// A slice of more classes than this is summed in blocks of this many, from the first class on: a part of the order of
// summation, so never to depend on anything. 16384 float32 are half of the smallest second-level cache in use.
constexpr std::ptrdiff_t block_classes = 16384;

// Slices of at most this many classes go through tiles: a pack holds one class of many slices, where a row would leave
// most of a pack empty.
constexpr std::ptrdiff_t few_classes = 56;

// Bytes of neighbours' exponentials that lines keep at a time: half of a second-level cache of 1 MiB. With a quarter of
// this, axis 0 of (1000, 4096) took 1.4 times as long.
constexpr std::ptrdiff_t lines_room = 524288;

// Bytes of rows that are computed together, unless one row has more: half of the smallest first-level cache.
constexpr std::ptrdiff_t rows_room = 16384;

// Largest score, its exponential, and the sum of all others, the latter two in two parts.
constexpr int parts_of_sums = 5;

// Up to this many picks are ranked by comparing each with every other one. More are sorted, which is then faster.
constexpr std::ptrdiff_t most_ranked = 256;

// How many rows are computed together where exponentials of two arrays are kept.
static constexpr std::ptrdiff_t rows_of_both(std::ptrdiff_t classes, std::ptrdiff_t lanes, std::ptrdiff_t width) {
    const std::ptrdiff_t fit = rows_room / (2 * width * (classes > 0 ? classes : 1));
    return fit < 1 ? 1 : fit < lanes ? fit : lanes;
}

// Rows of at most this many packs are kept in padded rows of the stack: there, the ends of rows cost most.
constexpr std::ptrdiff_t most_padded_packs = 13;

// One long row, the run's only slice, in blocks that threads may share. Each block is measured, the blocks are merged
// in order, the slice's own numbers are concluded, and each block is written. A block has `count` classes and begins
// with the run's origin. If the output is another row than the scores, or of halves if there is room in run.kept,
// measuring may leave exponentials there for writing to use.
struct Blocks {
    // The largest score of a block. The reference of a slice is that of all its blocks; null: it needs none.
    double (*largest)(const Run&, std::ptrdiff_t count);
    Statistics (*measure)(const Run&, double reference, std::ptrdiff_t count);
    void (*merge)(const Run&, Statistics& left, const Statistics& right);
    void (*conclude)(const Run&, Statistics&);
    void (*write)(const Run&, const Statistics&, std::ptrdiff_t count);
};

// One operation.
struct Kernel {
    Signature signature;

    // Slices whose elements are of a type, in place; null: they are gathered first. In rows the classes are contiguous,
    // in lines neighbouring slices.
    Table<ElementType, void (*)(const Run&), floating_types> rows, lines;
    // Slices in tiles, of float or double: a pack of slices at a time, class by class. Results take the place of
    // scores.
    Table<ElementType, void (*)(const Run&), floating_types> tiles;
    // Rows in blocks, with the fixed reference, unless the target does without, so that the slice may turn out to be
    // far from it; and without.
    Table<ElementType, Blocks, floating_types> near_blocks, blocks;
};

// log|sum of b exp(x)| and its sign: measure each block, merge them in order, conclude.
struct WeighedKernel {
    Signature signature;
    WeighedSum (*measure)(const double* x, const double* b, std::ptrdiff_t count);
    void (*merge)(WeighedSum& left, const WeighedSum& right);
    void (*conclude)(const WeighedSum&, double* log, double* sign);
    // Where a sum is nothing beside its terms: add each block, round.
    void (*add_exactly)(ExactSum& sum, const double* x, const double* b, std::ptrdiff_t count);
    WeighedSum (*round_exact)(ExactSum& sum);
};

// Totals of pieces.
struct PiecesKernel {
    Signature signature;
    // Softmax adds all exponentials of a block, the entropy all except the largest. `near_all`: softmax by the fixed
    // reference.
    Table<ElementType, Blocks, floating_types> all, rest, near_all;
    // Rescales a total to the reference of a score that is at least as large as its largest.
    Table<ElementType, void (*)(Total&, double largest, double temperature), floating_types> raise;
    // A total as the statistics of a slice with a reference of its own, or with the fixed one, by which its sums may be
    // out of range. `all`: as softmax needs them; else as the others do.
    Table<ElementType, Statistics (*)(const Total&, bool all, double temperature), floating_types> own, near;
    // Converts the exponentials of float to those of double.
    void (*widen)(Total&, double temperature);
};

// Keys: scores as integers in the same order, which selection by histogram counts in.

// Equal scores, 0 and -0 among them, have equal keys. Not of NaN.
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

// Of keys that may be further apart than int64 holds.
[[gnu::always_inline]] constexpr std::uint64_t keys_between(std::int64_t from, std::int64_t to) {
    return static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from);
}
[[gnu::always_inline]] constexpr std::int64_t advanced(std::int64_t key, std::uint64_t keys) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(key) + keys);
}

// Scores of a range of keys, in as many bins of 2^shift keys as it takes.
struct Bracket {
    std::int64_t low, high;  // both are within
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

// A sum that is short of another by rounding alone reaches it: this times it.
template <class T>
constexpr double sums_reach = 1 - (sizeof(T) == 4 ? 0x1p-21 : 0x1p-46);

// What sampling needs of blocks of scores of T.
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

// Elements of any type to rows and tiles of T, and back. Strides in bytes.
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

// Of neighbouring slices of elements of any type, those at `numbers` labels of each; NaN at one that is no class, and
// then false. Strides in bytes.
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
    Pick* begin;  // and one more
    std::ptrdiff_t count, room;
    double threshold;  // to be exceeded
};

// Selection of the largest scores of a block, whose packs are taken in groups: the largest of each lane of each group,
// of the type computed in; a threshold that at least k of these pass, or the one given; and the scores that pass it,
// from a group on, up to the group that is returned, behind the last unless there was no room.
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
    // The labels of the k largest, largest first, of at most `most_ranked` picks in the order of their labels.
    Table<ElementType, void (*)(const Picks&, std::ptrdiff_t k, std::int64_t* labels), floating_types> rank;
    // The k largest scores, and their labels, of the first `count` slices of a tile. From one pick of a slice to its
    // next it is `step` numbers.
    Table<ElementType,
          void (*)(const void* tile, std::ptrdiff_t classes, int count, std::ptrdiff_t k, std::ptrdiff_t step,
                   double* scores, std::int64_t* labels),
          floating_types>
        largest_of_tile;
};

// The bare functions in T, for the tests of their error. What exp gives is as many times too large as it returns.
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
    // From the sums of a run's slices: the log-probabilities of `numbers` scores of each, which follow each other or,
    // with a step, are so far apart. Both arrays have a pack more.
    Table<ElementType,
          void (*)(const Run&, std::ptrdiff_t numbers, std::ptrdiff_t step, const double* scores, double* results),
          floating_types>
        log_probabilities;
    Functions<float> float_functions;
    Functions<double> double_functions;
};

}  // namespace fastsoftmax
