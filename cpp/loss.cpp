// Cross-entropy: prepares labels, weights and scales for the kernels, and reduces the losses.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "batch.hpp"
#include "operations.hpp"
#include "ordered_sum.hpp"
#include "targets.hpp"

namespace fastsoftmax {

namespace {

// Losses to be reduced are held for this many slices at a time.
constexpr std::ptrdiff_t losses_held = 65536;

class LossOfBatch {
  public:
    LossOfBatch(Operation operation, const Slices& slices, const Loss& loss)
        : kernel_(kernels().of[operation]),
          loss_(loss),
          batch_(kernel_.signature, slices,
                 {.temperature = loss.temperature,
                  .in_order = reduced(),
                  .whole_slices = loss.probabilities || loss.label_smoothing > 0}),
          plan_(batch_.plan),
          slices_(plan_.slices),
          weight_(loss.weight),
          in_units_(weights_are_far_from_one()),
          sum_(in_units_ ? OrderedSum::in_units() : OrderedSum()) {
        if (!loss.probabilities && loss.label_smoothing > 0) {
            if (in_units_) normalise_weights();
            shared_terms_.reset(new double[plan_.classes]);
            plan_.in_type([&]<class T> {
                auto* terms = reinterpret_cast<T*>(shared_terms_.get());
                OrderedSum sum;
                for (std::ptrdiff_t c = 0; c < plan_.classes; ++c) {
                    terms[c] = stored_term<T>(weight_of(c) * smoothed(0));
                    sum.add(terms[c]);
                }
                sum_of_shared_terms_ = sum.total().x;
            });
        }
        count_samples();
        scale_ = plain_scale(loss.upstream, 1);
    }

    void compute() {
        const int threads = batch_.threads_for(std::min(plan_.count, losses_held));
        if (batch_.shares_slices(threads))
            compute_shared(threads);
        else
            compute_batch(threads);
        if (reduced() && slices_.has(Role::value)) {
            Scaled total = sum_.total();
            if (loss_.reduction == Reduction::mean) {
                total.x = none_counts_ ? std::numeric_limits<double>::quiet_NaN() : total.x / divisor_.x;
                total.exponent -= divisor_.exponent;
            }
            const double result = std::ldexp(total.x, total.exponent);
            batch_.transport.scatter_numbers(Role::value, {}, 1, &result);
        }
    }

  private:
    const Kernel& kernel_;
    const Loss& loss_;
    const Batch batch_;
    const Plan& plan_;
    const Slices& slices_;
    std::unique_ptr<double[]> shared_terms_;  // of label smoothing, in the type computed in
    double sum_of_shared_terms_ = 0;
    const double* weight_;
    // Whether coefficients and loss of each sample are in units of a power of two of its own, because weights are far
    // from 1 and float could not hold them otherwise.
    const bool in_units_;
    std::unique_ptr<double[]> normalised_;  // weights in one unit, for label smoothing
    double shared_unit_ = 0;                // the exponent of that unit
    Scaled divisor_ = {1, 0};               // of a mean
    double scale_ = 1;                      // of the gradient of every sample, unless there is an `upstream` array
    bool none_counts_ = false;
    OrderedSum sum_;

    bool reduced() const { return loss_.reduction != Reduction::none; }

    bool weights_are_far_from_one() const {
        return weight_ && std::any_of(weight_, weight_ + plan_.classes,
                                      [](double w) { return w != 0 && (w <= 0x1p-30 || w >= 0x1p30); });
    }

    double weight_of(std::ptrdiff_t c) const { return weight_ ? weight_[c] : 1; }

    // A class's target probability after smoothing, the factor of its weight.
    double smoothed(double probability) const {
        const double even = loss_.label_smoothing / static_cast<double>(plan_.classes);
        return (1 - loss_.label_smoothing) * probability + even;
    }

    // Converts a term to T. One that is not 0 does not become 0.
    template <class T>
    static T stored_term(double term) {
        const T stored = static_cast<T>(term);
        return stored == 0 && term != 0 ? std::numeric_limits<T>::denorm_min() : stored;
    }

    // Every sample has the terms of all classes, so all samples have the same unit, that of the largest weight.
    void normalise_weights() {
        int exponent;
        std::frexp(*std::max_element(weight_, weight_ + plan_.classes), &exponent);
        normalised_.reset(new double[plan_.classes]);
        for (std::ptrdiff_t c = 0; c < plan_.classes; ++c) normalised_[c] = std::ldexp(weight_[c], -exponent);
        shared_unit_ = exponent;
        weight_ = normalised_.get();
    }

    // Sets the divisor of a mean: the sum of the labels' weights over all samples that are not ignored; if targets are
    // probabilities, the number of samples.
    void count_samples() {
        if (loss_.reduction != Reduction::mean) return;
        if (loss_.probabilities || !(weight_ || loss_.ignore_index)) {
            divisor_.x = static_cast<double>(plan_.count);
            none_counts_ = plan_.count == 0;
            return;
        }
        OrderedSum weights = in_units_ ? OrderedSum::in_units() : OrderedSum();
        constexpr double unit = 0;
        none_counts_ = true;
        slices_.batch.for_stretches(0, plan_.count, [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length) {
            std::int64_t labels[slices_per_call];
            for (std::ptrdiff_t from = 0; from < length; from += slices_per_call) {
                const std::ptrdiff_t some = std::min(length - from, slices_per_call);
                read_labels(slices_.batch.moved(at, from), some, labels);
                for (std::ptrdiff_t i = 0; i < some; ++i) {
                    if (!is_class(labels[i], plan_.classes)) continue;
                    none_counts_ = false;
                    if (in_units_)
                        weights.add(loss_.weight + labels[i], &unit, 1);
                    else
                        weights.add(weight_of(labels[i]));
                }
            }
        });
        divisor_ = weights.total();
        // If the weights sum to 0, the mean is NaN, and so are the gradients of samples that are not ignored, whatever
        // smoothing adds.
        if (divisor_.x == 0) divisor_.x = std::numeric_limits<double>::quiet_NaN();
    }

    // Reads the labels of neighbouring slices, with -1 for those to ignore. They need not be classes: another thread
    // may have changed them since they were checked.
    void read_labels(const Offsets& first, std::ptrdiff_t length, std::int64_t* labels) const {
        batch_.transport.gather_labels(first, length, labels);
        if (!loss_.ignore_index) return;
        for (std::ptrdiff_t i = 0; i < length; ++i)
            if (labels[i] == *loss_.ignore_index) labels[i] = -1;
    }

    // The numbers that kernels need for neighbouring slices, and the exponents of their units.
    struct Samples {
        std::int64_t labels[slices_per_call];
        double chosen[slices_per_call], units[slices_per_call];
        double upstream[slices_per_call], scale[slices_per_call], exponent[slices_per_call];
        double second_scale[slices_per_call], second_exponent[slices_per_call];
    };

    // Reads labels and their coefficients.
    void read_samples(const Offsets& first, std::ptrdiff_t length, Samples& s, Run& run) const {
        run.label = s.labels;
        run.chosen = s.chosen;
        read_labels(first, length, s.labels);
        if (!weight_ && !loss_.ignore_index) {
            std::fill(s.chosen, s.chosen + length, 1 - loss_.label_smoothing);
            return;
        }
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const bool counts = is_class(s.labels[i], plan_.classes);
            double weight = counts ? weight_of(s.labels[i]) : 0;
            if (in_units_) {
                int exponent = static_cast<int>(shared_unit_);
                if (!normalised_) weight = std::frexp(weight, &exponent);
                s.units[i] = exponent;
            }
            s.chosen[i] = (1 - loss_.label_smoothing) * weight;
        }
    }

    // upstream / (divisor T^power), without units.
    double plain_scale(double upstream, int power) const {
        const double scale = upstream / divisor_.x / loss_.temperature;
        return power == 1 ? scale : scale / loss_.temperature;
    }

    // Whether such a scale is right to the last digits, and its product with a sum of coefficients below 2^512 is in
    // range.
    bool is_plain(double upstream, double scale) const {
        const auto in_range = [](double x) { return std::fabs(x) > 0x1p-960 && std::fabs(x) < 0x1p512; };
        return upstream == 0 || (in_range(upstream / divisor_.x) && in_range(scale));
    }

    // Sets the factors of the gradients, and of Hessians if there are any, of samples with these terms.
    void read_scales(const Offsets& first, std::ptrdiff_t length, const double* terms, Samples& s, Run& run) const {
        if (!slices_.has(Role::output)) return;
        if (slices_.has(Role::upstream)) batch_.transport.gather_numbers(Role::upstream, first, length, s.upstream);
        run.scale = s.scale;
        if (!set_scales(1, length, terms, s, s.scale, s.exponent)) run.exponent = s.exponent;
        if (!slices_.has(Role::second_output)) return;
        run.second_scale = s.second_scale;
        if (!set_scales(2, length, terms, s, s.second_scale, s.second_exponent))
            run.second_exponent = s.second_exponent;
    }

    // Sets the factors of the derivative of an order. Returns whether they need no exponents.
    bool set_scales(int order, std::ptrdiff_t length, const double* terms, Samples& s, double* scales,
                    double* exponents) const {
        bool plain = !in_units_;
        if (slices_.has(Role::upstream)) {
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                scales[i] = plain_scale(s.upstream[i], order);
                plain &= is_plain(s.upstream[i], scales[i]);
            }
        } else {
            const double scale = order == 1 ? scale_ : plain_scale(loss_.upstream, order);
            std::fill(scales, scales + length, scale);
            plain &= is_plain(loss_.upstream, scale);
        }
        // Only target probabilities in double can add up to 2^512.
        for (std::ptrdiff_t i = 0; i < length && plain && loss_.probabilities && !plan_.in_float; ++i)
            plain = std::fabs(scales[i]) <= 1 || size_of_terms(terms, i) < 0x1p512;
        if (!plain) {
            if (!slices_.has(Role::upstream)) std::fill(s.upstream, s.upstream + length, loss_.upstream);
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                const double sum = loss_.probabilities ? size_of_terms(terms, i) : s.chosen[i] + sum_of_shared_terms_;
                const Scaled scale = far_scale(s.upstream[i], order, in_units_ ? static_cast<int>(s.units[i]) : 0, sum);
                scales[i] = scale.x;
                exponents[i] = scale.exponent;
            }
        }
        for (std::ptrdiff_t i = 0; i < length && loss_.ignore_index; ++i)
            if (!is_class(s.labels[i], plan_.classes)) scales[i] = 0;  // whatever upstream is
        return plain;
    }

    // upstream / (divisor T^order) times a sample's unit. If x or x times `sum` would be near the ends of the range of
    // doubles, an exponent is split off: the larger of them is then near 2^600, or x near 2^-600. This leaves room for
    // their products with tiny numbers.
    Scaled far_scale(double upstream, int order, int unit, double sum) const {
        int u, d, t;
        const double temperature = std::frexp(loss_.temperature, &t);
        double x = std::frexp(upstream, &u) / std::frexp(divisor_.x, &d) / temperature;
        if (order == 2) x /= temperature;
        if (x == 0 || !std::isfinite(x)) return {plain_scale(upstream, order), 0};
        const int exponent = u - d - divisor_.exponent - order * t + unit;
        const int size = exponent + (sum > 1 && std::isfinite(sum) ? std::ilogb(sum) : 0);
        const int apart = size > 980 ? size - 600 : exponent < -960 ? exponent + 600 : 0;
        return {std::ldexp(x, exponent - apart), apart};
    }

    // The index of a term of neighbouring slices, whose terms lie in rows or tiles as the scores do.
    std::ptrdiff_t position(std::ptrdiff_t slice, std::ptrdiff_t c) const {
        const std::ptrdiff_t lanes = plan_.loop == Loop::tiles ? plan_.unit : 1;
        return slice / lanes * plan_.classes * lanes + c * lanes + slice % lanes;
    }

    double size_of_terms(const double* from, std::ptrdiff_t slice) const {
        double sum = 0;
        plan_.in_type([&]<class T> {
            const auto* terms = reinterpret_cast<const T*>(from);
            for (std::ptrdiff_t c = 0; c < plan_.classes; ++c)
                sum += std::fabs(static_cast<double>(terms[position(slice, c)]));
        });
        return sum;
    }

    // Writes the losses in the workspace to their array.
    void write_losses(const Offsets& first, std::ptrdiff_t length, const Samples& s, double* memory) const {
        double* losses = plan_.workspace(memory).value;
        if (in_units_)
            for (std::ptrdiff_t i = 0; i < length; ++i) losses[i] = std::ldexp(losses[i], static_cast<int>(s.units[i]));
        batch_.scatter_results(first, length, memory);
    }

    // Adds losses, of slices that follow each other, to the sum.
    void add_losses(const double* losses, const double* units, std::ptrdiff_t length) {
        if (in_units_)
            sum_.add(losses, units, length);
        else
            sum_.add(losses, length);
    }

    void compute_batch(int threads) {
        // Probabilities need memory besides the scores, so rows in place are taken one at a time.
        const std::ptrdiff_t most = loss_.probabilities && plan_.loop == Loop::rows ? 1 : plan_.at_once;
        const std::ptrdiff_t terms = loss_.probabilities ? most * plan_.classes : 0;
        const std::ptrdiff_t extra = plan_.in_float ? (terms + 1) / 2 : terms;  // in doubles
        Scratch memory = batch_.memory_for_runs(threads, extra);
        // Losses, then their units.
        const std::ptrdiff_t held_at_once = reduced() ? std::min(plan_.count, losses_held) : 0;
        Scratch held(in_units_ ? 2 * held_at_once : held_at_once);
        double* units = held.get() + held_at_once;
        const std::ptrdiff_t step = reduced() ? losses_held / plan_.unit : plan_.units;
        for (std::ptrdiff_t begin = 0; begin < plan_.units; begin += step) {
            const std::ptrdiff_t end = std::min(begin + step, plan_.units), origin = plan_.slice_of(begin);
            batch_.for_runs(begin, end, threads, most, memory,
                            [&](const Offsets& at, std::ptrdiff_t first, std::ptrdiff_t length, double* own) {
                                const std::ptrdiff_t i = first - origin;
                                compute_run(at, length, own, reduced() ? held.get() + i : nullptr,
                                            in_units_ ? units + i : nullptr);
                            });
            if (reduced()) add_losses(held.get(), units, plan_.slice_of(end) - origin);
        }
    }

    // Computes neighbouring slices. Their losses go to `held`, and their units, if there are any, to `held_units`; if
    // `held` is null, the losses go to their array.
    void compute_run(const Offsets& first, std::ptrdiff_t length, double* memory, double* held,
                     double* held_units) const {
        Samples samples;
        Run run;
        run.value = held;
        if (loss_.probabilities) {
            double* terms = plan_.workspace(memory).extra;
            gather_terms(first, length, samples, terms);
            run.terms = terms;
            run.own_terms = true;
            read_scales(first, length, terms, samples, run);
        } else {
            read_samples(first, length, samples, run);
            run.terms = shared_terms_.get();
            run.sum_of_terms = sum_of_shared_terms_;
            read_scales(first, length, nullptr, samples, run);
        }
        batch_.apply(kernel_, run, first, length, memory);
        if (!held) return write_losses(first, length, samples, memory);
        if (in_units_) std::copy(samples.units, samples.units + length, held_units);
    }

    // Gathers probabilities, in rows or tiles as the scores are, and makes them terms.
    void gather_terms(const Offsets& first, std::ptrdiff_t length, Samples& s, double* to) const {
        batch_.transport.gather(Role::second, first, length, to);
        if (!weight_ && loss_.label_smoothing == 0) return;
        plan_.in_type([&]<class T> {
            T* terms = reinterpret_cast<T*>(to);
            if (in_units_) {
                for (std::ptrdiff_t i = 0; i < length; ++i) s.units[i] = weigh_in_unit(terms, i);
                return;
            }
            const std::ptrdiff_t classes = plan_.classes;
            const std::ptrdiff_t lanes = plan_.loop == Loop::tiles ? plan_.unit : 1;
            const std::ptrdiff_t tiles = (length + lanes - 1) / lanes;
            for (std::ptrdiff_t i = 0; i < tiles * classes * lanes; ++i)
                terms[i] = stored_term<T>(weight_of(i / lanes % classes) * smoothed(static_cast<double>(terms[i])));
        });
    }

    // Writes the terms of one slice in a unit of its own, and returns the exponent of this unit. It is that of the
    // largest weight that counts: the terms then have the sizes of probabilities, and the type holds small ones beside
    // large ones. If the terms sum to less than 1, the unit is made smaller until the sum is near 1, so that as few
    // terms as possible vanish and no sum of their products with finite numbers overflows.
    template <class T>
    int weigh_in_unit(T* terms, std::ptrdiff_t slice) const {
        const auto term = [&](std::ptrdiff_t c) {
            int exponent;
            const double weight = std::frexp(weight_[c], &exponent);
            return Scaled{weight * smoothed(static_cast<double>(terms[position(slice, c)])), exponent};
        };
        int unit = -1073;  // that of the smallest weight
        double sum = 0;
        for (std::ptrdiff_t c = 0; c < plan_.classes; ++c) {
            const Scaled t = term(c);
            if (t.x == 0) continue;
            if (t.exponent > unit) sum = std::ldexp(sum, unit - t.exponent);
            unit = std::max(unit, t.exponent);
            sum += std::ldexp(std::fabs(t.x), t.exponent - unit);
        }
        if (sum > 0 && sum < 1) unit += std::ilogb(sum) + 1;
        for (std::ptrdiff_t c = 0; c < plan_.classes; ++c) {
            const Scaled t = term(c);
            const double scaled = std::ldexp(t.x, t.exponent - unit);
            terms[position(slice, c)] =
                scaled == 0 && t.x != 0 ? std::numeric_limits<T>::denorm_min() : stored_term<T>(scaled);
        }
        return unit;
    }

    void compute_shared(int threads) {
        batch_.for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* memory) {
            Samples s;
            Run run;
            read_samples(first, length, s, run);
            read_scales(first, length, nullptr, s, run);
            batch_.apply(kernel_, run, first, length, memory, threads);
            if (reduced())
                add_losses(plan_.workspace(memory).value, s.units, length);
            else
                write_losses(first, length, s, memory);
        });
    }
};

}  // namespace

void compute_loss(Operation operation, const Slices& slices, const Loss& loss) {
    LossOfBatch(operation, slices, loss).compute();
}

std::ptrdiff_t find_invalid_label(const std::int64_t* labels, std::ptrdiff_t count, std::ptrdiff_t classes,
                                  const std::optional<std::int64_t>& ignore_index) {
    // An index c is valid if it has no sign bit and c - classes has one. All are checked together, because few calls
    // have an invalid one.
    std::uint64_t within = ~std::uint64_t{0};
    const auto look_at = [&](std::int64_t label) {
        const auto c = static_cast<std::uint64_t>(label);
        within &= ~c & (c - static_cast<std::uint64_t>(classes));
    };
    // This many at a time, so that the compiler uses vectors.
    constexpr std::ptrdiff_t some = 16;
    const std::ptrdiff_t whole = count / some * some;
    for (std::ptrdiff_t i = 0; i < whole; i += some)
        for (std::ptrdiff_t k = 0; k < some; ++k) look_at(labels[i + k]);
    for (std::ptrdiff_t i = whole; i < count; ++i) look_at(labels[i]);
    if (within >> 63) return -1;
    for (std::ptrdiff_t i = 0; i < count; ++i)
        if (!is_class(labels[i], classes) && labels[i] != ignore_index) return i;
    return -1;
}

std::ptrdiff_t find_invalid_label(const Slices& slices, std::ptrdiff_t classes,
                                  std::optional<std::int64_t> ignore_index) {
    std::ptrdiff_t found = -1;
    Axes batch = slices.batch;
    batch.simplify();
    batch.for_stretches(0, batch.size(), [&](const Offsets& at, std::ptrdiff_t position, std::ptrdiff_t length) {
        const std::ptrdiff_t stride = batch.last().strides[Role::label];
        std::int64_t labels[slices_per_call];
        for (std::ptrdiff_t from = 0; from < length && found < 0; from += slices_per_call) {
            const std::ptrdiff_t some = std::min(length - from, slices_per_call);
            read_indices(slices.arrays[Role::label], at[Role::label] + from * stride, stride, some, labels);
            const std::ptrdiff_t invalid = find_invalid_label(labels, some, classes, ignore_index);
            if (invalid >= 0) found = position + from + invalid;
        }
    });
    return found;
}

}  // namespace fastsoftmax
