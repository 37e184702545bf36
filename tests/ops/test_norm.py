"""Clipping of the gradients' norm: the kernels against plain numpy and against PyTorch, and in a network's training step."""

import numpy as np
import pytest

from minialex.device.cpu import CPU
from minialex.device.reference import Reference
from minialex.functional import clip_gradients
from minialex.gradcheck import compare, to_host
from minialex.layout import Layout
from minialex.network import Network
from minialex.nets import Conv, Dense, MaxPool, Net
from minialex.optim import SGD, Adam

SHAPES = [[(1,)], [(31,), (3, 3, 11, 7), (4095,)], [(4096,), (4097,)], [(2, 5000), (0, 3), (300,)]]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("limit", [1e-3, 2.0, 1e6])
def test_against_the_formula(device, shapes, limit):
    random = np.random.default_rng(len(shapes))
    gradients = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
    for place in "numpy", device:
        scaled, told = clip_gradients(gradients, limit, device=place)
        assert told == pytest.approx(norm, rel=1e-6)
        for ours, g in zip(scaled, gradients, strict=True):
            compare(str(place), "g", to_host(ours), g * min(1, limit / (norm + 1e-6)), tolerance=2e-6)
            assert limit < norm or np.array_equal(to_host(ours), g)      # not a bit, where there is nothing to clip


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_against_pytorch(device, limit):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: clipping is not compared with its")
    random = np.random.default_rng(0)
    gradients = [random.standard_normal(shape).astype(np.float32) for shape in [(700,), (3, 50, 40)]]
    theirs = [torch.zeros(g.shape, requires_grad=True) for g in gradients]
    for parameter, g in zip(theirs, gradients):
        parameter.grad = torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(theirs, limit)
    scaled, told = clip_gradients(gradients, limit, device=device)
    assert told == pytest.approx(norm.item(), rel=1e-6)
    for ours, parameter in zip(scaled, theirs):
        np.testing.assert_allclose(to_host(ours), parameter.grad.numpy(), rtol=2e-6)


def test_what_is_not_finite_stays_seen(device):
    for bad in np.nan, np.inf:
        g = np.ones(5000, np.float32)
        g[4500] = bad
        with np.errstate(invalid="ignore"):
            for place in "numpy", device:
                scaled, told = clip_gradients([g, np.ones(3, np.float32)], 1.0, device=place)
                assert not np.isfinite(told) and np.isnan(to_host(scaled[0])[4500])
    assert clip_gradients([np.zeros(9, np.float32)], 1.0, device=device)[1] == 0
    with pytest.raises(ValueError, match="limit: expected a number above 0, got 0"):
        clip_gradients([g], 0, device=device)
    with pytest.raises(TypeError, match=r"gradients\[1\]: expected float32, got int64"):
        clip_gradients([g, np.zeros(3, int)], 1.0, device=device)


def net():
    return Net({"conv1": Conv(8, 5, stride=2), "pool1": MaxPool(3, 2), "conv2": Conv(12, 3), "fc3": Dense(7, relu=False)}, 23, "mini")


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=0.01), Adam()], ids=["sgd", "adam"])
@pytest.mark.parametrize("place", [lambda: CPU(1), lambda: CPU(3), "device"], ids=["one core", "three shares", ""])
def test_a_training_step_clips_the_sum_over_the_shares(device, place, optimizer):
    """The same step by hand: the gradient of the whole batch, scaled, then one update of each parameter."""
    device, random = device if place == "device" else place(), np.random.default_rng(1)
    images, labels = random.integers(0, 256, (13, 26, 26, 3), np.uint8), random.integers(0, 7, 13)
    weights = np.linspace(0.5, 2, 7)
    common = {"optimizer": optimizer, "class_weights": weights, "smoothing": 0.1}
    free = Network(net(), device, 13, **common)
    views = free.input.draw(0, 0, range(13))
    free.gradient(images, labels, views)
    gradients = {name: device.to_numpy(g) for name, g in free.gradients.items()}
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    clipped = Network(net(), device, 13, clip_norm=float(norm / 3), **common)
    assert clipped.layout.bytes("workspace norm") == 4 * -(-clipped.arrays["gradient all"].size // 4096) and len(clipped.layout.arrays) == len(free.layout.arrays) + 2
    assert device.name != "cpu" or device.threads < 3 or clipped.layout.shares == 3
    for step in 0, 1:      # the second one from the recording
        before = clipped.weights()
        clipped.gradient(images, labels, views, step)
        raw = {name: device.to_numpy(g) for name, g in clipped.gradients.items()}
        clipped.train_step(images, labels, views, step, 0.01)
        told, factor = device.to_numpy(clipped.arrays["output norm"])
        assert told == pytest.approx(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in raw.values())), rel=1e-5) and 0.1 < factor < 0.9
        for name, g in raw.items():
            np.testing.assert_allclose(device.to_numpy(clipped.gradients[name]), factor * g, rtol=1e-5, atol=1e-7)
        if step == 0:
            state = {slot: device.zeros(before["fc3.bias"].shape) for slot in optimizer.slots}
            w, now = device.array(before["fc3.bias"]), device.array(np.array([0, optimizer.rate(0, 0.01)]), np.float64)
            optimizer.update(device, "fc3.bias", w, state, device.array(factor * raw["fc3.bias"]), now)
            np.testing.assert_allclose(clipped.weights()["fc3.bias"], device.to_numpy(w), rtol=1e-5, atol=1e-8)


def test_a_wide_limit_changes_no_bit(cpu):
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, (9, 26, 26, 3), np.uint8), random.integers(0, 7, 9)
    runs = [Network(net(), cpu, 9, clip_norm=limit) for limit in (None, 1e6)]
    for step in 0, 1:
        for own in runs:
            own.train_step(images, labels, own.input.draw(0, step, range(9)), step, 0.01)
    assert all(np.array_equal(a, b) for a, b in zip(*(own.weights().values() for own in runs)))
    assert runs[1].run("train", images, labels, own.input.draw(0, 2, range(9)), 2, 0.01, timed=True)["clip update"] >= 0


def test_class_weights_scale_the_gradient_and_no_evaluation():
    device, random = Reference(np.float64), np.random.default_rng(2)
    images, labels, weights = random.integers(0, 256, (6, 26, 26, 3), np.uint8), np.array([0, 1, 2, 3, 3, 6]), np.array([3, 0.5, 1, 2, 1, 1, 0.25])
    plain, weighted = (Network(net(), device, 6, class_weights=w) for w in (None, weights))
    views, total = plain.input.centre(6), {}
    for i in range(6):      # image by image: the sum of w_i l_i, over n
        plain.gradient(images[i:i + 1], labels[i:i + 1], views[i:i + 1])
        for name, g in plain.gradients.items():
            total[name] = total.get(name, 0) + weights[labels[i]] * g / 6
    weighted.gradient(images, labels, views)
    for name, g in weighted.gradients.items():
        np.testing.assert_allclose(g, total[name], rtol=1e-9, atol=1e-12)
    losses = weighted.results(6)[0]
    weighted.evaluate(images, labels, views), plain.evaluate(images, labels, views)
    assert np.array_equal(weighted.results(6)[0], plain.results(6)[0])
    np.testing.assert_allclose(losses, weights[labels] * plain.results(6)[0], rtol=1e-9)


def test_memory_is_laid_out_only_where_it_is_used(cpu):
    for training, clipped, there in (True, True, True), (True, False, False), (False, True, False):
        assert ("workspace norm" in Layout(net(), cpu, 4, training=training, clipped=clipped).arrays) == there
