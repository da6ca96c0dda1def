"""Slices in pieces. Arguments are checked here; the core measures pieces, merges totals and computes results."""

from typing import Any, SupportsFloat

import numpy as np
from numpy.exceptions import DTypePromotionError
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import (
    FLOAT32,
    FLOAT64,
    Array,
    Axis,
    DType,
    Flag,
    check_indices,
    delivered,
    reduced_shape,
    result_dtype,
    shown,
    to_array,
    to_axes,
    to_dtype,
    to_flag,
    to_indices,
    to_integer,
    to_mask,
    to_temperature,
    work_array,
)

# The fields of `Total` in cpp/kernels/kernels.hpp, which explains them.
_FIELDS = ["max", "rest", "rest_low", "sum", "sum_low", "weighed", "weighed_low"]
# The dtypes of states by the dtype of results, which is the name of the last field, the number of classes.
_STATES: dict[str, DType] = {
    name: np.dtype([*((field, "f8") for field in _FIELDS), ("nonzero", "i8"), ("near_nonzero", "i8"), (name, "i8")])
    for name in ("float16", "bfloat16", "float32", "float64")
}


def state_dtype(dtype: DType) -> DType:
    """The dtype of a state whose results have the given one."""
    return _STATES[dtype.name]


def empty_state(batch: tuple[int, ...], dtype: DType) -> Array:
    """The state of slices without classes."""
    state = np.zeros(batch, state_dtype(dtype))
    state["max"] = np.nan
    return state


def _dtype_of(state: Array) -> DType:
    name = (state.dtype.names or ("",))[-1]
    try:
        if name in _STATES and state.dtype.names == _STATES[name].names:
            return np.dtype(name)
    except TypeError:
        raise TypeError("state is of bfloat16, which NumPy knows only after ml_dtypes is imported") from None
    raise TypeError(f"state has dtype {shown(state.dtype)}; expected the state of a LogSumExp")


def _joint(a: DType, b: DType) -> DType:
    try:
        return np.result_type(a, b)
    except DTypePromotionError:  # float16 and bfloat16
        return FLOAT32


class LogSumExp:
    """The logsumexp of scores that come in pieces along the class axis, and the probabilities of each piece.

    For scores that are larger than memory, cut in chunks along the class axis, or spread over several machines. It
    keeps a few numbers for each slice and none of the scores: visit the pieces once for `value`, and once more for
    their probabilities.

    Parameters
    ----------
    axis : int, tuple of ints or None, default -1
        The axes of a slice, as for `softmax`. Along these, pieces may have any extent. The other axes are the batch,
        which must be the same in all pieces.
    temperature : float, default 1.0
        Scores are divided by it. Positive and finite.

    Raises
    ------
    TypeError
        If `axis` is a bool or a list, or `temperature` is not a real number.
    ValueError
        If `temperature` is not positive and finite.

    See Also
    --------
    logsumexp, softmax, log_softmax

    Notes
    -----
    For each slice, the largest score is kept apart from the sum of the exponentials of all others, so that
    probabilities near 1 and their logarithms near 0 have all digits, like those of `softmax` and `log_softmax`. The
    results have the error bounds of one call with the whole array, wherever slices are cut and in whatever order totals
    are merged. They also have the bits of that call if

    - the pieces have one dtype and come in order,
    - all but the last have a multiple of 16,384 entries of the slice, and all together more than 56,
    - and the magnitude of the largest score is below 512 times the temperature (float64: 2048 times).

    The dtype of results is the `numpy.result_type` of all pieces. Each piece is summed with the precision of its own
    dtype: a wider `dtype` shows more digits of the sums, but does not make them more accurate.

    A total can be copied and pickled. Several threads must not change it at the same time.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> scores = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 50.0]])
    >>> total = fs.LogSumExp()
    >>> for piece in np.split(scores, 2, axis=-1):
    ...     total.update(piece)
    LogSumExp(axis=-1, temperature=1.0)
    LogSumExp(axis=-1, temperature=1.0)
    >>> total.value().round(4)
    array([ 4.4402, 50.    ])
    >>> total.softmax(scores[:, :2]).round(4)
    array([[0.0321, 0.0871],
           [0.    , 0.    ]])
    """

    _core: Any = _core  # the reference has its own

    def __init__(self, axis: Axis = -1, *, temperature: SupportsFloat = 1.0) -> None:
        if isinstance(axis, tuple):
            axis = tuple(to_integer(a, "axis") for a in axis)
        elif axis is not None:
            axis = to_integer(axis, "axis", "an integer, a tuple of integers or None")
        self._axis: Any = axis
        self._temperature = to_temperature(temperature)
        self._state: Array | None = None
        self._ndim: int | None = None  # of the pieces; None: not known

    def __repr__(self) -> str:
        return f"LogSumExp(axis={self._axis}, temperature={self._temperature})"

    @classmethod
    def from_state(cls, state: ArrayLike, axis: Axis = -1, *, temperature: SupportsFloat = 1.0) -> "LogSumExp":
        """A total that continues from the `state` of another one, which had this `axis` and `temperature`.

        Raises
        ------
        TypeError
            As for `LogSumExp`; or if `state` is not the state of a LogSumExp.
        ValueError
            As for `LogSumExp`; or if `axis` is None and `state` has axes.
        """
        total = cls(axis, temperature=temperature)
        given = np.asarray(state)
        dtype = _dtype_of(given)
        if total._axis is None:
            if given.ndim != 0:
                raise ValueError(f"state has shape {given.shape}; expected (), as axis is None")
        else:
            total._ndim = given.ndim + (len(total._axis) if isinstance(total._axis, tuple) else 1)
            to_axes(total._axis, total._ndim)
        total._set(np.array(given, state_dtype(dtype), order="C"))
        return total

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        if self._state is not None:  # a received buffer may be unaligned
            self._set(self._state.copy())

    @property
    def state(self) -> Array:
        """The statistics of each slice so far: a read-only structured array in the shape of the batch.

        It can be stored and sent as bytes; `from_state` continues from it. The name of its last field is the dtype of
        results.

        Raises
        ------
        ValueError
            If there is no piece yet.
        """
        if self._state is None:
            raise ValueError("there is no piece yet; expected an update first")
        return self._state

    def _set(self, state: Array) -> None:
        state.flags.writeable = False
        self._state = state

    def _dtype(self) -> DType:
        return _dtype_of(self.state)

    def _state_in(self, dtype: DType) -> tuple[Array, bool]:
        """The state as needed for results of this dtype, and whether that is in double."""
        state = self.state
        in_double = dtype == FLOAT64
        if in_double and _dtype_of(state) != FLOAT64:
            state = self._core.widened_totals(state, self._temperature)
        return state, in_double

    def _checked(self, x: ArrayLike, where: ArrayLike | None) -> tuple[Array, tuple[int, ...], Array | None]:
        """A piece as an array, its class axes and its mask."""
        array = to_array(x, "x")
        axes = to_axes(self._axis, array.ndim)
        batch = reduced_shape(array.shape, axes)
        if self._state is not None and batch != self._state.shape:
            raise ValueError(
                f"x has shape {array.shape}, which leaves a batch of {batch} without axis {self._axis}; expected "
                f"{self._state.shape}, the batch of the earlier pieces"
            )
        return array, axes, None if where is None else to_mask(where, array.shape)

    def update(self, x: ArrayLike, *, where: ArrayLike | None = None) -> "LogSumExp":
        """Add the next piece.

        Parameters
        ----------
        x : array_like
            Scores, as for `softmax`, in the shape of the earlier pieces except along `axis`.
        where : array_like of bool, optional
            Mask that broadcasts to the shape of `x`. Entries where it is False take no part, whatever `x` holds there.

        Returns
        -------
        LogSumExp
            The total itself.

        Raises
        ------
        TypeError, ValueError, numpy.exceptions.AxisError
            As for `softmax`; a ValueError also if the batch has another shape. The total is then unchanged.
        """
        array, axes, mask = self._checked(x, where)
        dtype = result_dtype(array.dtype, "x")
        if self._state is None:
            state, in_double = empty_state(reduced_shape(array.shape, axes), dtype), dtype == FLOAT64
        else:
            dtype = _joint(self._dtype(), dtype)
            state, in_double = self._state_in(dtype)
        state = self._core.updated_totals(state, in_double, array, axes, self._temperature, mask)
        self._set(state.view(state_dtype(dtype)))
        self._ndim = array.ndim
        return self

    def merge(self, other: "LogSumExp") -> "LogSumExp":
        """Add all pieces of another total, after the pieces of this one.

        Parameters
        ----------
        other : LogSumExp
            A total with the same axis, temperature and batch. It is not changed.

        Returns
        -------
        LogSumExp
            The total itself.

        Raises
        ------
        TypeError
            If `other` is not a LogSumExp.
        ValueError
            If `other` has another axis, temperature or batch.
        """
        if not isinstance(other, LogSumExp):
            raise TypeError(f"other is {shown(other)}; expected a LogSumExp")
        if other._temperature != self._temperature:
            raise ValueError(f"other has temperature {other._temperature}; expected {self._temperature}")
        ndim = other._ndim if self._ndim is None else self._ndim
        if other._axes(ndim) != self._axes(ndim):
            raise ValueError(f"other has axis {other._axis}; expected {self._axis}")
        if other._state is None:
            return self
        if self._state is None:
            self._state = other._state
        else:
            if other._state.shape != self._state.shape:
                raise ValueError(f"other has a batch of shape {other._state.shape}; expected {self._state.shape}")
            dtype = _joint(self._dtype(), other._dtype())
            (own, in_double), (others, _) = self._state_in(dtype), other._state_in(dtype)
            state = self._core.merged_totals(own, in_double, others, self._temperature)
            self._set(state.view(state_dtype(dtype)))
        self._ndim = ndim
        return self

    def _axes(self, ndim: int | None) -> Axis:
        """The class axes; not negative if the number of all axes is known."""
        return self._axis if ndim is None else to_axes(self._axis, ndim)

    def value(self, *, keepdims: Flag = False, dtype: DTypeLike | None = None) -> Any:
        """The logsumexp of all pieces so far, with the scores divided by the temperature.

        Parameters
        ----------
        keepdims : bool, default False
            Keep the axes of a slice, with extent 1.
        dtype : dtype, optional
            The dtype of the result: that of all pieces together (the default), or float32 or float64 if that is wider.

        Returns
        -------
        ndarray or scalar
            In the shape of the batch. A slice in which no entry has taken part gives -inf.

        Raises
        ------
        TypeError
            If `dtype` is not one of those allowed, or `keepdims` has no truth value.
        ValueError
            If there is no piece yet; or if `keepdims` is True, `axis` is None, and there is only a state, which does
            not tell the number of axes.
        """
        return self._concluded(self._core.logsumexp_of_totals, keepdims, dtype)

    def _entropy(self, *, keepdims: Flag = False, dtype: DTypeLike | None = None) -> Any:
        """The entropy of all pieces so far: `fastsoftmax.entropy` in pieces."""
        return self._concluded(self._core.entropy_of_totals, keepdims, dtype)

    def _concluded(self, conclude: Any, keepdims: Flag, dtype: DTypeLike | None) -> Any:
        keepdims = keepdims is not False and to_flag(keepdims, "keepdims")
        own = self._dtype()
        dtype = own if dtype is None else to_dtype(dtype, own, own)
        state, in_double = self._state_in(dtype)
        if keepdims and self._ndim is None:
            raise ValueError(
                "keepdims is True; expected False, as axis is None and a state does not tell the number of axes"
            )
        result = conclude(state, in_double, dtype, self._temperature)
        if keepdims:
            result = np.expand_dims(result, to_axes(self._axis, self._ndim or 0))
        return result[()]

    def softmax(
        self,
        x: ArrayLike,
        *,
        where: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        out: Array | None = None,
    ) -> Array:
        """The probabilities that the scores of a piece, or any scores, have within the whole slices.

        Parameters
        ----------
        x, where
            As for `update`; masked entries have probability 0.
        dtype : dtype, optional
            The dtype of the result: that of all pieces and `x` together (the default), or float32 or float64 if that is
            wider.
        out : ndarray, optional
            As for `softmax`.

        Returns
        -------
        ndarray
            In the shape of `x`; `out`, if it is given. A scalar if `x` is 0-d.

        Raises
        ------
        TypeError, ValueError, numpy.exceptions.AxisError
            As for `softmax`; a ValueError also if the batch has another shape, or if there is no piece yet.
        """
        return self._part(self._core.softmax_of_part, x, where, dtype, out)

    def log_softmax(
        self,
        x: ArrayLike,
        *,
        where: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
        out: Array | None = None,
    ) -> Array:
        """The log-probabilities that the scores of a piece, or any scores, have within the whole slices.

        Arguments and errors are those of `LogSumExp.softmax`; masked entries have log-probability -inf.
        """
        return self._part(self._core.log_softmax_of_part, x, where, dtype, out)

    def _part(
        self, compute: Any, x: ArrayLike, where: ArrayLike | None, dtype: DTypeLike | None, out: Array | None
    ) -> Array:
        array, axes, mask = self._checked(x, where)
        own = _joint(self._dtype(), result_dtype(array.dtype, "x"))
        dtype = own if dtype is None else to_dtype(dtype, own, own)
        state, in_double = self._state_in(dtype)
        work = None if out is None else work_array(out, array.shape, dtype, (array,), (mask,))
        result: Array = compute(state, in_double, array, work, dtype, axes, self._temperature, mask)
        return result if out is None or work is out else delivered(result, out)

    def log_softmax_at(
        self,
        x: ArrayLike,
        indices: ArrayLike,
        *,
        where: ArrayLike | None = None,
        dtype: DTypeLike | None = None,
    ) -> Any:
        """The entries of `LogSumExp.log_softmax` at the given class indices within a piece.

        Parameters
        ----------
        x, where, dtype
            As for `LogSumExp.log_softmax`.
        indices : array_like
            Class indices within the piece, as for `log_softmax_at`.

        Returns
        -------
        ndarray or scalar
            In the shape of `indices`: the values that `LogSumExp.log_softmax` gives there, bit for bit.

        Raises
        ------
        TypeError, ValueError, numpy.exceptions.AxisError
            As for `log_softmax_at` and `LogSumExp.log_softmax`; a ValueError also if a slice has not exactly one axis.
        """
        array, axes, mask = self._checked(x, where)
        if len(axes) != 1:
            raise ValueError(f"axis is {self._axis}, {len(axes)} axes of x; expected one for log_softmax_at")
        axis = axes[0]
        picks = to_indices(indices, array.shape, axis)
        check_indices(picks, array.shape[axis])
        along = picks.astype(np.intp, copy=False)
        if picks.ndim < array.ndim:
            along = np.expand_dims(along, axis)
        scores = np.take_along_axis(array, along, axis)
        present = None if mask is None else np.take_along_axis(mask, along, axis)
        result = self.log_softmax(scores, where=present, dtype=dtype)
        return result.reshape(picks.shape)[()]
