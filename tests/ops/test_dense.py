"""Dense layers: the three ties, cuts by columns and by rows, ReLU in the bias's pass."""

import numpy as np
import pytest

from minialex.functional import dense, dense_backward
from minialex.gradcheck import check_op, compare, to_host
from minialex.ops.dense import Dense
from minialex.ops.layer import run_alone


@pytest.mark.parametrize("n, i, o", [(1, 1, 1), (3, 1, 31), (2, 31, 1), (5, 33, 3), (1, 257, 48), (7, 48, 257), (2, 16, 17), (19, 13, 11),
                                     (0, 5, 3), (40, 3, 127), (40, 3, 128), (40, 3, 129), (40, 2, 255), (40, 2, 256)])
def test_three_ties(device, n, i, o):
    few = (n + o) * i < 500
    assert check_op("dense", {"x": (n, i), "w": (i, o), "b": (o,)}, device=device, directions=None if few else 3) == {}


def test_a_batch_of_many_bias_slices(device):
    assert check_op("dense", {"x": (33_000, 2), "w": (2, 3), "b": (3,)}, device=device, directions=2) == {}


@pytest.mark.parametrize("features", [33, 257])
def test_relu_in_the_pass_of_the_bias_and_an_image_taken_flat(device, features):
    random = np.random.default_rng(1)
    x, w, b, dy = (random.standard_normal(s).astype(np.float32) for s in ((4, 2, 3, 5), (30, features), (features,), (4, features)))
    truth, site = (run_alone(Dense(features), place, x, dy, {"weight": w, "bias": b}) for place in ("numpy", device))
    flat, y = x.reshape(4, 30).astype(float), x.reshape(4, 30).astype(float) @ w + b
    np.testing.assert_allclose(truth.y, np.maximum(y, 0), atol=1e-13)
    np.testing.assert_allclose(truth.dx.reshape(4, 30), (dy * (y > 0)) @ w.astype(float).T, atol=1e-12)
    np.testing.assert_allclose(truth.gradients["weight"], flat.T @ (dy * (y > 0)), atol=1e-12)
    np.testing.assert_allclose(truth.gradients["bias"], (dy * (y > 0)).sum(axis=0), atol=1e-5)
    assert (y < 0).any() and truth.dx.shape == x.shape
    for name, own, expected in [("y", site.y, truth.y), ("dx", site.dx, truth.dx),
                                *((k, site.gradients[k], truth.gradients[k]) for k in truth.gradients)]:
        compare("relu", name, to_host(own), expected)


def test_no_bias_and_no_inputs_changed(device):
    x, w = np.ones((2, 3), np.float32), np.full((3, 4), 2, np.float32)
    np.testing.assert_array_equal(to_host(dense(x, w, device=device)), np.full((2, 4), 6))
    dx, dw, db = dense_backward(np.ones((2, 4), np.float32), x, w, device=device)
    assert (to_host(dx) == 8).all() and (to_host(dw) == 2).all() and (to_host(db) == 2).all()
    assert (x == 1).all() and (w == 2).all()


def test_nan_spreads_along_its_row_only(device):
    x = np.ones((3, 40), np.float32)
    x[1, 7] = np.nan
    np.testing.assert_array_equal(np.isnan(to_host(dense(x, np.ones((40, 50), np.float32), device=device))).all(axis=1), [False, True, False])


X, W, B = np.zeros((2, 3), np.float32), np.zeros((3, 4), np.float32), np.zeros(4, np.float32)


@pytest.mark.parametrize("arguments, kind, text", [
    ((X[0], W, B), ValueError, "x: expected 2 dimensions (N, I), got shape (3,)"),
    ((X, W[0], B), ValueError, "w: expected 2 dimensions (I, O)"),
    ((X[:, :2], W, B), ValueError, "w: expected 2 rows, got shape (3, 4)"),
    ((X, W, B[:3]), ValueError, "b: expected shape (4,), got (3,)"),
    ((X, W.astype(np.int32), B), TypeError, "w: expected float32, got int32"),
    ((X, W, 0.0), TypeError, "b: expected an array, got float"),
    ((X[:, :0], W[:0], B), ValueError, "x: only the first size may be 0"),
    ((X, W[:, :0]), ValueError, "features: expected at least 1, got 0"),
])
def test_mistakes_name_the_argument(arguments, kind, text):
    with pytest.raises(kind) as told:
        dense(*arguments)
    assert text in str(told.value)


def test_the_gradient_must_have_the_outputs_shape():
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 4\), got \(3, 4\)"):
        dense_backward(np.zeros((3, 4), np.float32), X, W)
