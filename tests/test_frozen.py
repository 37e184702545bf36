"""Layers that are frozen or have a learning rate of their own: what is launched for them, what changes, and by how much."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from test_network import drawn, host, mini, network

from minialex.device.reference import Reference
from minialex.errors import UserError
from minialex.nets import Net
from minialex.ops.conv import Conv
from minialex.optim import SGD, Adam

N = 9
WAYS = pytest.mark.parametrize("conv", ["im2col", "winograd"])


def net_with(**rates):
    """`mini` without dropout, with a layer of fewer classes that Winograd's algorithm is for."""
    net = mini()
    for layer in net.layers.values():
        if hasattr(layer, "p"):
            layer.p = 0.0
    return net.with_rates(rates)


def launches(own):
    """{place: launches} of a training step, of the update's by their kernels' names; what all threads share counts once."""
    return Counter(name if place == "update" else place for *_, name, place, part, _ in own.tapes["train", N].commands if part == 0)


def trained(device, rates, conv="im2col", optimizer=SGD(weight_decay=0.01), steps=1, **more):
    own = network(net_with(**rates), device, N, optimizer=optimizer, conv=conv, **more)
    before = own.weights()
    for step in range(steps):
        own.train_step(*drawn(own.net, N, step), step, 0.01)
    return own, before, own.weights()


@WAYS
def test_frozen_layers_have_no_launch_and_the_others_the_same_gradients(cpu, conv):
    """Of those at the bottom nothing runs backward at all; of one in the middle only what brings the gradient down. Two launches update the rest."""
    whole, first, _ = trained(cpu, {}, conv)
    for frozen, gone in ({"conv1"}, {"conv1"}), ({"conv1", "conv2"}, {"conv1", "conv2", "pool1", "norm1"}), ({"conv1", "conv2", "fc3"}, {"conv1", "conv2", "pool1", "norm1", "pool2", "norm2", "fc3"}), \
            ({"conv2"}, set()), ({"fc3"}, set()), ({"conv2", "fc4"}, set()):
        own, before, after = trained(cpu, dict.fromkeys(frozen, 0.0), conv)
        now, then = launches(own), launches(whole)
        assert not any(now[f"{name} backward"] for name in gone), frozen
        assert all(now[f"{name} backward"] < then[f"{name} backward"] for name in frozen) and now["sgd"] == then["sgd"] == 2, (frozen, now)
        assert own.device.to_numpy(own.arrays["gradient all"]).any()
        for name in before:
            still = name.split(".")[0] in frozen
            assert np.array_equal(before[name], after[name]) == still and np.array_equal(before[name], first[name])
            ours, theirs = (one.device.to_numpy(one.gradients[name]) for one in (own, whole))
            assert not ours.any() if still else np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs), (frozen, name)      # summed in another order, perhaps


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=0.01), SGD(form="torch", bias_lr=2.0), Adam()], ids=["2012", "torch", "adam"])
def test_a_factor_multiplies_the_learning_rate(device, optimizer):
    """The first step is as long as at that learning rate, and no other layer's changes."""
    _, before, plain = trained(device, {}, optimizer=optimizer)
    own, _, after = trained(device, {"conv2": 0.5, "fc4": 10.0}, optimizer=optimizer)
    for name in before:
        times = {"conv2": 0.5, "fc4": 10.0}.get(name.split(".")[0], 1.0)
        if times == 1:
            assert np.array_equal(after[name], plain[name]), name
        else:
            np.testing.assert_allclose(after[name] - before[name], times * (plain[name] - before[name]), rtol=1e-3, atol=1e-6)
    assert [(part, own.layout.factors[number]) for part, _, number in own.layout.updates] == [(".weight", 0.5), (".weight", 1), (".weight", 10), (".bias", 10), (".bias", 1), (".bias", 0.5)]
    told = own.statistics(*drawn(own.net, N, 0), 0, 0.01)
    for name in "conv2", "fc4":
        moved = np.linalg.norm(after[f"{name}.weight"] - before[f"{name}.weight"]) / np.linalg.norm(after[f"{name}.weight"])
        assert told[name]["ratio"] == pytest.approx(moved, rel=1e-2)


def test_it_is_what_the_references_do(device):
    """Several steps in float64, with a frozen layer below and one in the middle, a factor, a clipped norm and a running mean."""
    rates = {"conv1": 0.0, "fc3": 0.0, "fc4": 3.0}
    own, truth = (trained(place, rates, steps=3, clip_norm=0.5, average=0.9)[0] for place in (device, Reference(np.float64)))
    for kind in "parameters", "velocity", "averages":
        ours, theirs = (host(one, getattr(one, kind)) for one in (own, truth))
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * (np.abs(theirs[name]).max() + 1e-9), err_msg=f"{kind} {name}")
    told = own.statistics(*drawn(own.net, N, 0), 2, 0.01)
    assert told["conv1"]["ratio"] is None and told["fc3"]["ratio"] is None and told["conv2"]["ratio"] > 0


def test_what_cannot_be_frozen():
    net = mini()
    with pytest.raises(UserError, match="mini has no layer pool1 with weights, which could be frozen or have a learning rate of its own: choose among conv1, conv2, fc3, fc4"):
        net.with_rates({"pool1": 0.0})
    with pytest.raises(UserError, match=r"mini: all layers are frozen \(lr=0\), so that there is nothing to train"):
        net.with_rates(dict.fromkeys(("conv1", "conv2", "fc3", "fc4"), 0.0))
    for lr in -1.0, np.inf, np.nan:
        with pytest.raises(ValueError, match="lr: expected a number of 0 or more"):
            Conv(3, 3, lr=lr)
    assert net.with_rates({"fc3": 2.0}).layers["fc3"] == replace(net.layers["fc3"], lr=2.0) and net.with_classes(3).classes == 3 and net.with_classes(7) == net
    assert Net({"conv": Conv(3, 8, relu=False)}, 8).with_classes(5).outputs["conv"] == (1, 1, 5)
