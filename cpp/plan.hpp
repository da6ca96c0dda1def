// How a call goes over its slices: which loop, in which units, with which memory. Pure data, known before anything is
// read.
#pragma once

#include "slices.hpp"

namespace fastsoftmax {

enum class Loop {
    rows,           // in place: classes are contiguous
    gathered_rows,  // through a row of the thread's own: any strides, types and masks
    tiles,          // through tiles of the thread's own: few classes, or neighbouring slices contiguous
    lines,          // in place: neighbouring slices are contiguous
};

// The most slices that a kernel takes at once if each has labels or results of its own.
constexpr std::ptrdiff_t slices_per_call = 256;

// Beyond this range, the parts of the temperature's reciprocal are not normal floats.
constexpr bool suits_float(double temperature) { return temperature > 0x1p-100 && temperature < 0x1p100; }

// A call's demands on its plan.
struct Demands {
    double temperature = 1;
    bool in_order = false;      // visit slices in C order, not in the order of their memory
    bool whole_slices = false;  // take all classes of a slice at once, however many
    bool in_blocks = false;     // take slices of any length in blocks
    bool as_rows = false;       // no lines; slices of few classes are gathered to tiles
};

// The parts of one thread's memory.
struct Workspace {
    std::byte* x;              // gathered scores: rows, a block or tiles; results take their place
    std::byte* second;         // the second array, likewise
    std::byte* second_output;  // results of a second output
    Statistics* statistics;    // for each slice of a unit: those of all blocks together, then of each
    std::byte* kept;           // exponentials that cannot be kept in the memory of the results
    double* value;             // per-slice results of a kernel call, one slice after another
    double* sign;
    double* extra;  // for the caller's own use
};

// The lanes of a pack of float32 or float64.
constexpr int lanes_of(ElementType type) { return type == ElementType::float32 ? 16 : 8; }

// Whether a kernel needs memory for the exponentials of rows, because it cannot keep them in that of the results.
constexpr bool keeps_rows(const Signature& signature, std::ptrdiff_t classes, int lanes, bool in_place) {
    return signature.keeps_exponentials && in_place && classes > most_padded_packs * lanes;
}

struct Plan {
    Plan(const Signature& signature, const Slices& given, const Demands& demands);

    Slices slices;  // those of the call, with as few axes as possible; sorted unless C order is demanded
    std::ptrdiff_t count, classes;
    bool in_float;  // or in double
    Loop loop = Loop::gathered_rows;
    bool in_blocks = false;  // slices are measured, or gathered, in blocks

    // Work is dealt out in units of `unit` neighbouring slices along the last batch axis, which has `along` slices in
    // `units_along` units. A kernel takes up to `at_once` slices at a time.
    std::ptrdiff_t unit = 1, along = 1, units_along = 1, units = 0, at_once = 1;

    ElementType type() const { return slices.arrays[Role::scores].type; }
    int lanes() const { return lanes_of(computed()); }
    std::ptrdiff_t width() const { return in_float ? 4 : 8; }
    ElementType computed() const { return in_float ? ElementType::float32 : ElementType::float64; }
    bool halves() const { return in_float && bytes_of(type()) == 2; }
    // Whether kernels take blocks in place. By the fixed reference (`near`) they also take those of halves.
    bool has_blocks_in_place(bool near) const { return loop == Loop::rows && (near || !halves()); }
    std::ptrdiff_t blocks() const { return (classes + block_classes - 1) / block_classes; }

    // Calls f.operator()<T>() with the type computed in.
    template <class F>
    auto in_type(F f) const {
        return in_float ? f.template operator()<float>() : f.template operator()<double>();
    }

    // The first slice of a unit.
    std::ptrdiff_t slice_of(std::ptrdiff_t index) const {
        return index == units ? count : index / units_along * along + index % units_along * unit;
    }

    // How many doubles of memory each thread needs; and the parts of such memory.
    std::ptrdiff_t workspace_size() const { return sizes_.total(); }
    Workspace workspace(double* memory) const;

  private:
    struct Sizes {
        std::ptrdiff_t x = 0, second = 0, second_output = 0, statistics = 0, kept = 0, value = 0, sign = 0;
        std::ptrdiff_t total() const { return x + second + second_output + statistics + kept + value + sign; }
    } sizes_;

    void sort_batch();
    bool is_plain(const Signature& signature, const Demands& demands) const;
    bool in_place(const Signature& signature, const Axes& contiguous) const;
    bool takes_rows(const Signature& signature, const Demands& demands) const;
    bool takes_lines(const Signature& signature, const Demands& demands) const;
    void choose_loop(const Signature& signature, const Demands& demands);
    void choose_sizes(const Signature& signature, const Demands& demands);
    std::ptrdiff_t kept_size(const Signature& signature) const;
    std::ptrdiff_t in_doubles(std::ptrdiff_t elements) const;
};

}  // namespace fastsoftmax
