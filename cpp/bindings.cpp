// The module: describes NumPy arrays as slices, makes arrays for results, releases the GIL. No mathematics.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <bitset>
#include <chrono>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

#include "operations.hpp"
#include "shortcut.hpp"
#include "targets.hpp"
#include "threads.hpp"

namespace py = pybind11;

namespace fastsoftmax {
namespace {

ElementType element_type(char kind, py::ssize_t size) {
    const auto sized = [&](ElementType smallest) {
        const int power = size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
        return static_cast<ElementType>(static_cast<int>(smallest) + power);
    };
    switch (kind) {
        case 'f':
            return size == 2 ? ElementType::float16 : size == 4 ? ElementType::float32 : ElementType::float64;
        case 'i':
            return sized(ElementType::int8);
        case 'u':
            return sized(ElementType::uint8);
        case 'b':
            return ElementType::boolean;
        default:
            return ElementType::bfloat16;  // of ml_dtypes: the only other dtype that _arguments.py lets pass
    }
}

bool is_swapped(char order) {
    return order != '=' && order != '|' && order != (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>');
}

std::byte* data_of(py::handle array) {
    return reinterpret_cast<std::byte*>(py::detail::array_proxy(array.ptr())->data);
}

void set_memory(Array& memory, const py::array& array) {
    const auto* dtype = py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr);
    memory = {data_of(array), element_type(dtype->kind, array.itemsize()), is_swapped(dtype->byteorder)};
}

using ClassAxes = std::bitset<most_axes>;
using MaybeArray = std::optional<py::array>;
using MaybeIndex = std::optional<std::int64_t>;

// Objects that arguments are compared with by identity, and a function of NumPy that pybind11 does not offer.
struct Known {
    PyObject* const x = PyUnicode_InternFromString("x");
    PyObject* const logits = PyUnicode_InternFromString("logits");
    PyObject* const targets = PyUnicode_InternFromString("targets");
    PyObject* const axis = PyUnicode_InternFromString("axis");
    PyObject* const out = PyUnicode_InternFromString("out");
    PyObject* const reduction = PyUnicode_InternFromString("reduction");
    const py::dtype dtypes[3] = {py::dtype::of<float>(), py::dtype::of<double>(), py::dtype("float16")};
    PyObject* (*new_scalar)(const void* data, PyObject* dtype, PyObject* base) = [] {
        const py::object table = py::detail::import_numpy_core_submodule("multiarray").attr("_ARRAY_API");
        constexpr int place = 60;  // of PyArray_Scalar, in all versions
        return reinterpret_cast<decltype(new_scalar)>(static_cast<void**>(table.cast<py::capsule>())[place]);
    }();
};
const Known* known = nullptr;  // set by the import of the module

// `argument` returns an argument as the type of its parameter, without conversion: pybind11's own dispatch, which would
// try to convert, takes longer than the softmax of ten numbers.

void require(bool good, const char* what) {
    if (!good) throw py::type_error(what);
}

template <class T>
T argument(py::handle given);

template <>
py::handle argument(py::handle given) {
    return given;
}

template <>
bool argument(py::handle given) {
    return given.ptr() == Py_True;
}

template <>
py::array argument(py::handle given) {
    require(py::isinstance<py::array>(given), "expected an array");
    return py::reinterpret_borrow<py::array>(given);
}

template <>
py::dtype argument(py::handle given) {
    require(py::isinstance<py::dtype>(given), "expected a dtype");
    return py::reinterpret_borrow<py::dtype>(given);
}

template <>
py::tuple argument(py::handle given) {
    require(py::isinstance<py::tuple>(given), "expected a tuple");
    return py::reinterpret_borrow<py::tuple>(given);
}

template <>
double argument(py::handle given) {
    const double number = PyFloat_AsDouble(given.ptr());
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
}

template <>
std::int64_t argument(py::handle given) {
    const std::int64_t number = PyLong_AsLongLong(given.ptr());
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
}

template <>
MaybeArray argument(py::handle given) {
    return given.is_none() ? MaybeArray() : argument<py::array>(given);
}

template <>
MaybeIndex argument(py::handle given) {
    return given.is_none() ? MaybeIndex() : argument<std::int64_t>(given);
}

template <>
ClassAxes argument(py::handle given) {
    ClassAxes axes;
    for (const py::handle axis : argument<py::tuple>(given))
        axes.set(static_cast<std::size_t>(argument<std::int64_t>(axis)));
    return axes;
}

template <>
std::string_view argument(py::handle given) {
    const char* text = PyUnicode_AsUTF8(given.ptr());
    if (!text) throw py::error_already_set();
    return text;
}

// Puts arrays into their roles. They have the shape of `all`; per-slice arrays have it without the class axes, or with
// extent 1 there, or that of the slices' own axis.
class Builder {
  public:
    Builder(const py::array& all, const ClassAxes& class_axes) : all_(all), class_axes_(class_axes) {
        for (int d = 0; d < all.ndim(); ++d) (class_axes[d] ? slices.classes : slices.batch).append({all.shape(d), {}});
    }

    void set(Role role, const py::array& array) {
        set_data(role, array);
        const bool every_axis = array.ndim() == all_.ndim();
        py::ssize_t d = 0;
        int batch = 0, classes = 0;
        for (int k = 0; k < all_.ndim(); ++k) {
            if (!class_axes_[k])
                slices.batch.axis[batch++].strides[role] = array.strides(d++);
            else if (!is_per_slice(role))
                slices.classes.axis[classes++].strides[role] = array.strides(d++);
            else if (every_axis)
                ++d;
        }
    }

    void set(Role role, const MaybeArray& array) {
        if (array) set(role, *array);
    }

    void set_data(Role role, const py::array& array) { set_memory(slices.arrays[role], array); }

    // A new array for the results in a role.
    py::array result(Role role, const py::dtype& dtype, bool keepdims = false) const {
        if (!is_per_slice(role)) return empty(dtype, static_cast<int>(all_.ndim()), all_.shape());
        py::ssize_t shape[most_axes];
        int count = 0;
        for (int d = 0; d < all_.ndim(); ++d)
            if (keepdims || !class_axes_[d]) shape[count++] = class_axes_[d] ? 1 : all_.shape(d);
        return empty(dtype, count, shape);
    }

    // A new array for class indices: `size` for each slice, on a new last axis, or one, without that axis.
    py::array draws(const MaybeIndex& size) const {
        py::ssize_t shape[most_axes + 1];
        int count = 0;
        for (int d = 0; d < all_.ndim(); ++d)
            if (!class_axes_[d]) shape[count++] = all_.shape(d);
        if (size) shape[count++] = *size;
        return empty(py::dtype::of<std::int64_t>(), count, shape);
    }

    static py::array empty(py::dtype dtype, int axes, const py::ssize_t* shape) {
        const auto& numpy = py::detail::npy_api::get();
        PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype.release().ptr(), axes, shape, nullptr,
                                                      nullptr, 0, nullptr);
        if (!array) throw py::error_already_set();
        return py::reinterpret_steal<py::array>(array);
    }

    Slices slices;

  private:
    const py::array& all_;
    const ClassAxes class_axes_;
};

py::object scalar(const void* value, const py::dtype& dtype) {
    PyObject* const made = known->new_scalar(value, dtype.ptr(), nullptr);
    if (!made) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// Returns a result as its caller gets it: a new 0-d array as a scalar.
py::object finished(const py::array& result, bool is_new) {
    if (is_new && result.ndim() == 0) return scalar(result.data(), result.dtype());
    return result;
}

// Releases the GIL for its lifetime. Before Python 3.14, a thread that asks for the GIL while the interpreter shuts
// down is made to exit by unwinding its stack, which would drop references without the GIL and terminate the process at
// a noexcept function. Instead, it waits here until the process ends, as it does from 3.14 on.
class WithoutGil {
  public:
    WithoutGil() : thread_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;

    ~WithoutGil() {
        try {
            PyEval_RestoreThread(thread_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

  private:
    PyThreadState* const thread_;
};

// Runs the body, without the GIL if there is enough work: releasing it costs as much as some hundred elements, and
// another thread may then keep it for 5 ms.
template <class Body>
void run(const Slices& slices, Body body) {
    std::optional<WithoutGil> released;
    if (slices.batch.size() * slices.classes.size() > FewRows::most_elements) released.emplace();
    body();
}

// Computes an operation that has no options but the temperature. Its signature says where its results go.
template <Operation operation>
py::object compute_arrays(const py::array& x, const MaybeArray& second, const MaybeArray& out, const py::dtype& dtype,
                          const ClassAxes& axes, double temperature, const MaybeArray& where, bool keepdims = false,
                          bool with_sign = false) {
    const Signature& signature = kernels().of[operation].signature;
    const Role role = signature.output ? Role::output : Role::value;
    Builder b(x, axes);
    const py::array result = out ? *out : b.result(role, dtype, keepdims);
    MaybeArray signs;
    if (with_sign) signs = b.result(Role::sign, dtype, keepdims);
    b.set(Role::scores, x);
    b.set(Role::second, second);
    b.set(Role::mask, where);
    b.set(role, result);
    b.set(Role::sign, signs);
    run(b.slices, [&] {
        if (second && !signature.second) return compute_weighed(b.slices);
        compute(operation, b.slices, temperature);
    });
    if (!signs) return finished(result, !out);
    return py::make_tuple(finished(result, !out), finished(*signs, true));
}

template <Operation operation>
py::object transform(const py::array& x, const MaybeArray& out, const py::dtype& dtype, const ClassAxes& axes,
                     double temperature, const MaybeArray& where) {
    return compute_arrays<operation>(x, {}, out, dtype, axes, temperature, where);
}

template <Operation operation>
py::object transform_gradient(const py::array& y, const py::array& dy, const MaybeArray& out, const py::dtype& dtype,
                              const ClassAxes& axes, double temperature, const MaybeArray& where) {
    return compute_arrays<operation>(y, dy, out, dtype, axes, temperature, where);
}

py::object reduce(const py::array& x, const MaybeArray& out, const py::dtype& dtype, const ClassAxes& axes,
                  const MaybeArray& weights, const MaybeArray& where, bool keepdims, bool with_sign) {
    return compute_arrays<Operation::logsumexp>(x, weights, out, dtype, axes, 1, where, keepdims, with_sign);
}

py::object entropy(const py::array& x, const MaybeArray& out, const py::dtype& dtype, const ClassAxes& axes,
                   double temperature, const MaybeArray& where, bool keepdims) {
    return compute_arrays<Operation::entropy>(x, {}, out, dtype, axes, temperature, where, keepdims);
}

// `indices` and the result have the shape of x without `axis`, or with any extent along it.
py::object log_softmax_at(const py::array& x, const py::array& indices, const MaybeArray& out, const py::dtype& dtype,
                          std::int64_t axis, double temperature, const MaybeArray& where) {
    Builder b(x, ClassAxes().set(static_cast<std::size_t>(axis)));
    const py::array result = out ? *out : Builder::empty(dtype, static_cast<int>(indices.ndim()), indices.shape());
    b.set(Role::scores, x);
    b.set(Role::mask, where);
    b.set(Role::label, indices);
    b.set(Role::value, result);
    if (indices.ndim() == x.ndim()) {
        Axis own = {indices.shape(axis), {}};
        own.strides[Role::label] = indices.strides(axis);
        own.strides[Role::value] = result.strides(axis);
        b.slices.own.append(own);
    }
    bool all_are_classes = true;
    run(b.slices, [&] { all_are_classes = compute_at(Operation::log_softmax_at, b.slices, temperature); });
    return all_are_classes ? finished(result, !out) : py::none();
}

// Both results have the shape of x, with extent k along `axis`.
py::tuple log_softmax_top_k(const py::array& x, std::int64_t k, const py::dtype& dtype, std::int64_t axis,
                            double temperature, const MaybeArray& where) {
    Builder b(x, ClassAxes().set(static_cast<std::size_t>(axis)));
    py::ssize_t shape[most_axes];
    std::copy(x.shape(), x.shape() + x.ndim(), shape);
    shape[axis] = k;
    const int axes = static_cast<int>(x.ndim());
    const py::array values = Builder::empty(dtype, axes, shape);
    const py::array labels = Builder::empty(py::dtype::of<std::intptr_t>(), axes, shape);
    b.set(Role::scores, x);
    b.set(Role::mask, where);
    b.set(Role::value, values);
    b.set(Role::label, labels);
    Axis own = {k, {}};
    own.strides[Role::value] = values.strides(axis);
    own.strides[Role::label] = labels.strides(axis);
    b.slices.own.append(own);
    run(b.slices, [&] { compute_top(Operation::log_softmax_top_k, b.slices, temperature); });
    return py::make_tuple(values, labels);
}

// Returns one number in [0, 1) for each draw, in the order of the draws.
py::array uniform(py::handle rng, py::ssize_t draws) {
    const py::object drawn = rng.attr("random")(draws);
    if (!py::isinstance<py::array_t<double, py::array::c_style>>(drawn))
        throw py::type_error("rng.random(n) has to return an array of float64");
    auto numbers = py::reinterpret_borrow<py::array>(drawn);
    const auto* begin = static_cast<const double*>(numbers.data());
    if (numbers.size() != draws || !std::all_of(begin, begin + draws, [](double u) { return 0 <= u && u < 1; }))
        throw py::value_error("rng.random(n) has to return n numbers in [0, 1)");
    return numbers;
}

// Returns the draws, or the position of the first slice that has no probabilities.
py::object sample(const py::array& x, const ClassAxes& axes, const MaybeIndex& size, double temperature,
                  const MaybeIndex& top_k, double top_p, double min_p, const MaybeArray& where, py::handle rng) {
    Builder b(x, axes);
    b.set(Role::scores, x);
    b.set(Role::mask, where);
    const std::ptrdiff_t draws = size.value_or(1);
    py::array result = b.draws(size);
    std::optional<Sampler> sampler;
    run(b.slices, [&] { sampler.emplace(b.slices, temperature, Truncation{top_k.value_or(INT64_MAX), top_p, min_p}); });
    const std::ptrdiff_t undefined = sampler->find_undefined();
    if (undefined >= 0) return py::int_(undefined);
    const py::array numbers = uniform(rng, result.size());
    run(b.slices, [&] {
        sampler->draw(static_cast<const double*>(numbers.data()), draws,
                      static_cast<std::int64_t*>(result.mutable_data()));
    });
    return finished(result, true);
}

Reduction reduction_of(std::string_view name) {
    return name == "none" ? Reduction::none : name == "sum" ? Reduction::sum : Reduction::mean;
}

py::tuple loss_and_derivatives(const py::array& logits, const py::array& targets, std::int64_t axis,
                               const MaybeArray& weight, const MaybeIndex& ignore_index, double label_smoothing,
                               double temperature, std::string_view reduction, const py::dtype& dtype,
                               py::handle from_above, bool with_loss, bool with_grad, const MaybeArray& out,
                               bool with_hess, const MaybeArray& hess_out) {
    Builder b(logits, ClassAxes().set(static_cast<std::size_t>(axis)));
    b.set(Role::scores, logits);
    Loss loss;
    const char kind = targets.dtype().kind();
    loss.probabilities = kind != 'i' && kind != 'u';
    b.set(loss.probabilities ? Role::second : Role::label, targets);
    if (weight) loss.weight = static_cast<const double*>(weight->data());
    loss.ignore_index = ignore_index;
    loss.label_smoothing = label_smoothing;
    loss.temperature = temperature;
    loss.reduction = reduction_of(reduction);
    if (py::isinstance<py::array>(from_above))
        b.set(Role::upstream, py::reinterpret_borrow<py::array>(from_above));
    else
        loss.upstream = argument<double>(from_above);
    MaybeArray losses, grad, hess;
    if (with_loss) {
        const py::dtype loss_dtype = dtype.itemsize() == 2 ? py::dtype::of<float>() : dtype;
        if (loss.reduction == Reduction::none)
            b.set(Role::value, losses = b.result(Role::value, loss_dtype));
        else
            b.set_data(Role::value, *(losses = Builder::empty(loss_dtype, 0, nullptr)));
    }
    if (with_grad) b.set(Role::output, grad = out ? *out : b.result(Role::output, dtype));
    if (with_hess) b.set(Role::second_output, hess = hess_out ? *hess_out : b.result(Role::second_output, dtype));
    const Operation operation = with_grad ? Operation::cross_entropy_grad : Operation::cross_entropy;
    run(b.slices, [&] { compute_loss(operation, b.slices, loss); });
    const auto object = [](const MaybeArray& array) { return array ? py::object(*array) : py::none(); };
    const py::object loss_or_none = losses ? finished(*losses, true) : py::none();
    if (with_hess) return py::make_tuple(loss_or_none, object(grad), object(hess));
    return py::make_tuple(loss_or_none, object(grad));
}

py::tuple loss_and_gradient(const py::array& logits, const py::array& targets, std::int64_t axis,
                            const MaybeArray& weight, const MaybeIndex& ignore_index, double label_smoothing,
                            double temperature, std::string_view reduction, const py::dtype& dtype,
                            py::handle from_above, bool with_loss, bool with_grad, const MaybeArray& out) {
    return loss_and_derivatives(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction,
                                dtype, from_above, with_loss, with_grad, out, false, {});
}

py::tuple loss_gradient_and_hessian(const py::array& logits, const py::array& targets, std::int64_t axis,
                                    const MaybeArray& weight, const MaybeIndex& ignore_index, double label_smoothing,
                                    double temperature, std::string_view reduction, const py::dtype& dtype,
                                    py::handle from_above, const MaybeArray& out, const MaybeArray& hess_out) {
    return loss_and_derivatives(logits, targets, axis, weight, ignore_index, label_smoothing, temperature, reduction,
                                dtype, from_above, true, true, out, true, hess_out);
}

py::tuple divergence_and_gradient(const py::array& p, const py::array& q, std::int64_t axis, double temperature,
                                  const MaybeArray& where, std::string_view reduction, const py::dtype& dtype,
                                  const py::dtype& grad_dtype, py::handle from_above, bool with_grad,
                                  const MaybeArray& out) {
    Builder b(p, ClassAxes().set(static_cast<std::size_t>(axis)));
    b.set(Role::scores, p);
    b.set(Role::second, q);
    b.set(Role::mask, where);
    Divergence given = {.temperature = temperature, .reduction = reduction_of(reduction)};
    if (py::isinstance<py::array>(from_above))
        b.set(Role::upstream, py::reinterpret_borrow<py::array>(from_above));
    else
        given.upstream = argument<double>(from_above);
    py::array divergence;
    MaybeArray grad;
    if (given.reduction == Reduction::none)
        b.set(Role::value, divergence = b.result(Role::value, dtype));
    else
        b.set_data(Role::value, divergence = Builder::empty(dtype, 0, nullptr));
    if (with_grad) b.set(Role::output, grad = out ? *out : b.result(Role::output, grad_dtype));
    const Operation operation = with_grad ? Operation::kl_divergence_grad : Operation::kl_divergence;
    run(b.slices, [&] { compute_divergence(operation, b.slices, given); });
    return py::make_tuple(finished(divergence, true), grad ? py::object(*grad) : py::none());
}

// Returns the addresses of the first byte of an array's memory and of the one after its last.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const py::array& array) {
    auto begin = reinterpret_cast<std::uintptr_t>(array.data()), end = begin;
    const py::ssize_t *shape = array.shape(), *strides = array.strides();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
        if (shape[d] == 0) return {begin, begin};
        const py::ssize_t last = (shape[d] - 1) * strides[d];
        (last < 0 ? begin : end) += static_cast<std::uintptr_t>(last);
    }
    return {begin, end + static_cast<std::uintptr_t>(array.itemsize())};
}

bool can_overlap(const py::array& a, py::handle other) {
    if (!py::isinstance<py::array>(other)) return false;
    const auto [a_begin, a_end] = bounds(a);
    const auto [b_begin, b_end] = bounds(py::reinterpret_borrow<py::array>(other));
    return a_begin < b_end && b_begin < a_end;
}

bool is_exact_array(py::handle given) { return Py_TYPE(given.ptr()) == py::detail::npy_api::get().PyArray_Type_; }

// Whether this is a writeable array of this dtype, and each element has memory of its own.
bool is_plain(py::handle given, const py::dtype& dtype) {
    if (!is_exact_array(given)) return false;
    const auto out = py::reinterpret_borrow<py::array>(given);
    return out.dtype().is(dtype) && out.writeable() && (out.flags() & (py::array::c_style | py::array::f_style));
}

// Checked here because in Python each attribute of an array takes as long as all of this.
py::bool_ is_plain_out(py::handle given, const py::tuple& shape, const py::dtype& dtype, const py::tuple& in_place,
                       const py::tuple& inputs) {
    if (!is_plain(given, dtype)) return false;
    const auto out = py::reinterpret_borrow<py::array>(given);
    if (out.ndim() != static_cast<py::ssize_t>(shape.size())) return false;
    for (py::ssize_t d = 0; d < out.ndim(); ++d)
        if (out.shape(d) != argument<std::int64_t>(PyTuple_GET_ITEM(shape.ptr(), d))) return false;
    for (const py::handle input : in_place)
        if (!input.is(out) && can_overlap(out, input)) return false;
    for (const py::handle input : inputs)
        if (can_overlap(out, input)) return false;
    return true;
}

py::bool_ same_shape(const py::array& a, const py::array& b) {
    return a.ndim() == b.ndim() && std::equal(a.shape(), a.shape() + a.ndim(), b.shape());
}

// Totals of pieces are arrays of the structure `Total`, in C order; `in_double` says whether they are computed in
// double.

Total* totals_in(const py::array& totals) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(totals.data()) % alignof(Total) == 0;
    require(totals.itemsize() == sizeof(Total) && (totals.flags() & py::array::c_style) && aligned, "expected totals");
    return reinterpret_cast<Total*>(data_of(totals));
}

void set_totals(Builder& b, const py::array& totals, bool in_double) {
    totals_in(totals);
    b.set(Role::value, totals);
    b.slices.arrays[Role::value].type = in_double ? ElementType::float64 : ElementType::float32;
}

py::array copied(const py::array& totals) {
    const py::array result = Builder::empty(totals.dtype(), static_cast<int>(totals.ndim()), totals.shape());
    std::copy_n(totals_in(totals), totals.size(), totals_in(result));
    return result;
}

// Runs the body, without the GIL if there are many totals.
template <class Body>
void run(const Totals& totals, Body body) {
    std::optional<WithoutGil> released;
    if (totals.count > FewRows::most) released.emplace();
    body();
}

py::array updated_totals(const py::array& totals, bool in_double, const py::array& x, const ClassAxes& axes,
                         double temperature, const MaybeArray& where) {
    const py::array result = copied(totals);
    Builder b(x, axes);
    b.set(Role::scores, x);
    b.set(Role::mask, where);
    set_totals(b, result, in_double);
    run(b.slices, [&] { update_totals(b.slices, temperature); });
    return result;
}

py::array merged_totals(const py::array& totals, bool in_double, const py::array& others, double temperature) {
    require(same_shape(totals, others), "expected totals of one shape");
    const py::array result = copied(totals);
    const Totals own = {totals_in(result), result.size(), in_double, temperature};
    const Total* const right = totals_in(others);
    run(own, [&] { merge_totals(own, right); });
    return result;
}

py::array widened_totals(const py::array& totals, double temperature) {
    const py::array result = copied(totals);
    const Totals own = {totals_in(result), result.size(), false, temperature};
    run(own, [&] { widen_totals(own); });
    return result;
}

template <Operation operation>
py::array concluded_totals(const py::array& totals, bool in_double, const py::dtype& dtype, double temperature) {
    const py::array values = Builder::empty(dtype, static_cast<int>(totals.ndim()), totals.shape());
    const Totals given = {totals_in(totals), totals.size(), in_double, temperature};
    Array to;
    set_memory(to, values);
    run(given, [&] { conclude_totals(operation, given, to); });
    return values;
}

template <Operation operation>
py::object part_of_whole(const py::array& totals, bool in_double, const py::array& x, const MaybeArray& out,
                         const py::dtype& dtype, const ClassAxes& axes, double temperature, const MaybeArray& where) {
    Builder b(x, axes);
    const py::array result = out ? *out : b.result(Role::output, dtype);
    b.set(Role::scores, x);
    b.set(Role::mask, where);
    b.set(Role::output, result);
    set_totals(b, totals, in_double);
    run(b.slices, [&] { compute_part(operation, b.slices, temperature); });
    return finished(result, !out);
}

// Whether an array has the shape of another without this axis.
bool has_shape_without(const py::array& array, const py::array& all, std::int64_t axis) {
    const py::ssize_t *shape = array.shape(), *of_all = all.shape();
    return array.ndim() == all.ndim() - 1 && std::equal(shape, shape + axis, of_all) &&
           std::equal(shape + axis, shape + array.ndim(), of_all + axis + 1);
}

// Returns the position, in C order, of the first index that is neither a class nor `ignore_index`, or None.
py::object invalid_index(const py::array& indices, std::int64_t classes, const MaybeIndex& ignore_index) {
    Builder b(indices, ClassAxes());
    b.set(Role::label, indices);
    std::ptrdiff_t found = -1;
    run(b.slices, [&] { found = find_invalid_label(b.slices, classes, ignore_index); });
    if (found < 0) return py::none();
    return py::int_(found);
}

py::object invalid_target(const py::array& targets, const py::array& logits, std::int64_t axis,
                          const MaybeIndex& ignore_index) {
    if (!has_shape_without(targets, logits, axis)) return py::int_(-1);
    return invalid_index(targets, logits.shape(axis), ignore_index);
}

template <class Result, class... Given, std::size_t... i>
PyObject* call(Result (*function)(Given...), PyObject* const* given, std::index_sequence<i...>) {
    return function(argument<std::decay_t<Given>>(given[i])...).release().ptr();
}

template <class Result, class... Given>
PyObject* call(Result (*function)(Given...), PyObject* const* given, py::ssize_t count) {
    require(count == sizeof...(Given), "wrong number of arguments");
    return call(function, given, std::index_sequence_for<Given...>());
}

// Returns what f returns; if f throws, sets a Python exception and returns null. The handlers themselves throw only
// without the GIL, and then the process ends.
template <class F>
// NOLINTNEXTLINE(bugprone-exception-escape)
PyObject* guarded(F f) noexcept {
    try {
        return f();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// A function as METH_FASTCALL wants it.
template <auto function>
PyObject* fast_call(PyObject*, PyObject* const* given, Py_ssize_t count) noexcept {
    return guarded([&] { return call(function, given, count); });
}

template <auto function>
PyMethodDef method(const char* name, const char* signature_and_doc) noexcept {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fast_call<function>)), METH_FASTCALL,
            signature_and_doc};
}

PyMethodDef methods[] = {
    method<transform<Operation::softmax>>("softmax",
                                          "softmax($module, x, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<transform<Operation::log_softmax>>(
        "log_softmax", "log_softmax($module, x, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<reduce>("logsumexp", "logsumexp($module, x, out, dtype, axes, b, where, keepdims, return_sign, /)\n--\n\n"),
    method<entropy>("entropy", "entropy($module, x, out, dtype, axes, temperature, where, keepdims, /)\n--\n\n"),
    method<log_softmax_at>("log_softmax_at",
                           "log_softmax_at($module, x, indices, out, dtype, axis, temperature, where, /)\n--\n\n"),
    method<log_softmax_top_k>("log_softmax_top_k",
                              "log_softmax_top_k($module, x, k, dtype, axis, temperature, where, /)\n--\n\n"),
    method<sample>("sample", "sample($module, x, axes, size, temperature, top_k, top_p, min_p, where, rng, /)\n--\n\n"),
    method<transform_gradient<Operation::softmax_grad>>(
        "softmax_grad", "softmax_grad($module, y, dy, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<transform_gradient<Operation::log_softmax_grad>>(
        "log_softmax_grad", "log_softmax_grad($module, logp, dy, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<loss_and_gradient>("cross_entropy",
                              "cross_entropy($module, logits, targets, axis, weight, ignore_index, label_smoothing, "
                              "temperature, reduction, dtype, upstream, with_loss, with_grad, out, /)\n--\n\n"),
    method<loss_gradient_and_hessian>(
        "cross_entropy_with_grad_hess",
        "cross_entropy_with_grad_hess($module, logits, targets, axis, weight, ignore_index, label_smoothing, "
        "temperature, reduction, dtype, upstream, out, hess_out, /)\n--\n\n"),
    method<divergence_and_gradient>(
        "kl_divergence",
        "kl_divergence($module, p_logits, q_logits, axis, temperature, where, reduction, dtype, grad_dtype, upstream, "
        "with_grad, out, /)\n--\n\n"),
    method<updated_totals>("updated_totals",
                           "updated_totals($module, totals, in_double, x, axes, temperature, where, /)\n--\n\n"),
    method<merged_totals>("merged_totals", "merged_totals($module, totals, in_double, others, temperature, /)\n--\n\n"),
    method<widened_totals>("widened_totals", "widened_totals($module, totals, temperature, /)\n--\n\n"),
    method<concluded_totals<Operation::logsumexp>>(
        "logsumexp_of_totals", "logsumexp_of_totals($module, totals, in_double, dtype, temperature, /)\n--\n\n"),
    method<concluded_totals<Operation::entropy>>(
        "entropy_of_totals", "entropy_of_totals($module, totals, in_double, dtype, temperature, /)\n--\n\n"),
    method<part_of_whole<Operation::softmax>>(
        "softmax_of_part",
        "softmax_of_part($module, totals, in_double, x, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<part_of_whole<Operation::log_softmax>>(
        "log_softmax_of_part",
        "log_softmax_of_part($module, totals, in_double, x, out, dtype, axes, temperature, where, /)\n--\n\n"),
    method<same_shape>("same_shape", "same_shape($module, a, b, /)\n--\n\n"),
    method<invalid_target>("find_invalid_target",
                           "find_invalid_target($module, targets, logits, axis, ignore_index, /)\n--\n\n"),
    method<invalid_index>("find_invalid_index",
                          "find_invalid_index($module, indices, classes, ignore_index, /)\n--\n\n"),
    method<is_plain_out>("is_plain_out", "is_plain_out($module, out, shape, dtype, in_place, inputs, /)\n--\n\n"),
    {},
};

// Shortcuts take everyday calls of public functions: exact arrays, of a native floating dtype and, for a loss, of class
// indices, and no options except `axis`, `out` and `reduction`. A shortcut calls the core as the Python function would,
// or hands it a few dense rows, which need no description as slices. It leaves all other calls, and so all refusals, to
// that function.

// The arguments of a call, by parameter; null if absent.
struct Given {
    py::handle x, targets, axis, out, reduction;
};

using Parameter = py::handle Given::*;

// Returns the parameter of this name, null for one that an everyday call does not use. Names in a call are interned.
Parameter parameter_of(PyObject* name, const Signature& signature) {
    const bool is_loss = signature.labels != PerSlice::none;
    if (name == known->axis) return &Given::axis;
    if (name == known->out) return signature.output ? &Given::out : nullptr;
    if (!is_loss) return name == known->x ? &Given::x : nullptr;
    if (name == known->logits) return &Given::x;
    if (name == known->targets) return &Given::targets;
    return name == known->reduction ? &Given::reduction : nullptr;
}

// Assigns the arguments to parameters; returns false if the call cannot be an everyday one.
bool take(PyObject* const* given, py::ssize_t count, PyObject* names, const Signature& signature, Given& into) {
    const bool is_loss = signature.labels != PerSlice::none;
    const Parameter in_order[] = {&Given::x, is_loss ? &Given::targets : &Given::axis, &Given::axis};
    if (count > (is_loss ? 3 : 2)) return false;
    for (py::ssize_t i = 0; i < count; ++i) into.*in_order[i] = given[i];
    for (py::ssize_t i = 0; names && i < PyTuple_GET_SIZE(names); ++i) {
        const Parameter parameter = parameter_of(PyTuple_GET_ITEM(names, i), signature);
        if (!parameter || into.*parameter) return false;
        into.*parameter = given[count + i];
    }
    if (into.out.is_none()) into.out = {};
    return into.x && (into.targets || !is_loss);
}

bool is_floating(py::handle given) {
    if (!is_exact_array(given)) return false;
    const py::handle dtype = py::detail::array_proxy(given.ptr())->descr;
    return std::any_of(std::begin(known->dtypes), std::end(known->dtypes),
                       [&](const py::dtype& own) { return own.is(dtype); });
}

// Whether `out`, if there is one, can receive results of the shape and dtype of x directly.
bool fits(py::handle out, const py::array& x, py::handle targets) {
    if (!out) return true;
    if (!is_plain(out, x.dtype())) return false;
    const auto array = py::reinterpret_borrow<py::array>(out);
    return same_shape(array, x) && (out.is(x) || !can_overlap(array, x)) && !(targets && can_overlap(array, targets));
}

MaybeArray maybe_array(py::handle given) {
    return given ? MaybeArray(py::reinterpret_borrow<py::array>(given)) : MaybeArray();
}

// Returns an int in range as an axis that is not negative, the last axis for null, and -1 for anything else.
std::int64_t one_axis(py::handle given, py::ssize_t axes) {
    int overflow = 0;
    if (given && !PyLong_CheckExact(given.ptr())) return -1;
    const long long axis = given ? PyLong_AsLongLongAndOverflow(given.ptr(), &overflow) : -1;
    if (overflow || axis < -axes || axis >= axes) return -1;
    return axis < 0 ? axis + axes : axis;
}

bool is_dense(const py::array& array) {
    return (array.flags() & py::array::c_style) && (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
}

// Returns the results for few dense rows, along the last axis or all axes; null if the call is not on such rows.
py::object compute_rows(Operation operation, const py::array& x, bool all_axes, const MaybeArray& out,
                        const MaybeArray& targets = {}, Reduction reduction = Reduction::none) {
    const Signature& signature = kernels().of[operation].signature;
    const py::dtype dtype = x.dtype();
    const int axes = static_cast<int>(x.ndim()), batch_axes = all_axes ? 0 : axes - 1;
    const bool is_float = dtype.is(known->dtypes[0]), is_double = dtype.is(known->dtypes[1]);
    if (!(is_float || is_double) || !is_dense(x) || (out && !is_dense(*out))) return {};
    const py::ssize_t size = x.size(), classes = all_axes ? size : x.shape()[batch_axes];
    if (size == 0 || size > std::min(FewRows::most_elements, FewRows::most * classes) || classes == 1) return {};
    if (targets && !(has_shape_without(*targets, x, batch_axes) && (targets->flags() & py::array::c_style))) return {};
    FewRows rows = {.type = is_float ? ElementType::float32 : ElementType::float64,
                    .count = size / classes,
                    .classes = classes,
                    .scores = data_of(x),
                    .reduction = reduction};
    if (targets) set_memory(rows.label, *targets);
    py::object output, values;
    alignas(double) std::byte value[sizeof(double)];
    const bool one_value = batch_axes == 0 || reduction != Reduction::none;
    if (signature.output) rows.output = data_of(output = out ? *out : Builder::empty(dtype, axes, x.shape()));
    if (signature.value != PerSlice::none)
        rows.value = one_value ? value : data_of(values = Builder::empty(dtype, batch_axes, x.shape()));
    if (!compute_few(operation, rows)) return {};
    if (!rows.value) return output;
    if (one_value) values = scalar(value, dtype);
    return signature.output ? py::make_tuple(values, output) : values;
}

template <Operation operation, bool all_by_default = false>
PyObject* transform_at_once(PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
    return guarded([&]() -> PyObject* {
        Given given;
        if (!take(arguments, count, names, kernels().of[operation].signature, given)) return nullptr;
        if (!is_floating(given.x)) return nullptr;
        const auto x = py::reinterpret_borrow<py::array>(given.x);
        if (!fits(given.out, x, {})) return nullptr;
        const MaybeArray out = maybe_array(given.out);
        const bool all_axes = given.axis ? given.axis.is_none() : all_by_default;
        const std::int64_t axis = all_axes ? x.ndim() - 1 : one_axis(given.axis, x.ndim());
        if (axis < 0 && !all_axes) return nullptr;
        if (axis == x.ndim() - 1)
            if (py::object results = compute_rows(operation, x, all_axes, out)) return results.release().ptr();
        ClassAxes axes;
        for (py::ssize_t d = 0; d < x.ndim(); ++d) axes.set(d, all_axes || d == axis);
        const MaybeArray second, where;
        constexpr double temperature = 1;
        return compute_arrays<operation>(x, second, out, x.dtype(), axes, temperature, where).release().ptr();
    });
}

const char* reduction_name(py::handle given) {
    if (!given) return "mean";
    for (const char* name : {"none", "mean", "sum"})
        if (PyUnicode_CheckExact(given.ptr()) && PyUnicode_CompareWithASCIIString(given.ptr(), name) == 0) return name;
    return nullptr;
}

template <Operation operation>
PyObject* loss_at_once(PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
    return guarded([&]() -> PyObject* {
        const Signature& signature = kernels().of[operation].signature;
        Given given;
        if (!take(arguments, count, names, signature, given)) return nullptr;
        if (!is_floating(given.x) || !is_exact_array(given.targets)) return nullptr;
        const auto x = py::reinterpret_borrow<py::array>(given.x);
        const auto targets = py::reinterpret_borrow<py::array>(given.targets);
        const char kind = targets.dtype().kind();
        const std::int64_t axis = one_axis(given.axis, x.ndim());
        const char* const reduction = reduction_name(given.reduction);
        if ((kind != 'i' && kind != 'u') || axis < 0 || !reduction || x.shape(axis) == 0) return nullptr;
        if (!fits(given.out, x, targets)) return nullptr;
        const MaybeArray out = maybe_array(given.out);
        if (axis == x.ndim() - 1)
            if (py::object results = compute_rows(operation, x, false, out, targets, reduction_of(reduction)))
                return results.release().ptr();
        if (!invalid_target(targets, x, axis, {}).is_none()) return nullptr;
        const MaybeArray weight;
        const MaybeIndex ignore_index;
        constexpr double label_smoothing = 0, temperature = 1;
        constexpr bool with_loss = true;
        const py::float_ upstream(1.0);
        const py::tuple both = loss_and_gradient(x, targets, axis, weight, ignore_index, label_smoothing, temperature,
                                                 reduction, x.dtype(), upstream, with_loss, signature.output, out);
        return (signature.output ? py::object(both) : py::object(both[0])).release().ptr();
    });
}

// The functions that have a shortcut.
constexpr std::pair<const char*, Shortcut> shortcuts[] = {
    {"softmax", transform_at_once<Operation::softmax>},
    {"log_softmax", transform_at_once<Operation::log_softmax>},
    {"logsumexp", transform_at_once<Operation::logsumexp, true>},
    {"entropy", transform_at_once<Operation::entropy>},
    {"cross_entropy", loss_at_once<Operation::cross_entropy>},
    {"cross_entropy_with_grad", loss_at_once<Operation::cross_entropy_grad>},
};

py::object with_its_shortcut(const py::function& function) {
    const auto name = function.attr("__name__").cast<std::string>();
    for (const auto& [own, shortcut] : shortcuts)
        if (name == own) {
            PyObject* const made = with_shortcut(function.ptr(), shortcut);
            if (!made) throw py::error_already_set();
            return py::reinterpret_steal<py::object>(made);
        }
    throw py::value_error("no shortcut is known for " + name);
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

// Which arrays each operation reads and writes, by its name. The benchmark counts with them the bytes that a call
// moves.
py::dict signatures() {
    py::dict all;
    for (const Kernel& kernel : kernels().of.values) {
        const Signature& s = kernel.signature;
        py::dict d;
        d["second"] = s.second;
        d["labels"] = s.labels != PerSlice::none;
        d["output"] = s.output;
        all[s.name] = d;
    }
    return all;
}

const Kernels& named_kernels(const std::string& target) {
    const Kernels* found = kernels_of(target);
    if (!found) throw std::invalid_argument("target '" + target + "' is not available on this machine");
    return *found;
}

double plain_exp(const py::array& x, const py::array& out, const std::string& target) {
    const Kernels& k = named_kernels(target);
    void* to = const_cast<void*>(out.data());
    if (x.itemsize() == 4)
        return k.float_functions.exp(static_cast<const float*>(x.data()), x.size(), static_cast<float*>(to));
    return k.double_functions.exp(static_cast<const double*>(x.data()), x.size(), static_cast<double*>(to));
}

void plain_log1p(const py::array& x, const py::array& out, const std::string& target) {
    const Kernels& k = named_kernels(target);
    void* to = const_cast<void*>(out.data());
    if (out.itemsize() == 4)
        k.float_functions.log1p(static_cast<const double*>(x.data()), x.size(), static_cast<float*>(to));
    else
        k.double_functions.log1p(static_cast<const double*>(x.data()), x.size(), static_cast<double*>(to));
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
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
    m.attr("__version__") = FASTSOFTMAX_VERSION;
    m.def("set_num_threads", set_num_threads);
    m.def("set_num_threads_here", set_num_threads_here);
    m.def("get_num_threads", get_num_threads);
    if (!known) known = new Known();
    m.def("with_shortcut", with_its_shortcut);
    m.def("describe", describe);
    m.def("signatures", signatures);
    m.def("exp", plain_exp);
    m.def("log1p", plain_log1p);
}
