// NumPy arrays in, slices out, the GIL released. No mathematics.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "operations.hpp"
#include "targets.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace fastsoftmax {
namespace {

ElementType element_type(const py::dtype& dtype) {
    const char kind = dtype.kind();
    const auto size = dtype.itemsize();
    const auto sized = [&](ElementType smallest) {
        const int power = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
        return static_cast<ElementType>(smallest + power);
    };
    switch (kind) {
        case 'f':
            return size == 2 ? float16 : size == 4 ? float32 : float64;
        case 'i':
            return sized(int8);
        case 'u':
            return sized(uint8);
        case 'b':
            return boolean;
        default:
            return bfloat16;  // a type of ml_dtypes: the one that the arguments' checks let pass
    }
}

bool is_swapped(const py::dtype& dtype) {
    const char order = dtype.byteorder();
    return order != '=' && order != '|' && order != (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>');
}

using Positions = std::vector<py::ssize_t>;

// Puts an array into its role. Of shape `all`, or, one element a slice, of that without the class axes.
class Builder {
  public:
    Builder(const py::array& all, const Positions& class_axes) {
        for (py::ssize_t d = 0; d < all.ndim(); ++d) {
            bool is_class = false;
            for (const auto c : class_axes) is_class |= c == d;
            (is_class ? slices.classes : slices.batch).append({all.shape(d), {}});
            kinds.push_back(is_class);
        }
    }

    void set(Role role, const py::array& array, bool per_slice = false) {
        const py::dtype dtype = array.dtype();
        slices.arrays[role] = {reinterpret_cast<std::byte*>(const_cast<void*>(array.data())), element_type(dtype),
                               is_swapped(dtype)};
        py::ssize_t d = 0;
        int batch = 0, classes = 0;
        for (const bool is_class : kinds) {
            if (is_class) {
                if (!per_slice) slices.classes.axis[classes].strides[role] = array.strides(d++);
                ++classes;
            } else {
                slices.batch.axis[batch++].strides[role] = array.strides(d++);
            }
        }
    }

    void set(Role role, const std::optional<py::array>& array, bool per_slice = false) {
        if (array) set(role, *array, per_slice);
    }

    Slices slices;

  private:
    std::vector<bool> kinds;
};

using MaybeArray = std::optional<py::array>;

template <Operation operation>
void transform_scores(const py::array& x, const py::array& out, const Positions& axes, double temperature,
                      const MaybeArray& where) {
    Builder b(x, axes);
    b.set(scores, x);
    b.set(output, out);
    b.set(mask, where);
    const py::gil_scoped_release released;
    transform(operation, b.slices, temperature);
}

template <Operation operation>
void transform_gradient(const py::array& y, const py::array& dy, const py::array& out, const Positions& axes,
                        double temperature, const MaybeArray& where) {
    Builder b(y, axes);
    b.set(scores, y);
    b.set(second, dy);
    b.set(output, out);
    b.set(mask, where);
    const py::gil_scoped_release released;
    transform(operation, b.slices, temperature);
}

void reduce_scores(const py::array& x, const py::array& out, const MaybeArray& signs, const Positions& axes,
                   const MaybeArray& weights, const MaybeArray& where) {
    Builder b(x, axes);
    b.set(scores, x);
    b.set(value, out, true);
    b.set(sign, signs, true);
    b.set(second, weights);
    b.set(mask, where);
    const py::gil_scoped_release released;
    reduce(b.slices);
}

Reduction reduction_of(const std::string& name) {
    return name == "none" ? Reduction::none : name == "sum" ? Reduction::sum : Reduction::mean;
}

void loss_and_gradient(const py::array& logits, const py::array& targets, py::ssize_t axis, const MaybeArray& weight,
                       std::optional<std::int64_t> ignore_index, double label_smoothing, double temperature,
                       const std::string& reduction, const py::object& from_above, const MaybeArray& losses,
                       const MaybeArray& grad) {
    Builder b(logits, {axis});
    b.set(scores, logits);
    b.set(output, grad);
    Loss loss;
    const char kind = targets.dtype().kind();
    loss.probabilities = kind != 'i' && kind != 'u';
    b.set(loss.probabilities ? second : target, targets, !loss.probabilities);
    if (weight) loss.weight = static_cast<const double*>(weight->data());
    loss.ignore_index = ignore_index;
    loss.label_smoothing = label_smoothing;
    loss.temperature = temperature;
    loss.reduction = reduction_of(reduction);
    if (py::isinstance<py::array>(from_above))
        b.set(upstream, py::reinterpret_borrow<py::array>(from_above), true);
    else
        loss.upstream = from_above.cast<double>();
    if (losses) {
        if (loss.reduction == Reduction::none)
            b.set(value, *losses, true);
        else
            b.slices.arrays[value] = {static_cast<std::byte*>(const_cast<void*>(losses->data())),
                                      element_type(losses->dtype()), false};
    }
    const py::gil_scoped_release released;
    cross_entropy_loss(b.slices, loss);
}

std::ptrdiff_t invalid_target(const py::array& targets, std::ptrdiff_t classes,
                              std::optional<std::int64_t> ignore_index) {
    Builder b(targets, {});
    b.set(target, targets, true);
    const py::gil_scoped_release released;
    return find_invalid_target(b.slices, classes, ignore_index);
}

py::dict describe() {
    py::dict d;
#if defined(__clang__)
    d["compiler"] = "Clang " __clang_version__;
#else
    d["compiler"] = "GCC " __VERSION__;
#endif
    const std::string openmp = openmp_version();
    d["openmp"] = openmp.empty() ? py::object(py::none()) : py::object(py::str(openmp));
    d["targets_built"] = py::tuple(py::cast(targets_built()));
    d["targets_usable"] = py::tuple(py::cast(targets_usable()));
    d["target"] = kernels().name;
    return d;
}

const Kernels& named_kernels(const std::string& target) {
    const Kernels* found = kernels_of(target);
    if (!found) throw std::invalid_argument("target '" + target + "' is not to be had on this machine");
    return *found;
}

void plain_exp(const py::array& x, const py::array& out, const std::string& target) {
    const Kernels& k = named_kernels(target);
    void* to = const_cast<void*>(out.data());
    if (x.itemsize() == 4)
        k.in_float.exp(static_cast<const float*>(x.data()), x.size(), static_cast<float*>(to));
    else
        k.in_double.exp(static_cast<const double*>(x.data()), x.size(), static_cast<double*>(to));
}

void plain_log1p(const py::array& x, const py::array& out, const std::string& target) {
    const Kernels& k = named_kernels(target);
    void* to = const_cast<void*>(out.data());
    if (out.itemsize() == 4)
        k.in_float.log1p(static_cast<const double*>(x.data()), x.size(), static_cast<float*>(to));
    else
        k.in_double.log1p(static_cast<const double*>(x.data()), x.size(), static_cast<double*>(to));
}

}  // namespace
}  // namespace fastsoftmax

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    using namespace fastsoftmax;
    try {
        choose_target();
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }
    m.def("softmax", transform_scores<softmax>);
    m.def("log_softmax", transform_scores<log_softmax>);
    m.def("logsumexp", reduce_scores);
    m.def("softmax_grad", transform_gradient<softmax_grad>);
    m.def("log_softmax_grad", transform_gradient<log_softmax_grad>);
    m.def("cross_entropy", loss_and_gradient);
    m.def("find_invalid_target", invalid_target);
    m.def("set_num_threads", set_num_threads);
    m.def("get_num_threads", get_num_threads);
    m.def("describe", describe);
    m.def("exp", plain_exp);
    m.def("log1p", plain_log1p);
}
