"""Images per second of minialex beside PyTorch's and onnxruntime's: the same net, weights and batch, shown equal before anything is timed.

python benchmarks/compare_to_torch.py [--net paper owt half] [--batch 64 ...] [--conv im2col auto] [--rounds 5] [--size PIXELS] [--device auto] [--tf32]
    [--json FILE] [--plot FILE]

Ours takes part once for each algorithm of the convolutions that --conv names, and the last of them is the one whose ratios count. PyTorch at its
best: contiguous and channels-last, eager and torch.compile, all threads, foreach SGD, inference_mode; the fastest of them counts, and is named.
On a GPU PyTorch also has fused SGD, cudnn.benchmark and compiled CUDA graphs, and there are two figures: of pictures that lie on the GPU already, and
from the pixels of pictures on the host. On a CPU onnxruntime joins in inference, with as many threads, where it is installed. All sides alternate
within a round, after one round of warm-up, each with one step, or the median of as many as take 0.2 s; the ratio is the median over rounds. Dropout
is on for timing training and off for the comparison.

`ceiling` is a share of the rate that this machine's own matrix product of 4096^3 reaches (on a CPU, oneDNN's or OpenBLAS's; on a GPU, cuBLAS's):
of the multiplications and additions that the direct convolution takes, so many are got through per second. Winograd's does with fewer, so that
a share above 100 % is possible, and says nothing of how well the machine is used.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from plots import save, subplots
from sides import STATUS, Exported, Ours, Theirs, as_torch, distance, drawn, seconds, step_memory, torch_layers

from minialex import nets, tune
from minialex.command import run_command
from minialex.device import open_device
from minialex.device.compiler import processor
from minialex.errors import UserError
from minialex.ops.dropout import Dropout

STEPS = 3
# Seconds. Workers of the other libraries go on spinning for up to 60 ms after a pass, on cores that the next side wants; and a pass of one
# image is too short to be timed once.
QUIET, TURN = 0.1, 0.2
# Of an array's L2 norm. Float32 rounds sums of up to 10,000 products, and Winograd's takes apart and puts together again what it multiplies: 3e-6 of
# the logits. Then a ReLU or a maximum falls to the other side now and then, in PyTorch's float32 as in ours, which moves the gradients by up to a
# percent or so; without one they are 1e-5 apart. One alone is 2 % of a gradient of a single image (owt's pool5, in PyTorch, seen beside
# float64), so that other pictures are drawn before gradients count as different. A lost term, mask or image moves those of any pictures much
# further. Biases start from zero, so that after a few steps they are as close as gradients are.
TOLERANCE = {"logits": 1e-4, "loss": 1e-5, "gradients": 0.01, "weights": 0.01}
DRAWS = 3


def check_equal(torch, net, device, batch, convs, runtime):
    """Logits, loss, every gradient, and the weights after a few steps, without dropout, of each of our sides; and onnxruntime's logits.

    -> ({side: {what: the worst distance}}, the onnxruntime side or None); stops if the logits differ, or the others with all pictures drawn.
    """
    for seed in range(DRAWS):
        worst, exported = distances(torch, net, device, batch, convs, runtime, seed)
        for side, found in worst.items():
            print(f"{net.name}, batch {batch}: {'onnxruntime beside ours' if side == 'onnxruntime' else f'{side} beside PyTorch'}, distance in the L2 norm "
                  "(allowed): " + ", ".join(f"{what} {value:.0e} ({TOLERANCE[what]:.0e})" for what, value in found.items()), flush=True)
        wrong = [(what, side) for side, found in worst.items() for what, value in found.items() if not value <= TOLERANCE[what]]
        if not wrong:
            return worst, exported
        told = f"{net.name}, batch {batch}: too far apart are the " + ", the ".join(f"{what} of {side}" for what, side in wrong)
        if seed == DRAWS - 1 or any(what == "logits" for what, _ in wrong):
            raise UserError(f"{told}: nothing is timed")
        print(f"{told}, as where a ReLU or a maximum falls to the other side: other pictures", flush=True)


def distances(torch, net, device, batch, convs, runtime, seed):
    """What check_equal returns, of pictures drawn from a seed."""
    net = nets.Net({name: replace(layer, p=0.0) if isinstance(layer, Dropout) else layer for name, layer in net.layers.items()}, net.size, net.name)
    data, host = drawn(net, batch, seed), device.to_numpy
    ours = {conv: Ours(net, device, batch, data, conv=conv) for conv in convs}
    first = {key: host(value) for key, value in ours[convs[0]].network.parameters.items()}
    theirs, worst = Theirs(torch, net, first, data, False, device=torch_device(device)), {conv: {} for conv in convs}
    exported = Exported(theirs, device.threads) if runtime else None

    def far(side, what, value, truth):
        worst[side][what] = max(worst[side].get(what, 0.0), distance(value, truth))

    def each(side, values, what, pick):
        for (key, value), theirs_ in zip(values.items(), theirs.plain.parameters()):
            value = host(value)
            far(side, what, as_torch(value, net.inputs[key.split(".")[0]]) if value.ndim > 1 else value, pick(theirs_).detach().cpu().numpy())

    theirs.infer()
    for conv, side in ours.items():
        side.infer()
        far(conv, "logits", side.logits, theirs.logits.cpu().numpy())
    if exported:
        exported.infer()
        worst["onnxruntime"] = {"logits": max(distance(exported.logits, side.logits) for side in ours.values())}
    for step in range(STEPS):
        theirs.train()
        for conv, side in ours.items():
            side.train()
            far(conv, "loss", side.network.results(batch)[0].mean(dtype=np.float64), float(theirs.loss.detach()))
            if step == 0:
                each(conv, side.network.gradients, "gradients", lambda parameter: parameter.grad)
    for conv, side in ours.items():
        each(conv, side.network.parameters, "weights", lambda parameter: parameter)
    return worst, exported


def torch_device(device):
    return "cuda" if device.name == "cuda" else "cpu"


def passes(at):
    """What is timed: on a GPU of pictures that lie there already, and from pixels on the host to updated weights, or to logits."""
    return ("train", "infer", *(["train from pixels", "infer from pixels"] if at == "cuda" else []))


def take_precision(torch, device, tf32):
    """TF32 or float32 on both sides (by PyTorch's older switches: its compiler refuses the newer ones)."""
    device.take_precision("tf32" if tf32 else "float32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def in_a_process(name, arguments):
    """What this command finds of one net, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run([sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments), "--net", name, "--json", str(file), "--plot", ""])
        if done.returncode:
            raise UserError(f"comparing {name} failed (exit {done.returncode})")
        return json.loads(file.read_text())


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
    return 2 * sum(macs) if what.startswith("infer") else 6 * sum(macs) - 2 * next(m for m in macs if m)


def race(torch, net, device, batch, rounds, compiled, convs, exported):
    """{"train": {...}, "infer": {...}} of a net at a batch."""
    torch.compiler.reset()      # of earlier nets and batches: past a limit nothing is compiled, and for a second batch something for any
    rate = product_rate(device)
    data, at, name = drawn(net, batch), torch_device(device), f"{net.name:9} batch {batch:<4}"
    ours = {conv: Ours(net, device, batch, data, conv=conv) for conv in convs}
    counts = convs[-1]
    parameters = {k: device.to_numpy(v) for k, v in ours[counts].network.parameters.items()}
    chosen = {conv: tune.told(side.network.net)[2:] or "im2col in all" for conv, side in ours.items()}
    print(f"{name} ours: " + "; ".join(conv if conv == "im2col" else f"{conv} ({chosen[conv]})" for conv in convs), flush=True)
    torches = {form: Theirs(torch, net, parameters, data, form == "channels-last", device=at) for form in ("contiguous", "channels-last")}
    if compiled:
        ways = {"compiled": {}} | ({"compiled, graphs": {"mode": "reduce-overhead"}} if at == "cuda" else {})
        torches |= {f"{form}, {way}": Theirs(torch, net, parameters, data, form == "channels-last", how, device=at) for form in torches for way, how in ways.items()}
    found = {"algorithms": {conv: tune.algorithms(side.network.net) for conv, side in ours.items()}}
    for what in passes(at):
        times = timed(torch, name, {**ours, **torches, **({"onnxruntime": exported} if exported and what == "infer" else {})}, what, rounds, at == "cuda")
        speed = {side: batch / statistics.median(each) for side, each in times.items()}
        best, eager = (max(which, key=speed.get) for which in (speed.keys() & torches.keys(), ("contiguous", "channels-last")))
        ratios = {side: sorted(theirs / mine for mine, theirs in zip(times[counts], times[side])) for side in times}
        middle = {side: statistics.median(each) for side, each in ratios.items()}
        found[what] = {"ours": speed[counts], "torch": speed[best], "ratio": middle[best], "least": ratios[best][0], "most": ratios[best][-1], "best": best,
                       "ratio_to_eager": middle[eager], "ratio_to": middle, "all": speed}
        print(f"{name} {what:{max(map(len, passes(at)))}} ratio {middle[best]:.2f} ({ratios[best][0]:.2f} to {ratios[best][-1]:.2f}), to eager {middle[eager]:.2f}"
              + "".join(f", to {side} {middle[side]:.2f}" for side in speed if side not in torches and side != counts) + "   images/s: "
              + ", ".join(f"{'PyTorch ' * (side in torches)}{side} {speed_:.1f}" for side, speed_ in speed.items()), flush=True)
    rate = max(rate, product_rate(device))
    for what in passes(at):
        found[what]["ceiling"] = found[what]["ours"] * step_flop(net, what) / rate
    print(f"{name} multiplications and additions of the direct convolution per second, of {rate / 1e9:.0f} GFLOP/s in a product of 4096^3: "
          + ", ".join(f"{'training' if what == 'train' else 'inference'} " + " ".join(
              f"{conv} {100 * found[what]['all'][conv] * step_flop(net, what) / rate:.0f} %" for conv in convs) for what in ("train", "infer")), flush=True)
    found["product_gflops"] = rate / 1e9
    found["layers"] = layers(torch, net, ours[counts], parameters, data, at, "channels-last" in found["train"]["best"])
    return found


def timed(torch, name, sides, what, rounds, cuda):
    """{side: seconds of a step, round by round}; a compiled side that does not work is left out."""
    flush, times, steps = torch.empty(1 << 28, dtype=torch.uint8, device="cuda") if cuda else None, {}, {}

    def step(model):
        if cuda:
            flush.zero_()      # all sides start with nothing of theirs in L2
            torch.cuda.synchronize()
        return model.seconds(what)

    for number in range(rounds + 1):
        for side, model in list(sides.items()):
            time.sleep(0 if cuda else QUIET)
            try:
                took = [step(model) for _ in range(steps.get(side, 2))]
            except Exception as error:
                if "compiled" not in side:
                    raise
                print(f"{name} torch.compile does not work here ({str(error).splitlines()[0][:100]})")
                del sides[side]
                times.pop(side, None)
                continue
            if number:
                times.setdefault(side, []).append(statistics.median(took))
            else:
                steps[side] = max(1, int(TURN / took[-1]))
    return times


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


def memory(name, size, batch, threads, conv):
    found = {}
    for side in ("ours", "contiguous", "channels-last"):
        asked = ["--peak", side, "--net", name, "--batch", batch, "--threads", threads, "--conv", conv, *(["--size", size] if size else [])]
        done = subprocess.run([sys.executable, __file__, *map(str, asked)], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"measuring the memory of {side} failed: {done.stderr.strip().splitlines()[-1]}")
        found[side] = json.loads(done.stdout)
    print(f"{name:9} peak memory of a step of {batch} images, less the imports' (raw): " + ", ".join(
        f"{f'PyTorch {side}' if side != 'ours' else conv} {m['step']:,.0f} MB ({m['peak']:,.0f})" for side, m in found.items()), flush=True)
    return {"batch": batch, **found}


def print_layers(name, rows):
    print(f"\n{name}: layer by layer, ms of a training step; GFLOP/s as if all convolutions were direct\n"
          f"{'layer':8} {'pass':9} {'ours':>8} {'GFLOP/s':>8} {'share':>6} {'PyTorch':>8}")
    for row in rows:
        cells = [f"{value:{form}}" if value is not None else "" for value, form in ((row["ours_ms"], ".1f"), (row["gflops"], ".0f"), (row["share"], ".1%"), (row["torch_ms"], ".1f"))]
        print(f"{row['layer']:8} {row['pass']:9} {cells[0]:>8} {cells[1]:>8} {cells[2]:>6} {cells[3]:>8}")
    print(flush=True)


def print_table(found):
    """A row for each net, batch and pass: images/s of each side, and the ratios of the last of ours."""
    ours, others = found["machine"]["conv"], ["onnxruntime"] * bool(found["machine"]["onnxruntime"])
    heads = [*ours, "PyTorch", *others, *(f"to {side}" for side in ("PyTorch", "eager", *others)), "ceiling"]
    width = max(len(what) for _, _, what, _ in rows(found))
    print(f"\nimages/s, and the ratios of {ours[-1]}\n{'net':9} {'batch':>5} {'':{width}} " + " ".join(f"{head:>14}" for head in heads))
    for name, batch, what, own in rows(found):
        values = own["all"] | {"PyTorch": own["torch"], "to PyTorch": own["ratio"], "to eager": own["ratio_to_eager"], "ceiling": own["ceiling"]}
        if "onnxruntime" in own["all"]:
            values["to onnxruntime"] = own["ratio_to"]["onnxruntime"]
        print(f"{name:9} {batch:5} {what:{width}} " + " ".join(
            f"{values[head]:14{'.0%' if head == 'ceiling' else '.2f' if head.startswith('to ') else '.1f'}}" if head in values else " " * 14 for head in heads))


def rows(found):
    return [(name, batch, what, own[what]) for name, net in found["nets"].items() for batch, own in net["batches"].items() for what in passes("cuda") if what in own]


def plot(found, path):
    machine, bars = found["machine"], rows(found)[::-1]
    figure, axes = subplots(size=(8.5, 1.2 + 0.6 * len(bars)))
    sides = {"ours": ("C0", "minialex"), "torch": ("C7", f"PyTorch {machine['torch']}, its fastest way"),
             "onnxruntime": ("C1", f"onnxruntime {machine['onnxruntime']}")}
    for place, (side, (colour, label)) in enumerate(sides.items()):
        speed = {at: {**own["all"], **own}[side] for at, (_, _, _, own) in enumerate(bars) if side in own or side in own["all"]}
        if speed:
            axes.barh([at + 0.26 * (1 - place) for at in speed], speed.values(), 0.25, color=colour, label=label)
    for at, (_, _, _, own) in enumerate(bars):
        axes.text(max(own["ours"], own["torch"]), at + 0.13, f"  {own['ratio']:.2f}", va="center", weight="bold")
    axes.set_yticks(range(len(bars)), [f"{name}, batch {batch}, {dict(train='training', infer='inference')[what]}" for name, batch, what, _ in bars])
    axes.set_xlabel(f"images per second, {machine['threads']} threads of {machine['processor']}; bold: ratio to PyTorch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    save(figure, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=list(nets.NETS))
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--conv", nargs="+", default=["im2col", "auto"], choices=tune.CHOICES, help="our sides; the ratios are those of the last")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", type=int, help="pixels of the pictures' side; default: the published")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--memory-batch", type=int, default=128, help="images of the step whose memory is measured (cpu); 0: none")
    parser.add_argument("--tf32", action="store_true", help="products of both sides in TF32 (cuda); that they are equal is still shown in float32")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    parser.add_argument("--peak", choices=["ours", "contiguous", "channels-last"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min(*args.batch, args.rounds) < 1:
        raise UserError("--batch and --rounds: expected at least 1")
    if args.peak:
        print(json.dumps(step_memory(args.peak, args.net[0], args.size, args.batch[0], args.threads, training=True, conv=args.conv[-1])))
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
    if args.tf32:
        device.take_precision("tf32")      # or says that there is none
    torch.backends.cudnn.benchmark = True
    runtime = None
    if device.name == "cpu":
        try:
            import onnx  # noqa: F401 - PyTorch's export needs it
            import onnxruntime
            runtime = onnxruntime.__version__
        except ImportError as error:
            print(f"onnxruntime takes no part: {error.name} is not installed (pip install onnxruntime onnx)")
    model = re.search(r"model name\s*: (.*)", processor())
    machine = {"processor": device.model if device.name == "cuda" else model[1].strip() if model else platform.machine(), "device": str(device), "threads": device.threads,
               "torch": torch.__version__.split("+")[0], "onnxruntime": runtime, "batch": args.batch, "rounds": args.rounds, "conv": args.conv,
               "vectors": "AVX-512" if "avx512f" in processor() else "AVX2" if "avx2" in processor() else "other"}
    print(f"PyTorch {torch.__version__} and minialex on {device.name}: {machine['device']}; {machine['processor']}, {machine['vectors']}; "
          f"batch {' '.join(map(str, args.batch))}, {args.rounds} rounds", flush=True)
    found = {"machine": machine, "nets": {}}
    for name in args.net if device.name == "cpu" or len(args.net) == 1 else ():
        net, own = nets.build(name, size=args.size), {"batches": {}}
        found["nets"][name] = own
        for batch in args.batch:
            take_precision(torch, device, False)
            worst, exported = check_equal(torch, net, device, batch, args.conv, runtime)
            take_precision(torch, device, args.tf32)
            own["batches"][batch] = {"equal": worst, **race(torch, net, device, batch, args.rounds, not args.no_compile, args.conv, exported)}
        print_layers(f"{name}, {args.conv[-1]}, batch {batch}", own["batches"][batch]["layers"])
        if device.name == "cpu" and args.memory_batch and STATUS.exists():
            own["memory"] = memory(name, args.size, args.memory_batch, device.threads, args.conv[-1])
    if not found["nets"]:      # on a GPU each net has a process of its own, and all of its memory
        found["nets"] = {name: net for each in args.net for name, net in in_a_process(each, arguments)["nets"].items()}
    print_table(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    run_command(main)
