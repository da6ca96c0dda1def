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

// Kernels compute float32 and float64; the others are gathered to one of these, the floating ones scattered back.
enum ElementType : int {
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
constexpr int floating_types = 4;
constexpr int element_types = 13;

enum Operation : int {
    softmax,
    log_softmax,
    logsumexp,
    softmax_grad,
    log_softmax_grad,
    cross_entropy,
    cross_entropy_grad,
};
constexpr int operations = 7;

// An array as a kernel walks it: the stride from slice to slice in bytes.
struct Strided {
    std::byte* data = nullptr;
    std::ptrdiff_t slice_stride = 0;
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
    double temperature = 1;
    Strided x;    // scores; of the gradients of the transforms: y or logp
    Strided dy;   // gradients of the transforms
    Strided out;  // none for logsumexp and the loss
    Ahead scores_ahead, dy_ahead, results_ahead;

    double* value = nullptr;  // logsumexp, or the loss before any reduction
    // Cross-entropy: loss = chosen * -log p[target] + sum over classes of terms * -log p; its gradient times `scale`.
    const std::int64_t* target = nullptr;  // null: `terms` alone; an entry that is no class: an ignored slice
    const double* chosen = nullptr;
    const double* scale = nullptr;     // gradient alone
    const double* exponent = nullptr;  // of a power of two that multiplies it besides; null: none
    const void* terms = nullptr;       // of the type computed in, one a class for all slices; null: none
    double spread = 0;                 // the sum of these
    bool own_terms = false;            // or one a class for each slice, in rows or tiles as the scores are
};

// What a block of a slice says of it; those of all blocks, merged in order, decide every result. Exponentials are
// exp((x - shift) / temperature) * 2^(exponent_bias - reference), all with one factor. Sums are two parts, of which
// float's results need the first alone. Neither this nor the next has a constructor: it would be a weak symbol of every
// target.
struct Statistics {
    double max;           // the largest entry that is not NaN
    std::int64_t argmax;  // its first position
    double shift;         // 0, or max where max / temperature is too large to go without
    double reference;     // an integer
    double top[2];        // the exponential of the largest entry; NaN where max is infinite
    double rest[2];       // the sum of the others', of softmax of all; of the gradients of the transforms: their sum,
                          // in units of 2^reference
    double target_score;  // of a loss: read before anything is written
};

// What a block of a slice says of its weighed sum: sum * 2^reference * exp(shift), unless something infinite decides.
struct WeighedSum {
    double shift, reference;
    double sum[2];
    bool some;                // something takes part
    bool positive, negative;  // there is an infinite term of that sign
    bool undefined;           // there is a NaN
};

// The same sum without rounding: of sum * 2^reference, digits of 32 bits, the last of weight 2^-exact_bits, each with
// room for what it is to carry. What is below that is left out.
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
constexpr std::ptrdiff_t few_classes = 32;

// What is done in T, float or double.
template <class T>
struct KernelsIn {
    // Slices in rows: the classes are contiguous.
    void (*rows[operations])(const Run&);

    // Slices in tiles: a pack of slices at a time, class by class. Results take the place of scores.
    void (*tiles[operations])(const Run&);

    // One long row (the run's only slice) in blocks, which threads may share: measure each block, merge them in order,
    // conclude what is one value a slice, write each block. Where the output is another row than the scores, measuring
    // may leave exponentials in it, and writing may take them from there.
    Statistics (*measure[operations])(const Run&, std::ptrdiff_t begin, std::ptrdiff_t end);
    void (*conclude[operations])(const Run&, const Statistics&);
    void (*write[operations])(const Run&, const Statistics&, const Statistics& of_block, std::ptrdiff_t begin,
                              std::ptrdiff_t end);

    // Elements to rows and tiles of T, and back. Strides in bytes.
    void (*gather_row[element_types])(const std::byte* from, std::ptrdiff_t stride, bool swapped, std::ptrdiff_t count,
                                      T* to);
    void (*scatter_row[floating_types])(const T* from, std::ptrdiff_t count, std::byte* to, std::ptrdiff_t stride);
    void (*gather_tiles[element_types])(const std::byte* from, std::ptrdiff_t slice_stride, std::ptrdiff_t class_stride,
                                        bool swapped, std::ptrdiff_t slices, std::ptrdiff_t classes,
                                        std::ptrdiff_t tile_classes, T* to);
    void (*scatter_tiles[floating_types])(const T* from, std::ptrdiff_t slices, std::ptrdiff_t classes,
                                          std::ptrdiff_t tile_classes, std::byte* to, std::ptrdiff_t slice_stride,
                                          std::ptrdiff_t class_stride);

    // The bare functions, for the tests of their error. What exp gives is as many times too large as it returns.
    double (*exp)(const T* x, std::ptrdiff_t count, T* to);
    void (*log1p)(const double* x, std::ptrdiff_t count, T* to);
};

struct Kernels {
    const char* name;

    void (*merge[operations])(const Run&, Statistics& left, const Statistics& right);

    KernelsIn<float> in_float;
    KernelsIn<double> in_double;

    // log|sum of b exp(x)| and its sign: measure each block, merge them in order, conclude.
    WeighedSum (*measure_weighed)(const double* x, const double* b, std::ptrdiff_t count);
    void (*merge_weighed)(WeighedSum& left, const WeighedSum& right);
    void (*conclude_weighed)(const WeighedSum&, double* log, double* sign);
    // Where a sum is nothing beside its terms: add each block, round.
    void (*add_exactly)(ExactSum& sum, const double* x, const double* b, std::ptrdiff_t count);
    WeighedSum (*round_exact)(ExactSum& sum);
};

}  // namespace fastsoftmax
