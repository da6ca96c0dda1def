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

    double total() const {
        OrderedSum all;
        double plain = 0;
        for (int k = 0; k < 8; ++k) {
            all.add_to(0, high_[k]);
            all.low_[0] += low_[k];
            plain += high_[k];
        }
        // The error of an infinite sum is NaN; the sum itself is right.
        return std::isfinite(plain) ? all.high_[0] + all.low_[0] : plain;
    }

  private:
    typedef double Pair __attribute__((vector_size(16)));

    double high_[8] = {}, low_[8] = {};
    std::ptrdiff_t position_ = 0;

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
                 loss.probabilities || loss.label_smoothing > 0) {
        normalise_weights();
        if (!loss.probabilities && loss.label_smoothing > 0) {
            shared_terms_.reset(new double[batch_.classes()]);
            batch_.in_type([&](auto* type) {
                auto* terms = reinterpret_cast<decltype(type)>(shared_terms_.get());
                OrderedSum sum;
                for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) {
                    terms[c] = stored_term<std::remove_pointer_t<decltype(type)>>(term(c, 0));
                    sum.add(terms[c]);
                }
                shared_spread_ = sum.total();
            });
        }
        count_samples();
    }

    void compute() {
        const int threads = batch_.threads_for(std::min(batch_.count(), losses_held));
        if (batch_.shares_slices(threads))
            compute_shared(threads);
        else
            compute_batch(threads);
        if (reduced() && slices_.has(value)) {
            const double total = sum_.total();
            const bool mean = loss_.reduction == Reduction::mean;
            const double undefined = std::numeric_limits<double>::quiet_NaN();
            const double result =
                mean ? none_counts_ ? undefined : total / divisor_ * weight_unit() : total * weight_unit();
            write_doubles(slices_.arrays[value], 0, 0, 1, &result);
        }
    }

  private:
    Slices& slices_;
    const Loss& loss_;
    const Batch batch_;
    std::unique_ptr<double[]> shared_terms_;  // of label smoothing, in the type computed in
    double shared_spread_ = 0;
    const double* weight_ = nullptr;  // in units of weight_unit_
    std::unique_ptr<double[]> normalised_;
    double weight_unit_ = 1;
    double divisor_ = 1;  // of a mean
    bool none_counts_ = false;
    OrderedSum sum_;

    bool reduced() const { return loss_.reduction != Reduction::none; }

    // What weighed sums are to be multiplied by; it cancels where the weights of a mean's samples divide them.
    double weight_unit() const { return loss_.reduction == Reduction::mean && !loss_.probabilities ? 1 : weight_unit_; }

    // What multiplies -log p of class c, from its probability.
    double term(std::ptrdiff_t c, double probability) const {
        const double even = loss_.label_smoothing / static_cast<double>(batch_.classes());
        const double smoothed = (1 - loss_.label_smoothing) * probability + even;
        return weight_ ? weight_[c] * smoothed : smoothed;
    }

    // A term that is not 0 does not become 0.
    template <class T>
    static T stored_term(double term) {
        const T stored = static_cast<T>(term);
        return stored == 0 && term != 0 ? std::numeric_limits<T>::denorm_min() : stored;
    }

    // Weights far from 1 are brought there by a power of two, so that float holds their products.
    void normalise_weights() {
        weight_ = loss_.weight;
        if (!weight_ || batch_.classes() == 0) return;
        const double largest = *std::max_element(weight_, weight_ + batch_.classes());
        if (largest == 0 || (largest > 0x1p-30 && largest < 0x1p30)) return;
        int exponent;
        std::frexp(largest, &exponent);
        weight_unit_ = std::ldexp(1, exponent - 1);
        normalised_.reset(new double[batch_.classes()]);
        for (std::ptrdiff_t c = 0; c < batch_.classes(); ++c) normalised_[c] = loss_.weight[c] / weight_unit_;
        weight_ = normalised_.get();
    }

    void count_samples() {
        if (loss_.reduction != Reduction::mean) return;
        if (loss_.probabilities || !(weight_ || loss_.ignore_index)) {
            divisor_ = static_cast<double>(batch_.count());
            none_counts_ = batch_.count() == 0;
            return;
        }
        OrderedSum weights;
        none_counts_ = true;
        slices_.batch.for_stretches(0, batch_.count(), [&](const Offsets& at, std::ptrdiff_t, std::ptrdiff_t length) {
            std::int64_t targets[slices_per_call];
            for (std::ptrdiff_t from = 0; from < length; from += slices_per_call) {
                const std::ptrdiff_t some = std::min(length - from, slices_per_call);
                read_targets(slices_.batch.moved(at, from), some, targets);
                for (std::ptrdiff_t i = 0; i < some; ++i) {
                    if (!is_class(targets[i], batch_.classes())) continue;
                    none_counts_ = false;
                    weights.add(weight_ ? weight_[targets[i]] : 1);
                }
            }
        });
        // Weights that sum to 0 leave nothing defined, whatever smoothing adds.
        divisor_ = weights.total() == 0 ? std::numeric_limits<double>::quiet_NaN() : weights.total();
    }

    // The targets of neighbouring slices; what is no class, as -1: ignored. Another thread may have put anything there
    // since they were checked.
    void read_targets(const Offsets& first, std::ptrdiff_t length, std::int64_t* targets) const {
        read_indices(slices_.arrays[target], first[target], slices_.batch.last().strides[target], length, targets);
        if (!loss_.ignore_index) return;
        for (std::ptrdiff_t i = 0; i < length; ++i)
            if (targets[i] == *loss_.ignore_index) targets[i] = -1;
    }

    // What kernels need of neighbouring slices.
    struct Samples {
        std::int64_t targets[slices_per_call];
        double chosen[slices_per_call], scale[slices_per_call], losses[slices_per_call];
    };

    void read_samples(const Offsets& first, std::ptrdiff_t length, Samples& s) const {
        if (!slices_.has(output)) {
            // No gradient: no scale.
        } else if (slices_.has(upstream)) {
            read_doubles(slices_.arrays[upstream], first[upstream], slices_.batch.last().strides[upstream], length,
                         s.scale);
            for (std::ptrdiff_t i = 0; i < length; ++i)
                s.scale[i] = s.scale[i] / divisor_ * weight_unit() / loss_.temperature;
        } else {
            std::fill(s.scale, s.scale + length, loss_.upstream / divisor_ * weight_unit() / loss_.temperature);
        }
        if (loss_.probabilities) return;
        read_targets(first, length, s.targets);
        if (!weight_ && !loss_.ignore_index) {
            std::fill(s.chosen, s.chosen + length, 1 - loss_.label_smoothing);
            return;
        }
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const bool counts = is_class(s.targets[i], batch_.classes());
            s.chosen[i] = counts ? (1 - loss_.label_smoothing) * (weight_ ? weight_[s.targets[i]] : 1) : 0;
            if (!counts) s.scale[i] = 0;  // whatever comes from above
        }
    }

    void write_losses(const Offsets& first, std::ptrdiff_t length, double* losses) const {
        if (weight_unit_ != 1)
            for (std::ptrdiff_t i = 0; i < length; ++i) losses[i] *= weight_unit_;
        if (slices_.has(value))
            write_doubles(slices_.arrays[value], first[value], slices_.batch.last().strides[value], length, losses);
    }

    void compute_batch(int threads) {
        const std::ptrdiff_t most = std::min(batch_.slices_at_once(), slices_per_call);
        // Probabilities stand beside the scores.
        const std::ptrdiff_t rows = batch_.loop() == Loop::rows ? 1 : most;
        const std::ptrdiff_t terms = loss_.probabilities ? rows * batch_.classes() : 0;
        const std::ptrdiff_t extra = batch_.in_float() ? (terms + 1) / 2 : terms;  // in doubles
        Scratch memory = batch_.memory_for_runs(threads, extra);
        Scratch held(reduced() ? std::min(batch_.count(), losses_held) : 0);
        const std::ptrdiff_t step = reduced() ? losses_held / batch_.unit_slices() : batch_.units();
        for (std::ptrdiff_t begin = 0; begin < batch_.units(); begin += step) {
            const std::ptrdiff_t end = std::min(begin + step, batch_.units()), origin = batch_.slice_of(begin);
            batch_.for_runs(begin, end, threads, loss_.probabilities ? rows : most, memory,
                            [&](const Offsets& at, std::ptrdiff_t first, std::ptrdiff_t length, double* scratch) {
                                compute_run(at, length, scratch, reduced() ? held.get() + (first - origin) : nullptr);
                            });
            if (reduced()) sum_.add(held.get(), batch_.slice_of(end) - origin);
        }
    }

    // Neighbouring slices; their losses go to `held`, or to the array of losses.
    void compute_run(const Offsets& first, std::ptrdiff_t length, double* scratch, double* held) const {
        Samples samples;
        read_samples(first, length, samples);
        Run run;
        run.value = held ? held : samples.losses;
        run.scale = samples.scale;
        if (loss_.probabilities) {
            double* terms = scratch + batch_.scratch_size();
            gather_terms(first, length, terms);
            run.terms = terms;
            run.own_terms = true;
        } else {
            run.target = samples.targets;
            run.chosen = samples.chosen;
            run.terms = shared_terms_.get();
            run.spread = shared_spread_;
        }
        batch_.apply(run, first, length, scratch);
        if (!held) write_losses(first, length, samples.losses);
    }

    // Probabilities as terms: rows, or tiles as the scores are.
    void gather_terms(const Offsets& first, std::ptrdiff_t length, double* to) const {
        batch_.gather(second, first, length, to);
        if (!weight_ && loss_.label_smoothing == 0) return;
        batch_.in_type([&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            T* terms = reinterpret_cast<T*>(to);
            const std::ptrdiff_t classes = batch_.classes();
            const std::ptrdiff_t lanes = batch_.loop() == Loop::tiles ? batch_.unit_slices() : 1;
            const std::ptrdiff_t tiles = (length + lanes - 1) / lanes;
            for (std::ptrdiff_t i = 0; i < tiles * classes * lanes; ++i)
                terms[i] = stored_term<T>(term(i / lanes % classes, static_cast<double>(terms[i])));
        });
    }

    void compute_shared(int threads) {
        batch_.for_units(threads, [&](const Offsets& first, std::ptrdiff_t length, double* scratch) {
            Samples s;
            read_samples(first, length, s);
            Run run;
            run.value = s.losses;
            run.target = s.targets;
            run.chosen = s.chosen;
            run.scale = s.scale;
            batch_.apply_blocks(run, first, length, threads, scratch);
            if (reduced())
                sum_.add(s.losses, length);
            else
                write_losses(first, length, s.losses);
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
