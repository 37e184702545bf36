"""python -m minialex.selftest: are this machine's results right, and how fast is it? The first thing to run on a GPU.

Each kernel against its numpy reference, a training step against the same step elsewhere, memory-bound kernels beside a copy
of as many bytes, the layers' matrix products, and whole training steps. A check that fails does not stop the others. On a GPU, where
after an illegal address every later call of a process fails, each group of checks has a process of its own. The last lines are made
for a bug report.
"""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from . import functional, nets
from .command import parser_of, run_command, say
from .data.augment import Input
from .device import open_device
from .device.base import Tape
from .device.compiler import processor
from .errors import UserError
from .gradcheck import CASES, GradientError, check_op, compare, to_host
from .nets import by
from .network import Network
from .ops.augment import FILLS, augment
from .ops.bias import add_bias, bias_gradient
from .ops.add import BLOCK, add_parts
from .ops.conv import Conv
from .ops.dense import Dense, cuts
from .ops.im2col import Im2col, col2im
from .ops.layer import Site, device_of
from .ops.pool import MaxPool, max_pool
from .ops.softmax import cross_entropy_rows
from .optim import SGD

MARKS = "---------- for a bug report, from here ----------", "---------- to here ----------"
SMALL = 67      # pixels: the smallest input that the paper's net takes
# What a training step leaves, and its allowed distance in the L2 norm. In float32 a ReLU or a maximum may fall to the other
# side, which moves a batch's gradients by a percent or so.
STEP = {"loss": 1e-4, "gradients": 0.05, "velocity": 0.05, "parameters": 1e-4}
# Besides gradcheck's own: channels that fill no sector or warp, groups that do, a staged strip, rows of more than one block.
SHAPES = [
    *CASES,
    ("conv2d", {"x": (1, 21, 33, 3), "w": (7, 5, 3, 9), "b": (9,)}, {"stride": 4}),
    ("conv2d", {"x": (3, 7, 5, 32), "w": (3, 3, 16, 10), "b": (10,)}, {"pad": 1, "groups": 2}),
    ("conv2d", {"x": (3, 7, 5, 32), "w": (3, 3, 16, 10), "b": (10,)}, {"pad": 1, "groups": 2, "algorithm": "winograd"}),
    ("conv2d", {"x": (2, 9, 10, 33), "w": (5, 5, 33, 31), "b": (31,)}, {"pad": 2, "algorithm": "winograd"}),
    ("max_pool2d", {"x": (3, 9, 13, 33)}, {"size": 3, "stride": 2, "ceil": True}),
    ("relu", {"x": (7, 333)}, {}), ("local_response_norm", {"x": (5, 97)}, {}), ("dropout", {"x": (5, 777)}, {}),
    ("dense", {"x": (17, 131), "w": (131, 67), "b": (67,)}, {}), ("softmax_cross_entropy", {"x": (5, 1001), "label": (5,)}, {}),
    ("transpose", {"x": (65, 101)}, {}),
]
MEMORY_BOUND = [("im2col", "conv1"), ("im2col", "conv2"), ("col2im", "conv1"), ("col2im", "conv2"), ("max_pool", "pool1"),
                ("max_pool_backward", "pool1"), ("lrn", "norm1"), ("lrn_backward", "norm1"), ("bias_relu", "conv1"),
                ("bias_backward", "conv1"), ("dropout", "drop6"), ("sgd", "fc7"), ("augment", "conv1")]
LIMIT = 120     # seconds: on a GPU a kernel may never end
NOISE = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)


# ---------------------------------------------------------------- the machine

def cuda_versions(cupy):
    """All that this file asks of CuPy, besides the copy in `roof`."""
    runtime, driver = cupy.cuda.runtime.runtimeGetVersion(), cupy.cuda.runtime.driverGetVersion()
    return (f"CuPy {cupy.__version__}, CUDA runtime {runtime // 1000}.{runtime % 1000 // 10}, "
            f"driver up to CUDA {driver // 1000}.{driver % 1000 // 10}")


def machine(device, reason):
    """What this runs on, as lines of text."""
    try:
        version = importlib.metadata.version("minialex")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    model = re.search(r"model name\s*: (.*)", processor())
    return [f"device {device.name}: {device} ({reason})", *([cuda_versions(device.cupy)] if device.name == "cuda" else []),
            f"minialex {version}, Python {platform.python_version()}, numpy {np.__version__}, {platform.platform()}",
            f"processor {model[1] if model else platform.machine()}, {os.cpu_count()} cores"]


# ---------------------------------------------------------------- results

def check_ties(op, device):
    """The ties of one op at all its shapes; the derivative's, which does not concern the device, in a few directions only."""
    cases = [case for case in SHAPES if case[0] == op]
    for case in cases:
        check_op(*case, device=device, directions=2)
    return f"forward and backward equal the reference at {len(cases)} shapes"


def other_kernels():
    """{kernel: function of a device that gives its results}, for those that no op of gradcheck reaches, or not alone."""
    random = np.random.default_rng(1)
    x, colours, logits = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 7, 5, 6), (2, 21, 33, 3), (5, 333)))
    w, v, g = random.standard_normal((3, 2049)).astype(np.float32)
    one, other = dict(size=(3, 2), stride=(2, 1), pad=1, groups=2), dict(size=5, stride=4, pad=((1, 2), (0, 1)))
    columns = functional.im2col(x, **one, device="numpy").astype(np.float32)
    images, mean = random.integers(0, 256, (3, 13, 13, 3), np.uint8), random.uniform(0, 255, (13, 13, 3)).astype(np.float32)
    views = [Input(13, 9).with_text(text).draw(0, 0, range(3)) for text in ("", "rotation=40,shift=0.3,zoom=0.2,flip=hv,saturation=0.5")]
    label = random.integers(0, 333, 5).astype(np.int32)
    pool, pooled = MaxPool(3, 2, 1), np.zeros((2, 4, 3, 6))
    return {
        "im2col": lambda d: (functional.im2col(x, **one, device=d), functional.im2col(colours, **other, device=d)),
        "col2im": lambda d: (functional.col2im(columns, x.shape, **one, device=d),),
        "augment": lambda d: [functional.augment_images(images, view, 9, fill=fill, mean=m, device=d)
                              for view in views for fill in FILLS for m in (None, mean)],
        "average": lambda d: (functional.average_update(w, v, step=3, decay=0.9, device=d),),
        "adam": lambda d: functional.adam_update(w, v, np.abs(g), g, step=3, lr=0.1, device=d),
        "clip_gradients": lambda d: [a for limit in (1.0, 1e3) for a in functional.clip_gradients([w, v[:31], x], limit, device=d)[0]],
        "sgd": lambda d: [a for form in ("2012", "torch")
                          for a in functional.sgd_update(w, v, g, lr=0.1, weight_decay=0.01, form=form, device=d)],
        "softmax": lambda d: (functional.softmax(logits, device=d),),
        "loss, ranks and totals": lambda d: launched(d, cross_entropy_rows, 5, logits, label, np.abs(w[:333]), *np.zeros((2, 5)), np.ones((3, 8)), logits, 333, 8, 1,
                                                     0.2, 0.1),
        "max-pool with bias and ReLU": lambda d: launched(d, max_pool, 24, x, pooled, pooled.astype(np.uint8), w[:6] - 0.5, *x.shape[1:], *pool.window.arguments(7, 5), 1, 1),
        "add_parts": lambda d: launched(d, add_parts, -(-683 // BLOCK), w.reshape(3, 683), v[:683], 683, 3, 1),
    }


def launched(device, kernel, rows, *arguments):
    """The arrays that one launch of a kernel writes, on copies of these arguments."""
    device, declared = device_of(device), kernel.arguments[1:]
    given = [device.array(a, np.float64 if d.dtype == np.float64 else None) if d.pointer else a
             for d, a in zip(declared, arguments)]
    device.launch(kernel, rows, *given)
    return [device.to_numpy(a) for d, a in zip(declared, given) if d.written]


def check_kernel(name, results, device):
    for i, (value, truth) in enumerate(zip(results(device), results("numpy"))):
        compare("forward", f"{name} result {i} ", to_host(value), truth, reproduce=again(device))
    return "equals the reference"


def again(device):
    return f"python -m minialex.selftest --device {device.name}"


def check_step(net, n, device):
    """A training step of n images against the same step on cpu; on cpu, or without a C++ compiler, by the references."""
    try:
        other = open_device("numpy" if device.name == "cpu" else "cpu", announce=say)[0]
    except UserError:
        other = open_device("numpy")[0]
    random, side = np.random.default_rng(2), net.size + 3
    images, labels = random.integers(0, 256, (n, side, side, 3), np.uint8), random.integers(0, net.classes, n)
    way = Input(side, net.size)
    views = way.draw(0, 0, range(n))
    after, worst = [], dict.fromkeys(STEP, 0.0)
    for place in (device, other):
        own = Network(net, place, n, input=way)
        own.train_step(images, labels, views, 0, 0.01)
        arrays = {(kind, name): array for kind in STEP if kind != "loss" for name, array in getattr(own, kind).items()}
        after.append({("loss", "images"): own.results(n)[0], **{key: place.to_numpy(array) for key, array in arrays.items()}})
    for (kind, name), truth in after[1].items():
        far = np.linalg.norm(after[0][kind, name] - truth) / max(1e-30, np.linalg.norm(truth))
        worst[kind] = max(worst[kind], far)
        if not far <= STEP[kind]:
            compare(f"{kind} {far:.1g} from {other.name}'s, {STEP[kind]:g} allowed", name, after[0][kind, name], truth,
                    tolerance=0.0, reproduce=again(device))
            raise GradientError(f"{kind}: {name} is not finite, here and on {other.name}")
    return f"{n} images at {net.size} px, distance from {other.name} (allowed): " + ", ".join(
        f"{kind} {worst[kind]:.0e} ({STEP[kind]:g})" for kind in STEP)


# ---------------------------------------------------------------- speed

def seconds(device, recorded, rounds, least):
    """Median seconds of one launch: `recorded(n)` gives a tape of n, and a round plays one that takes at least `least`."""
    def played(tape):
        device.synchronize()
        began = time.perf_counter()
        tape.play()
        device.synchronize()
        return time.perf_counter() - began

    tape = recorded(1)
    played(tape)               # compiles, and touches the memory
    launches = max(1, min(200, math.ceil(least / played(tape))))
    tape = recorded(launches)
    return statistics.median(played(tape) for _ in range(rounds)) / launches


def recorder(device, launch):
    def recorded(launches):
        with device.record() as tape:
            for _ in range(launches):
                launch()
        return tape
    return recorded


def roof(device, moved, **timing):
    """Bytes per second of a copy that reads and writes `moved` bytes together, on the GPU or by all threads of the CPU."""
    source, target = (device.zeros((moved // 2,), np.uint8) for _ in range(2))
    with ThreadPoolExecutor(device.threads) as pool:
        def copy():
            if device.name == "cuda":
                target.data.copy_from_device_async(source.data, source.nbytes, device.cupy.cuda.get_current_stream())
            else:
                list(pool.map(np.copyto, np.array_split(target, device.threads), np.array_split(source, device.threads)))

        def recorded(copies):
            tape = Tape(device)
            tape.calls = [copy] * copies
            return tape
        return moved / seconds(device, recorded, **timing)


def noise(device, *shape):
    return device.array(np.resize(NOISE, shape))


def memory_bound(device, net, n, kernel, name):
    """A kernel on n images at a layer of the net. -> (launch, bytes that it must read and write, shape)"""
    layer, shape, out = net.layers[name], net.inputs[name], net.outputs[name]
    weights = {part: noise(device, *size) for part, size in layer.parameters(shape).items()}
    at = Site(x=noise(device, n, *shape), y=noise(device, n, *out), dy=noise(device, n, *out), dx=noise(device, n, *shape),
              parameters=weights, gradients={part: noise(device, *w.shape) for part, w in weights.items()},
              kept={key: device.zeros((n, *size), dtype) for key, (size, dtype) in layer.kept(shape).items()},
              columns=noise(device, max(layer.partials(shape, n), n * Im2col(layer, shape).image if isinstance(layer, Conv) else 0)),
              now=device.array(np.array([0.0, 0.01]), np.float64))
    if kernel in ("im2col", "col2im"):
        way = Im2col(layer, shape)
        rows, used = n * math.prod(shape[:2]) * layer.groups, at.columns.size // way.pitch * way.fan_in
        launch = {"im2col": lambda: way.launch(device, at.x, at.columns),
                  "col2im": lambda: device.launch(col2im, rows, at.columns, at.dx, *way.geometry())}[kernel]
        return launch, 4 * used + at.x.nbytes, shape
    if kernel == "bias_relu":
        return lambda: add_bias(device, at.y, weights["bias"], True), 2 * at.y.nbytes, out
    if kernel == "bias_backward":
        return lambda: bias_gradient(device, at.y, at.dy, at.gradients["bias"], at.columns, True), 3 * at.y.nbytes, out
    if kernel == "sgd":
        w, v, g = weights["weight"], noise(device, *weights["weight"].shape), at.gradients["weight"]
        return lambda: SGD().update(device, name, w, {"velocity": v}, g, at.now), 5 * w.nbytes, w.shape
    if kernel == "augment":
        views = device.array(Input(net.side, net.size).draw(0, 0, range(n)))
        arguments = device.zeros((n, net.side, net.side, 3), np.uint8), views, device.zeros((1,)), at.x, net.side, net.size, 0, 0.0, 0
        return lambda: device.launch(augment, n * net.size, *arguments), at.x.size + at.x.nbytes, shape
    moved = {"max_pool": at.x.nbytes + at.y.nbytes + at.y.size, "max_pool_backward": at.x.nbytes + at.y.nbytes + at.y.size,
             "lrn": 2 * at.x.nbytes, "lrn_backward": 3 * at.x.nbytes, "dropout": 2 * at.x.nbytes}[kernel]
    return lambda: (layer.backward if kernel.endswith("backward") else layer.forward)(device, at), moved, shape


def time_kernel(kernel, name, device, net, n, rows, **timing):
    launch, moved, shape = memory_bound(device, net, n, kernel, name)
    took = seconds(device, recorder(device, launch), **timing)
    speed, copied = moved / took, roof(device, moved, **timing)
    rows.append((f"{kernel}, {name}", f"{n} of " * (kernel != "sgd") + by(shape), f"{moved / 1e6:.1f}", f"{1e6 * took:.0f}",
                 f"{speed / 1e9:.1f}", f"{copied / 1e9:.1f}", f"{speed / copied:.2f}"))
    return f"{speed / 1e9:.1f} GB/s, {speed / copied:.2f} of a copy's {copied / 1e9:.1f} GB/s"


def time_product(name, device, net, batch, rows, **timing):
    """A layer's forward product, with as many images at a time as a training step takes."""
    layer, shape, shares, images, groups, m = net.layers[name], net.inputs[name], 1, batch, 1, batch
    weight, fan_in = noise(device, *layer.parameters(shape)["weight"]), layer.fan_in(shape)
    if isinstance(layer, Conv):
        shares, groups = max(1, min(device.threads, batch // 4)), layer.groups
        images = 1 if device.tile else min(batch // shares, device.images_at_once(math.prod(net.outputs[name])))
        way = Im2col(layer, shape)
        x = noise(device, shares, images * way.image).reshape(shares, groups, -1, way.pitch)
        y, m = noise(device, shares, images, *net.outputs[name]), x.shape[2]

        def launch():
            for share in device.parallel(shares):
                device.gemm(x[share][:, :, :fan_in], way.grouped(weight), way.grouped(y[share]))
    else:
        x, y = noise(device, batch, fan_in), noise(device, batch, layer.features)

        def launch():
            for own in cuts(device, layer.features):
                device.gemm(x, weight[:, own], y[:, own])
    took = seconds(device, recorder(device, launch), **timing)
    speed = 2e-9 * layer.macs(shape) * images * shares / took
    rows.append((name, f"{m} x {fan_in} x {weight.shape[-1] // groups}", f"{groups * shares}", f"{speed:.1f}"))
    return f"{groups * shares} of {rows[-1][1]}: {rows[-1][3]} GFLOP/s"


def time_training(device, net, batch, rounds, least):
    """Whole training steps, on black pictures."""
    way, times = Input(net.size, net.size), []
    network = Network(net, device, batch, input=way)
    data = np.zeros((batch, net.size, net.size, 3), np.uint8), np.zeros(batch, np.int32), way.centre(batch)
    for step in range(rounds + 1):
        began = time.perf_counter()
        network.train_step(*data, step, 0.0)
        device.synchronize()
        times.append(time.perf_counter() - began)
    middle = statistics.median(times[1:])
    return f"{batch / middle:,.1f} images/s at batch {batch} (median of {rounds} steps: {1e3 * middle:.1f} ms)"


# ---------------------------------------------------------------- the command

def reduced(name):
    return nets.build(name, 10, SMALL, fewer=8)


def checks(device, name, batch=None, quick=False):
    """-> {group: {name: check}}, and the two tables that the checks fill. A check gives a line of text, or raises."""
    batch = batch or (4 if quick else 128 if device.name == "cuda" else 32)
    timing = dict(rounds=1, least=0.0) if quick else dict(rounds=7, least=0.01)
    net, paper, small = (reduced(name), reduced("paper"), reduced("paper")) if quick else (
        nets.build(name), nets.build("paper"), nets.build("paper", 10, SMALL))
    tables = [[("kernel", "shape", "MB", "us", "GB/s", "copy GB/s", "of a copy")], [("layer", "product", "at once", "GFLOP/s")]]
    steps = {"a step of the small paper": partial(check_step, small, 8, device)}
    if device.name != "cpu":
        steps[f"a step of {name}"] = partial(check_step, net, 4, device)
    return {
        "ops": {op: partial(check_ties, op, device) for op in dict.fromkeys(case[0] for case in SHAPES)},
        "kernels": {kernel: partial(check_kernel, kernel, results, device) for kernel, results in other_kernels().items()},
        "steps": steps,
        "speed": {f"speed of {kernel}, {at}": partial(time_kernel, kernel, at, device, paper, batch, tables[0], **timing) for kernel, at in MEMORY_BOUND},
        "products": {f"product of {layer}": partial(time_product, layer, device, net, batch, tables[1], **timing)
                     for layer in net.layers if isinstance(net.layers[layer], (Conv, Dense))},
        "training": {f"training of {name}": partial(time_training, device, net, batch, **timing)}}, tables


def outcomes(todo, device):
    """Runs checks one after the other: (check, what it says, whether it failed) of each. One that leaves the device unusable is the last."""
    for check, run in todo.items():
        try:
            yield check, run(), False
        except Exception as error:      # whatever it is, the other checks are worth knowing
            yield check, message(error), True
            try:
                device.synchronize()
            except Exception:
                return


def tell_group(device, group, *asked):
    """What the process of a group does: a line of JSON for each outcome, with the tables as they are then, and one at the end."""
    groups, tables = checks(device, *asked)
    for outcome in outcomes(groups[group], device):
        say(json.dumps({"outcome": outcome, "tables": tables}))
    say(json.dumps({"end": True}))
    return 0


def in_a_process(group, todo, tables, asked, limit):
    """The outcomes of a group of checks that a process of its own runs. If that dies, the check that it was at has failed."""
    left, late, ended, last = list(todo), [], False, ""
    with subprocess.Popen([sys.executable, "-m", "minialex.selftest", *asked, "--group", group], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace") as process:
        timer = threading.Timer(limit, lambda: (late.append(True), process.kill()))
        timer.start()
        try:
            for line in process.stdout:
                told = json.loads(line) if line.startswith('{"') else {}
                if "outcome" in told:
                    left.remove(told["outcome"][0])
                    for table, rows in zip(tables, told["tables"]):
                        table[1:] = map(tuple, rows[1:] or table[1:])
                    yield tuple(told["outcome"])
                elif not (ended := ended or "end" in told) and line.strip():      # after its end a process without its GPU complains
                    last = line.strip()
                    say(last)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if not ended and left:
        how = (f"took more than {limit:g} s (--limit)" if late else f"was ended by {signal.Signals(-code).name}" if code < 0 else
               f"ended with exit code {code}" + f": {last}" * bool(last))
        yield left[0], f"the process of these checks {how}", True


def message(error):
    """The first lines of what went wrong, and where."""
    if isinstance(error, (GradientError, UserError)):
        return str(error)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    return "\n".join([*f"{type(error).__name__}: {error}".splitlines()[:8], f"at {' > '.join(places)}"])


def selftest(device, reason, name, batch=None, quick=False, limit=LIMIT, where=None):
    """Runs all checks on an open device, on cuda in processes that open it by the name of `where`, and prints what a user sees. -> exit code"""
    about, failed, lost = machine(device, reason), {}, []
    say("\n".join(about))
    groups, tables = checks(device, name, batch, quick)
    asked = ["--device", where or device.name, "--net", name, *(["--batch", str(batch)] if batch else []), *(["--quick"] if quick else [])]
    for group, todo in groups.items():
        left = list(todo)
        for check, told, wrong in in_a_process(group, todo, tables, asked, limit) if device.name == "cuda" else outcomes(todo, device):
            left.remove(check)
            if wrong:
                failed[check] = told
            say(f"{'FAILED' if wrong else 'ok':8}{check}: {told}")
        if left:
            lost.append(f"not run {'; '.join(left)}: {check} took their process down")
            say(lost[-1])
    count = sum(map(len, groups.values()))
    verdict = (f"selftest FAILED: {len(failed)} of {count} checks: {'; '.join(failed)}" + "; more were not run" * bool(lost) if failed else
               f"selftest passed: {count} checks on {device.name}")
    say("\n".join([verdict, "", MARKS[0], *about, verdict, *(f"FAILED  {check}: {text}" for check, text in failed.items()), *lost]))
    copy = "through device memory" if device.name == "cuda" else f"by {device.threads} threads of np.copyto"
    say(f"us: median of one launch; copy: {copy}, of as many bytes read and written (a kernel that works in place may beat it)")
    for rows in tables:
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            say("  ".join((str.ljust, str.rjust)[i > 1](cell, widths[i]) for i, cell in enumerate(row)))
    say(("--quick: the speeds mean nothing\n" if quick else "") + MARKS[1])
    return 1 if failed else 0


def main(arguments=None):
    parser = parser_of("selftest", "Check this machine's results and speed.")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--net", default="half", help=f"{', '.join(nets.NETS)} (default: half)")
    parser.add_argument("--batch", type=int, help="images that are timed (default: 128 on cuda, 32 elsewhere)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, each timed once: says nothing about speed")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"on cuda, seconds that each of the six groups of checks may take (default: {LIMIT})")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    nets.build(args.net)      # refuses an unknown one at once
    device, reason = open_device(args.device, announce=say)
    if args.group:
        return tell_group(device, args.group, args.net, args.batch, args.quick)
    return selftest(device, reason, args.net, args.batch, args.quick, args.limit, None if args.device == "auto" else args.device)


if __name__ == "__main__":
    run_command(main)
