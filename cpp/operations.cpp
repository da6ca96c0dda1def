#include "operations.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "targets.hpp"
#include "threads.hpp"

namespace fastsoftmax {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Slices of at most this many classes go through a tile of neighbouring slices: a pack holds one class of each, where a
// row would leave most of a pack empty.
constexpr std::ptrdiff_t few_classes = 32;
// So many elements pay for waking another thread.
constexpr std::ptrdiff_t elements_per_thread = 16384;
// A kernel call takes up to this many slices where it needs values for each of them.
constexpr std::ptrdiff_t slices_per_call = 256;
// Losses to be reduced are held for so many slices at a time.
constexpr std::ptrdiff_t losses_held = 65536;

std::ptrdiff_t bytes_of(ElementType type) {
    constexpr std::ptrdiff_t bytes[element_types] = {2, 2, 4, 8, 1, 1, 2, 4, 8, 1, 2, 4, 8};
    return bytes[type];
}

bool is_half(ElementType type) { return type == float16 || type == bfloat16; }

bool computed_in_float(ElementType type) { return is_half(type) || type == float32; }

double read_double(const Array& array, std::ptrdiff_t offset) {
    double element;
    kernels().gather_double[array.type](array.data + offset, 0, array.swapped, 1, &element);
    return element;
}

void write_double(const Array& array, std::ptrdiff_t offset, double element) {
    kernels().scatter_double[array.type](&element, 1, array.data + offset, 0);
}

std::int64_t read_index(const Array& array, std::ptrdiff_t offset) {
    const std::byte* p = array.data + offset;
    const auto as = [&](auto zero) {
        unsigned char bytes[sizeof zero];
        for (std::size_t i = 0; i < sizeof zero; ++i)
            bytes[i] = static_cast<unsigned char>(p[array.swapped ? sizeof zero - 1 - i : i]);
        __builtin_memcpy(&zero, bytes, sizeof zero);
        return static_cast<std::int64_t>(zero);
    };
    switch (array.type) {
        case int8: return as(std::int8_t{});
        case int16: return as(std::int16_t{});
        case int32: return as(std::int32_t{});
        case uint8: return as(std::uint8_t{});
        case uint16: return as(std::uint16_t{});
        case uint32: return as(std::uint32_t{});
        default: return as(std::int64_t{});
    }
}

// How a loop goes over slices.
enum class Loop {
    rows,      // classes contiguous, in place
    columns,   // neighbouring slices contiguous, in place
    gathered,  // through memory of the thread's own: everything else
};

// One operation on one batch: everything that a thread needs for its share.
class Batch {
  public:
    Batch(Operation operation_, Slices& slices_, double temperature_, bool in_order)
        : operation(operation_), slices(slices_), temperature(temperature_) {
        classes = slices.classes.size();
        slices.classes.simplify();
        if (!in_order) sort_batch();
        slices.batch.simplify();
        in_float = computed_in_float(slices.arrays[scores].type);
        for (const Role r : {second, output})
            if (slices.has(r)) in_float = in_float && computed_in_float(slices.arrays[r].type);
        // Outside this range the parts of the reciprocal of the temperature are no normal floats.
        in_float = in_float && temperature > 0x1p-100 && temperature < 0x1p100;
        choose_loop(in_order);
        count = slices.batch.size();
        along = std::max<std::ptrdiff_t>(slices.batch.last().size, 1);
        units_along = (along + unit - 1) / unit;
        units = count / along * units_along;
    }

    const Operation operation;
    Slices& slices;
    const double temperature;
    std::ptrdiff_t classes, count;
    bool in_float;
    Loop loop = Loop::gathered;
    // Work is dealt out in units of neighbouring slices along the last batch axis.
    std::ptrdiff_t unit = 1, along, units_along, units;

    bool tiled() const { return loop == Loop::gathered && classes <= few_classes; }
    int lanes() const { return in_float ? 16 : 8; }

    // Doubles of memory that a thread needs; that a shared slice needs.
    std::ptrdiff_t scratch_size() const { return loop == Loop::gathered ? operands() * operand_size() : 0; }
    std::ptrdiff_t shared_size() const { return loop == Loop::rows ? 0 : operands() * operand_size(); }

    int threads_for(std::ptrdiff_t slices_wanted) const {
        const std::ptrdiff_t elements = slices_wanted * std::max<std::ptrdiff_t>(classes, 1);
        if (elements < 2 * elements_per_thread) return 1;
        const std::ptrdiff_t worth = elements / elements_per_thread;
        return static_cast<int>(std::min<std::ptrdiff_t>(worth, get_num_threads()));
    }

    // Calls f(offsets, first, length) for runs of neighbouring slices that make up the units [begin, end).
    template <class F>
    void for_runs(std::ptrdiff_t begin, std::ptrdiff_t end, std::ptrdiff_t most, F f) const {
        while (begin < end) {
            const std::ptrdiff_t outer = begin / units_along, inner = begin % units_along;
            const std::ptrdiff_t taken = std::min({end - begin, units_along - inner, std::max<std::ptrdiff_t>(most / unit, 1)});
            const std::ptrdiff_t first = outer * along + inner * unit;
            const std::ptrdiff_t last = outer * along + std::min((inner + taken) * unit, along);
            f(slices.batch.at(first), first, last - first);
            begin += taken;
        }
    }

    // Applies the kernel to `length` slices from `offsets` on. The run brings what is one value a slice.
    void apply(Run run, const Offsets& offsets, std::ptrdiff_t length, double* scratch) const {
        run.classes = classes;
        run.temperature = temperature;
        if (loop != Loop::gathered) {
            run.slices = length;
            run.x = strided(scores, offsets);
            if (uses_second()) run.dy = strided(second, offsets);
            if (slices.has(output)) run.out = strided(output, offsets);
            const auto& table = loop == Loop::rows ? kernels().rows : kernels().columns;
            return table[operation][slices.arrays[scores].type](run);
        }
        const std::ptrdiff_t step = tiled() ? lanes() : 1;
        const Offsets strides = slices.batch.last().strides;
        for (std::ptrdiff_t first = 0; first < length; first += step) {
            const std::ptrdiff_t taken = std::min(step, length - first);
            Offsets at = offsets;
            for (int r = 0; r < roles; ++r) at[r] += first * strides[r];
            apply_gathered(advanced(run, first), at, taken, scratch);
        }
    }

    // The run from its slice `first` on, as far as values a slice go.
    static Run advanced(Run run, std::ptrdiff_t first) {
        if (run.value) run.value += first;
        if (run.target) run.target += first;
        if (run.chosen) run.chosen += first;
        if (run.spread) run.spread += first;
        if (run.scale) run.scale += first;
        return run;
    }

    // Whether a slice is worth sharing among threads: there are too few slices for all of them.
    bool shares_slices(int threads) const {
        return threads > 1 && classes > block_classes && units < 4 * static_cast<std::ptrdiff_t>(threads);
    }

    // One slice on all threads, in blocks.
    void apply_shared(Run run, const Offsets& offsets, int threads, double* row) const {
        run.classes = classes;
        run.temperature = temperature;
        run.slices = 1;
        const std::ptrdiff_t blocks = (classes + block_classes - 1) / block_classes;
        const auto for_blocks = [&](const auto& body) {
            parallel_for(threads, [&](int part) {
                for (std::ptrdiff_t b = blocks * part / threads; b < blocks * (part + 1) / threads; ++b)
                    body(b, b * block_classes, std::min((b + 1) * block_classes, classes));
            });
        };
        ElementType type = slices.arrays[scores].type;
        if (loop == Loop::rows) {
            run.x = strided(scores, offsets);
            if (uses_second()) run.dy = strided(second, offsets);
            if (slices.has(output)) run.out = strided(output, offsets);
        } else {
            type = in_float ? float32 : float64;
            run = gathered_run(run, row);
            for_blocks([&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t end) {
                gather_row(scores, offsets, begin, end, run.x.data);
                if (uses_second()) gather_row(second, offsets, begin, end, run.dy.data);
            });
        }
        const std::unique_ptr<Statistics[]> measured(new Statistics[blocks]);
        for_blocks([&](std::ptrdiff_t b, std::ptrdiff_t begin, std::ptrdiff_t end) {
            measured[b] = kernels().measure[operation][type](run, begin, end);
        });
        for (std::ptrdiff_t b = 1; b < blocks; ++b) kernels().merge[operation](run, measured[0], measured[b]);
        kernels().conclude[operation][type](run, measured[0]);
        if (!slices.has(output)) return;
        for_blocks([&](std::ptrdiff_t, std::ptrdiff_t begin, std::ptrdiff_t end) {
            kernels().write[operation][type](run, measured[0], begin, end);
            if (loop != Loop::rows) scatter_row(offsets, begin, end, run.out.data);
        });
    }

    // A row of `role` into contiguous floats or doubles; what the mask leaves out becomes `fill`.
    void gather_row(Role role, const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, std::byte* to) const {
        slices.classes.for_stretches(begin, end, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t length) {
            gather(role, offsets[role] + at[role], slices.classes.last().strides[role], offsets[mask] + at[mask],
                   slices.classes.last().strides[mask], length, to + c * width());
        });
    }

    bool uses_second() const { return operation == softmax_grad || operation == log_softmax_grad; }

  private:
    std::ptrdiff_t width() const { return in_float ? 4 : 8; }

    int operands() const { return 1 + (uses_second() ? 1 : 0) + (slices.has(output) ? 1 : 0); }

    // Doubles that one array takes in scratch.
    std::ptrdiff_t operand_size() const {
        const std::ptrdiff_t elements = classes * (tiled() ? lanes() : 1);
        return (elements * width() + 63) / 64 * 8;
    }

    // Neighbours in memory become neighbours in the loop, where the order of slices is free.
    void sort_batch() {
        Axes& batch = slices.batch;
        const auto distance = [](const Axis& axis) { return std::abs(axis.strides[scores]) + std::abs(axis.strides[output]); };
        std::stable_sort(batch.axis.begin(), batch.axis.begin() + batch.count,
                         [&](const Axis& a, const Axis& b) { return distance(a) > distance(b); });
    }

    bool every_array(const Axis& axis) const {
        for (const Role r : {scores, uses_second() ? second : scores, slices.has(output) ? output : scores})
            if (axis.strides[r] != bytes_of(slices.arrays[r].type)) return false;
        return true;
    }

    void choose_loop(bool in_order) {
        const ElementType type = slices.arrays[scores].type;
        bool direct = type < floating_types && !slices.has(mask) && !slices.arrays[scores].swapped &&
                      slices.classes.count <= 1 && in_float == computed_in_float(type);
        for (const Role r : {second, output})
            if (slices.has(r) && (r == output || uses_second()))
                direct = direct && slices.arrays[r].type == type && !slices.arrays[r].swapped;
        if (direct && classes > few_classes && every_array(slices.classes.last())) {
            loop = Loop::rows;
            return;
        }
        // A unit-stride batch axis becomes the last; few neighbours would leave most of a pack empty.
        if (direct && (!slices.has(second) || uses_second())) {
            Axes& batch = slices.batch;
            for (int i = batch.count - 1; i >= (in_order ? batch.count - 1 : 0) && i >= 0; --i) {
                if (!every_array(batch.axis[i]) || batch.axis[i].size < lanes() / 2) continue;
                std::rotate(batch.axis.begin() + i, batch.axis.begin() + i + 1, batch.axis.begin() + batch.count);
                loop = Loop::columns;
                unit = lanes();
                return;
            }
        }
        if (tiled()) unit = lanes();
    }

    Strided strided(Role role, const Offsets& offsets) const {
        return {slices.arrays[role].data + offsets[role], slices.batch.last().strides[role],
                slices.classes.last().strides[role]};
    }

    // Where a run's arrays are in scratch: rows, or a tile whose slices are neighbours.
    Run gathered_run(Run run, double* scratch) const {
        std::byte* p = reinterpret_cast<std::byte*>(scratch);
        const auto next = [&]() -> Strided {
            std::byte* at = p;
            p += operand_size() * 8;
            return tiled() ? Strided{at, width(), lanes() * width()} : Strided{at, classes * width(), width()};
        };
        run.x = next();
        if (uses_second()) run.dy = next();
        if (slices.has(output)) run.out = next();
        return run;
    }

    void apply_gathered(Run run, const Offsets& offsets, std::ptrdiff_t taken, double* scratch) const {
        run = gathered_run(run, scratch);
        run.slices = taken;
        const ElementType type = in_float ? float32 : float64;
        if (!tiled()) {
            gather_row(scores, offsets, 0, classes, run.x.data);
            if (uses_second()) gather_row(second, offsets, 0, classes, run.dy.data);
            kernels().rows[operation][type](run);
            if (slices.has(output)) scatter_row(offsets, 0, classes, run.out.data);
            return;
        }
        const Offsets strides = slices.batch.last().strides;
        const auto for_classes = [&](auto body) {
            for (std::ptrdiff_t c = 0; c < classes; ++c) {
                const Offsets at = slices.classes.at(c);
                body(at, c * lanes() * width());
            }
        };
        for_classes([&](const Offsets& at, std::ptrdiff_t in_tile) {
            for (const Role r : {scores, second}) {
                if (r == second && !uses_second()) continue;
                gather(r, offsets[r] + at[r], strides[r], offsets[mask] + at[mask], strides[mask], taken,
                       (r == scores ? run.x : run.dy).data + in_tile);
            }
        });
        kernels().columns[operation][type](run);
        if (!slices.has(output)) return;
        for_classes([&](const Offsets& at, std::ptrdiff_t in_tile) {
            scatter(offsets[output] + at[output], strides[output], offsets[mask] + at[mask], strides[mask], taken,
                    run.out.data + in_tile);
        });
    }

    bool masked_out(std::ptrdiff_t offset) const { return slices.arrays[mask].data[offset] == std::byte{0}; }

    void gather(Role role, std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t mask_offset,
                std::ptrdiff_t mask_stride, std::ptrdiff_t length, std::byte* to) const {
        const Array& array = slices.arrays[role];
        if (in_float)
            kernels().gather_float[array.type](array.data + offset, stride, array.swapped, length,
                                               reinterpret_cast<float*>(to));
        else
            kernels().gather_double[array.type](array.data + offset, stride, array.swapped, length,
                                                reinterpret_cast<double*>(to));
        if (!slices.has(mask)) return;
        // A score of -inf and a gradient of 0 take no part; nor does y = 0.
        const double fill = role == scores && operation != softmax_grad ? -infinity : 0;
        fill_masked(mask_offset, mask_stride, length, to, fill);
    }

    void fill_masked(std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t length, std::byte* to, double fill) const {
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            if (!masked_out(offset + i * stride)) continue;
            if (in_float)
                reinterpret_cast<float*>(to)[i] = static_cast<float>(fill);
            else
                reinterpret_cast<double*>(to)[i] = fill;
        }
    }

    void scatter_row(const Offsets& offsets, std::ptrdiff_t begin, std::ptrdiff_t end, std::byte* from) const {
        slices.classes.for_stretches(begin, end, [&](const Offsets& at, std::ptrdiff_t c, std::ptrdiff_t length) {
            scatter(offsets[output] + at[output], slices.classes.last().strides[output], offsets[mask] + at[mask],
                    slices.classes.last().strides[mask], length, from + c * width());
        });
    }

    void scatter(std::ptrdiff_t offset, std::ptrdiff_t stride, std::ptrdiff_t mask_offset, std::ptrdiff_t mask_stride,
                 std::ptrdiff_t length, std::byte* from) const {
        if (slices.has(mask))
            fill_masked(mask_offset, mask_stride, length, from, operation == log_softmax ? -infinity : 0);
        const Array& array = slices.arrays[output];
        if (in_float)
            kernels().scatter_float[array.type](reinterpret_cast<const float*>(from), length, array.data + offset, stride);
        else
            kernels().scatter_double[array.type](reinterpret_cast<const double*>(from), length, array.data + offset, stride);
    }
};

// Calls body(begin, end, scratch) for each thread's share of the units [begin, end).
template <class Body>
void share(std::ptrdiff_t begin, std::ptrdiff_t end, int threads, std::ptrdiff_t scratch_size, Body body) {
    const std::unique_ptr<double[]> scratch(new double[threads * scratch_size]);
    parallel_for(threads, [&](int part) {
        const std::ptrdiff_t work = end - begin;
        body(begin + work * part / threads, begin + work * (part + 1) / threads, scratch.get() + part * scratch_size);
    });
}

}  // namespace

void transform(Operation operation, Slices& slices, double temperature) {
    const Batch batch(operation, slices, temperature, false);
    if (batch.count == 0 || batch.classes == 0) return;
    const int threads = batch.threads_for(batch.count);
    if (batch.shares_slices(threads)) {
        const std::unique_ptr<double[]> row(new double[batch.shared_size()]);
        for (std::ptrdiff_t s = 0; s < batch.count; ++s)
            batch.apply_shared(Run{}, slices.batch.at(s), threads, row.get());
        return;
    }
    share(0, batch.units, threads, batch.scratch_size(), [&](std::ptrdiff_t begin, std::ptrdiff_t end, double* scratch) {
        batch.for_runs(begin, end, batch.count, [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length) {
            batch.apply(Run{}, at, length, scratch);
        });
    });
}

void reduce(Slices& slices) {
    const bool weighed = slices.has(second);
    Batch batch(logsumexp, slices, 1, false);
    if (weighed) batch.in_float = false;
    if (batch.count == 0) return;
    const auto finish = [&](const Offsets& at, double log, double sign_of_sum) {
        write_double(slices.arrays[value], at[value], log);
        if (slices.has(sign)) write_double(slices.arrays[sign], at[sign], sign_of_sum);
    };
    const auto sign_of = [](double log) { return std::isnan(log) ? nan : log == -infinity ? 0.0 : 1.0; };
    const int threads = batch.threads_for(batch.count);
    if (!weighed && batch.shares_slices(threads)) {
        const std::unique_ptr<double[]> row(new double[batch.shared_size()]);
        for (std::ptrdiff_t s = 0; s < batch.count; ++s) {
            double log;
            Run run;
            run.value = &log;
            const Offsets at = slices.batch.at(s);
            batch.apply_shared(run, at, threads, row.get());
            finish(at, log, sign_of(log));
        }
        return;
    }
    const std::ptrdiff_t scratch_size = weighed ? 2 * batch.classes : batch.scratch_size();
    share(0, batch.units, threads, scratch_size, [&](std::ptrdiff_t begin, std::ptrdiff_t end, double* scratch) {
        batch.for_runs(begin, end, slices_per_call, [&](const Offsets& first, std::ptrdiff_t, std::ptrdiff_t length) {
            double logs[slices_per_call], signs[slices_per_call];
            const Offsets strides = slices.batch.last().strides;
            const auto at = [&](std::ptrdiff_t i) {
                Offsets offsets = first;
                for (int r = 0; r < roles; ++r) offsets[r] += i * strides[r];
                return offsets;
            };
            if (weighed) {
                double* weights = scratch + batch.classes;
                for (std::ptrdiff_t i = 0; i < length; ++i) {
                    const Offsets offsets = at(i);
                    batch.gather_row(scores, offsets, 0, batch.classes, reinterpret_cast<std::byte*>(scratch));
                    batch.gather_row(second, offsets, 0, batch.classes, reinterpret_cast<std::byte*>(weights));
                    kernels().logsumexp_weighed(scratch, weights, batch.classes, &logs[i], &signs[i]);
                    if (!slices.has(sign) && signs[i] < 0) logs[i] = nan;
                }
            } else {
                Run run;
                run.value = logs;
                batch.apply(run, first, length, scratch);
                for (std::ptrdiff_t i = 0; i < length; ++i) signs[i] = sign_of(logs[i]);
            }
            for (std::ptrdiff_t i = 0; i < length; ++i) finish(at(i), logs[i], signs[i]);
        });
    });
}

namespace {

// A sum in order of position alone: eight partial sums, each in two doubles, so that it is right to the last digit.
class OrderedSum {
  public:
    void add(const double* values, std::ptrdiff_t count) {
        for (std::ptrdiff_t i = 0; i < count; ++i) add_to(static_cast<int>((position + i) % 8), values[i]);
        position += count;
    }
    double total() const {
        OrderedSum all;
        double plain = 0;
        for (int k = 0; k < 8; ++k) {
            all.add_to(0, high[k]);
            all.low[0] += low[k];
            plain += high[k];
        }
        return std::isfinite(plain) ? all.high[0] + all.low[0] : plain;
    }

  private:
    double high[8] = {}, low[8] = {};
    std::ptrdiff_t position = 0;

    void add_to(int k, double x) {
        const double sum = high[k] + x, back = sum - high[k];
        low[k] += (high[k] - (sum - back)) + (x - back);
        high[k] = sum;
    }
};

// What multiplies each -log p of a class, from its probability: weight * ((1 - smoothing) * probability + smoothing / C).
double term(const Loss& loss, std::ptrdiff_t classes, std::ptrdiff_t c, double probability) {
    const double smoothed = (1 - loss.label_smoothing) * probability + loss.label_smoothing / static_cast<double>(classes);
    return loss.weight ? loss.weight[c] * smoothed : smoothed;
}

// Stores `terms`, `step` elements apart, as the kernels compute them; their sum is that of what was stored.
double store_terms(const double* terms, std::ptrdiff_t classes, bool in_float, std::ptrdiff_t step, double* to) {
    OrderedSum sum;
    for (std::ptrdiff_t c = 0; c < classes; ++c) {
        double stored = terms[c];
        if (in_float) {
            const float single = static_cast<float>(stored);
            reinterpret_cast<float*>(to)[c * step] = single;
            stored = single;
        } else {
            to[c * step] = stored;
        }
        sum.add(&stored, 1);
    }
    return sum.total();
}

// One cross-entropy over a batch.
class CrossEntropy {
  public:
    CrossEntropy(Slices& slices_, const Loss& loss_)
        : slices(slices_),
          loss(loss_),
          batch(slices_.has(output) ? cross_entropy_grad : cross_entropy, slices_, loss_.temperature,
                loss_.reduction != Reduction::none) {
        const std::ptrdiff_t classes = batch.classes;
        if (!loss.probabilities && loss.label_smoothing > 0) {
            std::vector<double> terms(static_cast<std::size_t>(classes));
            for (std::ptrdiff_t c = 0; c < classes; ++c) terms[static_cast<std::size_t>(c)] = term(loss, classes, c, 0);
            shared_terms.reset(new double[classes]);
            shared_spread = store_terms(terms.data(), classes, batch.in_float, 1, shared_terms.get());
        }
    }

    void compute() {
        count_samples();
        const int threads = batch.threads_for(std::min(batch.count, losses_held));
        const bool reduced = loss.reduction != Reduction::none;
        // Probabilities need their terms beside the scores.
        const std::ptrdiff_t size =
            batch.scratch_size() + (loss.probabilities ? (1 + slices_at_once()) * batch.classes : 0);
        if (!has_terms() && batch.shares_slices(threads)) {
            share_slices(threads);
            return;
        }
        std::unique_ptr<double[]> held;
        if (reduced) held.reset(new double[std::min(batch.count, losses_held)]);
        // Reduced losses come in order, so units of the held part are units of the whole.
        const std::ptrdiff_t step = reduced ? std::max<std::ptrdiff_t>(losses_held / batch.unit, 1) : batch.units;
        for (std::ptrdiff_t first = 0; first < batch.units; first += step) {
            const std::ptrdiff_t end = std::min(first + step, batch.units);
            const std::ptrdiff_t origin = first / batch.units_along * batch.along + first % batch.units_along * batch.unit;
            share(first, end, threads, size, [&](std::ptrdiff_t from, std::ptrdiff_t to, double* scratch) {
                batch.for_runs(from, to, slices_per_call, [&](const Offsets& at, std::ptrdiff_t slice, std::ptrdiff_t length) {
                    run(at, slice, length, scratch, reduced ? held.get() + (slice - origin) : nullptr);
                });
            });
            if (!reduced) continue;
            const std::ptrdiff_t stop = end == batch.units ? batch.count
                                      : end / batch.units_along * batch.along + end % batch.units_along * batch.unit;
            sum.add(held.get(), stop - origin);
        }
        store_reduced();
    }

  private:
    Slices& slices;
    const Loss& loss;
    Batch batch;
    std::unique_ptr<double[]> shared_terms;
    double shared_spread = 0;
    double divisor = 1;
    bool none_counts = false;
    OrderedSum sum;

    bool has_terms() const { return loss.probabilities || shared_terms; }

    // What a mean divides by.
    void count_samples() {
        if (loss.reduction != Reduction::mean) return;
        if (loss.probabilities || !(loss.weight || loss.ignore_index)) {
            divisor = static_cast<double>(batch.count);
            none_counts = batch.count == 0;
            return;
        }
        OrderedSum weights;
        none_counts = true;
        slices.batch.for_stretches(0, batch.count, [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length) {
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                const std::int64_t t = target_at(at, i);
                if (t < 0) continue;
                none_counts = false;
                const double weight = loss.weight ? loss.weight[t] : 1;
                weights.add(&weight, 1);
            }
        });
        divisor = weights.total();
    }

    // The class that slice i from `at` on is to have; -1: ignored.
    std::int64_t target_at(const Offsets& at, std::ptrdiff_t i) const {
        const std::int64_t t =
            read_index(slices.arrays[target], at[target] + i * slices.batch.last().strides[target]);
        return loss.ignore_index && t == *loss.ignore_index ? -1 : t;
    }

    // Computes neighbouring slices; their losses go to `held`, or to the array of losses.
    void run(const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length, double* scratch, double* held) const {
        std::int64_t targets[slices_per_call];
        double chosen[slices_per_call], spread[slices_per_call], scale[slices_per_call], losses[slices_per_call];
        const Offsets strides = slices.batch.last().strides;
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            double from_above = loss.upstream;
            if (slices.has(upstream))
                from_above = read_double(slices.arrays[upstream], at[upstream] + i * strides[upstream]);
            scale[i] = from_above / divisor / loss.temperature;
            spread[i] = shared_spread;
            if (loss.probabilities) continue;
            targets[i] = target_at(at, i);
            if (targets[i] < 0) scale[i] = 0;
            const double weight = targets[i] >= 0 && loss.weight ? loss.weight[targets[i]] : 1;
            chosen[i] = targets[i] < 0 ? 0 : (1 - loss.label_smoothing) * weight;
        }
        Run values;
        values.value = losses;
        values.scale = scale;
        values.spread = spread;
        if (loss.probabilities) {
            compute_with_probabilities(values, at, length, spread, scratch);
        } else {
            values.target = targets;
            values.chosen = chosen;
            values.terms = shared_terms.get();
            batch.apply(values, at, length, scratch);
        }
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            if (held)
                held[i] = losses[i];
            else if (slices.has(value))
                write_double(slices.arrays[value], at[value] + i * strides[value], losses[i]);
        }
    }

    std::ptrdiff_t slices_at_once() const { return batch.tiled() ? batch.lanes() : 1; }

    // A tile or a row at a time, each slice with terms of its own.
    void compute_with_probabilities(const Run& values, const Offsets& at, std::ptrdiff_t length, double* spread,
                                    double* scratch) const {
        const std::ptrdiff_t classes = batch.classes;
        double* probabilities = scratch + batch.scratch_size();
        double* terms = probabilities + classes;
        const Offsets strides = slices.batch.last().strides;
        const Array& array = slices.arrays[second];
        const std::ptrdiff_t stride = slices.classes.last().strides[second], step = slices_at_once();
        for (std::ptrdiff_t first = 0; first < length; first += step) {
            const std::ptrdiff_t taken = std::min(step, length - first);
            std::fill(terms, terms + step * classes, 0.0);
            for (std::ptrdiff_t i = 0; i < taken; ++i) {
                const std::ptrdiff_t offset = at[second] + (first + i) * strides[second];
                kernels().gather_double[array.type](array.data + offset, stride, array.swapped, classes, probabilities);
                for (std::ptrdiff_t c = 0; c < classes; ++c) probabilities[c] = term(loss, classes, c, probabilities[c]);
                double* to = batch.in_float ? reinterpret_cast<double*>(reinterpret_cast<float*>(terms) + i) : terms + i;
                spread[first + i] = store_terms(probabilities, classes, batch.in_float, step, to);
            }
            Offsets offsets = at;
            for (int r = 0; r < roles; ++r) offsets[r] += first * strides[r];
            Run some = Batch::advanced(values, first);
            some.terms = terms;
            some.terms_tiled = batch.tiled();
            batch.apply(some, offsets, taken, scratch);
        }
    }

    void share_slices(int threads) {
        const std::unique_ptr<double[]> row(new double[std::max(batch.shared_size(), batch.scratch_size())]);
        for (std::ptrdiff_t s = 0; s < batch.count; ++s) {
            const Offsets at = slices.batch.at(s);
            const std::int64_t t = target_at(at, 0);
            double from_above = loss.upstream, result = 0;
            if (slices.has(upstream)) from_above = read_double(slices.arrays[upstream], at[upstream]);
            const double scale = t < 0 ? 0 : from_above / divisor / loss.temperature;
            const double chosen = t >= 0 && loss.weight ? loss.weight[t] : 1, spread = 0;
            Run values;
            values.value = &result;
            values.target = &t;
            values.chosen = &chosen;
            values.spread = &spread;
            values.scale = &scale;
            if (t < 0)
                batch.apply(values, at, 1, row.get());  // nothing but zeros to write
            else
                batch.apply_shared(values, at, threads, row.get());
            if (loss.reduction == Reduction::none) {
                if (slices.has(value)) write_double(slices.arrays[value], at[value], result);
            } else {
                sum.add(&result, 1);
            }
        }
        store_reduced();
    }

    void store_reduced() {
        if (loss.reduction == Reduction::none || !slices.has(value)) return;
        const double total = sum.total();
        write_double(slices.arrays[value], 0, loss.reduction == Reduction::sum ? total : none_counts ? nan : total / divisor);
    }
};

}  // namespace

void cross_entropy_loss(Slices& slices, const Loss& loss) { CrossEntropy(slices, loss).compute(); }

std::ptrdiff_t find_invalid_target(Slices& slices, std::ptrdiff_t classes, std::optional<std::int64_t> ignore_index) {
    std::ptrdiff_t found = -1;
    const std::ptrdiff_t count = slices.batch.size();
    slices.batch.simplify();
    slices.batch.for_stretches(0, count, [&](const Offsets& at, std::ptrdiff_t position, std::ptrdiff_t length) {
        if (found >= 0) return;
        const std::ptrdiff_t stride = slices.batch.last().strides[target];
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const std::int64_t t = read_index(slices.arrays[target], at[target] + i * stride);
            if ((t >= 0 && t < classes) || (ignore_index && t == *ignore_index)) continue;
            found = position + i;
            return;
        }
    });
    return found;
}

}  // namespace fastsoftmax
