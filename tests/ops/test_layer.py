"""What all layers share: how they are written, shown, compared and refused."""

import numpy as np
import pytest

from minialex import functional as F
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU
from minialex.optim import SGD, Adam


@pytest.mark.parametrize("layer, text", [
    (Conv(48, 11, 4, 0, 1, True, None, 0.0), "Conv(48, 11, stride=4)"), (Conv(48, 11, stride=4, pad=[[1, 2], [1, 2]]), "Conv(48, 11, stride=4, pad=((1, 2), (1, 2)))"),
    (Conv(8, [3, 2], groups=2, relu=False, std=1e-2, bias=1), "Conv(8, (3, 2), groups=2, relu=False, std=0.01, bias=1.0)"),
    (Dense(np.int64(4096), relu=False), "Dense(4096, relu=False)"), (MaxPool(3, 2, 1, True), "MaxPool(3, stride=2, pad=1, ceil=True)"), (MaxPool(2), "MaxPool(2)"),
    (LRN(5, 1e-4, 0.75, 2.0), "LRN()"), (LRN(3, 0.5, alpha_mode="mean"), "LRN(size=3, alpha=0.5, alpha_mode='mean')"),
    (Dropout(np.float32(0.25)), "Dropout(p=0.25)"), (ReLU(), "ReLU()")], ids=str)
def test_a_layer_is_shown_as_it_is_written(layer, text):
    assert repr(layer) == text and eval(text) == layer
    assert not {"in_place", "dense", "trained_only"} & set(vars(layer))


@pytest.mark.parametrize("made, text", [
    (lambda: Conv("48", 11), "filters: expected a whole number, got '48'"), (lambda: Conv(48, "11"), "size: expected an int or (height, width), got '11'"),
    (lambda: Conv(48, 11, pad={}), "pad: expected an int, (height, width) or ((top, bottom), (left, right)), got {}"),
    (lambda: Conv(48, 11, groups=5), "groups: 48 filters cannot be cut into 5 groups"), (lambda: Conv(4, 3, std="he"), "std: expected a number or None, got 'he'"),
    (lambda: Dense(10.0), "features: expected a whole number, got 10.0"), (lambda: Dense(True), "features: expected a whole number, got True"),
    (lambda: Dense(10, relu=1), "relu: expected True or False, got 1"), (lambda: Dense(10, bias=None), "bias: expected a number, got None"),
    (lambda: Dropout("half"), "p: expected a number, got 'half'"), (lambda: MaxPool(3, 2, ceil="yes"), "ceil: expected True or False, got 'yes'"),
    (lambda: MaxPool(16), "size: the winner of a window is kept in one byte"), (lambda: LRN(5, "mean"), "alpha: expected a number, got 'mean'")])
def test_a_mistake_in_a_layer_names_the_field(made, text):
    with pytest.raises(ValueError) as error:
        made()
    assert str(error.value).startswith(text)


X, W, IMAGES, VIEWS = np.ones((2, 6, 6, 4), np.float32), np.ones((3, 3, 2, 6), np.float32), np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 18), np.float32)
TWO, HALF = np.int64(2), np.float64(0.5)
CALLS = {      # each with the numbers that it takes, by name
    F.relu: ((X,), {}), F.relu_backward: ((X, X), {}), F.transpose: ((X[0, 0],), {}), F.transpose_backward: ((X[0, 0].T, X[0, 0]), {}),
    F.softmax: ((X[0, 0],), {}),
    F.dense: ((X[0, 0], W[0, :2, :, 0].reshape(4, 1)), {}), F.dense_backward: ((X[0, 0, :, :1], X[0, 0], W[0, :2, :, 0].reshape(4, 1)), {}),
    F.local_response_norm: ((X,), {"size": np.int8(3), "alpha": HALF, "beta": np.float32(0.75), "k": TWO}),
    F.local_response_norm_backward: ((X, X), {"size": np.int8(3), "alpha": HALF, "beta": np.float32(0.75), "k": TWO}),
    F.dropout: ((X,), {"p": HALF, "seed": np.uint64(2**64 - 1), "step": TWO, "layer": TWO}),
    F.dropout_backward: ((X, X), {"p": HALF, "seed": TWO, "step": np.uint32(2**32 - 1), "layer": TWO}),
    F.conv2d: ((X, W), {"stride": TWO, "pad": np.array([1, 2]), "groups": TWO}),
    F.conv2d_backward: ((X[:, :4, :4, :1].repeat(6, 3), X, W), {"stride": (np.int32(1), 1), "pad": np.uint8(0), "groups": TWO}),
    F.im2col: ((X,), {"size": TWO, "stride": np.array([1, 2]), "pad": [[TWO, 1], [0, 0]], "groups": TWO}),
    F.col2im: ((np.ones((1, 2 * 3 * 3, 16), np.float32),), {"shape": np.array(X.shape), "size": TWO, "stride": TWO, "pad": np.int16(0), "groups": np.int64(1)}),
    F.max_pool2d: ((X,), {"size": TWO, "stride": TWO, "pad": np.int64(1), "ceil": np.bool_(True)}),
    F.max_pool2d_backward: ((X[:, :3, :3], X), {"size": TWO, "stride": TWO, "pad": np.int64(0), "ceil": np.bool_(False)}),
    F.softmax_cross_entropy: ((X[0, 0], np.zeros(6, np.int64)), {"smoothing": HALF}), F.augment_images: ((IMAGES, VIEWS), {"size": TWO, "constant": HALF}),
    F.clip_gradients: (([X, W],), {"limit": HALF}), F.sgd_update: ((X, X, X), {"lr": HALF, "momentum": HALF, "weight_decay": HALF}),
    F.adam_update: ((X, X, X, X), {"step": TWO, "lr": HALF, "beta1": HALF, "beta2": HALF, "epsilon": HALF}),
    F.average_update: ((X, X), {"step": TWO, "decay": HALF}),
}


def plain(value):
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def equal(one, other):
    return all(equal(a, b) for a, b in zip(one, other, strict=True)) if isinstance(one, (tuple, list)) else np.array_equal(one, other)


def test_all_functions_are_called():
    assert {function.__name__ for function in CALLS} | {"im2col", "col2im"} == set(F.__all__) | {"unfold", "fold"}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_numbers_may_be_numpys_and_other_things_are_refused_by_name(cpu, function):
    arrays, numbers = CALLS[function]
    assert equal(function(*arrays, **numbers, device=cpu), function(*arrays, **{name: plain(value) for name, value in numbers.items()}, device=cpu))
    for name in numbers:
        for wrong in ("a few", None, {}):
            if wrong is not None or name != "stride":      # None: as the window's size
                with pytest.raises(ValueError, match=f"^{name}: expected "):
                    function(*arrays, **{**numbers, name: wrong}, device=cpu)
    with pytest.raises(TypeError, match="^device: expected the name"):
        function(*arrays, **numbers, device=7)


@pytest.mark.parametrize("call, text", [
    (lambda: F.dropout(X, step=-1), "step: expected 0 to 2**32 - 1, got -1"),
    (lambda: F.dropout(X, step=2**32), "step: expected 0 to 2**32 - 1, got 4294967296"),
    (lambda: F.dropout_backward(X, X, step=np.int64(-1)), "step: expected 0 to 2**32 - 1, got -1"),
    (lambda: F.dropout(X, seed=2**64), "seed: expected 0 to 2**64 - 1, got 18446744073709551616"),
    (lambda: F.dropout(X, layer=-3), "layer: expected 0 to 2**32 - 1, got -3"), (lambda: F.dropout(X, seed=True), "seed: expected a whole number, got True"),
    (lambda: F.adam_update(X, X, X, X, step=-1, lr=0.1), "step: expected 0 or more, got -1"),
    (lambda: F.max_pool2d(X, 2, stride=2**31), "stride: expected at most 268435456, got 2147483648"),
    (lambda: F.conv2d(X, W, pad=2**31, groups=2), "pad: expected at most 268435456"),
    (lambda: F.col2im(X[0], "6x6", 3), "shape: expected (N, H, W, C), got '6x6'"),
    (lambda: SGD(momentum="much"), "momentum: expected a number, got 'much'"), (lambda: Adam(epsilon=None), "epsilon: expected a number, got None")])
def test_numbers_out_of_range_are_refused_by_name(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(text)


class Foreign:
    """An array of another library."""

    def __init__(self, data, problem=None):
        self.data, self.problem, self.shape, self.ndim, self.dtype = data, problem, data.shape, data.ndim, f"foreign.{data.dtype}"

    def __array__(self, dtype=None, copy=None):
        if self.problem:
            raise self.problem
        return self.data


class Exchanged(Foreign):
    """One that speaks DLPack and nothing else."""

    __array__ = property()

    def __dlpack__(self, **more):
        return self.data.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()


@pytest.mark.parametrize("foreign", [Foreign, Exchanged])
def test_arrays_of_other_libraries(cpu, foreign):
    logits, labels = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32), np.arange(6) % 4
    assert equal(F.softmax_cross_entropy(foreign(logits), foreign(labels), device=cpu), F.softmax_cross_entropy(logits, labels, device=cpu))
    assert equal(F.conv2d(foreign(X), foreign(W), foreign(W[0, 0, 0]), groups=2, device=cpu), F.conv2d(X, W, W[0, 0, 0], groups=2, device=cpu))
    assert equal(F.relu_backward(foreign(X), foreign(-X), device=cpu), np.zeros_like(X)) and (X == 1).all()
    with pytest.raises(TypeError, match="^x: expected float32, got int64"):
        F.relu(foreign(labels), device=cpu)


def test_an_array_that_numpy_cannot_read_is_one_sentence(cpu):
    with pytest.raises(TypeError, match=r"^dy: numpy cannot read this test_layer.Foreign \(it is on a GPU\)$"):
        F.relu_backward(Foreign(X, TypeError("it is on a GPU\nand more")), X, device=cpu)


def test_pytorchs_tensors(cpu):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'minialex[torch]')")
    assert equal(F.relu(torch.tensor([-1.0, 2.0]), device=cpu), np.float32([0, 2]))
    with pytest.raises(TypeError, match=r"^x: numpy cannot read this torch.Tensor \(.*detach\(\)"):
        F.relu(torch.ones(3, requires_grad=True), device=cpu)
