"""Columns of one matrix put into, or added to, another."""

import numpy as np
import pytest

from minialex.ops.columns import move
from minialex.ops.layer import device_of


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows, from_width, from_at, to_width, to_at, count", [(1, 1, 0, 1, 0, 1), (7, 31, 3, 40, 9, 20), (130, 96, 48, 48, 0, 48), (5, 48, 0, 96, 48, 48), (3, 9, 0, 5, 5, 0)])
def test_the_kernel_is_its_formula(device, rows, from_width, from_at, to_width, to_at, count, accumulate):
    random = np.random.default_rng(rows)
    source, to = (random.standard_normal((rows, 1, width)).astype(np.float32) for width in (from_width, to_width))
    truth = to.copy()
    truth[..., to_at:to_at + count] = source[..., from_at:from_at + count] + (to[..., to_at:to_at + count] if accumulate else 0)
    for place in device, device_of("numpy"):
        ours = place.array(to)
        move(place, place.array(source), from_at, ours, to_at, count, accumulate)
        place.synchronize()
        np.testing.assert_array_equal(place.to_numpy(ours).astype(np.float32), truth)
