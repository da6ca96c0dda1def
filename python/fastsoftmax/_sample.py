"""Draws of classes: arguments checked, then one call of the core."""

from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._arguments import refuse_slice, sample_arguments


def sample(
    x: ArrayLike,
    rng: np.random.Generator,
    axis: SupportsIndex = -1,
    *,
    size: SupportsIndex | None = None,
    temperature: SupportsFloat = 1.0,
    top_k: SupportsIndex | None = None,
    top_p: SupportsFloat | None = None,
    min_p: SupportsFloat | None = None,
    where: ArrayLike | None = None,
) -> Any:
    """Classes drawn by the probabilities that `softmax` gives, of all or of the most probable ones.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    rng : numpy.random.Generator
        Gives one ``rng.random()`` for each draw.
    axis : int, default -1
        The axis of the classes.
    size : int, optional
        Draws of each slice, with replacement, on a new last axis. By default one, without an axis.
    temperature : float, default 1.0
        Positive and finite. The probabilities are those of `x` / `temperature`.
    top_k : int, optional
        Leave the `top_k` most probable classes, at least one; all of them if there are no more.
    top_p : float, optional
        In (0, 1]. Of what `top_k` leaves, leave the fewest most probable classes whose probabilities, which sum to 1
        there, together reach `top_p`.
    min_p : float, optional
        In [0, 1]. Of what `top_p` leaves, leave the classes whose probability is at least `min_p` times the largest.
    where : array_like of bool, optional
        Broadcasts to the shape of `x`. Classes that are False take no part, whatever their scores are.

    Returns
    -------
    ndarray of numpy.intp
        Class indices, in the shape of `x` without `axis`, then `size`. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        If the dtype of `x` is another one, `x` is a masked array or not in memory, `rng` is no generator, `axis`,
        `size` or `top_k` is no integer, `temperature`, `top_p` or `min_p` is no number, or `where` is not bool.
    ValueError
        If `size` is negative, `top_k` is below 1, `temperature`, `top_p` or `min_p` is out of range, or `where` does
        not broadcast to the shape of `x`. If a slice holds NaN or +inf, or nothing to draw from: nothing but -inf,
        nothing True in `where`, no classes; `rng` is not used then.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    softmax, numpy.random.Generator.choice

    Notes
    -----
    With p the probabilities of what is left, a draw is the first class c at which p_0 + ... + p_c exceeds its number
    ``rng.random()``; draws take their numbers in C order, all at once, ``rng.random(n)``. So a seed gives the same
    draws in every memory layout and on any number of threads, and on every machine that multiplies and adds in one
    step. A class of probability 0 is never drawn.

    Classes of equal scores are taken by their index, the lowest first, where `top_k` or `top_p` leaves some of them;
    `min_p` leaves all or none. `top_k` is that of A. Fan, M. Lewis, Y. Dauphin, "Hierarchical neural story generation",
    2018; `top_p` that of A. Holtzman et al., "The curious case of neural text degeneration", 2020; `min_p` that of
    M. Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2024.

    The classes are never sorted, and neither probabilities nor random numbers of the size of `x` are stored.

    Examples
    --------
    >>> import numpy as np
    >>> import fastsoftmax as fs
    >>> rng = np.random.default_rng(0)
    >>> logits = np.log([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    >>> fs.sample(logits, rng)
    array([2, 0])
    >>> fs.sample(logits, rng, size=6, top_k=2)
    array([[1, 1, 2, 2, 2, 2],
           [0, 1, 1, 0, 1, 0]])
    """
    arguments = sample_arguments(x, rng, axis, size, temperature, top_k, top_p, min_p, where)
    result = _core.sample(*arguments, rng)
    if type(result) is int:
        array, axes, *_, mask = arguments
        refuse_slice(array, axes, mask, result)
    return result
