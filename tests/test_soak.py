"""Calls leave memory as it was, those that raise too; `python tests/soak.py` makes a million of every function."""

import sys

import fastsoftmax as fs
import numpy as np
import pytest
from soak import FUNCTIONS, growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ten_thousand_calls_leave_memory_as_it_was(name):
    before = fs.get_num_threads()
    try:
        g = growth(FUNCTIONS[name](), 10_000)
    finally:
        fs.set_num_threads(2**31 - 1)
    assert fs.get_num_threads() >= before
    assert g.is_flat, g
    assert g.raised > 1000  # errors are among them


def test_a_leak_of_an_object_is_seen():
    x, lost = np.ones(3), []
    kinds = [lambda: fs.softmax(x)] * 99
    assert not growth([*kinds, lambda: lost.append(fs.softmax(x))], 10_000).is_flat


def test_a_leak_of_memory_that_is_not_pythons_is_seen():
    x, lost = np.ones(3), np.empty(10_000, object)
    places = iter(range(10**6))
    kinds = [lambda: fs.softmax(x)] * 99

    def leak():
        lost[next(places)] = np.ones(16_384, np.uint8)  # as a thread's scratch is

    assert np.diff(growth([*kinds, leak], 10_000).resident)[0] > 2**20
