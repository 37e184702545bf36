"""Bytes and time of a training step on several devices, computed: data parallel, "one weird trick", and the two towers of 2012.

python benchmarks/parallel.py [--cpu-images 70] [--write docs/scaling.md]

A GPU's step at batch 128 is the one that docs/kernels.md predicts; nothing here is measured. Each device has as many images as there are devices: the global
batch grows with them. --write puts the tables into the page, between the lines that begin and end them.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from minialex import nets
from minialex.command import parser_of, run_command, say
from minialex.files import write_beside

DOCS = Path(__file__).resolve().parent.parent / "docs"
BATCH = 128      # images of a device


@dataclass(frozen=True)
class Place:
    """Devices, `near` of them to a machine. Bytes per second of a device in each direction, and seconds of a message: inside a machine and between machines."""

    name: str
    devices: int
    near: int
    inside: float
    between: float
    fast: float = 3e-6
    slow: float = 5e-6

    @property
    def way(self):
        """(bytes per second, seconds of a message) of the slowest way between two of all devices."""
        return (self.inside, self.fast) if self.near == self.devices else (self.between, self.slow)


PLACES = (Place("8 H100, NVLink at 450 GB/s each way", 8, 8, 450e9, 450e9), Place("256 H100, 400 Gb/s for each between machines of 8", 256, 8, 450e9, 50e9),
          Place("2 machines of 2 cores, 10 Gb/s", 2, 1, 1.25e9, 1.25e9, 20e-6, 20e-6))


def net_bytes(name="paper"):
    """-> bytes of the gradients of convolutions and of dense layers; of an image between towers, forward and backward; of an image around the dense layers"""
    net = nets.build(name)
    sizes = {kind: 0 for kind in (False, True)}
    for key, shape in net.parameters().items():
        sizes[net.layers[key.split(".")[0]].dense] += 4 * math.prod(shape)
    inputs = {layer: 4 * math.prod(net.inputs[layer]) for layer in ("conv3", "fc6", "fc7", "fc8")}
    logits = 4 * net.classes
    towers = sum(inputs.values()) // 2 + logits // 2, sum(inputs.values()) // 2
    dense = sum(inputs[layer] for layer in ("fc6", "fc7", "fc8"))
    return sizes[False], sizes[True], towers, 2 * dense + logits


def ring(size, count, speed, wait):
    """Seconds of Alltoall, sum and Allgather of so many bytes: each device sends and receives (count - 1) / count of them twice."""
    return 2 * (count - 1) / count * size / speed + 2 * (count - 1) * wait if count > 1 else 0.0


def flat(size, place):
    """All devices as one team: the slowest way between two binds each."""
    return ring(size, place.devices, *place.way)


def in_levels(size, place):
    """Inside each machine first, then each device's part between the machines, and back."""
    return ring(size, place.near, place.inside, place.fast) + ring(size / place.near, place.devices // place.near, place.between, place.slow)


def around_dense(size, batch, place):
    """Of one weird trick: the inputs of dense layers gathered and their gradients' sums scattered, (K - 1) / K of each image's bytes."""
    speed, wait = place.way
    return (place.devices - 1) / place.devices * size * batch / speed + 7 * (place.devices - 1) * wait      # four inputs and logits forward, three gradients back


def gpu_steps():
    """{precision: (seconds of a step, of them behind the last dense gradient)} of paper on an H100 at batch 128, as predicted."""
    times = json.loads((DOCS / "kernels.json").read_text())["paper"]["im2col"]["H100"]
    whole = sum(times.values())
    behind = sum(seconds for key, seconds in times.items() if re.match(r"(conv|pool|norm)\d backward", key))
    tf32 = float(re.search(r"^\| paper \| H100 \| TF32 products \| ([\d.]+) \|", (DOCS / "kernels.md").read_text(), re.MULTILINE)[1])
    return {"float32": (whole / 1e3, behind / 1e3), "TF32": (tf32 / 1e3, behind / 1e3 * tf32 / whole)}


def tables(cpu_images):
    """The page's tables, in Markdown."""
    convolutions, dense, towers, around = net_bytes()
    both = convolutions + dense
    yield "| what moves in a step of `paper` | bytes |"
    yield "|---|---:|"
    yield f"| gradients of the convolutions | {convolutions:,} |"
    yield f"| gradients of the dense layers | {dense:,} |"
    yield f"| data parallel: sent and received by each of K devices | 2 (K - 1) / K x {both:,} |"
    yield f"| one weird trick: around the dense layers, of each image of the global batch | (K - 1) / K x {around:,} |"
    yield f"| towers: sent and received by each of the two, of each image, forward and backward | {towers[0]:,} + {towers[1]:,} |"
    yield ""
    yield (f"One weird trick moves less than the dense gradients do below a global batch of {2 * dense // around:,}, the towers less than two data parallel devices below one of "
           f"{both // sum(towers):,}.")
    yield ""
    yield "| where | step alone, ms | global batch | way | exchange, ms | of it hidden | step, ms | images/s | of K times one |"
    yield "|---|---:|---:|---|---:|---:|---:|---:|---:|"
    steps = gpu_steps()
    for place in PLACES:
        cpu = "cores" in place.name
        for precision, (alone, behind) in ({"": (BATCH / cpu_images, 0.4 * BATCH / cpu_images)} if cpu else steps).items():
            batch = BATCH * place.devices
            ways = {"data parallel": (flat(dense, place), flat(convolutions, place))}
            if place.near not in (1, place.devices):
                ways["data parallel, in two levels"] = in_levels(dense, place), in_levels(convolutions, place)
            ways["one weird trick"] = 0.0, flat(convolutions, place) + around_dense(around, batch, place)
            if place.devices == 2:
                speed, wait = place.inside, place.fast
                ways["two towers"] = 0.0, sum(towers) * batch / speed + 9 * wait
            for way, (early, late) in ways.items():
                hidden = min(early, behind)      # while the convolutions' backward runs
                step = alone + early - hidden + late
                yield (f"| {place.name}{', ' * bool(precision)}{precision} | {1e3 * alone:,.1f} | {batch:,} | {way} | {1e3 * (early + late):,.2f} | {1e3 * hidden:,.2f} | {1e3 * step:,.1f} "
                       f"| {batch / step:,.0f} | {alone / step:.0%} |")


BEGIN, END = "<!-- tables: benchmarks/parallel.py -->", "<!-- end of tables -->"


def write_between(page, begin, end, text):
    """Puts a text in the place of what lies between two lines of a page."""
    before, _, rest = Path(page).read_text(encoding="utf-8").partition(begin)
    write_beside(page, f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def main(arguments=None):
    parser = parser_of("parallel", __doc__.split("\n")[0])
    parser.add_argument("--cpu-images", type=float, default=70.0, metavar="N", help="images per second of paper's training on two cores (default 70)")
    parser.add_argument("--write", metavar="FILE", help="the page whose tables are to be written anew")
    args = parser.parse_args(arguments)
    text = "\n".join(tables(args.cpu_images))
    say(text)
    if args.write:
        write_between(args.write, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    run_command(main)
