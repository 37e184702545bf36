"""The SGD kernel in both published forms against plain numpy, with lr changing."""

import numpy as np
import pytest

from minialex.functional import sgd_update
from minialex.gradcheck import compare, to_host
from minialex.optim import SGD


def plain(w, v, g, lr, momentum, decay, form):
    if form == "2012":
        v = momentum * v - lr * (g + decay * w)
        return w + v, v
    v = momentum * v + g + decay * w
    return w - lr * v, v


@pytest.mark.parametrize("form", ["2012", "torch"])
@pytest.mark.parametrize("shape", [(1,), (31,), (3, 3, 11, 7), (1023,), (1024,), (1025,), (2, 1031)], ids=str)
def test_several_steps_with_lr_changing(device, form, shape):
    random = np.random.default_rng(len(shape))
    w, v = random.standard_normal(shape), np.zeros(shape)
    states = {place: (w.astype(np.float32), v.astype(np.float32)) for place in ("numpy", device)}
    for lr in (0.1, 0.1, 0.02, 0.3):
        g = random.standard_normal(shape).astype(np.float32)
        w, v = plain(w, v, g, lr, 0.9, 0.05, form)
        for place, (own_w, own_v) in states.items():
            own_w, own_v = map(to_host, sgd_update(own_w, own_v, g, lr=lr, momentum=0.9, weight_decay=0.05, form=form, device=place))
            compare(str(place), "w", own_w, w, tolerance=1e-6)
            compare(str(place), "v", own_v, v, tolerance=1e-6)
            states[place] = own_w, own_v


def test_the_forms_agree_until_lr_changes(device):
    def run(form, rates):
        w, v, random = np.ones(50, np.float32), np.zeros(50, np.float32), np.random.default_rng(2)
        for lr in rates:
            w, v = map(to_host, sgd_update(w, v, random.standard_normal(50), lr=lr, weight_decay=0.01, form=form, device=device))
        return w

    np.testing.assert_allclose(run("2012", [0.1] * 4), run("torch", [0.1] * 4), atol=1e-6)
    assert np.abs(run("2012", [0.1, 0.1, 0.01]) - run("torch", [0.1, 0.1, 0.01])).max() > 1e-3


def test_biases_have_a_rate_and_a_decay_of_their_own(device):
    ones, now = np.ones(3, np.float32), device.array(np.array([5.0, 0.1]), np.float64)
    for optimizer, name, decay, rate in [(SGD(0.5, 0.2), "conv1.weight", 0.2, 1), (SGD(0.5, 0.2), "conv1.bias", 0, 1),
                                         (SGD(0.5, 0.2, bias_lr=2.0, bias_decay=1.0), "conv1.bias", 0.2, 2),
                                         (SGD(0.5, 0.2, "torch", bias_lr=2.0), "conv1.bias", 0, 2)]:
        w, v, g = (device.array(a) for a in (ones * 3, ones, -ones))
        optimizer.update(device, name, w, {"velocity": v}, g, now)
        device.synchronize()
        expected = plain(3.0, 1.0, -1.0, 0.1 * rate, 0.5, decay, optimizer.form)
        np.testing.assert_allclose([device.to_numpy(w)[0], device.to_numpy(v)[0]], expected, rtol=1e-6)
        assert (device.to_numpy(g) == -1).all()


def test_nan_gradients_are_seen_and_nothing_else_is_touched(device):
    g = np.zeros(1500, np.float32)
    g[1200] = np.nan
    w, v = map(to_host, sgd_update(np.ones(1500, np.float32), np.zeros(1500, np.float32), g, lr=0.1, device=device))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(w)), [1200])
    assert (np.delete(w, 1200) == 1).all() and (np.delete(v, 1200) == 0).all()


def test_mistakes_name_the_argument(device):
    w = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"v: expected the shape of w \(3,\), got \(2,\)"):
        sgd_update(w, w[:2], w, lr=0.1, device=device)
    with pytest.raises(TypeError, match="g: expected float32, got int64"):
        sgd_update(w, w, w.astype(int), lr=0.1, device=device)
    with pytest.raises(ValueError, match="form: expected '2012' or 'torch', got 'nesterov'"):
        sgd_update(w, w, w, lr=0.1, form="nesterov", device=device)
    new, _ = sgd_update(w[:0], w[:0], w[:0], lr=0.1, device=device)
    assert new.shape == (0,)
