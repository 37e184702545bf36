"""Images per second of minialex beside PyTorch's: the same net, weights and batch, shown equal before anything is timed.

python benchmarks/compare_to_torch.py [--net paper owt half] [--batch 64] [--rounds 5] [--device auto] [--json FILE] [--plot FILE]

PyTorch at its best: contiguous and channels-last, eager and torch.compile, all threads, foreach SGD, inference_mode; the
fastest of them counts, and is named. All sides alternate within a round, after one round of warm-up; the ratio is the
median over rounds. Dropout is on for timing training and off for the comparison. `ceiling` is the share of the rate that
this machine's own matrix product of 4096^3 reaches (on a CPU, oneDNN's or OpenBLAS's; on a GPU, cuBLAS's).
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sides import STATUS, Ours, Theirs, as_torch, distance, drawn, seconds, step_memory, torch_layers

from minialex import nets
from minialex.command import run_command
from minialex.device import open_device
from minialex.device.compiler import processor
from minialex.errors import UserError
from minialex.ops.dropout import Dropout

STEPS = 3
# Of an array's L2 norm. Float32 rounds sums of up to 10,000 products; then a few ReLUs and maxima fall to the other side, in
# PyTorch's float32 as in ours, which moves the gradients of that batch by up to a percent or so. A lost term, mask or image
# moves them much further. Biases start from zero, so that after a few steps they are as close as gradients are.
TOLERANCE = {"logits": 1e-4, "loss": 1e-5, "gradients": 0.01, "weights": 0.01}


def check_equal(torch, name, device, batch):
    """Logits, loss, every gradient, and the weights after a few steps, without dropout. -> the worst of each; stops if they differ."""
    net = nets.build(name)
    for layer in net.layers.values():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    data = drawn(net, batch)
    ours, host = Ours(net, device, batch, data), device.to_numpy
    first = {key: host(value) for key, value in ours.network.parameters.items()}
    theirs, worst = Theirs(torch, net, first, data, False, device=torch_device(device)), {}

    def far(what, value, truth):
        worst[what] = max(worst.get(what, 0.0), distance(value, truth))

    def each(values, what, pick):
        for (key, value), theirs_ in zip(values.items(), theirs.plain.parameters()):
            value = host(value)
            far(what, as_torch(value, net.inputs[key.split(".")[0]]) if value.ndim > 1 else value, pick(theirs_).detach().cpu().numpy())

    ours.infer()
    theirs.infer()
    far("logits", host(ours.network.arrays[f"activation {list(net.layers)[-1]}"][:batch]), theirs.logits.cpu().numpy())
    for step in range(STEPS):
        ours.train()
        theirs.train()
        far("loss", ours.network.results(batch)[0].mean(dtype=np.float64), float(theirs.loss.detach()))
        if step == 0:
            each(ours.network.gradients, "gradients", lambda parameter: parameter.grad)
    each(ours.network.parameters, "weights", lambda parameter: parameter)
    print(f"{name}: equal to PyTorch's, distance in the L2 norm (allowed): " + ", ".join(f"{k} {v:.0e} ({TOLERANCE[k]:.0e})" for k, v in worst.items()), flush=True)
    wrong = [what for what in worst if not worst[what] <= TOLERANCE[what]]
    if wrong:
        raise UserError(f"{name}: {', '.join(wrong)} not equal to PyTorch's: nothing is timed")
    return worst


def torch_device(device):
    return "cuda" if device.name == "cuda" else "cpu"


def product_rate(device):
    """FLOP per second of a product of 4096^3 on all of the device, best of five."""
    a, b, c = (device.zeros((4096, 4096)) for _ in range(3))
    with device.record() as tape:
        device.gemm(a, b, c)

    def run():
        tape.play()
        device.synchronize()
    run()
    return 2 * 4096**3 / min(seconds(run) for _ in range(5))


def step_flop(net, what):
    """Floating point operations of an image's pass: products only; the first layer has no input gradient."""
    macs = [layer.macs(net.inputs[name]) for name, layer in net.layers.items()]
    return 2 * sum(macs) if what == "infer" else 6 * sum(macs) - 2 * next(m for m in macs if m)


def race(torch, name, device, batch, rounds, compiled):
    """{"train": {...}, "infer": {...}} of a net."""
    rate = product_rate(device)
    net = nets.build(name)
    data, found = drawn(net, batch), {}
    ours = Ours(net, device, batch, data)
    parameters, at = {k: device.to_numpy(v) for k, v in ours.network.parameters.items()}, torch_device(device)
    sides = {"ours": ours, "contiguous": Theirs(torch, net, parameters, data, False, device=at), "channels-last": Theirs(torch, net, parameters, data, True, device=at)}
    if compiled:
        sides |= {f"{side}, compiled": Theirs(torch, net, parameters, data, side == "channels-last", True, device=at) for side in list(sides)[1:]}
    flush = torch.empty(1 << 28, dtype=torch.uint8, device=at) if at == "cuda" else None
    for what in ("train", "infer"):
        times = {}
        for number in range(rounds + 1):
            for side, model in list(sides.items()):
                if flush is not None:
                    flush.zero_()      # both sides start with nothing of theirs in L2
                    torch.cuda.synchronize()
                try:
                    took = model.seconds(what)
                except Exception as error:
                    if "compiled" not in side:
                        raise
                    print(f"{name}: torch.compile does not work here ({str(error).splitlines()[0][:100]})")
                    del sides[side]
                    times.pop(side, None)
                    continue
                if number:
                    times.setdefault(side, []).append(took)
        speed = {side: batch / statistics.median(each) for side, each in times.items()}
        best, eager = (max(which, key=speed.get) for which in (speed.keys() - {"ours"}, ("contiguous", "channels-last")))
        ratios, to_eager = (sorted(theirs / mine for mine, theirs in zip(times["ours"], times[side])) for side in (best, eager))
        found[what] = {"ours": speed["ours"], "torch": speed[best], "ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1], "best": best,
                       "ratio_to_eager": statistics.median(to_eager), "all": speed}
        print(f"{name:9} {what:6} ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), to eager {statistics.median(to_eager):.2f}   "
              f"ours {speed['ours']:.1f} images/s, PyTorch " + ", ".join(f"{side} {rate_:.1f}" for side, rate_ in speed.items() if side != "ours"), flush=True)
    rate = max(rate, product_rate(device))
    for what in ("train", "infer"):
        found[what]["ceiling"] = found[what]["ours"] * step_flop(net, what) / rate
    print(f"{name:9} of the ceiling, {rate / 1e9:.0f} GFLOP/s of a product of 4096^3: training {100 * found['train']['ceiling']:.0f} %, "
          f"inference {100 * found['infer']['ceiling']:.0f} %", flush=True)
    found["product_gflops"] = rate / 1e9
    found["layers"] = layers(torch, net, ours, parameters, data, at, "channels-last" in found["train"]["best"])
    return found


def layers(torch, net, ours, parameters, data, at, channels_last):
    """Each layer's forward and backward pass: [{"layer", "pass", "ours_ms", "gflops", "share", "torch_ms"}]; ms of all cores together."""
    batch, rows = len(data[0]), []
    rounds = [ours.network.tapes["train", batch].play_timed() for _ in range(3)]
    own = {place: 1e3 * statistics.median(took[place] for took in rounds) for place in rounds[0]}
    theirs = torch_times(torch, net, parameters, data, at, channels_last)
    total = sum(own.values())
    for way in ("forward", "backward"):
        for i, (name, layer) in enumerate(net.layers.items()):
            flop = 2 * batch * layer.macs(net.inputs[name]) * (1 if way == "forward" or not i else 2)
            mine = own.get(f"{name} {way}")
            rows.append({"layer": name, "pass": way, "ours_ms": mine, "gflops": flop / mine / 1e6 if mine and flop else None,
                         "share": mine / total if mine else None, "torch_ms": 1e3 * theirs[name, way]})
    rest = {kind: sum(ms for place, ms in own.items() if place.endswith(kind)) for kind in ("update", "loss")}
    return rows + [{"layer": kind, "pass": "", "ours_ms": ms, "gflops": None, "share": ms / total, "torch_ms": None} for kind, ms in rest.items() if ms]


def torch_times(torch, net, parameters, data, at, channels_last):
    """{(layer, "forward" or "backward"): seconds}, each layer by itself, median of three."""
    side = Theirs(torch, net, parameters, data, channels_last, device=at)
    x, found = side.x, {}
    for i, (name, module) in enumerate(torch_layers(torch, net, parameters).items()):
        module = module.to(at, memory_format=torch.channels_last) if channels_last else module.to(at)
        forward, backward = [], []
        for _ in range(4):
            given = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(i > 0)
            began = time.perf_counter()
            y = module(given)
            side.wait()
            forward.append(time.perf_counter() - began)
            dy = torch.ones_like(y)
            began = time.perf_counter()
            if y.requires_grad:
                y.backward(dy)
            side.wait()
            backward.append(time.perf_counter() - began)
        found[name, "forward"], found[name, "backward"] = statistics.median(forward[1:]), statistics.median(backward[1:])
        x = y.detach()
    return found


def memory(name, batch, threads):
    found = {}
    for side in ("ours", "contiguous", "channels-last"):
        done = subprocess.run([sys.executable, __file__, "--peak", side, "--net", name, "--batch", str(batch), "--threads", str(threads)],
                              capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"measuring the memory of {side} failed: {done.stderr.strip().splitlines()[-1]}")
        found[side] = json.loads(done.stdout)
    print(f"{name:9} peak memory of a step of {batch} images, less the imports' (raw): " + ", ".join(
        f"{'PyTorch ' * (side != 'ours')}{side} {m['step']:,.0f} MB ({m['peak']:,.0f})" for side, m in found.items()), flush=True)
    return {"batch": batch, **found}


def print_layers(name, rows):
    print(f"\n{name}: layer by layer, ms of a training step\n{'layer':8} {'pass':9} {'ours':>8} {'GFLOP/s':>8} {'share':>6} {'PyTorch':>8}")
    for row in rows:
        cells = [f"{value:{form}}" if value is not None else "" for value, form in ((row["ours_ms"], ".1f"), (row["gflops"], ".0f"), (row["share"], ".1%"), (row["torch_ms"], ".1f"))]
        print(f"{row['layer']:8} {row['pass']:9} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6} {cells[3]:>8}")
    print(flush=True)


def plot(found, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    labels = [(name, what) for name in found["nets"] for what in ("train", "infer")]
    figure, axes = pyplot.subplots(figsize=(8.5, 1.2 + 0.6 * len(labels)), layout="constrained")
    for at, (name, what) in enumerate(labels[::-1]):
        own = found["nets"][name][what]
        axes.barh(at + 0.19, own["ours"], 0.36, color="C0", label="minialex" if not at else None)
        axes.barh(at - 0.19, own["torch"], 0.36, color="C7", label=f"PyTorch {found['machine']['torch']}, its fastest way" if not at else None)
        axes.text(max(own["ours"], own["torch"]), at, f"  {own['ratio']:.2f}", va="center", weight="bold")
    axes.set_yticks(range(len(labels)), [f"{name}, {dict(train='training', infer='inference')[what]}" for name, what in labels[::-1]])
    axes.set_xlabel(f"images per second, batch {found['machine']['batch']}, {found['machine']['threads']} threads of {found['machine']['processor']}; bold: ratio")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=list(nets.NETS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--memory-batch", type=int, default=128, help="images of the step whose memory is measured (cpu); 0: none")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--peak", choices=["ours", "contiguous", "channels-last"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min(args.batch, args.rounds) < 1:
        raise UserError("--batch and --rounds: expected at least 1")
    if args.peak:
        print(json.dumps(step_memory(args.peak, args.net[0], None, args.batch, args.threads, training=True)))
        return 0
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch is not installed: pip install torch==2.13.0") from None
    warnings.filterwarnings("ignore")
    device, _ = open_device(args.device, args.threads, announce=print)
    if device.name == "cuda" and not torch.cuda.is_available():
        raise UserError("this PyTorch has no CUDA: install its CUDA build, or use --device cpu")
    torch.set_num_threads(device.threads if device.name == "cpu" else torch.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False      # as cuBLAS is used here
    model = re.search(r"model name\s*: (.*)", processor())
    machine = {"processor": device.model if device.name == "cuda" else model[1].strip() if model else platform.machine(), "device": str(device), "threads": device.threads,
               "torch": torch.__version__.split("+")[0], "batch": args.batch, "rounds": args.rounds,
               "vectors": "AVX-512" if "avx512f" in processor() else "AVX2" if "avx2" in processor() else "other"}
    print(f"PyTorch {torch.__version__} and minialex on {device.name}: {machine['device']}; {machine['processor']}, {machine['vectors']}; batch {args.batch}, "
          f"{args.rounds} rounds", flush=True)
    found = {"machine": machine, "nets": {}}
    for name in args.net:
        worst = check_equal(torch, name, device, args.batch)
        own = found["nets"][name] = {"equal": worst, **race(torch, name, device, args.batch, args.rounds, not args.no_compile)}
        print_layers(name, own["layers"])
        if device.name == "cpu" and args.memory_batch and STATUS.exists():
            own["memory"] = memory(name, args.memory_batch, device.threads)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    run_command(main)
