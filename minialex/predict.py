"""python -m minialex.predict RUN IMAGE...: the five likeliest classes of each image."""

import argparse
import sys

import numpy as np

from .checkpoint import open_network
from .data.image import UnreadableImage, square
from .data.loader import centre
from .device import open_device
from .errors import run_command, shown


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m minialex.predict", description="Say what a trained network sees in images.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("image", nargs="+", help="image files")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "numpy"])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    device, _ = open_device(args.device, args.threads)
    network, config, _ = open_network(args.run, device, 1, args.checkpoint)
    unreadable = 0
    for path in args.image:
        try:
            picture = square(path, config["side"])
        except UnreadableImage as error:
            unreadable += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        network.evaluate(picture[None], np.zeros(1, np.int32), centre(1, config["side"] - config["size"]))
        likely = network.probabilities(1)[0]
        print(shown(path))
        for label in np.argsort(-likely, kind="stable")[:5]:
            print(f"  {likely[label]:7.2%}  {config['classes'][label]}")
    return 2 if unreadable else 0


if __name__ == "__main__":
    run_command(main)
