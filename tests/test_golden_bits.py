"""Results have the bits of `golden_bits.json` on every machine."""

import json

import pytest
from fastsoftmax import _core
from golden_bits import FILE, GOLDEN_CALLS, GOLDEN_DTYPES, cases, summary

TARGET = _core.describe()["target"]
GOLDEN = json.loads(FILE.read_text())["baseline" if TARGET == "baseline" else "fma"]


@pytest.mark.core
@pytest.mark.parametrize("axis", [-1, 1, 0], ids=["last", "middle", "first"])
@pytest.mark.parametrize("dtype", GOLDEN_DTYPES, ids=str)
def test_results_are_the_golden_bits(dtype, axis):
    different = []
    for name, call in GOLDEN_CALLS.items():
        golden = GOLDEN[name][dtype.name]
        assert golden.keys() == cases(dtype).keys()
        for family, some in cases(dtype).items():
            words = zip(summary(call, some, axis).split(" | "), golden[family].split(" | "), strict=True)
            different += [f"{name}, {family}, {i}: {g} instead of {w}" for i, (g, w) in enumerate(words) if g != w]
    assert not different, "\n".join(different)


def test_every_call_has_its_golden_bits():
    assert GOLDEN.keys() == GOLDEN_CALLS.keys()
