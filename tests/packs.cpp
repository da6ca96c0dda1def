// Compares each operation of packs with plain C++, for the target that this is compiled for. A library with a function
// for each test, which returns a description of the first difference, or an empty text.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/operations/gradients.hpp"

namespace {

template <class T>
bool same(T a, T b) {
    return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

struct Report {
    char text[200] = "";

    template <class T>
    void check(T got, T wanted, const char* name, std::size_t i) {
        if (*text || same(got, wanted)) return;
        std::snprintf(text, sizeof text, "%s, %zu bytes an element, at %zu: %.17g instead of %.17g", name, sizeof(T), i,
                      static_cast<double>(got), static_cast<double>(wanted));
    }
};

// Numbers at which something changes, and some between.
template <class T>
std::vector<T> awkward() {
    if constexpr (std::is_integral_v<T>) {
        std::vector<T> values = {0, 1, 2, 3, 5, 6, 7, 8, 9, 15, 0x7f, 0x8000, 0x12345678};
        if constexpr (std::is_signed_v<T>)
            for (const T value : std::vector<T>(values)) values.push_back(static_cast<T>(-value));
        return values;
    } else {
        using Limits = std::numeric_limits<T>;
        const T large = sizeof(T) == 4 ? T(0x1p60) : T(0x1p996);  // Dekker's splitter overflows from 2^996 on
        std::vector<T> values = {0, Limits::denorm_min(), Limits::min() / 2, Limits::min(), T(1) / 3, T(0.5), 1};
        for (const T value : {T(1.5), T(3.14159265358979), T(65519.996), T(1e10), large, Limits::max() / 3})
            values.push_back(value);
        values.push_back(std::nextafter(T(1), T(2)));
        values.push_back(std::nextafter(Limits::min(), T(0)));
        values.push_back(std::nextafter(large, T(0)));
        values.push_back(Limits::max());
        values.push_back(Limits::infinity());
        for (const T value : std::vector<T>(values)) values.push_back(-value);
        values.push_back(Limits::quiet_NaN());
        return values;
    }
}

// All combinations of values, one value for each column: table[k] is column k.
template <class T>
std::vector<std::vector<T>> combinations(const std::vector<T>& values, int columns) {
    std::vector<std::vector<T>> table(1, values);
    while (static_cast<int>(table.size()) < columns) {
        std::vector<std::vector<T>> longer(table.size() + 1);
        for (const T value : values) {
            for (std::size_t k = 0; k < table.size(); ++k)
                longer[k].insert(longer[k].end(), table[k].begin(), table[k].end());
            longer.back().insert(longer.back().end(), table[0].size(), value);
        }
        table = longer;
    }
    return table;
}

template <class T>
std::vector<T> random_numbers(std::size_t count) {
    std::mt19937_64 generator(count);
    std::normal_distribution<double> normal;
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(normal(generator));
    return values;
}

// The pack whose first lane is values[i]; lanes beyond the end are 0.
template <class T, int packs = 1>
Pack<T, packs> pack_at(const std::vector<T>& values, std::size_t i) {
    constexpr std::size_t lanes = Pack<T, packs>::lanes;
    T padded[lanes] = {};
    for (std::size_t k = 0; k < lanes && i + k < values.size(); ++k) padded[k] = values[i + k];
    return load_pack<T, packs>(padded);
}

// Compares an operation on packs with its equivalent on numbers. Column k of the table holds the values of argument k.
template <class T, int packs = 1, class Packs, class Numbers, std::size_t... k>
void compare_on(Report& report, const char* name, const std::vector<std::vector<T>>& table, Packs operation,
                Numbers reference, std::index_sequence<k...>) {
    for (std::size_t i = 0; i < table[0].size(); i += Pack<T, packs>::lanes) {
        const auto got = operation(pack_at<T, packs>(table[k], i)...);
        for (std::size_t j = i; j < table[0].size() && j < i + Pack<T, packs>::lanes; ++j) {
            using Result = decltype(lane(got, 0));
            report.check<Result>(lane(got, static_cast<int>(j - i)), static_cast<Result>(reference(table[k][j]...)),
                                 name, j);
        }
    }
}

// Calls compare_on with every combination of awkward numbers, for 1, 2 and 4 packs side by side.
template <class T, int arguments, class Packs, class Numbers>
void compare(Report& report, const char* name, Packs operation, Numbers reference) {
    const auto table = combinations(awkward<T>(), arguments);
    constexpr auto columns = std::make_index_sequence<arguments>();
    compare_on<T, 1>(report, name, table, operation, reference, columns);
    compare_on<T, 2>(report, name, table, operation, reference, columns);
    compare_on<T, 4>(report, name, table, operation, reference, columns);
}

// Calls f with a null pointer to each of the types.
template <class... T, class F>
void for_types(F f) {
    (f(static_cast<T*>(nullptr)), ...);
}

template <class T>
T folded_in_halves(std::vector<T> values, T (*combine)(T, T)) {
    for (std::size_t count = values.size() / 2; count > 0; count /= 2)
        for (std::size_t i = 0; i < count; ++i) values[i] = combine(values[i], values[i + count]);
    return values[0];
}

// The number that the bits stand for.
float value_of(Half half) {
    const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    const float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                       : exponent != 31 ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                       : fraction == 0  ? std::numeric_limits<float>::infinity()
                                        : std::numeric_limits<float>::quiet_NaN();
    return half.bits >> 15 ? -size : size;
}
float value_of(BFloat16 half) { return same_bits<float>(std::uint32_t{half.bits} << 16); }

// Halfway from a positive number to the next one; from the largest to where the next one would be.
float middle_after(Half half) {
    const int exponent = half.bits >> 10, fraction = half.bits & 1023;
    return exponent == 0 ? std::ldexp(static_cast<float>(2 * fraction + 1), -25)
                         : std::ldexp(static_cast<float>(2 * (1024 + fraction) + 1), exponent - 26);
}
float middle_after(BFloat16 half) { return same_bits<float>(std::uint32_t{half.bits} << 16 | 0x8000); }

template <class E>
constexpr std::uint16_t infinity_bits = std::is_same_v<E, Half> ? 0x7c00 : 0x7f80;

template <class E>
void check_every_pattern(Report& report) {
    constexpr int lanes = Pack<float>::lanes;
    for (int first = 0; first < 0x10000; first += lanes) {
        E elements[lanes], back[lanes];
        for (int i = 0; i < lanes; ++i) elements[i].bits = static_cast<std::uint16_t>(first + i);
        const Pack<float> values = load(elements);
        store(back, values);
        for (int i = 0; i < lanes; ++i) {
            const float wanted = value_of(elements[i]);
            report.check(lane(values, i), wanted, "load", static_cast<std::size_t>(first + i));
            report.check(to_compute(elements[i]), wanted, "to_compute", static_cast<std::size_t>(first + i));
            if (wanted == wanted)
                report.check(back[i].bits, elements[i].bits, "store", static_cast<std::size_t>(first + i));
        }
    }
}

// Every number, the floats around the middle between it and the next one, infinity and NaN.
template <class E>
void check_rounding(Report& report) {
    std::vector<float> values;
    std::vector<std::uint16_t> wanted;
    const auto add = [&](float value, int bits) {
        values.insert(values.end(), {value, -value});
        wanted.insert(wanted.end(), {static_cast<std::uint16_t>(bits), static_cast<std::uint16_t>(bits | 0x8000)});
    };
    for (int bits = 0; bits < infinity_bits<E>; ++bits) {
        const E half = {static_cast<std::uint16_t>(bits)};
        const float middle = middle_after(half);
        add(value_of(half), bits);
        add(std::nextafter(middle, 0.0f), bits);
        add(middle, bits + bits % 2);
        add(std::nextafter(middle, std::numeric_limits<float>::infinity()), bits + 1);
    }
    add(std::numeric_limits<float>::infinity(), infinity_bits<E>);
    for (std::size_t i = 0; i < values.size(); i += Pack<float>::lanes) {
        E got[Pack<float>::lanes];
        store(got, pack_at(values, i));
        for (std::size_t j = i; j < values.size() && j < i + Pack<float>::lanes; ++j) {
            report.check(got[j - i].bits, wanted[j], "store", j);
            report.check(from_compute<E>(values[j]).bits, wanted[j], "from_compute", j);
        }
    }
    for (const std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu}) {
        const Pack<float> nan = bit_cast<float>(broadcast(static_cast<std::int32_t>(bits)));
        E got[Pack<float>::lanes];
        store(got, nan);
        for (const E element : {got[0], from_compute<E>(same_bits<float>(bits))}) {
            report.check((element.bits & 0x7fff) > infinity_bits<E>, true, "NaN", bits);
            report.check(element.bits >> 15, static_cast<int>(bits >> 31), "sign of NaN", bits);
        }
    }
}

// Elements at an address that is no multiple of their size, between two that must not change.
template <class E>
void check_first_lanes(Report& report) {
    using T = Compute<E>;
    constexpr int lanes = Pack<T>::lanes;
    const E guard = from_compute<E>(T(-77));
    const std::vector<T> values = random_numbers<T>(lanes);
    for (int count = 0; count < lanes; ++count) {
        alignas(64) std::byte bytes[(lanes + 2) * sizeof(E) + 1];
        const auto element = [&](int i) { return reinterpret_cast<E*>(bytes + 1) + 1 + i; };
        const auto at = [&](int i) {
            E e;
            copy_elements(&e, element(i), 1);
            return to_compute(e);
        };
        for (int i = -1; i <= lanes; ++i) copy_elements(element(i), &guard, 1);
        store_first(element(0), pack_at(values, 0), count);
        for (int i = -1; i <= lanes; ++i) {
            const T wanted =
                to_compute(0 <= i && i < count ? from_compute<E>(values[static_cast<std::size_t>(i)]) : guard);
            report.check(at(i), wanted, "store_first", static_cast<std::size_t>(i + 1));
        }
        if (count == 0 && sizeof(E) == 2) continue;
        for (const T fill : {T(0), T(-0.0), -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN()}) {
            const Pack<T> got = load_first(element(0), count, fill);
            for (int i = 0; i < lanes; ++i)
                report.check(lane(got, i), i < count ? at(i) : fill, "load_first", static_cast<std::size_t>(i));
        }
    }
}

}  // namespace

#define TEST(name)                         \
    static void check_##name(Report&);     \
    extern "C" const char* test_##name() { \
        static Report report;              \
        report = {};                       \
        check_##name(report);              \
        return report.text;                \
    }                                      \
    static void check_##name(Report& report)

TEST(arithmetic) {
    for_types<float, double>([&]<class T>(T*) {
        compare<T, 2>(report, "+", [](auto a, auto b) { return a + b; }, [](T a, T b) { return a + b; });
        compare<T, 2>(report, "-", [](auto a, auto b) { return a - b; }, [](T a, T b) { return a - b; });
        compare<T, 2>(report, "*", [](auto a, auto b) { return a * b; }, [](T a, T b) { return a * b; });
        compare<T, 2>(report, "/", [](auto a, auto b) { return a / b; }, [](T a, T b) { return a / b; });
        compare<T, 1>(report, "minus", [](auto a) { return -a; }, [](T a) { return -a; });
    });
}

TEST(integer_arithmetic) {
    for_types<std::int32_t, std::int64_t, std::uint64_t>([&]<class T>(T*) {
        compare<T, 2>(report, "+", [](auto a, auto b) { return a + b; }, [](T a, T b) { return a + b; });
        compare<T, 2>(report, "-", [](auto a, auto b) { return a - b; }, [](T a, T b) { return a - b; });
        compare<T, 2>(report, "&", [](auto a, auto b) { return a & b; }, [](T a, T b) { return a & b; });
        compare<T, 2>(report, "|", [](auto a, auto b) { return a | b; }, [](T a, T b) { return a | b; });
    });
    for_types<std::int32_t, std::int64_t>([&]<class T>(T*) {
        compare<T, 1>(report, "positive", [](auto a) { return positive(a); }, [](T a) { return a > 0 ? a : 0; });
    });
}

TEST(shifts) {
    for_types<std::int32_t, std::int64_t, std::uint64_t>([&]<class T>(T*) {
        for (const int bits : {0, 1, 3, 16, 20, 23, 31}) {
            compare<T, 1>(
                report, "shift_left", [=](auto a) { return shift_left(a, bits); }, [=](T a) { return a << bits; });
            compare<T, 1>(
                report, "shift_right", [=](auto a) { return shift_right(a, bits); }, [=](T a) { return a >> bits; });
        }
    });
    for_types<std::int64_t, std::uint64_t>([&]<class T>(T*) {
        compare<T, 1>(report, "shift_left", [](auto a) { return shift_left(a, 52); }, [](T a) { return a << 52; });
        compare<T, 1>(report, "shift_right", [](auto a) { return shift_right(a, 52); }, [](T a) { return a >> 52; });
    });
}

TEST(comparisons) {
    for_types<float, double, std::int32_t, std::int64_t>([&]<class T>(T*) {
        compare<T, 2>(
            report, "less", [](auto a, auto b) { return less(a, b); }, [](T a, T b) { return a < b ? -1 : 0; });
        compare<T, 2>(
            report, "equal", [](auto a, auto b) { return equal(a, b); }, [](T a, T b) { return a == b ? -1 : 0; });
    });
}

TEST(extremes) {
    for_types<float, double>([&]<class T>(T*) {
        compare<T, 2>(report, "max", [](auto a, auto b) { return max(a, b); }, [](T a, T b) { return a > b ? a : b; });
        compare<T, 2>(report, "min", [](auto a, auto b) { return min(a, b); }, [](T a, T b) { return a < b ? a : b; });
    });
}

TEST(selection) {
    for_types<float, double, std::int32_t, std::int64_t>([&]<class T>(T*) {
        compare<T, 3>(
            report, "select", [](auto a, auto b, auto c) { return select(less(c, a), a, b); },
            [](T a, T b, T c) { return c < a ? a : b; });
    });
    const auto table = combinations(awkward<float>(), 2);
    const auto choose = [](Pack<float> a, Pack<float> b) { return to_float(select(less(a, b), widen(a), widen(b))); };
    const auto two = std::make_index_sequence<2>();
    compare_on<float>(report, "select of doubles", table, choose, [](float a, float b) { return a < b ? a : b; }, two);
}

TEST(fused_multiply_add) {
    if (has_fma) {
        for_types<float, double>([&]<class T>(T*) {
            compare<T, 3>(
                report, "fma", [](auto a, auto b, auto c) { return fma(a, b, c); },
                [](T a, T b, T c) { return std::fma(a, b, c); });
            compare<T, 3>(
                report, "multiply_add", [](auto a, auto b, auto c) { return multiply_add(a, b, c); },
                [](T a, T b, T c) { return std::fma(a, b, c); });
        });
        return;
    }
    for_types<float, double>([&]<class T>(T*) {
        compare<T, 3>(
            report, "multiply_add", [](auto a, auto b, auto c) { return multiply_add(a, b, c); },
            [](T a, T b, T c) { return a * b + c; });
    });
    const auto fused = [](auto a, auto b, auto c) { return fma(a, b, c); };
    compare<float, 3>(report, "fma", fused, [](double a, double b, double c) { return static_cast<float>(a * b + c); });

    // In double, a product with a large factor is rounded, as if nothing were fused.
    constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
    const auto three = std::make_index_sequence<3>();
    auto table = combinations(
        std::vector<double>{0, 1, -3, 0x1p996, -0x1.fp1000, 0x1.fffffffffffffp1023, infinity, -infinity, nan}, 3);
    compare_on<double>(
        report, "fma of large numbers", table, fused,
        [](double a, double b, double c) {
            const double plain = a * b + c;
            return std::abs(a) < 0x1p996 && std::abs(b) < 0x1p996 && plain == plain && std::abs(plain) < infinity
                       ? std::fma(a, b, c)
                       : plain;
        },
        three);
    // The error of a product must be exact; any other result may be the next number to the exact one.
    table.assign(3, random_numbers<double>(100'000));
    for (std::size_t i = 0; i < table[0].size(); ++i) {
        table[0][i] = std::ldexp(table[0][i], static_cast<int>(i % 600) - 300);
        table[1][i] = table[1][(i * 7919 + 1) % table[1].size()];
        table[2][i] = -(table[0][i] * table[1][i]);
    }
    compare_on<double>(
        report, "error of a product", table, fused, [](double a, double b, double c) { return std::fma(a, b, c); },
        three);
    for (std::size_t i = 0; i < table[2].size(); ++i) table[2][i] *= std::ldexp(1.0, static_cast<int>(i % 120) - 60);
    for (std::size_t i = 0; i < table[0].size(); ++i) {
        const double wanted = std::fma(table[0][i], table[1][i], table[2][i]);
        const Pack<double> got = fma(broadcast(table[0][i]), broadcast(table[1][i]), broadcast(table[2][i]));
        const double difference = std::abs(lane(got, 0) - wanted);
        report.check(difference <= std::abs(std::nextafter(wanted, infinity) - wanted), true, "fma", i);
    }
}

TEST(conversions) {
    std::vector<float> floats = awkward<float>();
    std::vector<double> doubles = awkward<double>();
    // Around the middle between two floats, normal and subnormal, and around where they overflow.
    for (const float value : floats) {
        const double next = std::nextafter(value, std::numeric_limits<float>::infinity());
        const double middle = value / 2.0 + next / 2;
        for (const double about : {middle, std::nextafter(middle, -1e300), std::nextafter(middle, 1e300)})
            doubles.push_back(about);
    }
    for (const double edge : {0x1.ffffffp127, 0x1p-150, 0x1.8p-149}) doubles.insert(doubles.end(), {edge, -edge});
    for (const double value : std::vector<double>(doubles)) {
        doubles.push_back(std::nextafter(value, 1e308));
        doubles.push_back(std::nextafter(value, -1e308));
    }
    for (std::size_t i = 0; i < floats.size(); i += Pack<float>::lanes) {
        const Pack<double, 2> got = to_double(pack_at(floats, i));
        for (std::size_t j = i; j < floats.size() && j < i + Pack<float>::lanes; ++j)
            report.check(lane(got, static_cast<int>(j - i)), static_cast<double>(floats[j]), "to_double", j);
    }
    for (std::size_t i = 0; i < doubles.size(); i += Pack<float>::lanes) {
        const Pack<float> got = to_float(pack_at<double, 2>(doubles, i));
        for (std::size_t j = i; j < doubles.size() && j < i + Pack<float>::lanes; ++j)
            report.check(lane(got, static_cast<int>(j - i)), static_cast<float>(doubles[j]), "to_float", j);
    }
    std::vector<std::int64_t> integers = awkward<std::int64_t>();
    for (const std::int64_t value : awkward<std::int64_t>()) integers.push_back(value << 29);
    for (std::size_t i = 0; i < integers.size(); i += Pack<float>::lanes) {
        const Pack<std::int32_t> got = to_int32(pack_at<std::int64_t, 2>(integers, i));
        for (std::size_t j = i; j < integers.size() && j < i + Pack<float>::lanes; ++j)
            report.check(lane(got, static_cast<int>(j - i)), static_cast<std::int32_t>(integers[j]), "to_int32", j);
    }
    compare<float, 1>(
        report, "bit_cast", [](auto a) { return bit_cast<std::int32_t>(a); },
        [](float a) { return same_bits<std::int32_t>(a); });
}

TEST(masks_of_doubles) {
    const std::vector<double> values = awkward<double>();
    for (std::size_t i = 0; i < values.size(); i += Pack<float>::lanes) {
        const Mask<float> zeros = is_zero(pack_at<double, 2>(values, i));
        for (std::size_t j = i; j < values.size() && j < i + Pack<float>::lanes; ++j)
            report.check(lane(zeros, static_cast<int>(j - i)), values[j] == 0 ? -1 : 0, "is_zero", j);
    }
    compare<double, 2>(
        report, "product_or_zero", [](auto a, auto b) { return product_or_zero(a, b); },
        [](double a, double b) { return a == 0 && b == b ? 0 : a * b; });
}

TEST(tables) {
    for_types<float, double, std::int32_t, std::int64_t>([&]<class T>(T*) {
        static constexpr T table[8] = {2, 3, 5, 7, 11, 13, 17, 19};
        compare<Integer<T>, 1>(
            report, "look_up", [](auto index) { return look_up<T>(table, index); },
            [](Integer<T> index) { return table[index & 7]; });
    });
    const std::vector<float> table = random_numbers<float>(16);
    std::vector<std::int32_t> index(256);
    for (std::size_t i = 0; i < index.size(); ++i) index[i] = static_cast<std::int32_t>((i * 7 + i / 16) % 16);
    const auto found = [&](Pack<std::int32_t> i) { return permuted(pack_at(table, 0), i); };
    const auto one = std::make_index_sequence<1>();
    compare_on<std::int32_t>(
        report, "permuted", {index}, found, [&](std::int32_t i) { return table[static_cast<std::size_t>(i)]; }, one);
}

TEST(lanes) {
    for_types<float, double, std::int32_t, std::int64_t>([&]<class T>(T*) {
        constexpr int lanes = Pack<T>::lanes;
        std::vector<T> values = awkward<T>();
        values.resize(2 * lanes);
        const Pack<T, 2> two = pack_at<T, 2>(values, 0);
        Pack<T, 2> swapped;
        set_part(swapped, 0, part(two, 1));
        set_part(swapped, 1, part(two, 0));
        const Pack<T, 2> again = joined(part(two, 0), part(two, 1));
        const Pack<T, 4> repeated = repeat<4>(part(two, 1));
        for (int i = 0; i < 2 * lanes; ++i) {
            const auto at = static_cast<std::size_t>(i);
            report.check(lane(two, i), values[at], "lane", at);
            report.check(lane(part(two, i / lanes), i % lanes), values[at], "part", at);
            report.check(lane(swapped, (i + lanes) % (2 * lanes)), values[at], "set_part", at);
            report.check(lane(again, i), values[at], "joined", at);
            report.check(lane(repeated, i + lanes), values[at % lanes + lanes], "repeat", at);
            const Pack<T, 2> all = spread(two, i);
            for (int k = 0; k < 2 * lanes; ++k) report.check(lane(all, k), values[at], "spread", at);
        }
        for (const T value : awkward<T>())
            for (int k = 0; k < lanes; ++k) report.check(lane(broadcast(value), k), value, "broadcast", 0);
    });
    for_types<std::int32_t, std::int64_t>([&]<class T>(T*) {
        for (int i = 0; i < Pack<T>::lanes; ++i) report.check(lane(iota<T>(), i), static_cast<T>(i), "iota", 0);
    });
}

TEST(bits_of_lanes) {
    for_types<float, double>([&]<class T>(T*) {
        constexpr int lanes = Pack<T>::lanes;
        for (std::uint32_t bits = 0; bits < 1u << lanes; ++bits) {
            std::vector<T> values(lanes, std::numeric_limits<T>::quiet_NaN());
            for (int i = 0; i < lanes; ++i)
                if (bits >> i & 1) values[static_cast<std::size_t>(i)] = T(i - 3);
            const Pack<T> a = pack_at(values, 0);
            report.check(equal_bits(a, a), bits, "equal_bits", bits);
            report.check(lane_bits(equal(a, a)), bits, "lane_bits", bits);
        }
    });
}

TEST(memory_at_any_address) {
    for_types<float, double, std::int32_t>([&]<class T>(T*) {
        constexpr std::size_t bytes = sizeof(Pack<T, 2>);
        for (std::size_t offset = 0; offset < 64; ++offset) {
            unsigned char from[bytes + 64], to[bytes + 65];
            for (std::size_t i = 0; i < sizeof from; ++i) from[i] = static_cast<unsigned char>(i * 7 % 128);
            std::memset(to, 0xee, sizeof to);
            store_pack(to + offset, load_pack<T, 2>(from + offset));
            for (std::size_t i = 0; i < sizeof to; ++i) {
                const bool inside = offset <= i && i < offset + bytes;
                report.check<int>(to[i], inside ? from[i] : 0xee, "store_pack", i);
            }
        }
    });
}

TEST(folds) {
    for_types<float, double>([&]<class T>(T*) {
        constexpr int lanes = Pack<T>::lanes;
        const auto add = [](T a, T b) { return a + b; };
        const auto larger = [](T a, T b) { return a > b ? a : b; };
        std::vector<T> values = random_numbers<T>(50 * lanes);
        for (const T value : awkward<T>()) values.push_back(value);
        values.resize(60 * lanes);
        for (std::size_t i = 0; i < values.size(); i += lanes) {
            const Pack<T> a = pack_at(values, i);
            const auto first = values.begin() + static_cast<std::ptrdiff_t>(i);
            const std::vector<T> numbers(first, first + lanes);
            report.check(fold_sum(a), folded_in_halves<T>(numbers, add), "fold_sum", i);
            report.check(fold_max(a), folded_in_halves<T>(numbers, larger), "fold_max", i);
        }
    });
    constexpr std::size_t lanes = Pack<double>::lanes;
    const std::vector<double> values = random_numbers<double>(lanes * lanes);
    Pack<double> packs[lanes];
    for (std::size_t i = 0; i < lanes; ++i) packs[i] = pack_at(values, i * lanes);
    const Pack<double> sums = fold_sums(packs);
    for (std::size_t i = 0; i < lanes; ++i) {
        const std::vector<double> numbers(&values[i * lanes], &values[i * lanes] + lanes);
        const double wanted = folded_in_halves<double>(numbers, [](double a, double b) { return a + b; });
        report.check(lane(sums, static_cast<int>(i)), wanted, "fold_sums", i);
    }
}

TEST(every_float16) { check_every_pattern<Half>(report); }
TEST(every_bfloat16) { check_every_pattern<BFloat16>(report); }
TEST(rounding_to_float16) { check_rounding<Half>(report); }
TEST(rounding_to_bfloat16) { check_rounding<BFloat16>(report); }

TEST(first_lanes) {
    for_types<float, double, Half, BFloat16>([&]<class E>(E*) { check_first_lanes<E>(report); });
}

// A step, in whatever order it holds its elements, is stored as it was loaded, and nothing beside it; NaN stays NaN.
template <class E>
void check_steps(Report& report) {
    using T = Compute<E>;
    constexpr int lanes = Step<E>::lanes;
    std::vector<T> values = random_numbers<T>(lanes);
    values[1] = std::numeric_limits<T>::infinity();
    values[2] = T(-0.0);
    const E guard = from_compute<E>(T(-77));
    alignas(64) std::byte from[(lanes + 2) * sizeof(E) + 1], to[sizeof from];
    const auto element = [](std::byte* bytes, int i) { return reinterpret_cast<E*>(bytes + 1) + 1 + i; };
    const auto at = [&](std::byte* bytes, int i) {
        E e;
        copy_elements(&e, element(bytes, i), 1);
        return to_compute(e);
    };
    const auto check = [&](Step<E> step, int count, const char* name) {
        for (int i = -1; i <= lanes; ++i) copy_elements(element(to, i), &guard, 1);
        store_step<true>(element(to, 0), step);
        for (int i = -1; i <= lanes; ++i) {
            const T wanted = i < 0 || i == lanes ? T(-77) : i < count ? at(from, i) : 0;
            report.check(at(to, i), wanted, name, static_cast<std::size_t>(i + 1));
        }
    };
    for (const T special : {T(3), std::numeric_limits<T>::quiet_NaN()}) {
        values[3] = special;
        for (int i = -1; i <= lanes; ++i) {
            const E e = i < 0 || i == lanes ? guard : from_compute<E>(values[static_cast<std::size_t>(i)]);
            copy_elements(element(from, i), &e, 1);
        }
        check(load_step(element(from, 0)), lanes, "load_step");
        for (int count = 1; count < lanes; ++count)
            check(load_first_of_step(element(from, 0), count), count, "load_first_of_step");
    }
}

TEST(steps) {
    for_types<float, double, Half, BFloat16>([&]<class E>(E*) { check_steps<E>(report); });
}

// Sums of halves of any size; some of their products would overflow in float, others are subnormal there.
template <Operation op, class E, bool far>
void check_sums_of_halves(Report& report, int exponents) {
    constexpr int step = Step<E>::lanes;
    const std::vector<float> numbers = random_numbers<float>(6 * step);
    std::vector<E> x, dy;
    for (std::size_t i = 0; i < 3 * step; ++i) {
        const int k = static_cast<int>(i * 37 % 80) - 40;
        x.push_back(from_compute<E>(std::ldexp(numbers[i], k * exponents / 40)));
        dy.push_back(from_compute<E>(std::ldexp(numbers[i + 3 * step], -(k * 7 % 41) * exponents / 40)));
    }
    for (int count = 0; count < step; ++count) {
        TermSums<op, E, far> sums;
        for (int first = 0; first < 2 * step; first += step) sums.add(&x[first], &dy[first]);
        if (count > 0) sums.add(&x[2 * step], &dy[2 * step], count);
        double wanted[16] = {};
        for (std::size_t i = 0; i < static_cast<std::size_t>(2 * step + count); ++i)
            wanted[i % 16] +=
                (op == Operation::softmax_grad ? double{to_compute(x[i])} : 1) * double{to_compute(dy[i])};
        const Pack<double, 2> total = sums.total();
        for (int i = 0; i < 16; ++i) report.check(lane(total, i), wanted[i], "add", static_cast<std::size_t>(count));
    }
}

TEST(sums_of_halves) {
    check_sums_of_halves<Operation::softmax_grad, Half, false>(report, 14);
    check_sums_of_halves<Operation::log_softmax_grad, Half, false>(report, 14);
    check_sums_of_halves<Operation::log_softmax_grad, BFloat16, false>(report, 120);
    check_sums_of_halves<Operation::softmax_grad, BFloat16, true>(report, 120);
    // Products below 2^11 are formed in float, in units of 2^-117; down to the least of all.
    check_sums_of_halves<Operation::softmax_grad, BFloat16, false>(report, 4);
    std::vector<BFloat16> least(Step<BFloat16>::lanes, {1}), one(Step<BFloat16>::lanes, {0x3f80});
    for (const auto& [x, dy, product] : {std::tuple(least, least, 0x1p-266), std::tuple(least, one, 0x1p-133)}) {
        TermSums<Operation::softmax_grad, BFloat16> sums;
        sums.add(x.data(), dy.data());
        report.check(lane(sums.total(), 3), 2 * product, "add", 0);
    }
}

TEST(interleaved) {
    for_types<float, double>([&]<class T>(T*) {
        constexpr int lanes = Pack<T>::lanes;
        const std::vector<T> values = random_numbers<T>(2 * lanes);
        const Pack<T, 2> both = interleaved(pack_at(values, 0), pack_at(values, lanes));
        for (int i = 0; i < 2 * lanes; ++i)
            report.check(lane(both, i), values[static_cast<std::size_t>(i / 2 + i % 2 * lanes)], "interleaved",
                         static_cast<std::size_t>(i));
    });
}

// The product of two floats is exact in double, so it makes no difference whether it is fused with the addition.
TEST(sums_of_four) {
    const std::vector<float> x = random_numbers<float>(64), dy = random_numbers<float>(65);
    const auto check_sums = [&]<Operation op>() {
        const auto check = [&](const TermSums<op, float>& sums, int terms, const char* name) {
            double wanted[16] = {};
            for (std::size_t i = 0; i < static_cast<std::size_t>(terms); ++i)
                wanted[i % 16] += (op == Operation::softmax_grad ? double{x[i]} : 1) * double{dy[i]};
            const Pack<double, 2> total = sums.total();
            for (int i = 0; i < 16; ++i) report.check(lane(total, i), wanted[i], name, static_cast<std::size_t>(terms));
        };
        for (int count = 0; count <= 16; ++count) {
            TermSums<op, float> sums;
            for (int first = 0; first < 48; first += 16) sums.add(&x[first], &dy[first]);
            sums.add(&x[48], &dy[48], count);
            check(sums, 48 + count, "add");
        }
        [&]<int... k>(std::integer_sequence<int, k...>) {
            const auto check_row = [&]<int spans>(std::integral_constant<int, spans>) {
                for (int last = 1; last <= 4; ++last) {
                    TermSums<op, float> sums;
                    sums.template add_row<spans>(x.data(), dy.data(), last);
                    check(sums, 4 * (spans - 1) + last, "add_row");
                }
            };
            (check_row(std::integral_constant<int, k + 1>()), ...);
        }(std::make_integer_sequence<int, 8>());
    };
    check_sums.operator()<Operation::softmax_grad>();
    check_sums.operator()<Operation::log_softmax_grad>();
}
