"""Derives the coefficients in exp_log.hpp and prints them as they stand there (needs mpmath).

    python cpp/kernels/coefficients.py

Each polynomial is the minimax one for the error of the whole function (Remez exchange, 60 digits), rounded to the type
that holds it. The error printed is that of the rounded polynomial in exact arithmetic, relative to the function.
"""

from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 60

Function = Callable[[mp.mpf], mp.mpf]


def remez(target: Function, weight: Function, degree: int, low: mp.mpf, high: mp.mpf) -> list[mp.mpf]:
    """Coefficients (constant first) that minimise the largest weight * |target - polynomial| on [low, high]."""
    count = degree + 2
    points = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    points.sort()
    grid = [low + (high - low) * i / 4000 for i in range(4001)]
    for _ in range(12):
        matrix = mp.matrix(count, count)
        right = mp.matrix(count, 1)
        for i, x in enumerate(points):
            for k in range(degree + 1):
                matrix[i, k] = x**k
            matrix[i, degree + 1] = (-1) ** i / weight(x)
            right[i] = target(x)
        solution = mp.lu_solve(matrix, right)
        coefficients = [solution[k] for k in range(degree + 1)]
        errors = [weight(x) * (target(x) - mp.polyval(coefficients[::-1], x)) for x in grid]
        # The next reference: the largest error of each run of one sign.
        extrema: list[int] = []
        for i, error in enumerate(errors):
            if extrema and errors[extrema[-1]] * error > 0:
                if abs(error) > abs(errors[extrema[-1]]):
                    extrema[-1] = i
            else:
                extrema.append(i)
        while len(extrema) > count:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        if len(extrema) < count:
            break
        points = [grid[i] for i in extrema]
    return coefficients


def rounded(value: mp.mpf, bits: int) -> mp.mpf:
    with mp.workprec(bits):
        return +value


def hex_float(value: mp.mpf) -> str:
    """A C hex float of a value with at most 53 bits."""
    return float(value).hex()


def report(
    name: str, coefficients: list[mp.mpf], bits: int, relative_error: Callable[..., mp.mpf], bound: mp.mpf
) -> None:
    kept = [rounded(c, bits) for c in coefficients]
    worst = max(abs(relative_error(kept, bound * (i - 2500) / 2500)) for i in range(5001))
    print(f"{name}: relative error 2^{float(mp.log(worst, 2)):.1f}")
    for k, c in enumerate(kept):
        print(f"    {hex_float(c)},  // {k}")


def exp_polynomial(degree: int, bits: int, name: str, parts: int = 1) -> None:
    """Prints q in exp(r) = 1 + r + r^2 q(r), |r| <= ln2 / (2 parts), and a little more, since n is rounded."""
    bound = mp.log(2) / (2 * parts) * (1 + mp.mpf(2) ** -10)

    def tail(r: mp.mpf) -> mp.mpf:
        return mp.mpf(1) / 2 + r / 6 + r * r / 24 if abs(r) < mp.mpf(10) ** -15 else (mp.exp(r) - 1 - r) / r**2

    q = remez(tail, lambda r: r**2 * mp.exp(-r) + mp.mpf(10) ** -12, degree, -bound, bound)
    bound = mp.log(2) / (2 * parts)
    report(name, q, bits, lambda c, r: (1 + r + r * r * mp.polyval(c[::-1], r)) / mp.exp(r) - 1, bound)


def log_polynomial(degree: int, bits: int, name: str, reach: str, factor: int) -> None:
    """Prints q in log(m) = 2 s + factor s^3 q(s^2), s = (m - 1) / (m + 1), for |log2(m)| <= reach."""
    bound = mp.mpf(reach) * mp.log(2)
    top = mp.tanh(bound / 2) ** 2 * (1 + mp.mpf(2) ** -20)

    def tail(z: mp.mpf) -> mp.mpf:
        s = mp.sqrt(z)
        exact = mp.mpf(2) / 3 + 2 * z / 5 if z < mp.mpf(10) ** -20 else (2 * mp.atanh(s) - 2 * s) / (s * z)
        return exact / factor

    q = remez(tail, lambda z: z + mp.mpf(10) ** -12, degree, mp.mpf(0), top)

    def relative_error(c: list[mp.mpf], logarithm: mp.mpf) -> mp.mpf:
        m = mp.exp(logarithm)
        s = (m - 1) / (m + 1)
        value = 2 * s + factor * s**3 * mp.polyval(c[::-1], s * s)
        return value / logarithm - 1 if logarithm else mp.mpf(0)

    report(name, q, bits, relative_error, bound)


def split(name: str, value: mp.mpf, bits: int, parts: int) -> None:
    """Prints `value` as a sum of `parts` numbers of `bits` bits."""
    print(name)
    for _ in range(parts):
        part = rounded(value, bits)
        print(f"    {hex_float(part)}")
        value -= part


def powers(name: str, first: str, bits: int) -> None:
    """Prints first * 2^(i/8) for i = 0..7, rounded: the bits after the leading 1, less i in the three highest.

    Beside each, what it lacks relative to its size.
    """
    exact = [mp.mpf(float.fromhex(first)) * mp.mpf(2) ** (mp.mpf(i) / 8) for i in range(8)]
    kept = [rounded(v, bits) for v in exact]
    errors = [k / v - 1 for k, v in zip(kept, exact, strict=True)]
    apart = (max(errors) - min(errors)) * mp.mpf(2) ** bits
    print(f"{name}: errors within {float(apart):.3f} * 2^-{bits} of each other; the factor is")
    print(f"    {hex_float(rounded(exact[0] * (1 + (max(errors) + min(errors)) / 2), 53))}")
    for i, (k, v) in enumerate(zip(kept, exact, strict=True)):
        lacks = hex_float(rounded(v / k - 1, bits))
        print(f"    {int((k - 1) * 2 ** (bits - 1)) - (i << (bits - 4)):#x},  // {i}, lacks {lacks}")


def divergence_polynomial(degree: int, bits: int, name: str) -> None:
    """Prints q in exp(-d) - 1 + d = d^2 q(d), |d| <= 1."""

    def tail(d: mp.mpf) -> mp.mpf:
        return mp.mpf(1) / 2 - d / 6 + d * d / 24 if abs(d) < mp.mpf(10) ** -15 else (mp.exp(-d) - 1 + d) / d**2

    q = remez(tail, lambda d: 1 / tail(d), degree, mp.mpf(-1), mp.mpf(1))
    report(name, q, bits, lambda c, d: mp.polyval(c[::-1], d) / tail(d) - 1, mp.mpf(1))


if __name__ == "__main__":
    exp_polynomial(2, 24, "exp, float", parts=8)
    exp_polynomial(5, 53, "exp, double", parts=8)
    exp_polynomial(9, 53, "exp, double, powers whole")
    powers("plain powers in floats", "0x1p+0", 24)
    powers("plain powers in doubles", "0x1p+0", 53)
    # The factors in [1, 2^(1/8)) whose products are rounded the most alike: of all floats, and of 4e8 random doubles.
    powers("powers in floats", "0x1.16747cp+0", 24)
    powers("powers in doubles", "0x1.113cc3434ccc5p+0", 53)
    log_polynomial(3, 24, "log, short", reach="0.587", factor=2)
    log_polynomial(10, 53, "log, long", reach="0.5", factor=1)
    split("ln2 in floats", mp.log(2), 24, 2)
    split("ln2 in a short float", mp.log(2), 15, 1)
    split("the rest of it in a float", mp.log(2) - rounded(mp.log(2), 15), 24, 1)
    split("ln2 in doubles", mp.log(2), 53, 2)
    split("log2(e) in a float", 1 / mp.log(2), 24, 1)
    split("log2(e) in a double", 1 / mp.log(2), 53, 1)
    divergence_polynomial(7, 24, "divergence, float")
    divergence_polynomial(13, 53, "divergence, double")
