"""Draws of classes. `sample` checks its arguments, then calls the core."""

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
    """Class indices drawn with the probabilities that `softmax` gives, from all classes or from the most probable.

    Parameters
    ----------
    x : array_like
        Scores (logits), float16, bfloat16, float32, float64, integers or bool.
    rng : numpy.random.Generator
        Source of random numbers, one ``rng.random()`` for each draw.
    axis : int, default -1
        The class axis.
    size : int, optional
        The number of draws of each slice, with replacement, along a new last axis. By default one, without that axis.
    temperature : float, default 1.0
        Positive and finite. The probabilities are those of ``x / temperature``.
    top_k : int, optional
        At least 1. Keep only the `top_k` most probable classes; all classes if there are no more.
    top_p : float, optional
        In (0, 1]. Of the classes that `top_k` keeps, keep only the fewest most probable ones whose probabilities,
        after renormalising, reach `top_p` together.
    min_p : float, optional
        In [0, 1]. Of the classes that `top_p` keeps, keep only those whose probability is at least `min_p` times the
        largest.
    where : array_like of bool, optional
        Mask that broadcasts to the shape of `x`. Classes where it is False take no part, whatever their scores are.

    Returns
    -------
    ndarray of numpy.intp
        Class indices, in the shape of `x` without `axis`, followed by `size`. A 0-d result is a scalar.

    Raises
    ------
    TypeError
        If `x` has an unsupported dtype, is a masked array or is not in memory, `rng` is not a generator, `axis`, `size`
        or `top_k` is not an integer, `temperature`, `top_p` or `min_p` is not a real number, or `where` is not bool.
    ValueError
        If `size` is negative, `top_k` is below 1, `temperature`, `top_p` or `min_p` is out of range, or `where` does
        not broadcast to the shape of `x`; or if a slice holds NaN or +inf, or no class can be drawn from it (nothing
        but -inf, no True entry in `where`, no classes), and then `rng` is not used.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    softmax, numpy.random.Generator.choice

    Notes
    -----
    With p the probabilities of the classes that are kept, a draw is the first class c at which p_0 + ... + p_c exceeds
    its random number. The numbers of all n draws come from one ``rng.random(n)``, in C order. So a seed gives the same
    draws in every memory layout, on any number of threads, and on every machine that has fused multiply-add. A class of
    probability 0 is never drawn.

    If `top_k` or `top_p` keeps only some of several classes with equal scores, it keeps those with the lowest indices;
    `min_p` keeps all of them or none. `top_k` is from A. Fan, M. Lewis, Y. Dauphin, "Hierarchical neural story
    generation", 2018; `top_p` from A. Holtzman et al., "The curious case of neural text degeneration", 2020; `min_p`
    from M. Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2024.

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
