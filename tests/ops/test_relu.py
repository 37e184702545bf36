"""ReLU: the three ties across the kernel's block of 1024, zero, and NaN."""

import numpy as np
import pytest

from minialex.functional import relu, relu_backward
from minialex.gradcheck import check_op, to_host


@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 31), (3, 5, 2, 33), (1023,), (1024,), (1025,), (3, 1031), (0,), (0, 4)], ids=str)
def test_three_ties(device, shape):
    few = np.prod(shape) < 1100
    assert check_op("relu", {"x": shape}, device=device, directions=None if few else 3) == {"ReLU at zero": 0}


def test_zero_is_skipped_by_name_and_counted_and_passes_no_gradient(device):
    assert check_op("relu", {"x": (11, 13)}, device=device, ties=True)["ReLU at zero"] > 10
    x = np.array([-1, -0.0, 0.0, 1, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(to_host(relu(x, device=device)), [0, 0, 0, 1, np.inf, 0])
    np.testing.assert_array_equal(to_host(relu_backward(np.full(6, 2, np.float32), x, device=device)), [0, 0, 0, 2, 2, 0])


def test_nan_stays(device):
    x = np.full(2053, np.nan, np.float32)
    x[::2] = -1
    for place in ("numpy", device):
        y, dx = to_host(relu(x, device=place)), to_host(relu_backward(np.ones_like(x), x, device=place))
        assert np.isnan(y[1::2]).all() and (y[::2] == 0).all()
        np.testing.assert_array_equal(dx, np.arange(2053) % 2)
        assert np.isnan(to_host(relu_backward(x, np.ones_like(x), device=place)))[1::2].all()      # a NaN gradient passes, too


def test_the_callers_array_is_left_alone(device):
    x, dy = np.array([-1, 2], np.float32), np.array([3, 4], np.float32)
    relu(x, device=device), relu_backward(dy, x, device=device)
    assert x.tolist() == [-1, 2] and dy.tolist() == [3, 4]


def test_mistakes_name_the_argument():
    with pytest.raises(TypeError, match="x: expected float32, got int64"):
        relu(np.arange(3))
    with pytest.raises(ValueError, match="x: expected at least 1 dimension"):
        relu(np.float32(3))
    with pytest.raises(ValueError, match=r"dy: expected shape \(3,\), got \(4,\)"):
        relu_backward(np.zeros(4, np.float32), np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="dy: expected an array, got float"):
        relu_backward(1.0, np.zeros(3, np.float32))
