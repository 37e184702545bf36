"""The predicted step: bytes against traced execution, sectors at AlexNet's shapes, the products of a step, and the page in docs/."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from simt.device import why_not
from simt.trace import Trace

from minialex.device.kernel import declarations, sources
from minialex.nets import Net, build
from minialex.ops.columns import columns
from minialex.ops.conv import Conv
from minialex.ops.im2col import Im2col, cut_evenly
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU
from minialex.ops.softmax import softmax_rows
from minialex.ops.winograd import winograd_filter_gradient
from minialex.optim import adam, average, clip_factor, scale_gradient, squares

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import kernel_report as report  # noqa: E402

NAMES = ["paper", "owt", "half"]
traced_only = pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}")


@pytest.fixture(scope="module")
def traced():
    """{net: its traced step}, each traced when it is asked for: ten seconds."""
    class Traced(dict):
        def __missing__(self, name):
            self[name] = report.trace(name)
            return self[name]
    return Traced()


@pytest.fixture(scope="module")
def planned():
    """{(net, convolution): a step on each chip}"""
    return {(name, conv): [report.plan(name, 128, chip, conv=conv) for chip in report.CHIPS] for name in NAMES for conv in report.CONVOLUTIONS}


@traced_only
def test_the_bytes_that_a_launch_needs_are_those_that_it_touches(monkeypatch):
    """Windows that leave pixels out and padding are counted, but for elements that become zero whatever they are: those are not looked at."""
    layers = {"conv1": Conv(16, 5, stride=2, pad=(1, 2)), "blocks": Conv(16, 6, stride=2, pad=2, algorithm="winograd"), "norm1": LRN(), "pool1": MaxPool(2, 3), "conv2": Conv(24, (3, 2), pad=1, groups=2),
              "tiles3": Conv(70, 3, pad=((2, 0), (1, 1)), groups=2, algorithm="winograd"), "tiles5": Conv(24, 5, pad=2, algorithm="winograd"),
              "conv3": Conv(16, 2, stride=3, relu=False), "relu3": ReLU(), "pool3": MaxPool(2, 1, pad=1), "fc": Dense(300), "drop": Dropout(0.5),
              "last": Dense(7, relu=False)}
    monkeypatch.setattr(report.nets, "build", lambda name: Net(layers, 67, name))
    trace, seen = Trace(), set()

    def compare(launch):
        kernel, arguments = launch.call
        trace.launch(kernel, launch.rows, *arguments)
        touched = trace.last.distinct_bytes_read + trace.last.distinct_bytes_written
        if kernel.name in ("dropout_in_place", "relu_backward_in_place"):
            assert 0.6 * launch.bytes < touched < launch.bytes
        else:
            assert touched == launch.bytes, (launch.place, launch.name)
        seen.add(kernel.name)
    for launch in report.plan("small", 3, report.CHIPS[-1]):
        if launch.call:
            compare(launch)
    device = report.Plan(report.CHIPS[0])
    compare(device.bind(softmax_rows, 5, (device.zeros((5, 77)), device.zeros((5, 77)), 77)))
    compare(device.bind(adam, 2, (*(device.zeros((300,)) for _ in range(4)), 300, device.zeros((2,), np.float64), 0.1, 0.001, 1e-7)))
    compare(device.bind(average, 2, (*(device.zeros((300,)) for _ in range(2)), 300, np.array([5.0, 0.0]), 0.9)))
    compare(device.bind(squares, 3, (device.zeros((9000,)), device.zeros((3,)), 9000)))
    compare(device.bind(clip_factor, 1, (device.zeros((70,)), device.zeros((2,)), 70, 1.0)))
    compare(device.bind(winograd_filter_gradient, 5 * 3, (device.zeros((36 * 5 * 70,)), device.zeros((3, 3, 5, 70)), 4, 3, 1, 70, 5 * 70, 0, 1)))
    compare(device.bind(columns, 7, (device.zeros((7, 40)), device.zeros((7, 24)), 40, 8, 24, 4, 16, 1)))
    compare(device.bind(scale_gradient, 2, (device.zeros((300,)), device.zeros((2,)), 300)))
    assert seen == set(report.NEEDED) == {name for file in sources().glob("*.cu") for name in declarations(file)}


@traced_only
@pytest.mark.parametrize("name", ["half", *(pytest.param(name, marks=pytest.mark.slow) for name in ("paper", "owt"))])
def test_what_moves_many_bytes_uses_its_sectors(traced, planned, name):
    """Of kernels and places with over 1 % of the kernels' bytes. The lines of bytes that augment reads and the runs of 12 floats
    that winograd_blocks reads start anywhere; the page has their cost."""
    again = report.plan(name, 128, report.CHIPS[-1], spare=0)      # columns made again, too
    every = [report.pairs(of) for of in (*(of for conv in report.CONVOLUTIONS for of in planned[name, conv]), again)]
    assert {at for of in every for at in of} == set(traced[name])
    for of in every:
        whole, judged = sum(launch.bytes for own in of.values() for launch in own), 0
        for at, own in of.items():
            if sum(launch.bytes for launch in own) > 0.01 * whole:
                judged += 1
                assert traced[name][at][0].distinct_efficiency >= 0.90, at
                assert traced[name][at][0].instruction_efficiency >= 0.85 or at[1] in ("augment", "winograd_blocks"), at
            assert own[0].rows >= report.MANY_WARPS or at[1] in report.FEW, f"{at}: few warps, and no reason"
        assert judged > 15


@traced_only
def test_a_chain_scaled_to_the_batch_is_that_of_the_batch(traced):
    """bias_backward's lanes go through a slice for each 32 of its channels, sum_partials' through every 32nd slice."""
    trace = Trace()
    for launch in report.plan("half", 48, report.CHIPS[-1]):
        if launch.place == "conv5 backward" and launch.name in ("bias_backward", "sum_partials"):
            kernel, arguments = launch.call
            trace.rows_at_most = 8
            trace.launch(kernel, launch.rows, *arguments)
            assert trace.last.chain == pytest.approx(report.chain(launch, traced["half"]), rel=0.1)


def test_a_plan_has_the_products_of_a_step():
    net, launches, products = build("half"), report.plan("half", 8, report.CHIPS[0]), 0
    for name, layer in net.layers.items():
        flop = 2 * 8 * layer.macs(net.inputs[name])
        own = [[launch for launch in launches if launch.place == f"{name} {way}" and launch.name == "gemm"] for way in ("forward", "backward")]
        assert [sum(launch.flop for launch in of) for of in own] == [flop, flop * (1 if name == "conv1" else 2)]
        if isinstance(layer, Dense):
            assert [len(of) for of in own] == [1, 2] and not any(launch.columns for of in own for launch in of)
        elif isinstance(layer, Conv):      # 8 images fit at once: forward; a weight gradient in slices (of each group), and of the pixels left over; dx
            pixels, way = 8 * np.prod(net.outputs[name][:2]), Im2col(layer, net.inputs[name])
            slices, sliced = cut_evenly(pixels, way.slices(report.Plan(report.CHIPS[0])))
            weight = (layer.groups if slices > 1 else 0) + (sliced < pixels or slices == 1)
            assert [len(of) for of in own] == [1, weight + (name != "conv1")] and all(launch.columns for of in own for launch in of)
        products += sum(map(len, own))
    assert products == sum(launch.name == "gemm" for launch in launches)


def test_fewer_bytes_and_faster_products_never_take_longer(planned):
    launch = max((launch for launch in planned["half", "im2col"][0] if launch.name == "gemm"), key=lambda launch: launch.flop)
    chip, base = report.CHIPS[0], report.seconds(launch, report.CHIPS[0], {})
    assert base >= launch.flop / chip.fp32 and base >= launch.bytes / chip.bandwidth
    for how in ("fused", "tf32", "half", "cached"):
        assert report.seconds(launch, chip, {}, **{how: True}) <= base


def test_clocks_are_those_of_the_peaks():
    """2 FLOP a clock for each of 64 and 128 units of a multiprocessor."""
    for chip, units in zip(report.CHIPS, (64, 128)):
        assert chip.fp32 == pytest.approx(2 * units * chip.processors * chip.clock, rel=0.01)


@traced_only
def test_what_binds_a_kernel_is_what_takes_longest(traced, planned, monkeypatch):
    """A copy of many bytes is bound by them; 100 times the instructions would bind it, and a step of few rows is bound by its loads."""
    chip = report.CHIPS[0]
    launch = next(launch for launch in planned["half", "im2col"][0] if launch.name == "im2col" and launch.place == "conv3 forward")
    few = traced["half"][report.key(launch)][1]
    for executed, expected in ((500, "bytes"), (50_000, "instructions")):
        monkeypatch.setattr(few, "executed", executed)
        assert report.binds(launch, chip, traced["half"]) == expected
        time = launch.rows * executed / (108 * 4 * 1.41e9 * 0.85)
        assert report.terms(launch, chip, traced["half"])["instructions"] == pytest.approx(time)
    assert report.seconds(launch, chip, traced["half"]) == pytest.approx(time)
    loss = next(launch for launch in planned["half", "im2col"][0] if launch.name == "cross_entropy_rows")
    monkeypatch.setattr(traced["half"][report.key(loss)][1], "executed", 100)
    assert report.binds(loss, chip, traced["half"]) == "loads"


def test_occupancy_is_that_of_nvidias_calculator():
    a100, h100 = report.CHIPS
    assert [report.occupancy({"registers": r, "shared": s}, a100) for r, s in ((32, 0), (33, 0), (40, 0), (48, 0), (64, 0), (32, 16384))] == [64, 48, 48, 40, 32, 36]
    assert report.occupancy({"registers": 32, "shared": 16384}, h100) == 52


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_what_the_report_writes(planned, name):
    """Its launches and bytes; times and registers depend on compilers."""
    page = (ROOT / "docs" / "kernels.md").read_text()
    for conv, called in report.CONVOLUTIONS.items():
        part = page[page.index(f"### {name}, {called} by kernel, predicted"):page.index(f"### {name}, {called} by place, predicted")]
        rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in part.splitlines() if line.startswith("| ")][1:-1]
        assert rows == report.by_kernel(planned[name, conv])
        for chip, launches in zip(report.CHIPS, planned[name, conv]):
            times = json.loads((ROOT / "docs" / "kernels.json").read_text())[name][conv][chip.name]
            assert list(times) == list(dict.fromkeys(f"{launch.place} {launch.name}" for launch in launches))
            written = re.search(rf"## {name}, predicted.*?\| {chip.name} \| {called} \| ([\d.]+) \| {len(launches)} \|", page, re.DOTALL)
            assert float(written[1]) == pytest.approx(sum(times.values()), abs=0.0501)      # to a tenth, of what is rounded to 10 ns there
    assert all("predicted" in line.lower() for line in page.splitlines() if line.startswith("#") and "how" not in line)
    assert "no reason known" not in page and (ROOT / "docs" / "kernels.png").stat().st_size > 10_000
    assert np.all([f"\n| {kernel} |" in page for file in sources().glob("*.cu") for kernel in declarations(file)])
