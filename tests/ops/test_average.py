"""The running mean of weights: the kernel against plain numpy, in a network's step and evaluation, in a run and its checkpoints."""

import numpy as np
import pytest
from runs import arguments, load, refused, same_bits, stopped

import minialex
from minialex import evaluate, train
from minialex.functional import average_update
from minialex.gradcheck import compare, to_host
from minialex.network import Network
from minialex.nets import Conv, Dense, Net


@pytest.mark.parametrize("shape", [(1,), (31, 7), (256,), (3, 3, 11, 17), (0, 4)], ids=str)
def test_against_the_formula(device, shape):
    random = np.random.default_rng(1)
    mean, w = random.standard_normal((2, *shape)).astype(np.float32)
    for step, decay, left in ((0, 0.9, 0), (1, 0.9, 0.1), (9, 0.9, 0.5), (400, 0.9, 0.9), (10**6, 0.999, 0.999)):
        truth = left * mean.astype(np.float64) + (1 - left) * w
        for place in "numpy", device:
            compare(str(place), "mean", to_host(average_update(mean, w, step=step, decay=decay, device=place)), truth, tolerance=2e-6)
    poisoned = np.full(shape, np.nan, np.float32)
    np.testing.assert_array_equal(to_host(average_update(poisoned, w, step=0, decay=0.5, device=device)), w)      # nothing is there before step 0


def test_in_a_network(cpu):
    """Means are those of the weights after each step, and evaluation goes by them."""
    net = Net({"conv1": Conv(6, 3, pad=1), "fc": Dense(4, relu=False)}, 9)
    own, plain = (Network(net, cpu, 5, average=average) for average in (0.6, None))
    random, mean = np.random.default_rng(0), {}
    images, labels = random.integers(0, 256, (5, own.input.side, own.input.side, 3), np.uint8), random.integers(0, 4, 5)
    views = own.input.centre(5)
    for step in range(30):
        for each in (own, plain):
            each.train_step(images, labels, views, step, 0.05)
        left = min(0.6, step / (9 + step))
        mean = {name: left * mean.get(name, 0) + (1 - left) * w.astype(np.float64) for name, w in own.weights().items()}
    assert same_bits(own.weights(), plain.weights())
    for name, truth in mean.items():
        compare("mean", name, own.averages[name], truth, tolerance=1e-5)
    assert max(np.abs(own.averages[name] - w).max() for name, w in own.weights().items()) > 1e-4
    other = Network(net, cpu, 5, training=False, init=None)
    other.load_parameters(own.averages)
    for each in (own, plain, other):
        each.evaluate(images, labels, views)
    assert np.array_equal(own.probabilities(5), other.probabilities(5)) and not np.array_equal(own.probabilities(5), plain.probabilities(5))
    assert not plain.averages and "average" not in " ".join(plain.arrays)


def test_in_a_run(pictures, tmp_path, plain_report, capsys):
    """It is validated, kept, resumed bit for bit, and is what other commands load."""
    straight, cut, plain = tmp_path / "straight", tmp_path / "cut", tmp_path / "plain"
    assert train.main(arguments(pictures, straight, "--average", "0.9")) == train.main(arguments(pictures, plain)) == 0
    stopped(arguments(pictures, cut, "--average", "0.9"), 3)
    assert train.main(["--resume", str(cut)]) == 0
    for name in "last", "best":
        assert all(same_bits(a, b) for a, b in zip(load(straight / f"{name}.safetensors")[:2], load(cut / f"{name}.safetensors")[:2]))
    weights, kept, _ = load(straight / "last.safetensors")
    assert same_bits(weights, load(plain / "last.safetensors")[0])      # training itself is the same
    means = {name.removeprefix("average "): array for name, array in kept.items() if name.startswith("average ")}
    assert means.keys() == weights.keys() and not same_bits(means, weights)
    assert same_bits(minialex.load(straight, last=True).network.weights(), means)
    history = minialex.load(straight).history
    assert history[-1]["val_loss"] != minialex.load(plain).history[-1]["val_loss"]
    assert minialex.load(straight, last=True).evaluate(pictures).loss == pytest.approx(history[-1]["val_loss"], rel=1e-6)
    if max(m["val_top1"] for m in history[:-1]) < history[-1]["val_top1"]:
        assert same_bits(load(straight / "best.safetensors")[0], means)
    assert evaluate.main([str(straight), "--data", str(pictures), "--device", "cpu"]) == 0


@pytest.mark.parametrize("value", ["0", "1", "nan", "-0.5"])
def test_mistakes_are_told(value, capsys, tmp_path):
    told = refused(capsys, train.main, "--data", tmp_path, "--average", value)
    assert "--average" in told
    with pytest.raises(ValueError, match="decay: expected more than 0 and less than 1"):
        average_update(np.zeros(3, np.float32), np.zeros(3, np.float32), step=0, decay=1.0)
    with pytest.raises(ValueError, match="mean: expected the shape of w"):
        average_update(np.zeros(2, np.float32), np.zeros(3, np.float32), step=0, decay=0.5)
