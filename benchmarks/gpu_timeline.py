"""What each launch of a training step takes on a GPU: an event after every one, the median of some rounds. A stage of on_gpu.py.

python benchmarks/gpu_timeline.py [--net half] [--precision tf32] [--rounds 9] [--json FILE] [--once] [--quick]

The GPU has something else to do while a round is queued, so that no launch waits for the host. --once is for profilers: one step, between
the calls that begin and end a profile, and nothing timed.
"""

import argparse
import json
import statistics
import time

import numpy as np
from gpu_probe import Probe
from sides import drawn, whole

from minialex import nets, selftest, tune
from minialex.command import run_command, say
from minialex.device import open_device
from minialex.device.base import PRECISIONS
from minialex.files import write_beside
from minialex.network import Network

BATCH, LR = 128, 1e-3


def named(device):
    """{id: (kernel's name, launch)} of what the device binds from now on; products are not bound."""
    names, bind = {}, device.bind

    def noting(kernel, rows, arguments):
        call = bind(kernel, rows, arguments)
        names[id(call)] = kernel.name, call
        return call
    device.bind = noting
    return names


def milliseconds(probe, tape, rounds):
    """([ms of each launch], ms of the host to queue them with their events): medians."""
    cupy, found, queued = probe.cupy, [], [0.01]
    marks = [cupy.cuda.Event() for _ in range(len(tape.calls) + 1)]
    for _ in range(rounds + 1):
        probe.ahead(2 * queued[-1])
        began = time.perf_counter()
        marks[0].record()
        for call, mark in zip(tape.calls, marks[1:]):
            call()
            mark.record()
        queued.append(time.perf_counter() - began)
        marks[-1].synchronize()
        found.append([cupy.cuda.get_elapsed_time(*pair) for pair in zip(marks, marks[1:])])
    return np.median(found[1:], axis=0).tolist(), 1e3 * statistics.median(queued[2:])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="half", choices=list(nets.NETS))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--once", action="store_true", help="one step, for a profiler")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, whose times say nothing")
    args = parser.parse_args(arguments)
    device, _ = open_device("cuda")
    device.take_precision(args.precision)
    cupy, names = device.cupy, named(device)
    net, batch = (selftest.reduced(args.net), 4) if args.quick else (nets.build(args.net), BATCH)
    network, (images, *more) = Network(net, device, batch, input=whole(net)), drawn(net, batch)
    data = device.pictures(images.shape), *more      # as a loader for this device gives them
    data[0][...] = images
    for step in range(2 if args.quick else 5):
        network.train_step(*data, step, LR)
    device.synchronize()
    tape = network.tapes["train", batch]
    found = {"net": args.net, "batch": batch, "card": device.model, "graph": bool(getattr(device, "graphs", None)), "precision": args.precision,
             "algorithms": tune.algorithms(network.net), "places": list(tape.places), "kernels": [names.get(id(call), ["gemm"])[0] for call in tape.calls]}
    say(f"{args.net}, batch {batch}: {len(tape.calls)} launches{tune.told(network.net)}")
    if args.once:
        cupy.cuda.runtime.profilerStart()
        tape.play()
        device.synchronize()
        cupy.cuda.runtime.profilerStop()
    else:
        probe = Probe(cupy, args.quick)
        each, queued = milliseconds(probe, tape, args.rounds)
        began = time.perf_counter()
        for step in range(args.rounds):
            network.train_step(*data, step, LR)
        device.synchronize()
        found |= {"ms": each, "queued_ms": queued, "step_ms": 1e3 * probe.on_gpu(tape.play, args.rounds),
                  "whole_ms": 1e3 * (time.perf_counter() - began) / args.rounds}
        spent: dict[str, float] = {}
        for place, kernel, ms in zip(found["places"], found["kernels"], each):
            spent[f"{place} {kernel}"] = spent.get(f"{place} {kernel}", 0.0) + ms
        for at, ms in sorted(spent.items(), key=lambda item: -item[1]):
            say(f"  {at:40} {ms:8.3f} ms {100 * ms / sum(each):5.1f} %")
        say(f"{args.net}: launches {sum(each):.2f} ms together, a step {found['step_ms']:.2f} ms, with its input {found['whole_ms']:.2f} ms")
    if args.json:
        write_beside(args.json, json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
