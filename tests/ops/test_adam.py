"""The Adam kernel against the formula, against PyTorch's with epsilon moved to its place, and how large an update was."""

import math

import numpy as np
import pytest

from minialex.functional import adam_update
from minialex.gradcheck import compare, to_host
from minialex.optim import SGD, Adam


def plain(w, m, v, g, t, lr, beta1=0.9, beta2=0.999, epsilon=1e-7):
    """Kingma and Ba 2015, section 2, last paragraph, with epsilon hat: Keras' form. t = 1, 2, ..."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    return w - lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + epsilon), m, v


@pytest.mark.parametrize("shape", [(1,), (31,), (3, 3, 11, 7), (255,), (256,), (257,), (2, 1031)], ids=str)
def test_several_steps_with_lr_changing(device, shape):
    random = np.random.default_rng(len(shape))
    truth = random.standard_normal(shape), np.zeros(shape), np.zeros(shape)
    states = {place: tuple(a.astype(np.float32) for a in truth) for place in ("numpy", device)}
    for step, lr in enumerate((0.1, 0.1, 0.02, 0.3)):
        g = (random.standard_normal(shape) * 10.0 ** random.integers(-9, 2, shape)).astype(np.float32)
        truth = plain(*truth, g.astype(np.float64), step + 1, lr)
        for place in states:
            states[place] = tuple(map(to_host, adam_update(*states[place], g, step=step, lr=lr, device=place)))
            for name, value, right in zip("wmv", states[place], truth):
                compare(str(place), name, value, right, tolerance=2e-6)


def test_against_pytorch(device):
    """Its epsilon stands beside the root of the corrected moment: ours of that step is sqrt(1 - beta2^t) times as large."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: Adam is not compared with its")
    random = np.random.default_rng(0)
    w, m, v = random.standard_normal(300).astype(np.float32), np.zeros(300, np.float32), np.zeros(300, np.float32)
    theirs = torch.tensor(w, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.01, eps=1e-2)
    for step in range(5):
        g = random.standard_normal(300).astype(np.float32)
        theirs.grad = torch.tensor(g)
        optimizer.step()
        w, m, v = map(to_host, adam_update(w, m, v, g, step=step, lr=0.01, epsilon=1e-2 * math.sqrt(1 - 0.999 ** (step + 1)), device=device))
    np.testing.assert_allclose(w, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_epsilon_stands_outside_the_correction(device):
    """At the first step m / sqrt(v) is 1e-8 / (sqrt(0.001) 1e-8 + epsilon) 0.1, where an epsilon of 1e-7 is not small."""
    g, zero = np.full(3, 1e-8, np.float32), np.zeros(3, np.float32)
    w = to_host(adam_update(zero, zero, zero, g, step=0, lr=1.0, device=device)[0])
    np.testing.assert_allclose(w, -np.sqrt(0.001) / 0.1 * 1e-9 / (np.sqrt(0.001) * 1e-8 + 1e-7), rtol=1e-5)


def test_nan_gradients_are_seen_and_nothing_else_is_touched(device):
    g = np.zeros(1500, np.float32)
    g[1200] = np.nan
    w, m, v = map(to_host, adam_update(np.ones(1500, np.float32), *np.zeros((2, 1500), np.float32), g, step=0, lr=0.1, device=device))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(w)), [1200])
    assert (np.delete(w, 1200) == 1).all()


def test_mistakes_name_the_argument(device):
    w = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"v: expected the shape of w \(3,\), got \(2,\)"):
        adam_update(w, w, w[:2], w, step=0, lr=0.1, device=device)
    with pytest.raises(TypeError, match="g: expected float32, got int64"):
        adam_update(w, w, w, w.astype(int), step=0, lr=0.1, device=device)
    with pytest.raises(ValueError, match="beta2: expected 0 up to below 1, got 1.0"):
        adam_update(w, w, w, w, step=0, lr=0.1, beta2=1.0, device=device)
    assert to_host(adam_update(*[w[:0]] * 4, step=0, lr=0.1, device=device)[0]).shape == (0,)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(form="torch", bias_lr=2.0), Adam()], ids=["2012", "torch", "adam"])
@pytest.mark.parametrize("name", ["fc6.weight", "fc6.bias"])
def test_the_ratio_of_a_step_is_that_of_what_it_changed(device, optimizer, name):
    random = np.random.default_rng(0)
    before, g = random.standard_normal((2, 700)).astype(np.float32)
    w, state = device.array(before), {slot: device.array(np.abs(random.standard_normal(700))) for slot in optimizer.slots}
    rate = optimizer.rate(5, 0.01)
    optimizer.update(device, name, w, state, device.array(g), device.array(np.array([5, rate]), np.float64))
    device.synchronize()
    after = device.to_numpy(w)
    truth = np.linalg.norm(after.astype(np.float64) - before) / np.linalg.norm(after)
    assert optimizer.step_ratio(device, name, w, state, rate) == pytest.approx(truth, rel=1e-3)
    assert optimizer.step_ratio(device, name, device.zeros((700,)), state, rate) is None
