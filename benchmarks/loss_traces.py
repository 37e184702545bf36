"""The loss of each step of the same training by im2col and by Winograd's convolution, on photographs of your own.

python benchmarks/loss_traces.py --data DIR [--steps 300] [--seed 0] [--json FILE] [--plot FILE]

Net, pictures, batches and rate of recipe `small`, over 50 epochs: the same first weights, pictures, crops and dropout. Rounding alone is between the two; as training goes on it grows, as
that of im2col on another number of threads does, which is the third line.
"""

import json
from itertools import count, islice

import numpy as np
from plots import save, subplots

from minialex import nets
from minialex.command import parser_of, run_command, say
from minialex.data.folder import open_data
from minialex.data.loader import Loader
from minialex.device.cpu import CPU
from minialex.files import write_beside
from minialex.network import Network
from minialex.optim import Schedule
from minialex.run.recipes import SMALL
from minialex.run.settings import input_of

EPOCHS = 50
WAYS = {"im2col": ("im2col", 2), "Winograd": ("winograd", 2), "im2col, one thread": ("im2col", 1)}


def trace(train, conv, threads, steps, seed):
    """The mean loss of each batch."""
    net = nets.build(SMALL["net"], len(train.classes), SMALL["size"])
    way = input_of({"recipe": "small", "side": None, "fit": None, "augment": SMALL["augment"]}, net, train)
    network = Network(net, CPU(threads), SMALL["batch"], input=way, init=SMALL["init"], seed=seed, conv=conv)
    loader = Loader(train, way.side, SMALL["batch"], seed=seed)
    schedule, losses = Schedule(SMALL["schedule"], SMALL["lr"], len(loader), EPOCHS), []
    batches = ((epoch, batch) for epoch in count() for batch in loader.epoch(epoch))
    for step, (epoch, batch) in enumerate(islice(batches, steps)):
        network.train_step(batch.images, batch.labels, way.draw(seed, epoch, batch.index), step, schedule(step))
        losses.append(float(network.results(len(batch))[0].mean()))
    return losses


def main(arguments=None):
    parser = parser_of("loss_traces", __doc__.split("\n")[0], zero=("seed",))
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder with train/ and val/")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args(arguments)
    train, _ = open_data(args.data, None, None)
    found = {name: trace(train, *way, args.steps, args.seed) for name, way in WAYS.items()}
    truth = np.array(found["im2col"])
    say(f"{'steps':>9}" + "".join(f"{name:>22}" for name in found) + "   largest distance from im2col on two threads")
    for first in range(0, args.steps, 50):
        own = slice(first, first + 50)
        apart = [np.abs(np.array(values[own]) - truth[own]).max() for name, values in found.items() if name != "im2col"]
        say(f"{first + 1:4}-{min(first + 50, args.steps):4}" + "".join(f"{np.mean(values[own]):22.5f}" for values in found.values())
            + "".join(f"{distance:12.2g}" for distance in apart))
    if args.json:
        write_beside(args.json, json.dumps(found))
    if args.plot:
        plot(found, args.plot)
    return 0


def plot(found, path):
    figure, (above, below) = subplots(2, size=(8, 4.5), height_ratios=(3, 2), sharex=True)
    truth = np.array(found["im2col"])
    for (name, values), look in zip(found.items(), ("C0-", "C1--", "C2:")):
        above.plot(values, look, label=name, linewidth=1)
        if name != "im2col":
            below.semilogy(np.maximum(np.abs(np.array(values) - truth), 1e-9), look, label=name, linewidth=1)
    above.set_ylabel("loss of a batch")
    above.legend()
    below.set_ylabel("distance\nfrom im2col")
    below.set_xlabel("step")
    save(figure, path, 120)


if __name__ == "__main__":
    run_command(main)
