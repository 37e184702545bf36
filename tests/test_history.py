"""docs/alexnet.md and docs/scaling.md: what they say of nets, sizes, bytes and options that can be counted here."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minialex.nets import Net, build
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.pool import MaxPool
from minialex.ops.window import Window
from minialex.train import parse

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.insert(0, str(DOCS.parent / "benchmarks"))
import parallel  # noqa: E402

PAGE = (DOCS / "alexnet.md").read_text()


def test_lenet_5():
    """C3 sees 3, 4 or all 6 maps (table I of the paper of 1998); a map of a subsampling layer has a factor and a bias."""
    seen = 6 * [3] + 9 * [4] + [6]
    layers = [6 * 26, 6 * 2, sum(25 * maps + 1 for maps in seen), 16 * 2, 120 * (16 * 25 + 1), 84 * 121]
    macs = 28**2 * 6 * 25 + 10**2 * 25 * sum(seen) + 120 * 400 + 84 * 120
    assert f"| {sum(layers):,} | {macs:,} in convolutions and dense layers |" in PAGE


def vgg16():
    layers, conv = {}, 0
    for stage, (count, filters) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for _ in range(count):
            conv += 1
            layers[f"conv{conv}"] = Conv(filters, 3, pad=1)
        layers[f"pool{stage}"] = MaxPool(2)
    return Net(layers | {"fc6": Dense(4096), "fc7": Dense(4096), "fc8": Dense(1000, relu=False)}, 224, "vgg16")


def test_vgg_16():
    net = vgg16()
    assert f"| {net.count():,} | {net.macs() / 1e9:.2f} G |" in PAGE


def test_alexnet():
    net = build("paper")
    convolutions = sum(layer.filters + layer.filters * layer.fan_in(net.inputs[name]) for name, layer in net.layers.items() if isinstance(layer, Conv))
    macs = sum(layer.macs(net.inputs[name]) for name, layer in net.layers.items() if isinstance(layer, Conv))
    assert f"| {net.count():,} | {net.macs() / 1e9:.3f} G |" in PAGE
    assert f"convolutions have {convolutions:,}\nparameters and {macs / net.macs():.0%}".replace("%", " %") in PAGE
    assert f"dense layers {net.count() - convolutions:,} and {1 - macs / net.macs():.0%}".replace("%", " %") in PAGE
    assert f"where {1 - convolutions / net.count():.0%} of\nAlexNet's".replace("%", " %", 1) in PAGE or f"{1 - convolutions / net.count():.0%}".replace("%", " % of") in PAGE
    assert f"take {12 * net.count() / 1e9:.2f} GB" in PAGE      # with gradients and velocities
    alone = Net({name: replace(layer, groups=1) if isinstance(layer, Conv) else layer for name, layer in net.layers.items()}, 227, "alone")
    assert f"{alone.macs() / 1e9:.3f} G and {alone.count():,} parameters" in PAGE


ROWS = re.findall(r"^\| ([^|]+) \| (\d+), (\d), (\d) \| (\d+) / 4 = ([\d.]+) \| (\d+)", PAGE, re.MULTILINE)


@pytest.mark.parametrize("what, side, before, behind, length, places, outputs", ROWS, ids=[row[0].split(",")[0] for row in ROWS])
def test_the_size_of_an_output(what, side, before, behind, length, places, outputs):
    pads = int(before), int(behind)
    assert int(side) + sum(pads) - 11 == int(length) and int(length) / 4 == float(places)
    assert Window.of(11, 4, (pads, pads), False).output(int(side), int(side)) == (int(outputs), int(outputs))


def test_rounded_up_the_last_window_hangs_over():
    assert len(ROWS) == 4 and "rounded up 54 | 55; the last window hangs over by three pixels" in PAGE
    assert -(-213 // 4) + 1 == 55 and 54 * 4 + 11 - 224 == 3
    for net, sides in (("paper", (55, 27, 13, 6)), ("owt", (55, 27, 13, 6)), ("half", (55, 27, 13, 6))):
        own = build(net)
        assert tuple(own.outputs[name][0] for name in ("conv1", "pool1", "pool2", "pool5")) == sides


def test_the_options_it_names_are_there(capsys):
    table = PAGE.split("## What each of them is")[1].split("## Why two")[0]
    with pytest.raises(SystemExit):
        parse(["--help"])
    known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    assert (named := set(re.findall(r"`(--[a-z0-9-]+)", table))) <= known and len(named) > 10
    for option, values in (("--net", "paper caffenet owt half"), ("--form", "2012 torch"), ("--init", "published 2012-code"), ("--optimizer", "adam"),
                           ("--schedule", "plateau multistep:25:51:79 step:30 constant"), ("--augment", "pca=eigenvalue pca=std")):
        for value in values.split():
            assert f"`{option} {value}`" in table or f"`{value}`" in table
            parse([option, value])


def test_the_page_of_several_devices_is_what_the_command_writes():
    """Its sums by hand: 244 MB of gradients, 143,264 bytes around the dense layers, 86,528 before conv3."""
    text = "\n".join(parallel.tables(70.0))
    page = (DOCS / "scaling.md").read_text()
    assert page.split(parallel.BEGIN)[1].split(parallel.END)[0].strip() == text
    convolutions, dense, towers, around = parallel.net_bytes()
    assert (convolutions + dense, dense, around) == (4 * 60_965_224, 4 * 58_631_144, 143_264)
    assert towers[0] == 13 * 13 * 128 * 4 + 6 * 6 * 128 * 4 + 2 * 2048 * 4 + 500 * 4 and towers[1] == towers[0] - 2000
    assert parallel.ring(8.0, 4, 2.0, 0.0) == 2 * 3 / 4 * 8 / 2 and parallel.ring(8.0, 1, 2.0, 1.0) == 0
