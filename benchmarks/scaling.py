"""How speed and memory grow: minialex beside PyTorch against batch, threads and image size, on a CPU.

python benchmarks/scaling.py [--net half] [--batches 1 4 16 64 256] [--threads 1 2] [--sizes 224 ...] [--rounds 3] [--json FILE]

A configuration is timed in a process of its own that holds both sides: they alternate within a round, after a warm-up, and a
turn repeats its step until it lasts long enough to time. PyTorch runs eagerly in both memory formats and the faster counts
(c: contiguous, l: channels-last). Ratios are medians over rounds. Memory is the peak (VmHWM) of a process that has one side
and does two steps, less its peak after the imports; beside it, in brackets, the peak itself. Weights are zeros there and
pixels are made in place, so that setting up leaves no higher peak. An option without values leaves its axis out.
"""

import argparse
import json
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from timeit import timeit

from sides import STATUS, Ours, Theirs, drawn, step_memory

from minialex import nets
from minialex.command import run_command
from minialex.device import open_device
from minialex.errors import UserError

FORMATS, PASSES = {"contiguous": "c", "channels-last": "l"}, ("train", "infer")
# Options, least seconds of a timed turn, batch at the axes of threads and of size, pixels at the others (None: the published).
USUAL = {"batches": [1, 4, 16, 64, 256], "sizes": [128, 224, 320], "rounds": 3}, 0.25, 64, 32, None
QUICK = {"batches": [4], "sizes": [8, 96], "rounds": 1}, 0.02, 4, 4, 96
GROUPS = f"{'train images/s':^21} {'infer images/s':^21} {'train MB (peak)':^29} {'infer MB (peak)':^29}{'ours / torch':>22}"
NAMES = f"{'ours':>9} {'torch':>9}   " * 2 + f"{'ours':>14} {'torch':>14} " * 2 + "  train  infer train MB infer MB"


def speed(at):
    """{pass: {"ours", "torch": images/s, "ratio", "format"}}; runs in a process of its own."""
    net, batch, found = nets.build(at["net"], size=at["size"]), at["batch"], {}
    import torch
    torch.set_num_threads(at["threads"])
    device, data, parameters = open_device("cpu", at["threads"])[0], drawn(net, batch), net.initial("he", 0)
    for what in PASSES:
        steps = {"ours": getattr(Ours(net, device, batch, data, training=what == "train"), what)}
        steps |= {form: getattr(Theirs(torch, net, parameters, data, form == "channels-last"), what) for form in FORMATS}
        # Twice: the first step records launches and chooses primitives.
        repeat = [1 + int(at["turn"] / [timeit(step, number=1) for _ in range(2)][1]) for step in steps.values()]
        turns = list(zip(steps, steps.values(), repeat))
        times = [{side: timeit(step, number=n) / n for side, step, n in turns} for _ in range(at["rounds"])]
        middle = {side: statistics.median(turn[side] for turn in times) for side in steps}
        best = min(FORMATS, key=middle.get)
        ratio = statistics.median(turn[best] / turn["ours"] for turn in times)
        found[what] = {"ours": batch / middle["ours"], "torch": batch / middle[best], "ratio": ratio, "format": best}
        del steps, turns      # one pass's networks at a time
    return found


def apart(at):
    """What `speed` or `step_memory` finds in a process of its own; a UserError, with the reason, if it does not get there."""
    done = subprocess.run([sys.executable, __file__, "--measure", json.dumps(at)], capture_output=True, text=True)
    if done.returncode < 0:
        raise UserError(f"does not fit: the system ended it with signal {-done.returncode} (9: out of memory)")
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["ended without a word"])[-1].removeprefix("error: "))
    return json.loads(done.stdout.splitlines()[-1])


def point(at):
    """A row: where it is, and either what was found there or why nothing was ("error")."""
    row = {name: at[name] for name in ("batch", "threads", "size")}
    try:
        found = apart(at)
        for what in PASSES if STATUS.exists() else ():
            sides = {"ours": "ours", "torch": found[what]["format"]}
            own = found[what]["memory"] = {name: apart({"side": side, "name": at["net"], "size": at["size"], "batch": at["batch"], "threads": at["threads"],
                                                            "training": what == "train"}) for name, side in sides.items()}
            own["ratio"] = own["ours"]["step"] / max(own["torch"]["step"], 1e-3)
        return row | found
    except UserError as error:
        return row | {"error": str(error)}


def line(axis, row):
    if "error" in row:
        return f"{row[axis]:>7}   {row['error']}"
    rates = [f"{own['ours']:9.1f} {own['torch']:9.1f} {FORMATS[own['format']]}" for own in (row["train"], row["infer"])]
    used = [row[what].get("memory") for what in PASSES]
    cells = [f"{m[side]['step']:,.0f} ({m[side]['peak']:,.0f})" if m else "-" for m in used for side in ("ours", "torch")]
    ratios = [f"{row[what]['ratio']:6.2f}" for what in PASSES] + [f"{m['ratio']:8.2f}" if m else f"{'-':>8}" for m in used]
    return " ".join([f"{row[axis]:>7}", *rates, *(f"{cell:>14}" for cell in cells), *ratios])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="half", choices=list(nets.NETS))
    parser.add_argument("--batches", type=int, nargs="*", help="with all threads (default 1 4 16 64 256)")
    parser.add_argument("--threads", type=int, nargs="*", help="with batch 64 (default 1, 2, 4 ... and all)")
    parser.add_argument("--sizes", type=int, nargs="*", help="pixels, with batch 32 (default 128 224 320)")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--quick", action="store_true", help="few and small steps, to see that it works: nothing to go by")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        print(json.dumps(step_memory(**args.measure) if "side" in args.measure else speed(args.measure)))
        return 0
    try:
        version = metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError:
        raise UserError("PyTorch is not installed: pip install torch==2.13.0") from None
    device = open_device("cpu", announce=print)[0]      # compiles, if it must, before anything is timed
    cores, (usual, turn, batch, size_batch, size) = device.threads, QUICK if args.quick else USUAL
    size = size or nets.build(args.net).size
    usual["threads"] = [cores] if args.quick else sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    given = {name: usual[name] if getattr(args, name) is None else getattr(args, name) for name in usual}
    if min(rounds := given["rounds"], *given["batches"], *given["threads"], *given["sizes"], 1) < 1:
        raise UserError("--batches, --threads, --sizes and --rounds: expected at least 1")
    print(f"{args.net}, minialex and PyTorch {version}, {device}, {rounds} rounds", flush=True)
    axes = {"batch": (f"against batch, {cores} threads, {size} pixels", [(n, cores, size) for n in given["batches"]]),
            "threads": (f"against threads, batch {batch}, {size} pixels", [(batch, n, size) for n in given["threads"]]),
            "size": (f"against size, batch {size_batch}, {cores} threads", [(size_batch, cores, n) for n in given["sizes"]])}
    rows, found = {}, {"net": args.net, "torch": version, "device": str(device), "rounds": rounds, "axes": {}}
    for axis, (title, places) in axes.items():
        print(f"\n{title}\n{'':7} {GROUPS}\n{axis:>7} {NAMES}\n" * bool(places), end="", flush=True)
        for at in places:
            if at not in rows:      # axes cross
                rows[at] = point({"net": args.net, "rounds": rounds, "turn": turn, **dict(zip(("batch", "threads", "size"), at))})
            print(line(axis, rows[at]), flush=True)
        found["axes"][axis] = [rows[at] for at in places]
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
