// Tests how the transport moves per-slice arrays with an axis of their own: the k numbers of each slice go where they
// belong, and nothing else is written.
#include "transport.hpp"

#include <cstdio>
#include <cstring>
#include <vector>

#include "targets.hpp"

namespace fastsoftmax {

// Only for float64, which is all that these tests move.
static void gather_doubles(const std::byte* from, std::ptrdiff_t stride, bool, std::ptrdiff_t count, double* to) {
    for (std::ptrdiff_t i = 0; i < count; ++i) std::memcpy(to + i, from + i * stride, sizeof *to);
}
static void scatter_doubles(const double* from, std::ptrdiff_t count, std::byte* to, std::ptrdiff_t stride) {
    for (std::ptrdiff_t i = 0; i < count; ++i) std::memcpy(to + i * stride, from + i, sizeof *from);
}

const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels k{};
        k.to_double.gather_row[ElementType::float64] = gather_doubles;
        k.to_double.scatter_row[ElementType::float64] = scatter_doubles;
        return k;
    }();
    return table;
}

}  // namespace fastsoftmax

using namespace fastsoftmax;

namespace {

constexpr Signature signature = {
    .name = "several", .labels = PerSlice::own, .value = PerSlice::own, .sign = PerSlice::one, .state = 10};
constexpr std::ptrdiff_t batch = 5, k = 3, step = 4;  // one of every `step` places in memory belongs to an array

// The arrays of one call, in memory that also has places beside their elements.
struct Arrays {
    std::vector<double> scores, value, sign;
    std::vector<std::int64_t> label;
    Slices slices;

    // `down`: strides of the own axis are negative.
    explicit Arrays(bool down)
        : scores(batch * 40), value(batch * k * step, -1), sign(batch * step, -1), label(batch * k) {
        const std::ptrdiff_t size = sizeof(double);
        Axis axis = {batch, {}}, own = {k, {}};
        axis.strides[Role::scores] = 40 * size;
        axis.strides[Role::value] = k * step * size;
        axis.strides[Role::sign] = step * size;
        axis.strides[Role::label] = k * size;
        own.strides[Role::value] = (down ? -step : step) * size;
        own.strides[Role::label] = size;
        slices.batch.append(axis);
        slices.own.append(own);
        slices.classes.append({40, {}});
        slices.classes.axis[0].strides[Role::scores] = size;
        slices.arrays[Role::scores] = {bytes(scores.data()), ElementType::float64};
        slices.arrays[Role::value] = {bytes(value.data() + (down ? (k - 1) * step : 0)), ElementType::float64};
        slices.arrays[Role::sign] = {bytes(sign.data()), ElementType::float64};
        slices.arrays[Role::label] = {bytes(label.data()), ElementType::int64};
        for (std::ptrdiff_t i = 0; i < batch * k; ++i) label[static_cast<std::size_t>(i)] = 100 + i;
    }

    template <class T>
    static std::byte* bytes(T* p) {
        return reinterpret_cast<std::byte*>(p);
    }
};

int look(bool down) {
    Arrays a(down);
    const Plan plan(signature, a.slices, {});
    const Transport transport(plan, signature);
    double numbers[batch * k], back[batch * k] = {};
    std::int64_t labels[batch * k] = {};
    for (int i = 0; i < batch * k; ++i) numbers[i] = i;
    // In two runs, as two threads would.
    const Offsets first = plan.slices.batch.at(0), third = plan.slices.batch.at(2);
    transport.scatter_numbers(Role::value, first, 2, numbers);
    transport.scatter_numbers(Role::value, third, batch - 2, numbers + 2 * k);
    transport.scatter_numbers(Role::sign, first, batch, numbers);
    transport.gather_numbers(Role::value, first, batch, back);
    transport.gather_labels(third, batch - 2, labels);
    int failures = 0;
    const auto expect = [&](const char* what, std::ptrdiff_t at, double got, double wanted) {
        if (got == wanted) return;
        std::printf("%s, %td: got %g, expected %g\n", what, at, got, wanted);
        ++failures;
    };
    for (std::ptrdiff_t i = 0; i < batch; ++i) {
        for (std::ptrdiff_t j = 0; j < k; ++j) {
            const std::ptrdiff_t place = (i * k + (down ? k - 1 - j : j)) * step;
            expect("value", place, a.value[static_cast<std::size_t>(place)], numbers[i * k + j]);
            expect("value read back", i * k + j, back[i * k + j], numbers[i * k + j]);
            for (std::ptrdiff_t other = 1; other < step; ++other)
                expect("beside a value", place + other, a.value[static_cast<std::size_t>(place + other)], -1);
            if (i < batch - 2)
                expect("label", i * k + j, static_cast<double>(labels[i * k + j]), 100.0 + (i + 2) * k + j);
        }
        for (std::ptrdiff_t other = 0; other < step; ++other)
            expect("sign", i * step + other, a.sign[static_cast<std::size_t>(i * step + other)],
                   other == 0 ? static_cast<double>(i) : -1);
    }
    return failures;
}

}  // namespace

int main() { return look(false) + look(true) != 0; }
