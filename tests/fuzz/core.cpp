// A libFuzzer target over the core. The input's bytes choose an operation and its arrays, of any shape, strides, dtype,
// byte order and values. Every element of the result must agree with a plain definition in long double, within the
// bounds that the README lists, and no other byte may change. Each array lies in memory of exactly its own size, so
// that AddressSanitizer sees an access one byte too far. See CONTRIBUTING.md for how to run it.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "operations.hpp"
#include "targets.hpp"
#include "threads.hpp"

// In place of threads.cpp: computes chunks one after another, the last one first. Their order must not matter, and runs
// can be repeated.
namespace fastsoftmax {

static int threads_now = 1;

int threads_for(std::ptrdiff_t elements) { return elements < 128 ? 1 : threads_now; }

// So low that little work is divided, too.
const std::ptrdiff_t elements_per_chunk = 64;

void run_shared(std::ptrdiff_t count, std::ptrdiff_t chunk, int threads, RangeBody call, const void* body) {
    if (count <= chunk) return call(body, 0, count, 0);  // without work, a chunk is 0
    std::ptrdiff_t chunks = (count + chunk - 1) / chunk;
    while (chunks-- > 0)
        call(body, chunks * chunk, std::min((chunks + 1) * chunk, count), static_cast<int>(chunks % threads));
}

}  // namespace fastsoftmax

namespace {

using namespace fastsoftmax;
using enum ElementType;
using enum Operation;
using enum Role;
using Real = long double;

constexpr Real infinity = std::numeric_limits<Real>::infinity();
const Real nan_value = std::numeric_limits<Real>::quiet_NaN();

// --- elements

constexpr Table<ElementType, const char*, element_types> name_of = {{"float16", "bfloat16", "float32", "float64",
                                                                     "bool", "int8", "int16", "int32", "int64", "uint8",
                                                                     "uint16", "uint32", "uint64"}};

// Copies one element, of a size that the compiler knows.
void copy_element(void* to, const void* from, ElementType type) {
    switch (bytes_of(type)) {
        case 1:
            std::memcpy(to, from, 1);
            break;
        case 2:
            std::memcpy(to, from, 2);
            break;
        case 4:
            std::memcpy(to, from, 4);
            break;
        default:
            std::memcpy(to, from, 8);
    }
}

bool is_floating(ElementType type) { return static_cast<int>(type) < floating_types; }

// float16, bfloat16, float32, float64.
struct Format {
    int mantissa, least_exponent;
    Real largest;

    Real smallest_normal() const { return std::ldexp(Real(1), least_exponent); }
    // Exponentials below this may become 0: they are computed 2^64 times as large, and subnormal ones may vanish.
    Real vanishing() const { return smallest_normal() * 0x1p-60L; }
    Real smallest_subnormal() const { return std::ldexp(Real(1), least_exponent - mantissa); }
};
const Table<ElementType, Format, floating_types> formats = {
    {{10, -14, 65504}, {7, -126, 0x1.fep127L}, {23, -126, 0x1.fffffep127L}, {52, -1022, 0x1.fffffffffffffp1023L}}};

template <class E>
Real as(std::uint64_t bits) {
    E element;
    std::memcpy(&element, &bits, sizeof element);
    return static_cast<Real>(element);
}

// Not every compiler has a float16 type, so these two compute with its bits.
Real from_float16(std::uint64_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    Real size = std::ldexp(Real(exponent ? 1024 + fraction : fraction), (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = fraction ? nan_value : infinity;
    return bits & 0x8000 ? -size : size;
}

std::uint64_t to_float16(double value) {
    const std::uint64_t sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::fabs(value);
    if (std::isnan(value)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
    // The leading 1 of a normal number adds 1 to its exponent.
    return sign | ((exponent + 14) * 1024 + std::lrint(std::ldexp(size, 10 - exponent)));
}

// The value that the core promises to see: that of an integer is rounded to float64.
Real value_of(ElementType type, std::uint64_t bits) {
    switch (type) {
        case float16:
            return from_float16(bits);
        case bfloat16:
            return as<float>(bits << 16);
        case float32:
            return as<float>(bits);
        case float64:
            return as<double>(bits);
        case boolean:
            return (bits & 0xff) != 0;
        case int8:
            return as<std::int8_t>(bits);
        case int16:
            return as<std::int16_t>(bits);
        case int32:
            return as<std::int32_t>(bits);
        case int64:
            return static_cast<double>(static_cast<std::int64_t>(bits));
        case uint8:
            return as<std::uint8_t>(bits);
        case uint16:
            return as<std::uint16_t>(bits);
        case uint32:
            return as<std::uint32_t>(bits);
        default:
            return static_cast<double>(bits);
    }
}

std::uint64_t bits_of(ElementType type, double value) {
    std::uint64_t bits = 0;
    if (type == float16) {
        bits = to_float16(value);
    } else if (type == bfloat16 || type == float32) {
        const auto element = static_cast<float>(value);
        std::memcpy(&bits, &element, sizeof element);
        if (type == bfloat16) bits >>= 16;
    } else if (type == float64) {
        std::memcpy(&bits, &value, sizeof value);
    } else if (std::fabs(value) < 0x1p62) {
        bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
    }
    return bits;
}

// --- arrays

struct Shape {
    std::vector<std::ptrdiff_t> sizes;
    std::vector<bool> is_class;

    // The product of the batch axes or of the class axes.
    std::ptrdiff_t count(bool classes) const {
        std::ptrdiff_t product = 1;
        for (std::size_t d = 0; d < sizes.size(); ++d)
            if (is_class[d] == classes) product *= sizes[d];
        return product;
    }
};

// An array in memory of exactly its own size.
struct Memory {
    ElementType type = float32;
    bool swapped = false;
    std::vector<std::ptrdiff_t> strides;  // one for each axis; 0 for class axes if there is one element per slice
    std::ptrdiff_t first = 0, size = 0;
    std::unique_ptr<std::byte[]> bytes, before;
    std::vector<std::ptrdiff_t> of_batch, of_class;  // offsets in C order

    std::byte* data() const { return bytes.get() + first; }
    std::byte* at(std::ptrdiff_t slice, std::ptrdiff_t c = 0) const { return data() + of_batch[slice] + of_class[c]; }

    std::uint64_t bits(std::ptrdiff_t slice, std::ptrdiff_t c = 0) const {
        std::uint64_t found = 0;
        load(&found, at(slice, c));
        return found;
    }
    Real value(std::ptrdiff_t slice, std::ptrdiff_t c = 0) const { return value_of(type, bits(slice, c)); }

    void set_bits(std::byte* place, std::uint64_t bits) const {
        auto* from = reinterpret_cast<std::byte*>(&bits);
        if (swapped) std::reverse(from, from + bytes_of(type));
        copy_element(place, from, type);
    }

  private:
    void load(std::uint64_t* bits, const std::byte* place) const {
        auto* to = reinterpret_cast<std::byte*>(bits);
        copy_element(to, place, type);
        if (swapped) std::reverse(to, to + bytes_of(type));
    }
};

// Offsets of all elements of the batch axes, or of the class axes, in C order.
std::vector<std::ptrdiff_t> offsets(const Shape& shape, const std::vector<std::ptrdiff_t>& strides, bool classes) {
    std::vector<std::ptrdiff_t> all{0};
    for (std::size_t d = 0; d < shape.sizes.size(); ++d) {
        if (shape.is_class[d] != classes) continue;
        std::vector<std::ptrdiff_t> next;
        next.reserve(all.size() * static_cast<std::size_t>(shape.sizes[d]));
        for (const std::ptrdiff_t offset : all)
            for (std::ptrdiff_t i = 0; i < shape.sizes[d]; ++i) next.push_back(offset + i * strides[d]);
        all = std::move(next);
    }
    return all;
}

// --- the definitions

// a + b and what its rounding lost (Knuth).
struct Two {
    Real high, low;
};
Two two_sum(Real a, Real b) {
    const Real high = a + b, part = high - a;
    const Real low = (a - (high - part)) + (b - part);
    return {high, std::isfinite(high) ? low : 0};
}

// Exact: parts that do not overlap, the smallest first (Shewchuk).
class Sum {
  public:
    void add(Real x) {
        std::size_t kept = 0;
        for (const Real part : parts_) {
            const Two sum = two_sum(x, part);
            if (sum.low != 0) parts_[kept++] = sum.low;
            x = sum.high;
        }
        parts_.resize(kept);
        parts_.push_back(x);
    }
    Real total() const { return std::accumulate(parts_.begin(), parts_.end(), Real(0)); }

  private:
    std::vector<Real> parts_;
};

// (a - b) / divisor in two parts.
Two scaled_difference(Real a, Real b, Real divisor) {
    Two d = two_sum(a, -b);
    if (!std::isfinite(d.high)) return {d.high / divisor, 0};
    if (divisor == 1) return d;
    const Real quotient = d.high / divisor;
    const auto halves = [](Real x) {
        const Real scaled = x * 0x100000001p0L, upper = scaled - (scaled - x);
        return Two{upper, x - upper};
    };
    const Two q = halves(quotient), t = halves(divisor);
    const Real remainder = ((d.high - q.high * t.high) - q.high * t.low) - q.low * t.high - q.low * t.low;
    return {quotient, (remainder + d.low) / divisor};
}

// Exact results for the scores of a slice; an entry of -inf takes no part.
struct Slice {
    std::vector<Two> distance;  // to the peak, over the temperature
    std::vector<Real> exponential;
    std::size_t top = 0;
    Real peak = -infinity, rest = 0;
    bool nan = false, empty = true;

    Slice(const std::vector<Real>& x, Real temperature) {
        for (std::size_t c = 0; c < x.size(); ++c) {
            nan = nan || std::isnan(x[c]);
            if (x[c] > peak) {
                peak = x[c];
                top = c;
            }
        }
        empty = peak == -infinity;
        if (!defined()) return;
        distance.reserve(x.size());
        exponential.reserve(x.size());
        Sum others;
        for (std::size_t c = 0; c < x.size(); ++c) {
            const Two d = scaled_difference(x[c], peak, temperature);
            const Real e = d.high > -11000 ? std::exp(d.high) * (1 + d.low) : 0;
            if (c != top) others.add(e);
            distance.push_back(d);
            exponential.push_back(e);
        }
        rest = others.total();
    }

    bool defined() const { return !nan && !empty && peak < infinity; }
    Real softmax(std::size_t c) const { return exponential[c] / (1 + rest); }
    Real others(std::size_t c) const { return (c == top ? rest : 1 + rest - exponential[c]) / (1 + rest); }
    Real entropy() const {
        Sum weighed;
        for (std::size_t c = 0; c < exponential.size(); ++c)
            if (exponential[c] != 0) weighed.add(-exponential[c] * (distance[c].high + distance[c].low));
        return std::log1p(rest) + weighed.total() / (1 + rest);
    }
    // The logarithm of softmax(c) minus that of another slice's, and how much of the difference long double may lose.
    Two log_ratio(const Slice& other, Real x, Real y, Real temperature, std::size_t c) const {
        const Two scores = two_sum(x, -y), peaks = two_sum(peak, -other.peak);
        const Real apart = ((scores.high - peaks.high) + (scores.low - peaks.low)) / temperature;
        const Real logs = std::log1p(rest) - std::log1p(other.rest), ratio = apart - logs;
        const Real size = (std::fabs(scores.high) + std::fabs(peaks.high)) / temperature + std::fabs(apart);
        // Each of the logarithms, and of the exponentials that they are of, may be off by 2 ULP.
        const Real lost = 0x1p-63L * (size + 8 * (std::log1p(rest) + std::log1p(other.rest)));
        return {ratio, exponential[c] == 0 ? 0 : lost};
    }
    Real log_softmax(std::size_t c) const { return distance[c].high - (std::log1p(rest) - distance[c].low); }
};

// --- one input, one call

class Case {
  public:
    Case(const std::uint8_t* data, std::size_t size) : given_(data, size) {
        // Large arrays take a hundred times as long, so they are rare whatever libFuzzer makes of the input.
        std::uint64_t hash = 0xcbf29ce484222325u;
        for (std::size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
        large_ = (hash >> 32) % 512 == 0;
        longer_ = (hash >> 32) % 32 == 1;
        random_ = hash;
    }

    void run() {
        choose_kernels();
        operation_ = static_cast<Operation>(given_.ConsumeIntegralInRange<int>(0, operations - 1));
        choose_shape();
        if (operation_ == log_softmax_at || operation_ == log_softmax_top_k) return run_picks();
        if (signature().labels != PerSlice::none) return run_loss();
        if (signature().keeps_both) return run_divergence();
        if (signature().second) return run_gradient();
        if (signature().output) return run_transform();
        if (operation_ == entropy) return run_entropy();
        const int which = in_range(0, 2);
        return which == 0 ? run_logsumexp() : which == 1 ? run_weighed() : run_sample();
    }

  private:
    FuzzedDataProvider given_;
    bool large_, longer_;
    std::uint64_t random_;
    Operation operation_ = softmax;
    Shape shape_;
    std::ptrdiff_t batch_ = 1, classes_ = 1;
    double temperature_ = 1;
    Table<Role, Memory, roles> memory_;
    Table<Role, bool, roles> in_place_ = {};  // the output is this array
    Slices slices_;
    Loss loss_;
    Real largest_weight_ = 1;

    const Signature& signature() const { return kernels().of[operation_].signature; }

    // --- choices

    std::uint64_t random() {  // splitmix64
        std::uint64_t z = random_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    template <class T>
    T in_range(T least, T most) {
        return given_.ConsumeIntegralInRange<T>(least, most);
    }
    bool rarely() { return in_range(0, 7) == 7; }
    ElementType any_type() { return static_cast<ElementType>(in_range(0, element_types - 1)); }
    ElementType floating_type() { return static_cast<ElementType>(in_range(0, floating_types - 1)); }
    // The type of the logits is floating more often than not.
    ElementType score_type() { return rarely() ? any_type() : floating_type(); }
    double any_double() {
        const auto bits = given_.ConsumeIntegral<std::uint64_t>();
        return static_cast<double>(value_of(float64, bits));
    }

    void choose_kernels() {
        static const std::vector<std::string> usable = targets_usable();
        const auto chosen = static_cast<std::size_t>(in_range(0, static_cast<int>(usable.size()) - 1));
        setenv("FASTSOFTMAX_TARGET", usable[chosen].c_str(), 1);
        choose_target();
        threads_now = in_range(1, 3);
    }

    void choose_shape() {
        const int axes = in_range(0, 4);
        std::ptrdiff_t left = large_ ? 80'000 : longer_ ? 1500 : rarely() ? 200 : 48;
        for (int d = 0; d < axes; ++d) {
            std::ptrdiff_t size;
            switch (in_range(0, 3)) {
                case 0:
                    size = in_range(0, 5);
                    break;
                case 1:
                    size = in_range(6, 40);
                    break;
                case 2:
                    size = 16 * in_range(1, 8) + in_range(-1, 1);  // round the widths of packs
                    break;
                default:
                    size = in_range(1, 300);
            }
            if (large_ && given_.ConsumeBool()) size = in_range(1000, 80'000);
            size = std::min(size, left);
            left /= std::max<std::ptrdiff_t>(size, 1);
            shape_.sizes.push_back(size);
            shape_.is_class.push_back(given_.ConsumeBool());
        }
        // Some operations need exactly one class axis, with at least one class.
        if (signature().labels != PerSlice::none || signature().keeps_both) {
            if (shape_.sizes.empty()) {
                shape_.sizes.push_back(3);
                shape_.is_class.push_back(true);
            }
            const auto axis = static_cast<std::size_t>(in_range(0, static_cast<int>(shape_.sizes.size()) - 1));
            shape_.is_class.assign(shape_.sizes.size(), false);
            shape_.is_class[axis] = true;
            shape_.sizes[axis] = std::max<std::ptrdiff_t>(shape_.sizes[axis], 1);
        }
        batch_ = shape_.count(false);
        classes_ = shape_.count(true);
        for (std::size_t d = 0; d < shape_.sizes.size(); ++d)
            (shape_.is_class[d] ? slices_.classes : slices_.batch).append({shape_.sizes[d], {}});
    }

    void choose_temperature() {
        switch (in_range(0, 3)) {
            case 0:
                temperature_ = std::ldexp(in_range(1, 255), in_range(-8, 4));
                break;
            case 1: {
                const double number = std::fabs(any_double());
                if (number > 0 && number < HUGE_VAL) temperature_ = number;
                break;
            }
            default:
                temperature_ = 1;
        }
    }

    // Chooses the layout of the array in a role and allocates it. `own`: no two of its elements share a byte.
    Memory& make(Role role, ElementType type, bool swapped, bool per_slice, bool own) {
        Memory& m = memory_[role];
        m.type = type;
        m.swapped = swapped;
        const std::size_t axes = shape_.sizes.size();
        m.strides.assign(axes, 0);
        std::vector<std::size_t> order(axes);
        for (std::size_t d = 0; d < axes; ++d) order[d] = axes - 1 - d;
        const int layout = in_range(0, 3);  // 0: C order
        if (layout == 1)
            for (std::size_t d = axes; d > 1; --d)
                std::swap(order[d - 1], order[static_cast<std::size_t>(in_range(0, static_cast<int>(d) - 1))]);
        std::ptrdiff_t reach = bytes_of(type);
        for (const std::size_t d : order) {
            if (per_slice && shape_.is_class[d]) continue;
            std::ptrdiff_t stride = reach;
            if (layout >= 2) {
                const int kind = in_range(0, 5);
                if (kind == 1) stride += bytes_of(type) * in_range(1, 4);
                if (kind == 2) stride += in_range(1, 9);  // no multiple of the element's size
                if (kind == 3 && !own) stride = 0;
                if (kind == 4 && !own) stride = in_range<std::ptrdiff_t>(0, 2 * bytes_of(type));
            }
            reach = std::max(reach, stride * std::max<std::ptrdiff_t>(shape_.sizes[d] - 1, 0) + reach);
            m.strides[d] = layout >= 2 && given_.ConsumeBool() ? -stride : stride;
        }
        const std::ptrdiff_t askew = layout == 3 ? in_range(0, 7) : 0;
        std::ptrdiff_t least = 0, most = 0;
        const bool none = batch_ == 0 || (!per_slice && classes_ == 0);
        for (std::size_t d = 0; d < axes && !none; ++d) {
            if (m.strides[d] == 0) continue;
            (m.strides[d] < 0 ? least : most) += m.strides[d] * (shape_.sizes[d] - 1);
        }
        m.size = none ? 0 : askew + most - least + bytes_of(type);
        m.first = none ? 0 : askew - least;
        m.bytes.reset(new std::byte[static_cast<std::size_t>(m.size)]);
        std::memset(m.bytes.get(), 0xa5, static_cast<std::size_t>(m.size));
        m.of_batch = offsets(shape_, m.strides, false);
        m.of_class = per_slice ? std::vector<std::ptrdiff_t>{0} : offsets(shape_, m.strides, true);
        take(role, m);
        return m;
    }

    // Tells the core of an array.
    void take(Role role, const Memory& m) {
        slices_.arrays[role] = {m.data(), m.type, m.swapped};
        int batch = 0, classes = 0;
        for (std::size_t d = 0; d < shape_.sizes.size(); ++d)
            (shape_.is_class[d] ? slices_.classes.axis[static_cast<std::size_t>(classes++)]
                                : slices_.batch.axis[static_cast<std::size_t>(batch++)])
                .strides[role] = m.strides[d];
    }

    Memory& make_input(Role role, ElementType type, bool per_slice = false) {
        return make(role, type, bytes_of(type) > 1 && type != bfloat16 && rarely(), per_slice, false);
    }

    double special() {
        constexpr double inf = std::numeric_limits<double>::infinity();
        static const double all[] = {0,        -0.0,    1,        -1,        inf,     -inf,   std::nan(""), 65504,
                                     3.4e38,   -3.4e38, 1.79e308, -1.79e308, 0x1p-24, 5e-324, 0x1p-126,     0x1p-149,
                                     2.3e-308, 88.7,    -103.9,   -745.1,    709.7,   -87.3,  17.3,         -9.7};
        return all[random() % std::size(all)];
    }

    double uniform() { return static_cast<double>(random() >> 11) * 0x1p-53; }  // [0, 1)

    // Fills an array with numbers of one kind, and a few elements with bytes of the input. `positive`: probabilities.
    void fill(Memory& m, bool positive = false) {
        const int kind = in_range(0, 5);
        const double scale = std::ldexp(1, in_range(0, 1) ? in_range(-3, 7) : in_range(-40, 40));
        const double base = scale * (uniform() - 0.5);
        for (const std::ptrdiff_t b : m.of_batch)
            for (const std::ptrdiff_t c : m.of_class) {
                std::uint64_t bits;
                const double plain = positive ? uniform() : scale * (2 * uniform() - 1);
                if (kind == 0)
                    bits = random();
                else if (kind == 1)
                    bits = bits_of(m.type, special());
                else if (kind == 2)
                    bits = bits_of(m.type, base) + random() % 4;  // near ties
                else if (kind == 3 && random() % 8 == 0)
                    bits = bits_of(m.type, special());
                else
                    bits = bits_of(m.type, plain);
                m.set_bits(m.data() + b + c, bits);
            }
        if (m.size == 0) return;
        for (int pokes = in_range(0, 3); pokes > 0; --pokes) {
            const auto b = given_.ConsumeIntegral<std::uint16_t>() % m.of_batch.size();
            const auto c = given_.ConsumeIntegral<std::uint16_t>() % m.of_class.size();
            m.set_bits(m.data() + m.of_batch[b] + m.of_class[c], given_.ConsumeIntegral<std::uint64_t>());
        }
    }

    void choose_mask() {
        if (!rarely() && !rarely()) return;
        Memory& m = make(mask, boolean, false, false, false);
        const auto share = in_range<unsigned>(0, 8);
        for (const std::ptrdiff_t b : m.of_batch)
            for (const std::ptrdiff_t c : m.of_class)
                m.set_bits(m.data() + b + c, random() % 8 < share ? 0 : 1 + random() % 255);
    }

    bool present(std::ptrdiff_t slice, std::ptrdiff_t c) const {
        return !slices_.has(mask) || memory_[mask].bits(slice, c) != 0;
    }

    // Makes an output, or takes one of the inputs as the output where types allow it.
    void make_output(ElementType type, std::initializer_list<Role> inputs) {
        for (const Role role : inputs) {
            const Memory& m = memory_[role];
            if (m.type != type || m.swapped || !given_.ConsumeBool() || overlaps_itself(m)) continue;
            in_place_[role] = true;
            take(output, m);
            return;
        }
        make(output, type, false, false, true);
    }

    bool overlaps_itself(const Memory& m) const {
        std::vector<std::ptrdiff_t> all;
        for (const std::ptrdiff_t b : m.of_batch)
            for (const std::ptrdiff_t c : m.of_class) all.push_back(b + c);
        std::sort(all.begin(), all.end());
        for (std::size_t i = 1; i < all.size(); ++i)
            if (all[i] - all[i - 1] < bytes_of(m.type)) return true;
        return false;
    }

    const Memory& output_memory() const {
        for (const Role role : {scores, second})
            if (in_place_[role]) return memory_[role];
        return memory_[output];
    }

    ElementType result_type(ElementType type) const { return is_floating(type) ? type : float64; }

    // That type, or a wider one of float32 and float64.
    ElementType or_wider(ElementType type) {
        if (!rarely()) return type;
        return type < float32 && given_.ConsumeBool() ? float32 : float64;
    }

    // --- before and after

    void keep() {
        for (Memory& m : memory_.values) {
            if (!m.bytes) continue;
            m.before.reset(new std::byte[static_cast<std::size_t>(m.size)]);
            std::memcpy(m.before.get(), m.bytes.get(), static_cast<std::size_t>(m.size));
        }
    }

    // Requires that nothing has changed, except the elements if they were `written`. They were checked before.
    void check_untouched(const char* what, const Memory& m, bool written) {
        if (!m.bytes) return;
        if (written)
            for (const std::ptrdiff_t b : m.of_batch)
                for (const std::ptrdiff_t c : m.of_class)
                    copy_element(m.data() + b + c, m.before.get() + m.first + b + c, m.type);
        if (std::memcmp(m.bytes.get(), m.before.get(), static_cast<std::size_t>(m.size)) != 0)
            fail("wrote where nothing was to be written", what, 0, 0, 0, 0, 0);
    }

    void check_all_untouched() {
        static const char* names[roles] = {"scores", "second", "output", "second output", "mask",
                                           "value",  "sign",   "label",  "upstream"};
        for (int r = 0; r < roles; ++r) {
            const auto role = static_cast<Role>(r);
            const bool written =
                role == output || role == second_output || role == value || role == sign || in_place_[role];
            check_untouched(names[r], memory_[role], written);
        }
    }

    [[noreturn]] void fail(const char* why, const char* what, std::ptrdiff_t slice, std::ptrdiff_t c, Real got,
                           Real wanted, Real error) const {
        std::fprintf(stderr, "\n%s: %s, slice %td, class %td: got %.20Lg, expected %.20Lg, error %.4Lg\n", why, what,
                     slice, c, got, wanted, error);
        std::fprintf(stderr, "target %s, operation %d, threads %d, temperature %a (%g), shape (", kernels().name,
                     static_cast<int>(operation_), threads_now, temperature_, temperature_);
        for (std::size_t d = 0; d < shape_.sizes.size(); ++d)
            std::fprintf(stderr, "%td%s, ", shape_.sizes[d], shape_.is_class[d] ? " classes" : "");
        std::fprintf(stderr, ")\nsmoothing %a, reduction %d, ignore_index %td, upstream %a, weights",
                     loss_.label_smoothing, static_cast<int>(loss_.reduction),
                     static_cast<std::ptrdiff_t>(loss_.ignore_index.value_or(-77)), loss_.upstream);
        for (std::ptrdiff_t i = 0; loss_.weight && i < std::min(classes_, std::ptrdiff_t(40)); ++i)
            std::fprintf(stderr, " %a", loss_.weight[i]);
        std::fprintf(stderr, "\n");
        for (int r = 0; r < roles; ++r) {
            const auto role = static_cast<Role>(r);
            const Memory& m = memory_[role];
            if (!m.bytes) continue;
            std::fprintf(stderr, "role %d: %s%s, strides", r, name_of[m.type], m.swapped ? ", swapped" : "");
            for (const std::ptrdiff_t stride : m.strides) std::fprintf(stderr, " %td", stride);
            if (in_place_[role]) std::fprintf(stderr, ", in place");
            if (m.size && slice < static_cast<std::ptrdiff_t>(m.of_batch.size())) {
                std::fprintf(stderr, "; slice:");
                for (std::ptrdiff_t i = 0; i < std::min(classes_, std::ptrdiff_t(40)); ++i)
                    if (i == 0 || m.of_class.size() > 1) std::fprintf(stderr, " %.17Lg", before(role, slice, i));
            }
            std::fprintf(stderr, "\n");
        }
        std::abort();
    }

    // `unit`: the number whose ULP the bound counts; `loose`: an error that is allowed in addition.
    void check(const char* what, ElementType type, std::ptrdiff_t slice, std::ptrdiff_t c, Real got, Real wanted,
               Real bound, Real unit, Real loose = 0) const {
        if (got == wanted || (std::isnan(got) && std::isnan(wanted))) return;
        const Format& f = formats[type];
        unit = std::fabs(unit);
        const Real ulp = unit == 0 ? 0 : std::ldexp(Real(1), std::ilogb(unit) - f.mantissa);
        // Infinity is right where the exact result, or one within the bound, is beyond the largest number.
        const Real ulp_at_top = std::ldexp(Real(1), std::ilogb(f.largest) - f.mantissa);
        const Real slack = std::max(bound * std::max(ulp, ulp_at_top), ulp_at_top) + loose;
        if (std::isinf(got) && (got > 0 ? wanted : -wanted) + slack >= f.largest) return;
        Real distance = std::fabs(got - wanted) - loose;
        if (std::fabs(wanted) < f.smallest_normal()) distance -= 0.51L * f.smallest_subnormal();
        if (distance <= 0) return;
        const Real error = ulp == 0 || std::isnan(distance) || !std::isfinite(wanted) ? infinity : distance / ulp;
        if (!(error <= bound)) fail("wrong result", what, slice, c, got, wanted, error);
    }

    void check_exactly(const char* what, std::ptrdiff_t slice, std::ptrdiff_t c, Real got, Real wanted) const {
        if (got == wanted || (std::isnan(got) && std::isnan(wanted))) return;
        fail("wrong result", what, slice, c, got, wanted, infinity);
    }

    // float16 and bfloat16 are computed in float32 and rounded once.
    static Real bound(ElementType type, Real others, Real half = 0.51L) { return type < float32 ? half : others; }

    // An element of an input before the call.
    Real before(Role role, std::ptrdiff_t slice, std::ptrdiff_t c = 0) const {
        const Memory& m = memory_[role];
        std::uint64_t bits = 0;
        auto* to = reinterpret_cast<std::byte*>(&bits);
        const std::ptrdiff_t offset =
            m.of_batch[static_cast<std::size_t>(slice)] + m.of_class[static_cast<std::size_t>(c)];
        copy_element(to, m.before.get() + m.first + offset, m.type);
        if (m.swapped) std::reverse(to, to + bytes_of(m.type));
        return value_of(m.type, bits);
    }

    std::vector<Real> slice_of(Role role, std::ptrdiff_t slice, Real masked) const {
        std::vector<Real> all(static_cast<std::size_t>(classes_));
        for (std::ptrdiff_t c = 0; c < classes_; ++c)
            all[static_cast<std::size_t>(c)] = present(slice, c) ? before(role, slice, c) : masked;
        return all;
    }

    // --- the operations

    void run_transform() {
        choose_temperature();
        Memory& x = make_input(scores, score_type());
        fill(x);
        choose_mask();
        make_output(or_wider(result_type(x.type)), {scores});
        keep();
        compute(operation_, slices_, temperature_);
        const Memory& out = output_memory();
        const bool log = operation_ == log_softmax;
        for (std::ptrdiff_t b = 0; b < batch_ && classes_ > 0; ++b) {
            const Slice s(slice_of(scores, b, -infinity), temperature_);
            for (std::ptrdiff_t c = 0; c < classes_; ++c) {
                const Real got = out.value(b, c);
                if (!present(b, c)) {
                    check_exactly("masked", b, c, got, signature().masked_output);
                } else if (!s.defined()) {
                    check_exactly("undefined", b, c, got, nan_value);
                } else if (log) {
                    const Real wanted = s.log_softmax(static_cast<std::size_t>(c));
                    if (got > 0) fail("above 0", "log_softmax", b, c, got, wanted, 0);
                    check("log_softmax", out.type, b, c, got, wanted, bound(out.type, 2), wanted);
                } else {
                    const Real wanted = s.softmax(static_cast<std::size_t>(c));
                    if (std::signbit(got) || got > 1) fail("not in [0, 1]", "softmax", b, c, got, wanted, 0);
                    check("softmax", out.type, b, c, got, wanted, bound(out.type, 2), wanted);
                }
            }
        }
        check_all_untouched();
    }

    // Where dy is infinite, or y no result of the transform, only masked entries and NaN are checked.
    void run_gradient() {
        choose_temperature();
        const bool log = operation_ == log_softmax_grad;
        Memory& y = make_input(scores, score_type());
        fill(y, !log);
        Memory& dy = make_input(second, score_type());
        fill(dy);
        choose_mask();
        make_output(result_type(dy.type), {scores, second});
        keep();
        compute(operation_, slices_, temperature_);
        const Memory& out = output_memory();
        const Format& f = formats[out.type];
        // The contract does not cover a y that is no probability, so sums beyond `most` are not checked. As much as
        // `least` may be lost before the division by the temperature.
        const Real most = std::min(f.largest, formats[float64].largest) / 16;
        const bool in_float = temperature_ == 1 && y.type < float64 && dy.type < float64;
        const Real least = 4 * formats[in_float ? float32 : float64].smallest_subnormal() / temperature_;
        for (std::ptrdiff_t b = 0; b < batch_ && classes_ > 0; ++b) {
            const std::vector<Real> ys = slice_of(scores, b, 0), dys = slice_of(second, b, 0);
            Sum sum, size;
            bool finite = true, nan = false;
            for (std::size_t c = 0; c < ys.size(); ++c) {
                const Real term = log ? dys[c] : ys[c] * dys[c];
                sum.add(term);
                size.add(std::fabs(term));
                finite = finite && std::isfinite(dys[c]) && (log || std::fabs(ys[c]) <= 1);
                nan = nan || std::isnan(dys[c]) || (!log && std::isnan(ys[c]));
            }
            for (std::ptrdiff_t c = 0; c < classes_; ++c) {
                const auto k = static_cast<std::size_t>(c);
                const Real got = out.value(b, c);
                if (!present(b, c)) {
                    check_exactly("masked", b, c, got, 0);
                    continue;
                }
                if (nan || std::isnan(ys[k])) {
                    check_exactly("of NaN", b, c, got, nan_value);
                    continue;
                }
                if (!finite || (log && ys[k] > 0)) continue;  // y is no result of softmax
                const Real p = log ? std::exp(ys[k]) : ys[k];
                const Real unscaled = log ? dys[k] - p * sum.total() : p * (dys[k] - sum.total());
                const Real condition =
                    log ? std::fabs(dys[k]) + p * size.total() : std::fabs(p) * (std::fabs(dys[k]) + size.total());
                const Real wanted = unscaled / temperature_, unit = condition / temperature_;
                if (!log && size.total() > most) continue;
                // A difference is no more accurate than subnormal numbers that it is formed from.
                check(log ? "log_softmax_grad" : "softmax_grad", out.type, b, c, got, wanted,
                      bound(out.type, log && temperature_ == 1 ? 2 : 3), std::max(unit, f.smallest_normal()),
                      log ? least : least * static_cast<Real>(classes_));
            }
        }
        check_all_untouched();
    }

    void run_logsumexp() {
        Memory& x = make_input(scores, score_type());
        fill(x);
        choose_mask();
        make(value, or_wider(result_type(x.type)), false, true, true);
        if (given_.ConsumeBool()) make(sign, memory_[value].type, false, true, true);
        keep();
        compute(operation_, slices_, 1);
        const Memory& out = memory_[value];
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            const Slice s(slice_of(scores, b, -infinity), 1);
            const Real got = out.value(b);
            const Real wanted = s.nan ? nan_value : s.defined() ? s.peak + std::log1p(s.rest) : s.peak;
            if (!s.defined())
                check_exactly("logsumexp", b, 0, got, wanted);
            else
                check("logsumexp", out.type, b, 0, got, wanted, bound(out.type, s.peak == 0 ? 2 : 1),
                      std::max(std::fabs(wanted), std::fabs(s.peak)));
            if (slices_.has(sign))
                check_exactly("sign", b, 0, memory_[sign].value(b), s.nan ? nan_value : s.empty ? 0 : 1);
        }
        check_all_untouched();
    }

    void run_entropy() {
        choose_temperature();
        Memory& x = make_input(scores, score_type());
        fill(x);
        choose_mask();
        make(value, or_wider(result_type(x.type)), false, true, true);
        keep();
        compute(operation_, slices_, temperature_);
        const Memory& out = memory_[value];
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            const Slice s(slice_of(scores, b, -infinity), temperature_);
            const Real got = out.value(b);
            if (!s.defined()) {
                bool any = false;
                for (std::ptrdiff_t c = 0; c < classes_; ++c) any = any || present(b, c);
                check_exactly("undefined entropy", b, 0, got, any ? nan_value : 0);
                continue;
            }
            const Real wanted = s.entropy();
            if (std::signbit(got)) fail("below 0", "entropy", b, 0, got, wanted, 0);
            check("entropy", out.type, b, 0, got, wanted, bound(out.type, 4), wanted);
        }
        check_all_untouched();
    }

    // A dense array with `numbers` elements per slice, slice after slice. `own` is the axis that they lie along.
    std::unique_ptr<std::byte[]> dense(Role role, ElementType type, std::ptrdiff_t numbers, Axis& own) {
        const std::ptrdiff_t bytes = bytes_of(type);
        std::unique_ptr<std::byte[]> memory(new std::byte[static_cast<std::size_t>(batch_ * numbers * bytes)]());
        slices_.arrays[role] = {memory.get(), type, false};
        std::ptrdiff_t stride = numbers * bytes;
        for (int d = slices_.batch.count - 1; d >= 0; --d) {
            slices_.batch.axis[static_cast<std::size_t>(d)].strides[role] = stride;
            stride *= slices_.batch.axis[static_cast<std::size_t>(d)].size;
        }
        own.strides[role] = bytes;
        return memory;
    }

    // Compares with log_softmax of all classes, which run_transform checks.
    void run_picks() {
        choose_temperature();
        const Memory& x = make_input(scores, score_type());
        fill(memory_[scores]);
        choose_mask();
        const ElementType type = or_wider(result_type(x.type));
        const bool selects = operation_ == log_softmax_top_k;
        const std::ptrdiff_t numbers = in_range<std::ptrdiff_t>(selects ? 1 : 0, selects ? classes_ : 2 * classes_);
        Axis own = {numbers, {}};
        keep();
        const auto whole = dense(output, type, classes_, slices_.classes.axis[0]);
        compute(log_softmax, slices_, temperature_);
        slices_.arrays[output] = {};
        const auto picked = dense(value, type, numbers, own);
        const auto labels = dense(label, int64, numbers, own);
        slices_.own.append(own);
        const auto count = static_cast<std::size_t>(batch_ * numbers);
        std::vector<std::int64_t> wanted(count);
        if (selects) {
            for (std::ptrdiff_t b = 0; b < batch_; ++b) {
                const std::vector<Real> xs = slice_of(scores, b, -infinity);
                std::vector<std::int64_t> order(xs.size());
                std::iota(order.begin(), order.end(), 0);
                const bool spoilt = !Slice(xs, temperature_).defined();
                const auto precedes = [&](std::int64_t i, std::int64_t j) {
                    const bool one = present(b, i), other = present(b, j);
                    if (one != other) return one;
                    return one && !spoilt && xs[static_cast<std::size_t>(i)] > xs[static_cast<std::size_t>(j)];
                };
                std::stable_sort(order.begin(), order.end(), precedes);
                std::copy_n(order.begin(), numbers, wanted.begin() + b * numbers);
            }
            compute_top(operation_, slices_, temperature_);
        } else {
            for (auto& c : wanted) c = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(classes_));
            if (count > 0) std::memcpy(labels.get(), wanted.data(), count * sizeof(std::int64_t));
            if (!compute_at(operation_, slices_, temperature_)) fail("refused", "labels", 0, 0, 0, 0, 0);
        }
        for (std::size_t i = 0; i < count; ++i) {
            std::int64_t c;
            std::memcpy(&c, labels.get() + i * sizeof c, sizeof c);
            const auto b = static_cast<std::ptrdiff_t>(i) / numbers, bytes = bytes_of(type);
            check_exactly("label", b, static_cast<std::ptrdiff_t>(i) % numbers, static_cast<Real>(c),
                          static_cast<Real>(wanted[i]));
            std::uint64_t got = 0, right = 0;
            std::memcpy(&got, picked.get() + static_cast<std::ptrdiff_t>(i) * bytes, static_cast<std::size_t>(bytes));
            std::memcpy(&right, whole.get() + (b * classes_ + wanted[i]) * bytes, static_cast<std::size_t>(bytes));
            check_exactly("pick", b, static_cast<std::ptrdiff_t>(i) % numbers, value_of(type, got),
                          value_of(type, right));
        }
        slices_.arrays[value] = slices_.arrays[label] = {};
        check_all_untouched();
    }

    void run_sample() {
        choose_temperature();
        Memory& x = make_input(scores, score_type());
        fill(x);
        choose_mask();
        keep();
        Truncation left;
        if (given_.ConsumeBool()) left.top_k = in_range(1, 60);
        if (rarely()) left.top_p = in_range(1, 255) / 255.0;
        if (rarely()) left.min_p = in_range(0, 255) / 255.0;
        const Sampler sampler(slices_, temperature_, left);
        std::vector<Slice> all;
        std::ptrdiff_t undefined = -1;
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            all.emplace_back(slice_of(scores, b, -infinity), temperature_);
            if (undefined < 0 && !all.back().defined()) undefined = b;
        }
        if (sampler.find_undefined() != undefined)
            fail("wrong slice", "undefined", undefined, 0, sampler.find_undefined(), undefined, 0);
        if (undefined < 0) {
            const std::ptrdiff_t draws = in_range(0, 3);
            std::vector<double> numbers(static_cast<std::size_t>(batch_ * draws));
            for (double& u : numbers) u = rarely() ? 1 - 0x1p-53 : std::ldexp(static_cast<double>(random() >> 11), -53);
            std::vector<std::int64_t> drawn(numbers.size(), -1);
            sampler.draw(numbers.data(), draws, drawn.data());
            for (std::size_t i = 0; i < drawn.size(); ++i)
                check_draw(all[i / static_cast<std::size_t>(draws)], i / draws, drawn[i], numbers[i], left);
        }
        check_all_untouched();
    }

    // Checks a draw against the definition, as far as rounding permits.
    void check_draw(const Slice& s, std::ptrdiff_t b, std::int64_t drawn, double u, const Truncation& left) const {
        const auto c = static_cast<std::size_t>(drawn);
        if (drawn < 0 || drawn >= classes_ || !(s.exponential[c] > 0)) fail("no class", "draw", b, drawn, u, 0, 0);
        const auto lies_higher = [&](std::size_t other) {
            const Real a = s.distance[other].high, d = s.distance[c].high;
            return a > d || (a == d && s.distance[other].low > s.distance[c].low);
        };
        Real before = 0, higher = 0;
        std::int64_t rank = 0;
        for (std::size_t k = 0; k < s.exponential.size(); ++k) {
            if (k < c) before += s.softmax(k);
            if (!lies_higher(k)) continue;
            higher += s.softmax(k);
            ++rank;
        }
        constexpr Real rounding = 1e-4L;
        if (rank >= left.top_k) fail("beyond top_k", "draw", b, drawn, u, static_cast<Real>(left.top_k), 0);
        const bool all_left = left.top_k >= classes_;
        if (all_left && higher > left.top_p + rounding) fail("beyond top_p", "draw", b, drawn, higher, left.top_p, 0);
        if (s.exponential[c] < left.min_p * (1 - rounding)) fail("below min_p", "draw", b, drawn, u, left.min_p, 0);
        if (!all_left || left.top_p < 1 || left.min_p > 0) return;
        if (before > u + rounding || before + s.softmax(c) < u - rounding)
            fail("elsewhere", "draw", b, drawn, u, before, 0);
    }

    void run_weighed() {
        Memory& x = make_input(scores, score_type());
        fill(x);
        Memory& w = make_input(second, score_type());
        fill(w);
        choose_mask();
        const ElementType a = result_type(x.type), b_type = result_type(w.type);
        make(value, or_wider(a == b_type ? a : std::max({a, b_type, float32})), false, true, true);
        const bool with_sign = given_.ConsumeBool();
        if (with_sign) make(sign, memory_[value].type, false, true, true);
        keep();
        compute_weighed(slices_);
        const Memory& out = memory_[value];
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            std::vector<Real> xs = slice_of(scores, b, -infinity);
            const std::vector<Real> ws = slice_of(second, b, 0);
            bool nan = false, positive = false, negative = false;
            Real peak = -infinity;
            for (std::size_t c = 0; c < xs.size(); ++c) {
                if (ws[c] == 0) xs[c] = -infinity;
                if (ws[c] == 0) continue;
                const bool infinite = std::isinf(ws[c]);
                nan = nan || std::isnan(xs[c]) || std::isnan(ws[c]) || (infinite && xs[c] == -infinity);
                if (infinite || xs[c] == infinity) (ws[c] > 0 ? positive : negative) = true;
                peak = std::max(peak, xs[c]);
            }
            // The weights of equal scores are added first.
            std::map<Real, Sum> weights;
            Sum sum, size;
            bool far = false;
            if (!nan && !positive && !negative && peak > -infinity)
                for (std::size_t c = 0; c < xs.size(); ++c)
                    if (xs[c] > -infinity) weights[xs[c]].add(ws[c]);
            for (const auto& [score, weight] : weights) {
                const Two d = scaled_difference(score, peak, 1);
                far = far || !(d.high > -11000);
                if (!(d.high > -11000)) continue;
                const Real term = weight.total() * (std::exp(d.high) * (1 + d.low));
                sum.add(term);
                size.add(std::fabs(term));
            }
            const Real total = sum.total();
            if (far && std::fabs(total) < 0x1p-8000L) continue;
            Real wanted, direction;
            if (nan || (positive && negative)) {
                wanted = direction = nan_value;
            } else if (positive || negative) {
                wanted = infinity;
                direction = positive ? 1 : -1;
            } else {
                wanted = total == 0 ? -infinity : peak + std::log(std::fabs(total));
                direction = (total > 0) - (total < 0);
                // A sum that cancels this far has neither sign nor digits.
                if (size.total() > 0 && std::fabs(total) <= 0x1p-45L * size.total()) continue;
            }
            if (direction < 0 && !with_sign) wanted = nan_value;
            const Real got = out.value(b);
            if (with_sign) check_exactly("sign", b, 0, memory_[sign].value(b), direction);
            if (!std::isfinite(wanted)) {
                check_exactly("weighed logsumexp", b, 0, got, wanted);
                continue;
            }
            const int digits = out.type < float32 ? formats[float32].mantissa : formats[out.type].mantissa;
            check("weighed logsumexp", out.type, b, 0, got, wanted, bound(out.type, 1),
                  std::max(std::fabs(wanted), std::fabs(peak)), std::ldexp(size.total() / std::fabs(total), -digits));
        }
        check_all_untouched();
    }

    void run_loss() {
        choose_temperature();
        const bool with_grad = operation_ == cross_entropy_grad, with_loss = !with_grad || given_.ConsumeBool();
        Loss& loss = loss_;
        loss.temperature = temperature_;
        loss.reduction = static_cast<Reduction>(in_range(0, 2));
        loss.probabilities = given_.ConsumeBool();
        if (given_.ConsumeBool()) loss.label_smoothing = in_range(0, 255) / 255.0;
        Memory& x = make_input(scores, score_type());
        fill(x);
        std::unique_ptr<double[]> weight;
        if (given_.ConsumeBool()) {
            weight.reset(new double[static_cast<std::size_t>(classes_)]);
            const double unit = std::ldexp(1, rarely() ? in_range(-1000, 1000) : 0);
            const auto zeros = in_range<unsigned>(0, 8);
            for (std::ptrdiff_t c = 0; c < classes_; ++c)
                weight[static_cast<std::size_t>(c)] = random() % 8 < zeros ? 0 : unit * (0.1 + uniform());
            loss.weight = weight.get();
            largest_weight_ = *std::max_element(loss.weight, loss.weight + classes_);
        }
        if (loss.probabilities) {
            fill(make_input(second, floating_type()), true);
        } else if (!choose_labels(loss)) {
            return;
        }
        if (with_grad) make_output(result_type(x.type), {scores});
        const bool with_hess = with_grad && given_.ConsumeBool();
        if (with_hess) make(second_output, result_type(x.type), false, false, true);
        const bool reduced = loss.reduction != Reduction::none;
        if (with_loss) make_value(std::max(result_type(x.type), float32), reduced);
        loss.upstream = choose_upstream(with_grad && !reduced);
        keep();
        compute_loss(operation_, slices_, loss);
        check_loss(loss, with_loss, with_grad, with_hess);
        check_all_untouched();
    }

    void make_value(ElementType type, bool reduced) {
        if (!reduced) {
            make(value, type, false, true, true);
            return;
        }
        Memory& m = memory_[value];  // a single element, for which strides are not used
        m.type = type;
        m.size = bytes_of(type);
        m.bytes.reset(new std::byte[static_cast<std::size_t>(m.size)]());
        m.of_batch = m.of_class = {0};
        slices_.arrays[value] = {m.data(), m.type, false};
    }

    // Makes upstream an array, where that is allowed, or returns a number.
    double choose_upstream(bool may_be_array) {
        if (may_be_array && given_.ConsumeBool()) {
            fill(make_input(upstream, any_type(), true));
            return 1;
        }
        return !given_.ConsumeBool() ? 1 : rarely() ? any_double() : in_range(-100, 100) / 8.0;
    }

    // The two arrays are unrelated, or nearly equal, with or without a common offset.
    void run_divergence() {
        choose_temperature();
        Divergence given = {temperature_, static_cast<Reduction>(in_range(0, 2)), 1};
        const Memory& x = make_input(scores, score_type());
        fill(memory_[scores]);
        const Memory& y = make_input(second, score_type());
        fill(memory_[second]);
        if (given_.ConsumeBool()) {
            const double noise = std::ldexp(1, in_range(-40, 2)), offset = rarely() ? in_range(-100, 100) : 0;
            for (std::ptrdiff_t b = 0; b < batch_; ++b)
                for (std::ptrdiff_t c = 0; c < classes_; ++c) {
                    const double near = static_cast<double>(x.value(b, c)) + offset + noise * (2 * uniform() - 1);
                    y.set_bits(y.at(b, c), bits_of(y.type, near));
                }
        }
        choose_mask();
        const ElementType type = std::max({result_type(x.type), result_type(y.type), float32});
        const bool with_grad = operation_ == kl_divergence_grad, reduced = given.reduction != Reduction::none;
        if (with_grad) make_output(result_type(y.type), {second, scores});
        make_value(type, reduced);
        if (with_grad) given.upstream = choose_upstream(!reduced);
        keep();
        compute_divergence(operation_, slices_, given);

        Sum sum, size, lost;
        Real apart = 0;
        bool held = true, out_of_range = false;
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            const Compared compared = compare(b);
            if (with_grad) check_divergence_gradient(given, b, compared);
            sum.add(compared.divergence);
            size.add(compared.size);
            lost.add(compared.lost);
            apart = std::max(apart, compared.apart);
            held = held && compared.held;
            out_of_range = out_of_range || compared.out_of_range;
            if (reduced || compared.out_of_range) continue;
            check_divergence(b, memory_[value].value(b), compared.divergence, compared.size, compared.lost,
                             compared.apart, compared.held, 0);
        }
        if (reduced && !out_of_range) {
            const Real divisor = given.reduction == Reduction::mean ? static_cast<Real>(batch_) : 1;
            const Real wanted = divisor == 0 ? nan_value : sum.total() / divisor;
            check_divergence(0, memory_[value].value(0), wanted, size.total() / divisor, lost.total() / divisor, apart,
                             held, 1);
        }
        check_all_untouched();
    }

    // The comparison of two slices: the divergence, the sum of |p (log p - log q)|, and how much of the divergence long
    // double, or the type computed in, may lose; for each class the gradient, its unit, and how much of it may be lost.
    // `out_of_range`: the largest scores are too far apart for the type; not `held`: some scores are.
    struct Compared {
        bool any = false, undefined = false, out_of_range = false, held = true;
        Real divergence = 0, size = 0, lost = 0, apart = 0;
        std::vector<Real> gradient, unit, gradient_lost;
    };

    Compared compare(std::ptrdiff_t b) const {
        Compared all;
        const std::vector<Real> xs = slice_of(scores, b, -infinity), ys = slice_of(second, b, -infinity);
        for (std::ptrdiff_t c = 0; c < classes_; ++c) all.any = all.any || present(b, c);
        if (!all.any) return all;
        const Slice p(xs, temperature_), q(ys, temperature_);
        all.undefined = !p.defined() || !q.defined();
        all.divergence = nan_value;
        const Format& computed =
            formats[memory_[scores].type < float64 && memory_[second].type < float64 ? float32 : float64];
        all.out_of_range = std::fabs(p.peak - q.peak) > computed.largest / 4;
        if (all.undefined || all.out_of_range) return all;
        Sum sum, size, lost;
        for (std::size_t c = 0; c < xs.size(); ++c) {
            const Real of_p = p.softmax(c), of_q = q.softmax(c);
            const Two d = p.log_ratio(q, xs[c], ys[c], temperature_, c);
            const Real distance = std::max(std::fabs(xs[c] - ys[c]), std::fabs(d.high));
            all.held = all.held && !(std::isfinite(d.high) && distance > computed.largest / 4);
            // The differences of scores and of the normalisers' logarithms are held in two numbers of the type computed
            // in.
            const Real digits = std::ldexp(4 + 0x1p64L * d.low, -2 * computed.mantissa);
            const bool near = std::fabs(d.high) < 0.5L;
            sum.add(xs[c] == -infinity   ? of_q
                    : ys[c] == -infinity ? infinity
                    : near               ? of_p * bend(d.high)
                                         : of_p * d.high + (of_q - of_p));
            if (std::isfinite(d.high)) {
                size.add(std::fabs(of_p * d.high));
                lost.add(std::fabs(of_p - of_q) * (d.low + digits) + of_p * (d.low * d.low + digits * digits));
                lost.add(computed.vanishing() * (1 + std::fabs(d.high)));
            }
            if (!std::isnan(d.high)) all.apart = std::max(all.apart, std::fabs(d.high));
            all.gradient.push_back(near ? of_p * std::expm1(-d.high) : of_q - of_p);
            all.unit.push_back(std::max(of_p, of_q));
            all.gradient_lost.push_back(std::isfinite(d.high) ? all.unit.back() * (d.low + digits) : 0);
        }
        for (Real& unit : all.unit) unit *= std::min(all.apart, Real(1));
        all.divergence = sum.total();
        all.size = std::max(size.total(), all.divergence);
        all.lost = lost.total();
        return all;
    }

    // exp(-d) - 1 + d for |d| < 1/2.
    static Real bend(Real d) {
        Real sum = 0, term = -d;
        for (int k = 2; k < 26; ++k) {
            term *= -d / static_cast<Real>(k);
            sum += term;
        }
        return sum;
    }

    void check_divergence(std::ptrdiff_t b, Real got, Real wanted, Real size, Real lost, Real apart, bool held,
                          Real more) const {
        if (!std::isfinite(wanted)) return check_exactly("undefined divergence", b, 0, got, wanted);
        if (std::signbit(got)) fail("below 0", "divergence", b, 0, got, wanted, 0);
        if (std::isnan(got)) fail("undefined", "divergence", b, 0, got, wanted, 0);
        if (!held) return;
        // 3 ULP of 1 where one class of p dominates: half an ULP each for its exponential, for those of q, if all are
        // rounded the same way, for the quotient of the normalisers, d, p d and the sum. An ULP of the result is half
        // of that just below a power of two.
        check("divergence", memory_[value].type, b, 0, got, wanted, 6 + more, size, lost);
        // For |d| above 1 a term is p d + (q - p), where q may be 3.8 times as large as the term, and so its error.
        const Real digits = apart < 1 ? 8 : 16;
        check("digits of the divergence", memory_[value].type, b, 0, got, wanted, digits + more, wanted, lost);
    }

    void check_divergence_gradient(const Divergence& given, std::ptrdiff_t b, const Compared& all) const {
        const Memory& out = output_memory();
        const Real from_above = slices_.has(upstream) ? before(upstream, b) : Real(given.upstream);
        const Real divided = from_above / (given.reduction == Reduction::mean ? static_cast<Real>(batch_) : 1);
        const Real scale = divided / temperature_, size = std::fabs(scale);
        // The factor is computed in double, in the same steps as here.
        const Format& widest = formats[float64];
        const bool in_range =
            from_above == 0 || (std::fabs(divided) >= widest.smallest_normal() && size < widest.largest);
        const Format& computed =
            formats[memory_[scores].type < float64 && memory_[second].type < float64 ? float32 : float64];
        for (std::ptrdiff_t c = 0; c < classes_; ++c) {
            const auto k = static_cast<std::size_t>(c);
            const Real got = out.value(b, c);
            if (!present(b, c)) {
                check_exactly("masked", b, c, got, 0);
            } else if (all.undefined || std::isnan(scale)) {
                check_exactly("undefined gradient", b, c, got, nan_value);
            } else if (!all.out_of_range && all.held && in_range) {
                check("gradient of the divergence", out.type, b, c, got, scale * all.gradient[k],
                      bound(out.type, 12, 0.52L), std::max(size * all.unit[k], formats[out.type].smallest_normal()),
                      size * all.gradient_lost[k] + vanished(scale, 1, computed));
            }
        }
    }

    std::int64_t label_of(std::ptrdiff_t slice) const {
        const Memory& m = memory_[label];
        const std::uint64_t bits = m.bits(slice);
        return m.type == int64 || m.type == uint64 ? static_cast<std::int64_t>(bits)
                                                   : static_cast<std::int64_t>(value_of(m.type, bits));
    }

    // Makes labels, checks the core's search for an invalid one, and returns whether all are valid.
    bool choose_labels(Loss& loss) {
        const auto type = static_cast<ElementType>(in_range(static_cast<int>(int8), static_cast<int>(uint64)));
        Memory& m = make_input(label, type, true);
        const bool any = rarely();
        const std::int64_t least = rarely() ? -1 : 0;
        for (const std::ptrdiff_t b : m.of_batch) {
            const auto within = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(classes_ - least));
            std::uint64_t bits = any && random() % 8 == 0 ? random() : static_cast<std::uint64_t>(within + least);
            m.set_bits(m.data() + b, bits);
        }
        if (given_.ConsumeBool()) {
            const std::uint64_t bits =
                given_.ConsumeBool() ? static_cast<std::uint64_t>(least) : given_.ConsumeIntegral<std::uint64_t>();
            // Only values that the type holds: others never reach the core.
            loss.ignore_index = type == int64 || type == uint64 ? static_cast<std::int64_t>(bits)
                                                                : static_cast<std::int64_t>(value_of(type, bits));
        }
        const auto valid = [&](std::ptrdiff_t b) {
            const std::int64_t t = label_of(b);
            return (t >= 0 && t < classes_) || (loss.ignore_index && *loss.ignore_index == t);
        };
        std::ptrdiff_t first = 0;
        while (first < batch_ && valid(first)) ++first;
        if (first == batch_) first = -1;
        Slices searched;
        searched.batch = slices_.batch;
        searched.arrays[label] = slices_.arrays[label];
        const std::ptrdiff_t found = find_invalid_label(searched, classes_, loss.ignore_index);
        if (found != first) fail("wrong result", "find_invalid_label", 0, 0, Real(found), Real(first), infinity);
        return found < 0;
    }

    void check_loss(const Loss& loss, bool with_loss, bool with_grad, bool with_hess) {
        const bool reduced = loss.reduction != Reduction::none, mean = loss.reduction == Reduction::mean;
        const auto weight_of = [&](std::ptrdiff_t c) { return loss.weight ? Real(loss.weight[c]) : Real(1); };
        const auto ignored = [&](std::ptrdiff_t b) {
            return !loss.probabilities && loss.ignore_index && label_of(b) == *loss.ignore_index;
        };
        Sum weights;
        bool none_counts = true;
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            if (ignored(b)) continue;
            none_counts = false;
            weights.add(loss.probabilities ? 1 : weight_of(label_of(b)));
        }
        const Real divisor = !mean ? 1 : weights.total() == 0 ? nan_value : weights.total();

        const bool terms = loss.probabilities || loss.label_smoothing > 0;
        const bool plain = !terms && !loss.weight;
        const Real smoothing = loss.label_smoothing, even = smoothing / static_cast<Real>(classes_);
        const ElementType loss_type = memory_[value].type;
        const Memory& out = output_memory();
        const bool in_float = memory_[scores].type < float64;
        const Format &computed = formats[in_float ? float32 : float64], &widest = formats[float64];
        // Below this, -log p, a sum over the classes, may have lost digits or vanished before a weight makes it large
        // again.
        const Real least =
            static_cast<Real>(classes_) *
            (terms ? computed.smallest_normal() : std::max(widest.smallest_normal(), computed.vanishing()));
        Sum losses;
        bool skipped = false;
        for (std::ptrdiff_t b = 0; b < batch_; ++b) {
            if (ignored(b)) {
                if (with_loss && !reduced) check_exactly("ignored", b, 0, memory_[value].value(b), 0);
                for (std::ptrdiff_t c = 0; c < classes_ && with_grad; ++c)
                    check_exactly("ignored", b, c, out.value(b, c), 0);
                for (std::ptrdiff_t c = 0; c < classes_ && with_hess; ++c)
                    check_exactly("ignored", b, c, memory_[second_output].value(b, c), 0);
                continue;
            }
            const Slice s(slice_of(scores, b, -infinity), temperature_);
            std::vector<Real> share(static_cast<std::size_t>(classes_));
            Sum all;
            // Whether the factors of the terms have all their digits in the type computed in.
            bool held = true;
            for (std::ptrdiff_t c = 0; c < classes_; ++c) {
                const Real q = loss.probabilities ? before(second, b, c) : label_of(b) == c;
                Real a = weight_of(c) * ((1 - smoothing) * q + even);
                share[static_cast<std::size_t>(c)] = a;
                all.add(a);
                const Real relative = std::fabs(a) / largest_weight_;
                held = held && relative >= 0 && relative < computed.largest / 0x1p60L &&
                       (a == 0 || relative > computed.smallest_normal() * (in_float ? 0x1p60L : 0x1p200L)) && q >= 0 &&
                       q < computed.largest;
            }
            if (with_loss) {
                Sum sum;
                bool lost = !held;
                for (std::ptrdiff_t c = 0; c < classes_ && s.defined(); ++c) {
                    const auto k = static_cast<std::size_t>(c);
                    if (share[k] == 0) continue;
                    const Real minus_log = -s.log_softmax(k);
                    sum.add(share[k] * minus_log);
                    lost = lost || (minus_log != 0 &&
                                    (minus_log < least || (minus_log > computed.largest && minus_log < infinity)));
                }
                // Terms are summed in units of the largest weight.
                const Real summed = sum.total() / std::max(largest_weight_, Real(0x1p-1000));
                lost = lost || (std::isfinite(summed) && summed > widest.largest / 0x1p60L) ||
                       (terms && summed > 0 && summed < widest.smallest_normal() * static_cast<Real>(classes_));
                const Real wanted = s.defined() ? sum.total() : nan_value;
                losses.add(wanted);
                skipped = skipped || lost;
                if (!reduced && !lost)
                    check("loss", loss_type, b, 0, memory_[value].value(b), wanted, terms ? 4 : 2, wanted);
            }
            if (with_grad) check_loss_gradient(loss, b, s, share, all.total(), divisor, held, plain);
            if (with_hess) check_hessian(loss, b, s, all.total(), divisor, held, terms);
        }
        if (!with_loss || !reduced) return;
        const Real got = memory_[value].value(0);
        if (mean && none_counts) return check_exactly("mean", 0, 0, got, nan_value);
        if (skipped) return;
        // Each loss is within its bound, and so is their sum, except that it is rounded twice more.
        const Real wanted = losses.total() / divisor;
        const Real summed = losses.total() / (std::max(largest_weight_, Real(0x1p-1000)));
        if (wanted != 0 && (summed < widest.smallest_normal() * 0x1p60L || summed > widest.largest / 0x1p60L)) return;
        check("reduced loss", loss_type, 0, 0, got, wanted, (terms ? 4 : 2) + 1, wanted);
    }

    // A factor is rounded up to three times in double. This is how much that adds to the bound in float64.
    static Real rounded_factor(ElementType type) { return type == float64 ? 1.5L : 0; }

    void check_loss_gradient(const Loss& loss, std::ptrdiff_t b, const Slice& s, const std::vector<Real>& share,
                             Real total, Real divisor, bool held, bool plain) const {
        const Memory& out = output_memory();
        const Real from_above = slices_.has(upstream) ? before(upstream, b) : Real(loss.upstream);
        const Real scale = from_above / divisor / temperature_;
        const Format& computed = formats[memory_[scores].type < float64 ? float32 : float64];
        const bool undefined = !s.defined() || std::isnan(scale);
        held = held && std::isfinite(from_above);
        for (std::ptrdiff_t c = 0; c < classes_; ++c) {
            const auto k = static_cast<std::size_t>(c);
            const Real got = out.value(b, c);
            if (undefined) {
                check_exactly("undefined gradient", b, c, got, nan_value);
                continue;
            }
            if (!held) continue;
            const Real wanted = scale * (s.softmax(k) * (total - share[k]) - share[k] * s.others(k));
            const Real larger = std::fabs(scale) * std::max(s.softmax(k) * total, share[k]);
            const Real unit = plain ? wanted : std::max(larger, formats[out.type].smallest_normal());
            check("gradient of the loss", out.type, b, c, got, wanted,
                  bound(out.type, plain ? 3 : 4, 0.52L) + (has_factor(loss) ? rounded_factor(out.type) : 0), unit,
                  vanished(scale * total, scale * largest_weight_, computed));
        }
    }

    void check_hessian(const Loss& loss, std::ptrdiff_t b, const Slice& s, Real total, Real divisor, bool held,
                       bool terms) const {
        const Memory& out = memory_[second_output];
        const Real from_above = slices_.has(upstream) ? before(upstream, b) : Real(loss.upstream);
        const Real scale = from_above / divisor / temperature_ / temperature_;
        const Format& computed = formats[memory_[scores].type < float64 ? float32 : float64];
        // The product of scale and total is rounded to double, and p (1 - p) is at most 1/4.
        const Real rounded_weight = formats[float64].smallest_subnormal() / 8;
        for (std::ptrdiff_t c = 0; c < classes_; ++c) {
            const auto k = static_cast<std::size_t>(c);
            const Real got = out.value(b, c);
            if (!s.defined() || std::isnan(scale)) {
                check_exactly("undefined Hessian", b, c, got, nan_value);
                continue;
            }
            if (!held || !std::isfinite(from_above)) continue;
            const Real wanted = scale * total * s.softmax(k) * s.others(k);
            // With terms, the total of the coefficients is a rounded sum.
            check("Hessian", out.type, b, c, got, wanted,
                  bound(out.type, terms ? 4 : 3, 0.52L) +
                      (has_factor(loss) || temperature_ != 1 ? rounded_factor(out.type) : 0),
                  wanted, vanished(scale * total, scale * largest_weight_, computed) + rounded_weight);
        }
    }

    // How much of a result is lost with exponentials that vanish in the type computed in, whatever factor follows. A
    // very large or small factor is applied last; then probabilities, in units of the largest weight, may vanish, too.
    static Real vanished(Real factor, Real last, const Format& computed) {
        factor = std::fabs(factor);
        last = std::fabs(last);
        const auto wide = [](Real x) { return !(x > 0x1p-100L && x < 0x1p100L); };
        if (wide(factor) || wide(last)) return std::max(factor, last) * (2 * computed.smallest_subnormal());
        return factor * computed.vanishing();
    }

    // Whether a gradient has a factor: upstream, or the divisor of the mean.
    bool has_factor(const Loss& loss) const {
        return loss.reduction != Reduction::none || loss.upstream != 1 || slices_.has(upstream);
    }
};

}  // namespace

// Recording where memory was allocated, which is obvious here, costs a third of the time; so does keeping freed memory
// from being reused.
extern "C" const char* __asan_default_options() { return "malloc_context_size=0:quarantine_size_mb=1"; }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Case(data, size).run();
    return 0;
}
