"""Own nets: what is derived from their layers, what is refused and how, their table, and their description."""

import json

import numpy as np
import pytest

from minialex import describe, nets
from minialex.errors import UserError
from minialex.device.reference import Reference
from minialex.nets import Net, build, from_description
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.layer import run_alone
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU


def own():
    return Net({"conv1": Conv(12, (5, 3), stride=2, pad=[[1, 2], [0, 1]], std=0.02), "norm1": LRN(3, 0.5, k=1, alpha_mode="mean"), "pool1": MaxPool(3, 2, ceil=True),
                "drop": Dropout(0.3), "conv2": Conv(16, 3, groups=2, relu=False), "relu2": ReLU(), "fc": Dense(7, relu=False, bias=1)}, 23, "own")


def test_a_net_knows_its_classes_and_shapes():
    net = own()
    assert (net.classes, net.size, net.name, net.bottom) == (7, 23, "own", "conv1") and net.inputs["conv1"] == (23, 23, 3) and net.outputs["fc"] == (7,)
    assert net == own() and net != Net(net.layers, 24, "own") and repr(net) == "Net own, 23x23, 7 classes, 2,447 parameters"
    assert net.count() == sum(int(np.prod(shape)) for shape in net.parameters().values())
    assert Net({"fc": Dense(2, relu=False)}, 8).name == "net"
    for end in ({"conv": Conv(5, 3, relu=False), "score": Conv(10, 6, relu=False)}, {"conv": Conv(10, 3, relu=False), "all": MaxPool(6)}):
        assert Net(end, 8).classes == 10
    assert repr(build("half", 10)) == "Net half, 224x224, 10 classes, 14,601,930 parameters"


FIELDS = {
    "own": own().layers, "pads": {"conv1": Conv(3, 4, stride=3, pad=((3, 0), (1, 2))), "pool1": MaxPool((2, 3), (1, 2), pad=((1, 0), (0, 1)), ceil=True),
                                  "conv2": Conv(4, 3, pad=2), "norm2": LRN(3), "pool2": MaxPool(2), "fc": Dense(3, relu=False)},
    "gaps": {"conv1": Conv(4, 2, stride=3), "pool1": MaxPool(2), "fc1": Dense(5), "fc2": Dense(2, relu=False)}}


@pytest.mark.parametrize("name", FIELDS)
def test_a_receptive_field_is_what_a_changed_pixel_reaches(name):
    """Each pixel of a picture in turn is not a number, and so is what depends on it; what strides pass over within the field may not count."""
    net, random, device = Net(FIELDS[name], 15, name), np.random.default_rng(4), Reference(np.float64)
    x = random.normal(size=(225, 15, 15, 3))
    x[np.arange(225), np.arange(225) // 15, np.arange(225) % 15] = np.nan
    for layer, of in net.layers.items():
        if layer == "drop":      # it does nothing outside training
            continue
        x = run_alone(of, device, x, parameters={part: random.normal(size=shape) for part, shape in of.parameters(net.inputs[layer]).items()}).y
        reached = np.isnan(x).any(axis=-1).reshape(15, 15, -1)
        for place, (row, column) in enumerate(np.ndindex(*(net.outputs[layer][:-1] or (1, 1)))):
            top, left, bottom, right = net.receptive_field(layer, row, column)
            rows, columns = (np.flatnonzero(reached[:, :, place].any(axis=axis)) for axis in (1, 0))
            assert (top, left, bottom, right) == (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), (layer, row, column)


def test_known_receptive_fields():
    net = build("paper", 10)
    sizes = {layer: net.receptive_field(layer, *(length // 2 for length in net.outputs[layer][:-1])) for layer in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5")}
    assert {name: bottom - top for name, (top, _, bottom, _) in sizes.items()} == {
        "conv1": 11, "pool1": 19, "conv2": 51, "pool2": 67, "conv3": 99, "conv4": 131, "conv5": 163}      # 11 + 2 * 4, + 4 * 8, + 2 * 8, + 2 * 16 each
    assert net.receptive_field("fc6") == net.receptive_field("fc8") == (0, 0, 227, 227)


@pytest.mark.parametrize("name, order", [("alexnet-caffe", "conv1 norm1 pool1 conv2 norm2 pool2"), ("caffenet", "conv1 pool1 norm1 conv2 pool2 norm2")])
def test_caffes_constants(name, order):
    """models/bvlc_alexnet/train_val.prototxt and models/bvlc_reference_caffenet/train_val.prototxt; LRN's k is caffe.proto's default, and pooling rounds up."""
    net = build(name)
    assert list(net.layers) == [*order.split(), *"conv3 conv4 conv5 pool5 fc6 drop6 fc7 drop7 fc8".split()]
    assert all(net.layers[layer] == LRN(5, 1e-4, 0.75, 1.0, "mean") for layer in ("norm1", "norm2")) and all(net.layers[f"pool{i}"] == MaxPool(3, 2, ceil=True) for i in (1, 2, 5))
    assert [(of.filters, of.window.size[0], of.window.stride[0], of.window.pad[0][0], of.groups, of.std, of.bias, of.relu) for of in net.layers.values() if isinstance(of, Conv)] == [
        (96, 11, 4, 0, 1, 0.01, 0, True), (256, 5, 1, 2, 2, 0.01, 0.1, True), (384, 3, 1, 1, 1, 0.01, 0, True), (384, 3, 1, 1, 2, 0.01, 0.1, True), (256, 3, 1, 1, 2, 0.01, 0.1, True)]
    assert [(of.features, of.std, of.bias, of.relu) for of in net.layers.values() if isinstance(of, Dense)] == [
        (4096, 0.005, 0.1, True), (4096, 0.005, 0.1, True), (1000, 0.01, 0, False)]
    assert all(net.layers[layer].p == 0.5 for layer in ("drop6", "drop7"))


SCORE = Dense(3, relu=False)


@pytest.mark.parametrize("layers, text", [
    ({}, "net: expected layers by name, such as"), ([SCORE], "net: expected layers by name, such as"), (SCORE, "net: expected layers by name, such as"),
    ({"fc1": Dense, "fc": SCORE}, "net: fc1 is no layer but <class 'minialex.ops.dense.Dense'>: expected one such as"),
    ({"fc": 10}, "net: fc is no layer but 10"),
    ({"pool": MaxPool(14)}, "net: no layer has parameters, so that there is nothing to train: use a Conv or a Dense"),
    ({"conv1": Conv(8, 15), "fc": SCORE}, "net at 14x14: conv1 runs out of pixels (a window of height 15 does not fit into 14 pixels with padding 0+0); use a larger --size"),
    ({"conv1": Conv(8, 3, groups=2), "fc": SCORE}, "net: conv1 does not fit an input of 14 x 14 x 3 (groups: 3 channels cannot be cut into 2 groups)"),
    ({"fc": Dense(8), "conv1": Conv(8, 3)}, "net: conv1 does not fit an input of 8 (a Conv takes images, (height, width, channels): put it before the dense layers)"),
    ({"fc": Dense(8), "pool1": MaxPool(2)}, "net: pool1 does not fit an input of 8 (a MaxPool takes images, (height, width, channels): put it before the dense layers)"),
    ({"conv1": Conv(8, 3, relu=False)}, "net: the last layer, conv1, gives 12 x 12 x 8, and should give one number for each class, (classes,) or (1, 1, classes): end with"),
    ({"fc1": Dense(8), "fc": Dense(3)}, "net: the numbers of the classes come from fc, whose ReLU leaves none below 0: give it relu=False"),
    ({"conv1": Conv(8, 3), "pool": MaxPool(12)}, "net: the numbers of the classes come from conv1, whose ReLU leaves none below 0: give it relu=False"),
    ({"conv1": Conv(8, 3, relu=False), "relu": ReLU(), "pool": MaxPool(12)}, "net: the numbers of the classes come from relu, whose ReLU leaves none below 0: leave it out"),
    ({"fc": SCORE, "relu": ReLU()}, "net: the last layer, relu, is ReLU(), which would change the numbers of the classes: leave it out"),
    ({"fc": SCORE, "drop": Dropout()}, "net: the last layer, drop, is Dropout(), which would change the numbers of the classes: leave it out"),
    *(({name: SCORE}, f"net: {name!r} cannot be a layer's name: expected text without spaces, dots and slashes, such as conv1")
      for name in ("", "fc 8", "fc.8", "fc/8", "fc\\8", "fc\n", 8)),
    ({"input": SCORE}, "net: a layer cannot have the name input, which is that of the pictures: choose another")])
def test_a_net_that_cannot_be_is_refused_in_one_sentence(layers, text):
    with pytest.raises(UserError) as error:
        Net(layers, 14)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -3, 22.4, "22", True, None])
def test_a_size_that_is_none(size):
    with pytest.raises(UserError, match="net: expected a size of 1 pixel or more, got"):
        Net({"fc": SCORE}, size)


@pytest.mark.parametrize("net", [*(build(name, 10) for name in nets.NETS), own()], ids=lambda net: net.name)
def test_a_net_is_described_and_made_again(net):
    described = net.described()
    again = from_description(json.loads(json.dumps(described)), net.size, net.name)
    assert json.loads(json.dumps(described)) == described and again == net and again.described() == described and list(again.layers) == list(net.layers)
    assert all(type(ours) is type(theirs) for ours, theirs in zip(again.layers.values(), net.layers.values()))


@pytest.mark.parametrize("layers, text", [
    ({"fc": {"op": "Linear", "features": 3}}, r"net: fc is described without a known op \('Linear'\): choose one of Conv, Dense, Dropout, LRN, MaxPool, ReLU"),
    ({"fc": {"features": 3}}, r"net: fc is described without a known op \('op'\)"),
    ({"fc": {"op": "Dense", "filters": 3}}, "net: fc is not described as a layer is .*filters"),
    ({"fc": {"op": "Dense", "features": "3"}}, r"net: fc is not described as a layer is \(features: expected a whole number, got '3'\)"),
    ({"fc": 3}, "net: fc is not described as a layer is"), (None, "net: expected layers by name")])
def test_a_damaged_description_names_the_layer(layers, text):
    with pytest.raises(UserError, match=text):
        from_description(layers, 14)


def test_the_summary_is_describes_table(capsys):
    text = repr(build("half", 10).summary())
    assert text.startswith("half, 224x224, 10 classes\nlayer") and "55 x 55 x 48" in text and text.splitlines()[-1].split() == ["total", "14,601,930", "309,164,304"]
    assert len({len(line) for line in text.splitlines()[1:]}) == 1
    describe.main(["half", "--classes", "10", "--threads", "1"])
    assert capsys.readouterr().out.startswith(text + "\n")
    html = Net({"a<b": SCORE}, 8, "<net>").summary()._repr_html_()
    assert "&lt;net&gt;, 8x8, 3 classes" in html and "a&lt;b (Dense)" in html and html.count("<tr>") == html.count("</tr>") == 4
