"""A step with matrix products by oneDNN beside the same step by OpenBLAS, on a CPU.

python benchmarks/products.py [--net paper owt half] [--batch 64] [--rounds 7] [--threads N] [--size PIXELS]

Both sides have the same kernels, weights, pictures and convolutions (im2col's, whichever would be faster with one of them), and are shown to give
the same loss and weights before anything is timed; they alternate within a round, after a warm-up. Ratios are medians over rounds, images/s of
the medians.
"""

import argparse
import statistics

from sides import Ours, distance, drawn

from minialex import nets
from minialex.command import run_command
from minialex.device.cpu import CPU
from minialex.errors import UserError

LIBRARIES, TOLERANCE = ("onednn", "openblas"), 1e-3      # of the L2 norm of each parameter and of the losses, after one step


def check_equal(sides):
    for side in sides.values():
        side.train()
    first, second = (side.network for side in sides.values())
    far = max(distance(first.parameters[name], value) for name, value in second.parameters.items())
    far = max(far, distance(first.results(first.batch)[0], second.results(second.batch)[0]))
    if not far < TOLERANCE:
        raise UserError(f"a step differs by {far:.0e} between the libraries, more than {TOLERANCE:.0e}: nothing is timed")
    return far


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=list(nets.NETS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--size", type=int, help="pixels of the pictures' side; default: the published")
    args = parser.parse_args(arguments)
    if min(args.batch, args.rounds) < 1:
        raise UserError("--batch and --rounds: expected at least 1")
    devices = {library: CPU(args.threads, products=library) for library in LIBRARIES}
    print(f"{' beside '.join(device.products for device in devices.values())}, {devices['onednn'].threads} threads, batch {args.batch}, {args.rounds} rounds")
    for name in args.net:
        net = nets.build(name, size=args.size)
        data = drawn(net, args.batch)
        sides = {library: Ours(net, device, args.batch, data, conv="im2col") for library, device in devices.items()}
        print(f"{name}: the same step, to {check_equal(sides):.0e}")
        for what in ("train", "infer"):
            rounds = [[side.seconds(what) for side in sides.values()] for _ in range(args.rounds + 1)][1:]
            speed = [args.batch / statistics.median(times) for times in zip(*rounds)]
            ratios = sorted(slow / fast for fast, slow in rounds)
            print(f"{name:9} {what}  ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   images/s {speed[0]:.1f} to {speed[1]:.1f}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
