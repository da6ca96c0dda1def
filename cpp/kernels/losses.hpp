// The labels of slices.
#pragma once

#include "results.hpp"

namespace {

// One class for each slice of a pack.
template <class T>
class Classes {
  public:
    FASTSOFTMAX_INLINE explicit Classes(const std::int64_t* index) {
        for (int i = 0; i < parts; ++i) part_[i] = load_pack<std::int64_t>(index + i * Pack<std::int64_t>::lanes);
    }

    // The classes as integers as wide as T. For float these are the lower halves, so classes have to be below 2^31.
    FASTSOFTMAX_INLINE Pack<Integer<T>> few() const {
        if constexpr (parts == 2)
            return to_int32(joined(part_[0], part_[1]));
        else
            return part_[0];
    }

  private:
    static constexpr int parts = Pack<T>::lanes / Pack<std::int64_t>::lanes;
    Pack<std::int64_t> part_[parts];
};

// One class for each slice, as integers as wide as T, to be compared with a class.
template <class T>
class Positions {
  public:
    FASTSOFTMAX_INLINE explicit Positions(const std::int64_t* classes) : positions_(Classes<T>(classes).few()) {}
    // The slices whose class is c.
    FASTSOFTMAX_INLINE Mask<T> at(std::ptrdiff_t c) const {
        return equal(positions_, broadcast(static_cast<Integer<T>>(c)));
    }

  private:
    Pack<Integer<T>> positions_;
};

// The labels of up to a pack of slices, from `first` of the run on.
template <class T>
struct Labels {
    static constexpr int lanes = Pack<T>::lanes;
    std::int64_t index[lanes];  // negative: none
    bool given;                 // whether the run has labels; if not, no slice is ignored
    bool any_ignored;
    Doubles<T> chosen;

    FASTSOFTMAX_INLINE Labels(const Run& run, std::ptrdiff_t first, int count) {
        given = run.label != nullptr;
        any_ignored = false;
        chosen = doubles<T>(0);
        if (given && count == lanes) {
            __builtin_memcpy(index, run.label + first, sizeof index);
            chosen = load_doubles<T>(run.chosen + first);
        } else {
            for (auto& none : index) none = -1;
            if (!given) return;
            for (int i = 0; i < count; ++i) index[i] = run.label[first + i];
            chosen = load_doubles<T>(run.chosen + first, count);
        }
        // The sign bit is set if an index is negative or above the last class.
        std::uint64_t signs = 0;
        const auto last = static_cast<std::uint64_t>(run.classes - 1);
        for (int i = 0; i < count; ++i) {
            const auto c = static_cast<std::uint64_t>(index[i]);
            signs |= c | (last - c);
        }
        any_ignored = signs >> 63;
        if (!any_ignored) return;
        for (auto& c : index)
            if (c >= run.classes) c = -1;
    }

    FASTSOFTMAX_INLINE bool ignored(int i) const { return given && index[i] < 0; }
};

}  // namespace
