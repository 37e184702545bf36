"""Philox against the vectors that Random123 publishes (kat_vectors, philox4x32 10)."""

import numpy as np
import pytest

from minialex.philox import below, philox

ONES = 0xFFFFFFFF
KNOWN = [
    (0, (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (ONES << 32 | ONES, (ONES, ONES, ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("key, counter, words", KNOWN)
def test_known_answers(key, counter, words):
    drawn = philox(key, *counter)
    assert drawn.dtype == np.uint32 and drawn.shape == (4,)
    assert " ".join(f"{word:08x}" for word in drawn) == words


def test_counters_broadcast():
    grid = philox(7, np.arange(5)[:, None], 0, np.arange(3), 9)
    assert grid.shape == (5, 3, 4)
    for i in range(5):
        for j in range(3):
            np.testing.assert_array_equal(grid[i, j], philox(7, i, 0, j, 9))
    assert philox(7, np.arange(0)).shape == (0, 4)


@pytest.mark.parametrize("key, counter", [(-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 32)])
def test_out_of_range_is_refused_rather_than_wrapped(key, counter):
    with pytest.raises(ValueError):
        philox(key, counter)


def test_below_covers_its_range_evenly():
    np.testing.assert_array_equal(below(np.array([0, ONES], np.uint32), 29), [0, 28])
    counts = np.bincount(below(philox(1, np.arange(5000)).ravel(), 5), minlength=5)
    assert len(counts) == 5 and abs(counts - 4000).max() < 250  # 4 standard deviations
