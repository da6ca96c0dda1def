// Cross-entropy: targets, weights and the reduction round the kernels.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "batch.hpp"
#include "elements.hpp"
#include "operations.hpp"

namespace fastsoftmax {

namespace {

// Losses to be reduced are held for so many slices at a time.
constexpr std::ptrdiff_t losses_held = 65536;

// Of a number x * 2^exponent whose x alone a double holds.
struct Scaled {
    double x;
    int exponent;
};

// A sum in order of position alone: eight partial sums of two doubles each, so that it is right to the last digit.
class OrderedSum {
  public:
    void add(const double* values, std::ptrdiff_t count) {
        std::ptrdiff_t i = 0;
        for (; i < count && (position_ + i) % 8 != 0; ++i) add_to((position_ + i) % 8, values[i]);
        // Eight at a time, the sums in registers.
        Pair high[4], low[4];
        __builtin_memcpy(high, high_, sizeof high);
        __builtin_memcpy(low, low_, sizeof low);
        for (; i + 8 <= count; i += 8)
            for (int k = 0; k < 4; ++k) {
                Pair x;
                __builtin_memcpy(&x, values + i + 2 * k, sizeof x);
                add_to(high[k], low[k], x);
            }
        __builtin_memcpy(high_, high, sizeof high);
        __builtin_memcpy(low_, low, sizeof low);
        for (; i < count; ++i) add_to((position_ + i) % 8, values[i]);
        position_ += count;
    }
    void add(double value) { add(&value, 1); }

    // Of values[i] * 2^units[i]. The sum is then held in units of the largest so far.
    void add(const double* values, const double* units, std::ptrdiff_t count) {
        int largest = exponent_;
        for (std::ptrdiff_t i = 0; i < count; ++i)
            if (values[i] != 0 && std::isfinite(values[i]))
                largest = std::max(largest, std::ilogb(values[i]) + static_cast<int>(units[i]));
        for (int k = 0; k < 8; ++k) {
            high_[k] = std::ldexp(high_[k], exponent_ - largest);
            low_[k] = std::ldexp(low_[k], exponent_ - largest);
        }
        exponent_ = largest;
        for (std::ptrdiff_t i = 0; i < count; ++i) add(std::ldexp(values[i], static_cast<int>(units[i]) - exponent_));
    }

    // For sums of such values alone.
    static OrderedSum in_units() {
        OrderedSum none;
        none.exponent_ = -100'000;  // below all
        return none;
    }

    Scaled total() const {
        OrderedSum all;
        double plain = 0;
        for (int k = 0; k < 8; ++k) {
            all.add_to(0, high_[k]);
            all.low_[0] += low_[k];
            plain += high_[k];
        }
        // The error of an infinite sum is NaN; the sum itself is right.
        return {std::isfinite(plain) ? all.high_[0] + all.low_[0] : plain, exponent_};
    }

  private:
    typedef double Pair __attribute__((vector_size(16)));

    double high_[8] = {}, low_[8] = {};
    std::ptrdiff_t position_ = 0;
    int exponent_ = 0;

    void add_to(std::ptrdiff_t k, double x) { add_to(high_[k], low_[k], x); }

    template <class V>
    static void add_to(V& high, V& low, V x) {
        const V sum = high + x, back = sum - high;
        low += (high - (sum - back)) + (x - back);
        high = sum;
    }
};

class CrossEntropy {
  public:
    CrossEntropy(Slices& slices, const Loss& loss)
        : slices_(slices),
          loss_(loss),
          batch_(slices.has(output) ? cross_entropy_grad : cross_entropy, slices, loss.temperature, reduced(),
                 loss.probabilities || loss.label_smoothing > 0),
          weight_(loss.weight),
          in_units_(weights_are_far_from_one()),
          sum_(in_units_ ? OrderedSum::in_units() : OrderedSum()) {
        if (!loss.probabilities && loss.label_smoothing > 0) {
            if (in_units_) normalise_weights();
            shared_terms_.reset(new double[batch_.classes()]);
            batch_.in_type([&](auto* type) {
                auto* terms = reinterpret_cast<decltype(type)>(shared_terms_.get());
                OrderedSum sum;
                for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) {
                    terms[c] = stored_term<std::remove_pointer_t<decltype(type)>>(weight_of(c) * smoothed(0));
                    sum.add(terms[c]);
                }
                shared_spread_ = sum.total().x;
            });
        }
        count_samples();
        scale_ = plain_scale(loss.upstream);
    }

    void compute() {
        const int threads = batch_.threads_for(std::min(batch_.count(), losses_held));
        if (batch_.shares_slices(threads))
            compute_shared(threads);
        else
            compute_batch(threads);
        if (reduced() && slices_.has(value)) {
            Scaled total = sum_.total();
            if (loss_.reduction == Reduction::mean) {
                total.x = none_counts_ ? std::numeric_limits<double>::quiet_NaN() : total.x / divisor_.x;
                total.exponent -= divisor_.exponent;
            }
            const double result = std::ldexp(total.x, total.exponent);
            write_doubles(slices_.arrays[value], 0, 0, 1, &result);
        }
    }

  private:
    Slices& slices_;
    const Loss& loss_;
    const Batch batch_;
    std::unique_ptr<double[]> shared_terms_;  // of label smoothing, in the type computed in
    double shared_spread_ = 0;
    const double* weight_;
    // Whether each sample has its coefficients, and its loss, in units of a power of two of its own, so that float
    // holds them: where weights are far from 1.
    const bool in_units_;
    std::unique_ptr<double[]> normalised_;  // weights, with label smoothing
    double shared_unit_ = 0;                // their exponent
    Scaled divisor_ = {1, 0};               // of a mean
    double scale_ = 1;                      // of the gradient of every sample, unless there is an `upstream` array
    bool none_counts_ = false;
    OrderedSum sum_;

    bool reduced() const { return loss_.reduction != Reduction::none; }

    bool weights_are_far_from_one() const {
        return weight_ && std::any_of(weight_, weight_ + batch_.classes(),
                                      [](double w) { return w != 0 && !(w > 0x1p-30 && w < 0x1p30); });
    }

    double weight_of(std::ptrdiff_t c) const { return weight_ ? weight_[c] : 1; }

    // What multiplies a weight, from the probability of its class.
    double smoothed(double probability) const {
        const double even = loss_.label_smoothing / static_cast<double>(batch_.classes());
        return (1 - loss_.label_smoothing) * probability + even;
    }

    // A term that is not 0 does not become 0.
    template <class T>
    static T stored_term(double term) {
        const T stored = static_cast<T>(term);
        return stored == 0 && term != 0 ? std::numeric_limits<T>::denorm_min() : stored;
    }

    // All samples have all classes' terms, and so one unit, that of the largest weight.
    void normalise_weights() {
        int exponent;
        std::frexp(*std::max_element(weight_, weight_ + batch_.classes()), &exponent);
        normalised_.reset(new double[batch_.classes()]);
        for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) normalised_[c] = std::ldexp(weight_[c], -exponent);
        shared_unit_ = exponent;
        weight_ = normalised_.get();
    }

    void count_samples() {
        if (loss_.reduction != Reduction::mean) return;
        if (loss_.probabilities || !(weight_ || loss_.ignore_index)) {
            divisor_.x = static_cast<double>(batch_.count());
            none_counts_ = batch_.count() == 0;
            return;
        }
        OrderedSum weights = in_units_ ? OrderedSum::in_units() : OrderedSum();
        constexpr double unit = 0;
        none_counts_ = true;
        slices_.batch.for_stretches(0, batch_.count(), [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length) {
            std::int64_t targets[slices_per_call];
            for (std::ptrdiff_t from = 0; from < length; from += slices_per_call) {
                const std::ptrdiff_t some = std::min(length - from, slices_per_call);
                read_targets(slices_.batch.moved(at, from), some, targets);
                for (std::ptrdiff_t i = 0; i < some; ++i) {
                    if (!is_class(targets[i], batch_.classes())) continue;
                    none_counts_ = false;
                    if (in_units_)
                        weights.add(loss_.weight + targets[i], &unit, 1);
                    else
                        weights.add(weight_of(targets[i]));
                }
            }
        });
        divisor_ = weights.total();
        // Weights that sum to 0 leave nothing defined, whatever smoothing adds.
        if (divisor_.x == 0) divisor_.x = std::numeric_limits<double>::quiet_NaN();
    }

    // The targets of neighbouring slices; what is no class, as -1: ignored. Another thread may have put anything there
    // since they were checked.
    void read_targets(const Offsets& first, std::ptrdiff_t length, std::int64_t* targets) const {
        read_indices(slices_.arrays[target], first[target], slices_.batch.last().strides[target], length, targets);
        if (!loss_.ignore_index) return;
        for (std::ptrdiff_t i = 0; i < length; ++i)
            if (targets[i] == *loss_.ignore_index) targets[i] = -1;
    }

    // What kernels need of neighbouring slices, and the exponents of their units.
    struct Samples {
        std::int64_t targets[slices_per_call];
        double chosen[slices_per_call], losses[slices_per_call], units[slices_per_call];
        double upstream[slices_per_call], scale[slices_per_call], exponent[slices_per_call];
    };

    // Targets and their coefficients.
    void read_samples(const Offsets& first, std::ptrdiff_t length, Samples& s, Run& run) const {
        run.target = s.targets;
        run.chosen = s.chosen;
        read_targets(first, length, s.targets);
        if (!weight_ && !loss_.ignore_index) {
            std::fill(s.chosen, s.chosen + length, 1 - loss_.label_smoothing);
            return;
        }
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const bool counts = is_class(s.targets[i], batch_.classes());
            double weight = counts ? weight_of(s.targets[i]) : 0;
            if (in_units_) {
                int exponent = static_cast<int>(shared_unit_);
                if (!normalised_) weight = std::frexp(weight, &exponent);
                s.units[i] = exponent;
            }
            s.chosen[i] = (1 - loss_.label_smoothing) * weight;
        }
    }

    // upstream / (divisor T), in no units.
    double plain_scale(double upstream) const { return upstream / divisor_.x / loss_.temperature; }

    // Whether that is right to the last digits, and its product with any sum of coefficients is in range.
    bool is_plain(double upstream, double scale) const {
        const auto in_range = [](double x) { return std::fabs(x) > 0x1p-960 && std::fabs(x) < 0x1p512; };
        return upstream == 0 || (in_range(upstream / divisor_.x) && in_range(scale));
    }

    // Factors of the gradients, where something is to be multiplied: of samples with these coefficients.
    void read_scales(const Offsets& first, std::ptrdiff_t length, const double* terms, Samples& s, Run& run) const {
        if (!slices_.has(output)) return;
        run.scale = s.scale;
        bool plain = !in_units_;
        if (slices_.has(upstream)) {
            read_doubles(slices_.arrays[upstream], first[upstream], slices_.batch.last().strides[upstream], length,
                         s.upstream);
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                s.scale[i] = plain_scale(s.upstream[i]);
                plain &= is_plain(s.upstream[i], s.scale[i]);
            }
        } else {
            std::fill(s.scale, s.scale + length, scale_);
            plain &= is_plain(loss_.upstream, scale_);
            if (!plain) std::fill(s.upstream, s.upstream + length, loss_.upstream);
        }
        if (!plain) {
            run.exponent = s.exponent;
            for (std::ptrdiff_t i = 0; i < length; ++i) {
                const double sum = loss_.probabilities ? size_of_terms(terms, i) : s.chosen[i] + shared_spread_;
                const Scaled scale = far_scale(s.upstream[i], in_units_ ? static_cast<int>(s.units[i]) : 0, sum);
                s.scale[i] = scale.x;
                s.exponent[i] = scale.exponent;
            }
        }
        if (!loss_.ignore_index) return;
        for (std::ptrdiff_t i = 0; i < length; ++i)
            if (!is_class(s.targets[i], batch_.classes())) s.scale[i] = 0;  // whatever comes from above
    }

    // upstream / (divisor T) times a sample's unit, such that a double holds its x and the product of that with `sum`,
    // also where both are to be multiplied by what is tiny.
    Scaled far_scale(double upstream, int unit, double sum) const {
        int u, d, t;
        const double x = std::frexp(upstream, &u) / std::frexp(divisor_.x, &d) / std::frexp(loss_.temperature, &t);
        if (x == 0 || !std::isfinite(x)) return {plain_scale(upstream), 0};
        const int exponent = u - d - divisor_.exponent - t + unit;
        const int size = exponent + (sum > 1 && std::isfinite(sum) ? std::ilogb(sum) : 0);
        const int apart = size > 980 ? size - 600 : size < -960 ? size + 600 : 0;
        return {std::ldexp(x, exponent - apart), apart};
    }

    // Where terms of neighbouring slices are, beside the scores: in rows or tiles.
    std::ptrdiff_t position(std::ptrdiff_t slice, std::ptrdiff_t c) const {
        const std::ptrdiff_t lanes = batch_.loop() == Loop::tiles ? batch_.unit_slices() : 1;
        return slice / lanes * batch_.classes() * lanes + c * lanes + slice % lanes;
    }

    double size_of_terms(const double* from, std::ptrdiff_t slice) const {
        double sum = 0;
        batch_.in_type([&](auto* type) {
            const auto* terms = reinterpret_cast<const std::remove_pointer_t<decltype(type)>*>(from);
            for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c)
                sum += std::fabs(static_cast<double>(terms[position(slice, c)]));
        });
        return sum;
    }

    void write_losses(const Offsets& first, std::ptrdiff_t length, Samples& s) const {
        if (in_units_)
            for (std::ptrdiff_t i = 0; i < length; ++i)
                s.losses[i] = std::ldexp(s.losses[i], static_cast<int>(s.units[i]));
        if (slices_.has(value))
            write_doubles(slices_.arrays[value], first[value], slices_.batch.last().strides[value], length, s.losses);
    }

    // To the sum: losses of slices that follow each other.
    void add_losses(const double* losses, const double* units, std::ptrdiff_t length) {
        if (in_units_)
            sum_.add(losses, units, length);
        else
            sum_.add(losses, length);
    }

    void compute_batch(int threads) {
        const std::ptrdiff_t most = std::min(batch_.slices_at_once(), slices_per_call);
        // Probabilities stand beside the scores.
        const std::ptrdiff_t rows = batch_.loop() == Loop::rows ? 1 : most;
        const std::ptrdiff_t terms = loss_.probabilities ? rows * batch_.classes() : 0;
        const std::ptrdiff_t extra = batch_.in_float() ? (terms + 1) / 2 : terms;  // in doubles
        Scratch memory = batch_.memory_for_runs(threads, extra);
        // Losses, then their units.
        const std::ptrdiff_t held_at_once = reduced() ? std::min(batch_.count(), losses_held) : 0;
        Scratch held(in_units_ ? 2 * held_at_once : held_at_once);
        double* units = held.get() + held_at_once;
        const std::ptrdiff_t step = reduced() ? losses_held / batch_.unit_slices() : batch_.units();
        for (std::ptrdiff_t begin = 0; begin < batch_.units(); begin += step) {
            const std::ptrdiff_t end = std::min(begin + step, batch_.units()), origin = batch_.slice_of(begin);
            batch_.for_runs(begin, end, threads, loss_.probabilities ? rows : most, memory,
                            [&](const Offsets& at, std::ptrdiff_t first, std::ptrdiff_t length, double* scratch) {
                                const std::ptrdiff_t i = first - origin;
                                compute_run(at, length, scratch, reduced() ? held.get() + i : nullptr,
                                            in_units_ ? units + i : nullptr);
                            });
            if (reduced()) add_losses(held.get(), units, batch_.slice_of(end) - origin);
        }
    }

    // Neighbouring slices; their losses go to `held`, and their units, or to the array of losses.
    void compute_run(const Offsets& first, std::ptrdiff_t length, double* scratch, double* held,
                     double* held_units) const {
        Samples samples;
        Run run;
        run.value = held ? held : samples.losses;
        if (loss_.probabilities) {
            double* terms = scratch + batch_.scratch_size();
            gather_terms(first, length, samples, terms);
            run.terms = terms;
            run.own_terms = true;
            read_scales(first, length, terms, samples, run);
        } else {
            read_samples(first, length, samples, run);
            run.terms = shared_terms_.get();
            run.spread = shared_spread_;
            read_scales(first, length, nullptr, samples, run);
        }
        batch_.apply(run, first, length, scratch);
        if (!held) return write_losses(first, length, samples);
        if (in_units_) std::copy(samples.units, samples.units + length, held_units);
    }

    // Probabilities as terms: rows, or tiles as the scores are.
    void gather_terms(const Offsets& first, std::ptrdiff_t length, Samples& s, double* to) const {
        batch_.gather(second, first, length, to);
        if (!weight_ && loss_.label_smoothing == 0) return;
        batch_.in_type([&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            T* terms = reinterpret_cast<T*>(to);
            if (in_units_) {
                for (std::ptrdiff_t i = 0; i < length; ++i) s.units[i] = weigh_in_unit(terms, i);
                return;
            }
            const std::ptrdiff_t classes = batch_.classes();
            const std::ptrdiff_t lanes = batch_.loop() == Loop::tiles ? batch_.unit_slices() : 1;
            const std::ptrdiff_t tiles = (length + lanes - 1) / lanes;
            for (std::ptrdiff_t i = 0; i < tiles * classes * lanes; ++i)
                terms[i] = stored_term<T>(weight_of(i / lanes % classes) * smoothed(static_cast<double>(terms[i])));
        });
    }

    // The terms of one slice in a unit such that the largest is near 1; its exponent.
    template <class T>
    int weigh_in_unit(T* terms, std::ptrdiff_t slice) const {
        const auto term = [&](std::ptrdiff_t c) {
            int exponent;
            const double weight = std::frexp(weight_[c], &exponent);
            return Scaled{weight * smoothed(static_cast<double>(terms[position(slice, c)])), exponent};
        };
        constexpr int none = std::numeric_limits<int>::min();
        int unit = none;
        for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) {
            const Scaled t = term(c);
            if (t.x != 0 && std::isfinite(t.x)) unit = std::max(unit, t.exponent + std::ilogb(t.x));
        }
        if (unit == none) unit = 0;
        for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) {
            const Scaled t = term(c);
            const double scaled = std::ldexp(t.x, t.exponent - unit);
            terms[position(slice, c)] =
                scaled == 0 && t.x != 0 ? std::numeric_limits<T>::denorm_min() : stored_term<T>(scaled);
        }
        return unit;
    }

    void compute_shared(int threads) {
        batch_.for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* scratch) {
            Samples s;
            Run run;
            run.value = s.losses;
            read_samples(first, length, s, run);
            read_scales(first, length, nullptr, s, run);
            batch_.apply_blocks(run, first, length, threads, scratch);
            if (reduced())
                add_losses(s.losses, s.units, length);
            else
                write_losses(first, length, s);
        });
    }
};

}  // namespace

void cross_entropy_loss(Slices& slices, const Loss& loss) { CrossEntropy(slices, loss).compute(); }

std::ptrdiff_t find_invalid_target(Slices& slices, std::ptrdiff_t classes, std::optional<std::int64_t> ignore_index) {
    std::ptrdiff_t found = -1;
    const std::ptrdiff_t count = slices.batch.size();
    slices.batch.simplify();
    slices.batch.for_stretches(0, count, [&](const Offsets& at, std::ptrdiff_t position, std::ptrdiff_t length) {
        const std::ptrdiff_t stride = slices.batch.last().strides[target];
        std::int64_t targets[slices_per_call];
        for (std::ptrdiff_t from = 0; from < length && found < 0; from += slices_per_call) {
            const std::ptrdiff_t some = std::min(length - from, slices_per_call);
            read_indices(slices.arrays[target], at[target] + from * stride, stride, some, targets);
            // The sign of t - classes, where t has none: of all targets at once, since few calls find one amiss.
            std::uint64_t within = ~std::uint64_t{0};
            for (std::ptrdiff_t i = 0; i < some; ++i) {
                const auto t = static_cast<std::uint64_t>(targets[i]);
                within &= ~t & (t - static_cast<std::uint64_t>(classes));
            }
            if (within >> 63) continue;
            for (std::ptrdiff_t i = 0; i < some && found < 0; ++i) {
                const bool valid = is_class(targets[i], classes) || targets[i] == ignore_index;
                if (!valid) found = position + from + i;
            }
        }
    });
    return found;
}

}  // namespace fastsoftmax
