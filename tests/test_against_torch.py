"""The ops against PyTorch's, on random shapes, strides, pads and groups. Torch computes in float64: it is the truth here."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'minialex[torch]'): nothing is compared with it")

from torch.nn import functional as T  # noqa: E402

from minialex import functional as F  # noqa: E402
from minialex.gradcheck import compare, to_host  # noqa: E402

torch.set_num_threads(1)


def tensor(array, grad=True):
    """NHWC or flat array -> float64 tensor, NCHW."""
    array = np.asarray(array, np.float64)
    return torch.tensor(np.moveaxis(array, -1, 1) if array.ndim == 4 else array, requires_grad=grad)


def array(value):
    value = value.detach().numpy()
    return np.moveaxis(value, 1, -1) if value.ndim == 4 else value


def same(device, name, value, truth, tolerance=2e-5):
    compare(str(device), name, to_host(value), truth, tolerance=1e-12 if device == "numpy" else tolerance)


def numbers(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def int_pairs(random, low, high, count=2):
    return tuple(tuple(int(v) for v in random.integers(low, high, 2)) for _ in range(count))


@pytest.mark.parametrize("seed", range(80))
def test_conv2d(device, seed):
    """Asymmetric pads, which torch has not, are put around the image with its `pad`."""
    random = np.random.default_rng(seed)
    groups = int(random.choice([1, 1, 2, 3]))
    (kernel, stride), pad = int_pairs(random, 1, 5), int_pairs(random, 0, 4)
    n, own, filters = int(random.integers(1, 4)), int(random.integers(1, 9)), groups * int(random.integers(1, 9))
    height, width = (max(1, k - sum(p)) + int(random.integers(0, 7)) for k, p in zip(kernel, pad))
    x, w, b = numbers(random, n, height, width, own * groups), numbers(random, *kernel, own, filters), numbers(random, filters)
    options = dict(stride=stride, pad=pad, groups=groups)

    tx, tw, tb = tensor(x), torch.tensor(w.transpose(3, 2, 0, 1).astype(float).copy("C"), requires_grad=True), tensor(b)
    (top, bottom), (left, right) = pad
    ty = T.conv2d(T.pad(tx, (left, right, top, bottom)), tw, tb, stride, groups=groups)
    dy = numbers(random, *array(ty).shape)
    ty.backward(tensor(dy, grad=False))
    for place in ("numpy", device):
        same(place, "y", F.conv2d(x, w, b, **options, device=place), array(ty))
        dx, dw, db = F.conv2d_backward(dy, x, w, **options, device=place)
        same(place, "dx", dx, array(tx.grad))
        same(place, "dw", dw, tw.grad.numpy().transpose(2, 3, 1, 0))
        same(place, "db", db, tb.grad.numpy())


def draw_pool(random, values):
    (size, stride), ceil = int_pairs(random, 1, 5), bool(random.integers(2))
    pad = tuple(int(random.integers(0, k // 2 + 1)) for k in size)           # torch allows half a window
    height, width = (max(1, k - 2 * p) + int(random.integers(0, 9)) for k, p in zip(size, pad))
    x = values(random, int(random.integers(1, 4)), height, width, int(random.integers(1, 20)))
    return x, dict(size=size, stride=stride, pad=pad, ceil=ceil)


def torch_pool(x, options):
    tx = tensor(x)
    return tx, T.max_pool2d(tx, options["size"], options["stride"], options["pad"], ceil_mode=options["ceil"])


@pytest.mark.parametrize("values", [numbers, lambda random, *shape: random.integers(-1, 2, shape).astype(np.float32)], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(50))
def test_max_pool2d(device, seed, values):
    """Of equal maxima torch, too, gives the gradient to the first."""
    random = np.random.default_rng(seed)
    x, options = draw_pool(random, values)
    tx, ty = torch_pool(x, options)
    dy = numbers(random, *array(ty).shape)
    ty.backward(tensor(dy, grad=False))
    for place in ("numpy", device):
        same(place, "y", F.max_pool2d(x, **options, device=place), array(ty), 0)
        same(place, "dx", F.max_pool2d_backward(dy, x, **options, device=place), array(tx.grad), 1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_max_pool2d_of_asymmetric_pads(device, seed):
    """Torch gets the pads as -inf around the image; without `ceil`, whose rule looks at the image's own border."""
    random = np.random.default_rng(100 + seed)
    size, stride = int_pairs(random, 1, 5)
    pad = tuple(tuple(int(random.integers(0, k)) for _ in range(2)) for k in size)
    x = numbers(random, 2, size[0] + int(random.integers(0, 6)), size[1] + int(random.integers(0, 6)), 5)
    tx = tensor(x)
    (top, bottom), (left, right) = pad
    ty = T.max_pool2d(T.pad(tx, (left, right, top, bottom), value=-np.inf), size, stride)
    dy = numbers(random, *array(ty).shape)
    ty.backward(tensor(dy, grad=False))
    for place in ("numpy", device):
        same(place, "y", F.max_pool2d(x, size, stride=stride, pad=pad, device=place), array(ty), 0)
        same(place, "dx", F.max_pool2d_backward(dy, x, size, stride=stride, pad=pad, device=place), array(tx.grad), 1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_max_pool2d_of_nan(device, seed):
    """NaN wins in both. Its gradient is not compared: torch's goes to the last NaN of a window, ours to the first."""
    random = np.random.default_rng(200 + seed)
    x, options = draw_pool(random, numbers)
    x[random.random(x.shape) < 0.1] = np.nan
    _, ty = torch_pool(x, options)
    for place in ("numpy", device):
        same(place, "y", F.max_pool2d(x, **options, device=place), array(ty), 0)


@pytest.mark.parametrize("seed", range(40))
def test_local_response_norm(device, seed):
    """alpha_mode "mean" is torch's: it divides alpha by the window's size, at the borders too."""
    random = np.random.default_rng(seed)
    x, size = numbers(random, 2, 3, 2, int(random.integers(1, 40))), 2 * int(random.integers(0, 5)) + 1
    alpha, beta, k = float(random.uniform(0.1, 2)), float(random.choice([0.5, 0.75, 1.0, random.uniform(0.2, 2)])), float(random.uniform(0.5, 2))
    groups = int(random.choice([g for g in (1, 2, 3) if x.shape[3] % g == 0]))
    tx, dy = tensor(x), numbers(random, *x.shape)
    ty = torch.cat([T.local_response_norm(part, size, alpha, beta, k) for part in tx.chunk(groups, 1)], 1)
    ty.backward(tensor(dy, grad=False))
    options = dict(alpha=alpha, beta=beta, k=k, groups=groups)
    for place in ("numpy", device):
        for mode, times in (("mean", 1), ("sum", 1 / size)):
            now = {**options, "alpha": alpha * times, "alpha_mode": mode, "device": place}
            same(place, "y", F.local_response_norm(x, size, **now), array(ty))
            same(place, "dx", F.local_response_norm_backward(dy, x, size, **now), array(tx.grad))


@pytest.mark.parametrize("seed", range(30))
def test_dense(device, seed):
    random = np.random.default_rng(seed)
    n, i, o = (int(v) for v in random.integers(1, 70, 3))
    x, w, b, dy = numbers(random, n, i), numbers(random, i, o), numbers(random, o), numbers(random, n, o)
    tx, tw, tb = tensor(x), torch.tensor(w.T.astype(float), requires_grad=True), tensor(b)
    ty = T.linear(tx, tw, tb)
    ty.backward(tensor(dy, grad=False))
    for place in ("numpy", device):
        same(place, "y", F.dense(x, w, b, device=place), array(ty))
        for name, value, truth in zip(("dx", "dw", "db"), F.dense_backward(dy, x, w, device=place), (tx.grad, tw.grad.T, tb.grad)):
            same(place, name, value, truth.numpy())


@pytest.mark.parametrize("seed", range(10))
def test_relu(device, seed):
    """At NaN both pass the gradient on."""
    random = np.random.default_rng(seed)
    x, dy = random.integers(-3, 4, (7, 5 + seed)).astype(np.float32), numbers(random, 7, 5 + seed)
    x[0, 0] = np.nan
    tx = tensor(x)
    ty = T.relu(tx)
    ty.backward(tensor(dy, grad=False))
    for place in ("numpy", device):
        same(place, "y", F.relu(x, device=place), array(ty), 0)
        same(place, "dx", F.relu_backward(dy, x, device=place), array(tx.grad), 0)


@pytest.mark.parametrize("seed", range(30))
def test_softmax_cross_entropy(device, seed):
    random = np.random.default_rng(seed)
    n, classes = int(random.integers(1, 9)), int(random.integers(1, 300))
    x, label = numbers(random, n, classes) * np.float32(random.choice([0.1, 1, 30])), random.integers(0, classes, n)
    tx = tensor(x)
    losses = T.cross_entropy(tx, torch.tensor(label), reduction="none")
    losses.sum().backward()
    for place in ("numpy", device):
        loss, dx = F.softmax_cross_entropy(x, label, device=place)
        same(place, "loss", loss, array(losses))
        np.testing.assert_allclose(to_host(dx), tx.grad.numpy(), atol=1e-5)
        np.testing.assert_allclose(to_host(F.softmax(x, device=place)), torch.softmax(tx, 1).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_sgd(device, seed):
    """Form "torch" is torch.optim.SGD, lr changing; form "2012" is not as soon as it changes."""
    random = np.random.default_rng(seed)
    momentum, decay, rates = random.choice([0.0, 0.5, 0.9]), random.choice([0.0, 0.1]), random.uniform(0.01, 0.5, 4)
    w = numbers(random, 3, 1 + 60 * seed)
    tw = tensor(w)
    optimizer = torch.optim.SGD([tw], lr=1.0, momentum=momentum, weight_decay=decay)
    states = {(place, form): (w, np.zeros_like(w)) for place in ("numpy", device) for form in ("torch", "2012")}
    for lr in rates:
        g = numbers(random, *w.shape)
        tw.grad, optimizer.param_groups[0]["lr"] = tensor(g, grad=False), float(lr)
        optimizer.step()
        for place, form in states:
            w_v = map(to_host, states[place, form])
            states[place, form] = F.sgd_update(*w_v, g, lr=lr, momentum=float(momentum), weight_decay=float(decay), form=form, device=place)
    for place in ("numpy", device):
        compare(str(place), "w", to_host(states[place, "torch"][0]), array(tw), tolerance=1e-6)     # `now` holds lr in float64, w is float32
        differ = np.abs(to_host(states[place, "2012"][0]) - array(tw)).max()
        assert differ > 1e-3 if momentum else differ < 1e-5
