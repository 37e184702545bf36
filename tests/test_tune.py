"""The choice of each convolution's algorithm: by measured times, kept and found again, recorded with a run, and only rounding apart."""

import json

import numpy as np
import pytest
from runs import arguments, load, refused, same_bits, stopped
from test_network import NEARLY, distance, drawn, host, mini, network

from minialex import train, tune
from minialex.device.cpu import CPU
from minialex.errors import UserError
from minialex.gradcheck import compare
from minialex.nets import Net, build
from minialex.network import Network
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Times of its own; kernels come from an open device."""
    monkeypatch.setattr(tune, "user_cache", lambda: tmp_path)
    return tmp_path / "convolutions"


def settled(net, device, **more):
    return tune.algorithms(tune.settled(net, device, 8, 1, 4, **{"training": True, **more}))


def test_what_is_asked_for_is_taken_where_it_fits(cpu):
    net = Net({"a": Conv(8, 4, stride=2), "b": Conv(8, 3, pad=1), "c": Conv(8, 3, algorithm=("winograd", "im2col")), "d": Dense(3, relu=False)}, 23)
    fixed = {"a": ("im2col", "im2col"), "c": ("winograd", "im2col")}
    assert settled(net, cpu, conv="winograd") == fixed | {"b": ("winograd", "winograd")}
    assert settled(net, cpu, conv="im2col") == settled(net, cpu) == fixed | {"b": ("im2col", "im2col")}      # of few multiplications none is timed
    assert settled(net, cpu, conv={"b": ["im2col", "winograd"], "a": ["im2col", "im2col"]}) == fixed | {"b": ("im2col", "winograd")}
    assert tune.told(tune.settled(net, cpu, 8, 1, 4, training=True, conv="winograd")) == "; Winograd's convolution in b, forward of c"
    with pytest.raises(UserError, match="--conv fft: choose one of auto, im2col, winograd"):
        settled(net, cpu, conv="fft")


@pytest.mark.parametrize("forward, backward, taken", [((2, 1), (2, 1), ("winograd", "winograd")), ((2, 1), (1, 2), ("winograd", "im2col")),
                                                      ((2, 1.99), (2, 1.9), ("im2col", "winograd"))])
def test_the_faster_one_of_each_pass_is_taken_if_it_gains(cpu, monkeypatch, forward, backward, taken):
    monkeypatch.setattr(tune, "LEAST", 0)
    monkeypatch.setattr(tune, "times", lambda *a: {"forward": dict(zip(tune.ALGORITHMS, forward)), "backward": dict(zip(tune.ALGORITHMS, backward))})
    net = Net({"a": Conv(8, 3), "b": Conv(3, 21, relu=False)}, 23)
    assert settled(net, cpu) == {"a": taken, "b": ("im2col", "im2col")}
    assert settled(net, cpu, training=False)["a"] == (taken[0], taken[0])


def alike(prepared, chunk):
    return lambda *a: {way: dict.fromkeys(tune.ALGORITHMS, [prepared, chunk]) for way in tune.PASSES}


def test_times_are_measured_once(own_cache, cpu, monkeypatch):
    asked = Conv(8, 3, pad=1), (9, 9, 6), cpu, 8, 1, 4, True, True
    found = tune.times(*asked)
    assert {way: set(took) for way, took in found.items()} == {way: {"im2col", "winograd"} for way in ("forward", "backward")}
    assert all(0 < seconds < 60 for took in found.values() for seconds in took.values())
    (file,) = own_cache.iterdir()
    monkeypatch.setattr(tune, "measured", lambda *a: pytest.fail("measured again"))
    once, each = json.loads(file.read_text())["forward"]["winograd"]
    assert tune.times(*asked) == found and found["forward"]["winograd"] == once + 2 * each
    assert tune.times(*asked[:3], 41, *asked[4:])["forward"]["winograd"] == once + 11 * each      # of another batch, too
    monkeypatch.setattr(tune, "measured", alike(1.0, 2.0))
    for changed in ({4: 2}, {0: Conv(9, 3, pad=1)}, {2: CPU(cpu.threads + 1)}, {6: False}):
        assert tune.times(*(changed.get(i, value) for i, value in enumerate(asked)))["forward"]["im2col"] == 1 + 2 * (1 if 4 in changed else 2)
    for damage in ("", "{}", '{"forward": {"im2col": 0, "winograd": 1}}', "[1]"):
        file.write_text(damage)
        assert tune.times(*asked)["backward"] == {"im2col": 5.0, "winograd": 5.0}


def test_without_a_cache_it_is_measured_each_time(tmp_path, cpu, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tune, "user_cache", lambda: tmp_path / "file")
    monkeypatch.setattr(tune, "measured", alike(0.0, 1.0))
    assert tune.times(Conv(8, 3), (9, 9, 6), cpu, 4, 1, 4, False, True) == {"forward": {"im2col": 1.0, "winograd": 1.0}}


@pytest.mark.parametrize("threads, batch", [(1, 13), (2, 3), (3, 13)])
def test_a_step_by_either_differs_in_rounding_only(threads, batch):
    net, device = mini(), CPU(threads)
    own = [network(net, device, batch, conv=conv) for conv in ("im2col", "winograd", {"conv2": ("winograd", "im2col")}, {"conv2": ("im2col", "winograd")})]
    data, results = drawn(net, batch), []
    for each in own:
        each.gradient(*data, step=2)
        results.append((each.results(batch)[0], host(each, each.gradients)))
    for loss, gradients in results[1:]:
        compare("loss", "", loss, results[0][0])
        assert distance(gradients, results[0][1]) < NEARLY
    assert not np.array_equal(results[0][1]["conv2.weight"], results[1][1]["conv2.weight"])      # or it would be no other way
    for each in own:
        each.evaluate(*data)
    for each in own[1:]:
        compare("evaluation", "", each.probabilities(batch), own[0].probabilities(batch))


def test_the_bottom_layer_and_evaluation_alone(cpu):
    net = Net({"conv1": Conv(6, 3, pad=1), "conv2": Conv(6, 5, pad=2), "fc": Dense(4, relu=False)}, 9)
    data = drawn(net, 8)
    one, two = (network(net, cpu, 8, conv=conv) for conv in ("im2col", "winograd"))
    for each in (one, two):
        each.gradient(*data)
    assert distance(host(two, two.gradients), host(one, one.gradients)) < NEARLY
    assert "prepared conv1.turned" not in two.arrays and "prepared conv1.filters" in two.arrays
    alone = network(net, cpu, 8, conv="winograd", training=False)
    alone.evaluate(*data)
    two.evaluate(*data)
    compare("evaluation", "", alone.probabilities(8), two.probabilities(8))
    assert "prepared conv2.turned" not in alone.arrays


def test_a_run_records_its_choice_and_resumes_with_it(pictures, tmp_path, plain_report, monkeypatch, capsys):
    monkeypatch.setattr(tune, "fastest", lambda *a: ("winograd", "im2col"))
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    assert train.main(arguments(pictures, straight)) == 0
    stopped(arguments(pictures, cut), 3)
    config = json.loads((cut / "config.json").read_text())
    assert config["convolutions"]["conv2"] == ["winograd", "im2col"] and config["convolutions"]["conv1"] == ["winograd", "im2col"]
    monkeypatch.setattr(tune, "fastest", lambda *a: pytest.fail("chosen anew"))
    assert train.main(["--resume", str(cut)]) == 0
    assert same_bits(load(straight / "last.safetensors")[0], load(cut / "last.safetensors")[0])
    stopped(arguments(pictures, tmp_path / "older", "--conv", "im2col"), 3)      # as a run was before there was a choice
    file = tmp_path / "older/config.json"
    config = json.loads(file.read_text())
    assert config.pop("convolutions") and config["options"].pop("conv") == "im2col"
    file.write_text(json.dumps(config))
    assert train.main(["--resume", str(tmp_path / "older")]) == 0
    config = json.loads(file.read_text())
    assert set(map(tuple, config["convolutions"].values())) == {("im2col", "im2col")}
    for wrong in ["im2col", "fft"], ["im2col"], "im2col":
        file.write_text(json.dumps(config | {"convolutions": {"conv1": wrong}}))
        assert f"convolutions of config.json: conv1 has {wrong}; expected two of im2col, winograd, for forward and backward" in refused(
            capsys, train.main, "--resume", tmp_path / "older")


def test_mistakes_are_told(pictures, tmp_path, capsys):
    assert "cannot be given with --resume" in refused(capsys, train.main, "--resume", tmp_path, "--conv", "im2col")
    with pytest.raises(UserError, match="--conv fft: choose one of auto, im2col, winograd"):
        Network(build("half", 3, 67), "numpy", 2, conv="fft")
