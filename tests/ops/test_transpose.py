"""Transpose: the three ties across the kernel's tiles of 32, and NaN."""

import numpy as np
import pytest

from minialex.functional import transpose, transpose_backward
from minialex.gradcheck import check_op, to_host


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (37, 1), (31, 33), (32, 32), (33, 31), (65, 70), (0, 4), (4, 0)], ids=str)
def test_three_ties(device, shape):
    check_op("transpose", {"x": shape}, device=device, directions=3)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(to_host(transpose(x, device=device)), x.T)


def test_nan_stays_where_it_belongs(device):
    x = np.ones((40, 35), np.float32)
    x[33, 2] = np.nan
    assert np.argwhere(np.isnan(to_host(transpose(x, device=device)))).tolist() == [[2, 33]]


def test_mistakes_name_the_argument():
    with pytest.raises(ValueError, match=r"x: expected 2 dimensions \(M, N\), got shape \(3,\)"):
        transpose(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3\), got \(3, 2\)"):
        transpose_backward(np.ones((3, 2), np.float32), np.ones((3, 2), np.float32))
