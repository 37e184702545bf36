"""Softmax cross-entropy: the three ties, huge logits, NaN; the rank of a label; labels that are no class."""

import numpy as np
import pytest

from minialex.functional import softmax, softmax_cross_entropy
from minialex.gradcheck import check_op, compare, to_host
from minialex.ops.layer import device_of
from minialex.ops.softmax import cross_entropy_rows


@pytest.mark.parametrize("n, classes", [(1, 1), (5, 1), (1, 2), (3, 31), (7, 33), (2, 48), (3, 257), (1, 1000), (0, 10)])
def test_three_ties(device, n, classes):
    assert check_op("softmax_cross_entropy", {"x": (n, classes), "label": (n,)}, device=device, directions=3 if n * classes > 300 else None) == {}


@pytest.mark.parametrize("n, classes, smoothing", [(1, 1, 0.1), (5, 31, 0.3), (2, 33, 0.9), (3, 257, 0.05)])
def test_three_ties_with_label_smoothing(device, n, classes, smoothing):
    check_op("softmax_cross_entropy", {"x": (n, classes), "label": (n,)}, {"smoothing": smoothing}, device=device, directions=3 if n * classes > 300 else None)


def test_label_smoothing_against_pytorch(device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: label smoothing is not compared with its")
    x, label = np.random.default_rng(0).normal(0, 3, (6, 11)).astype(np.float32), np.arange(6)
    loss, dx = map(to_host, softmax_cross_entropy(x, label, smoothing=0.2, device=device))
    theirs = torch.tensor(x, requires_grad=True)
    truth = torch.nn.functional.cross_entropy(theirs, torch.tensor(label), reduction="none", label_smoothing=0.2)
    truth.sum().backward()
    np.testing.assert_allclose(loss, truth.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="smoothing: expected 0 up to below 1, got 1"):
        softmax_cross_entropy(x, label, smoothing=1, device=device)


@pytest.mark.parametrize("n, classes, smoothing", [(1, 1, 0.0), (5, 31, 0.3), (6, 33, 0.0)])
def test_three_ties_with_class_weights(device, n, classes, smoothing):
    weight = np.random.default_rng(n).uniform(0.1, 4, classes).astype(np.float32)
    check_op("softmax_cross_entropy", {"x": (n, classes), "label": (n,)}, {"smoothing": smoothing, "weight": weight}, device=device)


def test_class_weights_against_pytorch(device):
    """Its sum over a batch; its mean divides by the weights of the batch's labels, ours by the number of images."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: class weights are not compared with its")
    random = np.random.default_rng(0)
    x, label, weight = random.normal(0, 3, (6, 11)).astype(np.float32), np.arange(6), random.uniform(0.1, 4, 11).astype(np.float32)
    loss, dx = map(to_host, softmax_cross_entropy(x, label, weight=weight, device=device))
    theirs = torch.tensor(x, requires_grad=True)
    truth = torch.nn.functional.cross_entropy(theirs, torch.tensor(label), weight=torch.tensor(weight), reduction="none")
    truth.sum().backward()
    np.testing.assert_allclose(loss, truth.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(dx, theirs.grad.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"weight: expected shape \(11,\), got \(10,\)"):
        softmax_cross_entropy(x, label, weight=weight[:10], device=device)


@pytest.mark.parametrize("n, classes", [(1, 1), (5, 31), (3, 257), (0, 4)])
def test_softmax(device, n, classes):
    x = np.random.default_rng(1).standard_normal((n, classes)) * 4
    y, truth = to_host(softmax(x, device=device)), np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(x, device="numpy"), truth, rtol=1e-12)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, truth, rtol=1e-5)


def test_huge_logits_overflow_nothing(device):
    x, label = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e38, -3e38, 0]], np.float32), np.array([0, 1, 2, 0])
    for place in ("numpy", device):
        loss, dx = map(to_host, softmax_cross_entropy(x, label, device=place))
        np.testing.assert_allclose(loss, [0, 2e4, np.log(3), 0], rtol=1e-3)
        np.testing.assert_allclose(dx, [[0, 0, 0], [1, -1, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]], atol=1e-6)
        np.testing.assert_allclose(to_host(softmax(x, device=place))[:2], [[1, 0, 0]] * 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_or_infinite_logit_makes_its_own_rows_loss_nan(device, bad):
    x, label = np.zeros((3, 40), np.float32), np.array([0, 1, 2])
    x[1, 37] = bad
    for place in ("numpy", device):
        with np.errstate(invalid="ignore"):
            loss, dx = map(to_host, softmax_cross_entropy(x, label, device=place))
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
        assert np.isnan(dx[1]).any() and not np.isnan(dx[[0, 2]]).any()
    x[...] = np.nan
    assert np.isnan(to_host(softmax_cross_entropy(x, label, device=device)[0])).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_logit_of_minus_infinity_costs_only_what_the_target_has_there(device, smoothing):
    x, label = np.zeros((3, 40), np.float32), np.array([0, 1, 2])
    x[1, 37] = x[2, 2] = -np.inf
    for place in ("numpy", device):
        loss, dx = map(to_host, softmax_cross_entropy(x, label, smoothing=smoothing, device=place))
        np.testing.assert_allclose(loss, [np.log(40), np.inf if smoothing else np.log(39), np.inf], rtol=1e-6)
        np.testing.assert_allclose(dx[[1, 2], [37, 2]], [-smoothing / 40, smoothing - 1 - smoothing / 40], rtol=1e-6)
    x[1, 37] = np.nan
    assert np.isnan(to_host(softmax_cross_entropy(x, label, smoothing=smoothing, device=device)[0])).tolist() == [False, True, False]


@pytest.mark.parametrize("label, wrong", [([0, 10, 2], 10), ([0, 1, -1], -1), ([2**31, 0, 0], 2**31), ([-2**32, 0, 0], -2**32)])
def test_a_label_that_is_no_class_is_refused_before_the_launch(device, label, wrong, monkeypatch):
    monkeypatch.setattr(type(device), "launch", None)
    with pytest.raises(ValueError, match=f"label: {wrong} is not a class index from 0 to 9"):
        softmax_cross_entropy(np.zeros((3, 10), np.float32), np.array(label), device=device)


def test_mistakes_name_the_argument():
    x, label = np.zeros((3, 10), np.float32), np.zeros(3, int)
    for arguments, kind, text in [
            ((x[0], label), ValueError, r"x: expected 2 dimensions \(N, classes\), got shape \(10,\)"),
            ((x, label[:, None]), ValueError, r"label: expected 1 dimensions \(N\)"),
            ((x, label[:2]), ValueError, r"label: expected shape \(3,\), got \(2,\)"),
            ((x, label.astype(np.float32)), TypeError, "label: expected integers, got float32"),
            ((x, [0, 1, 2]), TypeError, "label: expected an array, got list"),
            ((x.astype(int), label), TypeError, "x: expected float32, got int64")]:
        with pytest.raises(kind, match=text):
            softmax_cross_entropy(*arguments)
    with pytest.raises(ValueError, match="x: expected 2 dimensions"):
        softmax(x[0])


@pytest.mark.parametrize("label_type", [np.uint8, np.int16, np.int64, np.uint64])
def test_labels_of_any_integer_type(device, label_type):
    x = np.random.default_rng(2).standard_normal((4, 10)).astype(np.float32)
    loss = to_host(softmax_cross_entropy(x, np.array([1, 9, 0, 4], label_type), device=device)[0])
    compare("forward", "loss", loss, softmax_cross_entropy(x, np.array([1, 9, 0, 4]), device="numpy")[0])


def rank(device, x, label):
    device = device_of(device)
    x = device.array(np.asarray(x, np.float32))
    n, classes = x.shape
    ranks = device.empty((n,))
    device.launch(cross_entropy_rows, n, x, device.array(np.array(label, np.int32)), device.array(np.ones(classes)), device.empty((n,)), ranks,
                  device.empty((3, n), np.float64), device.empty(x.shape), classes, n, 0, 1.0, 0.0)
    return device.to_numpy(ranks).tolist()


def test_a_labels_rank(device):
    """How many classes come before it: larger, or NaN, or equal with a smaller index; a NaN of its own comes last."""
    nan, inf = np.nan, np.inf
    x = [[3, 1, 2, 2], [3, 1, 2, 2], [3, 1, 2, 2], [3, 1, 2, 2], [nan, 5, nan, 1], [nan, 5, nan, 1], [nan, 5, 7, 1], [0, 0, 0, 0], [-inf, inf, inf, 0]]
    label = [0, 1, 2, 3, 1, 3, 0, 3, 2]
    for place in ("numpy", device):
        with np.errstate(invalid="ignore"):      # of the loss, which is none here
            assert rank(place, x, label) == [0, 3, 1, 2, 2, 3, 3, 3, 1]


def test_ranks_of_many_classes(device):
    random = np.random.default_rng(3)
    x, label = random.integers(0, 9, (50, 1000)).astype(np.float32), random.integers(0, 1000, 50)
    order = np.argsort(-x, axis=1, kind="stable")
    assert rank(device, x, label) == (order == label[:, None]).argmax(axis=1).tolist()


@pytest.mark.parametrize("n, batch", [(1, 1), (33, 33), (5, 64), (64, 70)])
@pytest.mark.parametrize("count", [0, 1])
def test_totals_add_up_by_place_in_the_batch(device, n, batch, count):
    random = np.random.default_rng(n)
    logits, label, before = random.standard_normal((n, 9)), random.integers(0, 9, n).astype(np.int32), random.standard_normal((3, batch))
    for place in (device, device_of("numpy")):
        loss, rank, totals = place.zeros((n,)), place.zeros((n,)), place.array(before, np.float64)
        place.launch(cross_entropy_rows, n, place.array(logits), place.array(label), place.array(np.ones(9)), loss, rank, totals, place.zeros((n, 9)), 9, batch, count,
                     1.0, 0.0)
        truth, loss, rank = before.copy(), place.to_numpy(loss), place.to_numpy(rank)
        truth[:, :n] += count * np.array([loss, rank < 1, rank < 5], np.float64)
        np.testing.assert_array_equal(place.to_numpy(totals), truth)
        assert loss.min() > 0 and set(rank) <= set(range(9))
