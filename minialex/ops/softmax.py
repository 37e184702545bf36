"""Softmax cross-entropy: loss = w (log(sum of exp(x)) - t . x) for a target t and a weight w of its class, its gradient in the same pass."""

import numpy as np

from ..device import Array, Device, kernel
from .layer import as_array, device_of, on_arrays, put


@kernel("softmax.cu")
def cross_entropy_rows(rows, x, label, weight, loss, rank, totals, dx, classes, batch, count, scale, smoothing):
    """loss (N,), times weight[label], and dx (N, classes) = its gradient times scale; target (1 - smoothing) onehot(label) + smoothing / classes.
    rank (N,) of the label; totals (3, batch), or what is from a column of it on, += (loss, rank < 1, rank < 5) if count"""
    top = x.max(axis=1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(axis=1, keepdims=True)
    loss[...] = np.log(total)[:, 0] + (1 - smoothing) * (top[:, 0] - x[np.arange(rows), label])
    if smoothing:
        loss += smoothing * (top - x).mean(axis=1)
    dx[...] = (e / total - smoothing / classes) * scale
    dx[np.arange(rows), label] -= (1 - smoothing) * scale
    loss *= weight[label]
    dx *= weight[label][:, None]
    rank[...] = ranks(x, label)
    if count:
        flat = totals.reshape(-1)
        for row, found in enumerate((loss, rank < 1, rank < 5)):
            flat[row * batch:row * batch + rows] += found


@kernel("softmax.cu")
def softmax_rows(rows, x, y, classes):
    """y = softmax(x) over the last axis"""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    y[...] = e / e.sum(axis=1, keepdims=True)


def ranks(x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many classes come before each row's label: larger, or NaN, or equal with a smaller index."""
    rows = np.arange(len(x))
    own = x[rows, label][:, None]
    before = ~(x <= own) | (x == own) & (np.arange(x.shape[1]) < label[:, None])
    before[rows, label] = False
    return before.sum(axis=1)


def check_labels(label: Array, classes: int) -> None:
    """Class indices are checked on the host, before a kernel would read outside its row."""
    label = np.asarray(label)
    if label.size and not 0 <= label.min() <= label.max() < classes:
        wrong = label[(label < 0) | (label >= classes)][0]
        raise ValueError(f"label: {wrong} is not a class index from 0 to {classes - 1}")


@on_arrays
def softmax_cross_entropy(x: Array, label: Array, *, smoothing: float = 0.0, weight: Array | None = None,
                          device: str | Device = "cpu") -> tuple[Array, Array]:
    """Logits x (N, classes), label (N,) int -> (loss (N,), dx (N, classes)): each row's loss and its gradient.

    smoothing, 0 up to below 1: the part of the target that all classes share alike. weight (classes,): a row's loss is times that of its label.
    """
    device = device_of(device)
    as_array("x", x, ("N", "classes")), as_array("label", label, ("N",), "integers")
    if len(label) != len(x):
        raise ValueError(f"label: expected shape ({len(x)},), got {tuple(label.shape)}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected 0 up to below 1, got {smoothing}")
    weight = np.ones(x.shape[1], np.float32) if weight is None else as_array("weight", weight, ("classes",))
    if len(weight) != x.shape[1]:
        raise ValueError(f"weight: expected shape ({x.shape[1]},), got {tuple(weight.shape)}")
    check_labels(label if isinstance(label, np.ndarray) else device.to_numpy(label), x.shape[1])
    x, label, weight = put(device, x), put(device, label.astype(np.int32)), put(device, weight)
    loss, dx = device.empty((len(x),)), device.empty(x.shape)
    if len(x):
        device.launch(cross_entropy_rows, len(x), x, label, weight, loss, device.empty((len(x),)), device.empty((3, 1), np.float64), dx, x.shape[1], 1, 0, 1.0,
                      float(smoothing))
    return loss, dx


@on_arrays
def softmax(x: Array, *, device: str | Device = "cpu") -> Array:
    """x (N, classes) -> probabilities."""
    device = device_of(device)
    x = put(device, as_array("x", x, ("N", "classes")))
    y = device.empty(x.shape)
    if len(x):
        device.launch(softmax_rows, len(x), x, y, x.shape[1])
    return y
