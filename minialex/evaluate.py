"""python -m minialex.evaluate RUN --data DIR: scores a trained network on a folder of class folders."""

import argparse
import json
import os
from pathlib import Path

from .checkpoint import open_network
from .data.folder import SPLITS, open_folder
from .data.loader import Loader
from .device import open_device
from .errors import UserError, run_command
from .train import evaluate, say


def validation_folder(data, classes):
    """DIR itself if it holds the class folders, else its validation part, named as `find_splits` knows them."""
    for _, val in SPLITS:
        for folder in (Path(data) / val / val, Path(data) / val):
            if folder.is_dir():
                return open_folder(folder, classes)
    return open_folder(data, classes)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m minialex.evaluate", description="Score a trained network: centre crop, top-1 and top-5.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of class folders, or one with val/ (or validation/) in it")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "numpy"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE", help="write the scores, and each image's loss and rank, to FILE")
    args = parser.parse_args(arguments)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {Path(args.json).absolute().parent}")
    device, reason = open_device(args.device, args.threads, announce=say)
    network, config, path = open_network(args.run, device, args.batch, args.checkpoint)
    folder = validation_folder(args.data, config["classes"])
    say(f"device   {device.name} ({reason}): {device}")
    say(f"data     {folder} from {folder.root}")
    say(f"weights  {path}")
    loader = Loader(folder, config["side"], args.batch, shuffle=False, cache_mb=0, workers=device.threads, warn=say)
    images = []

    def keep(batch, losses, ranks):
        for i, loss, rank in zip(batch.index, losses, ranks):
            images.append({"path": os.path.relpath(folder.paths[i], folder.root), "loss": float(loss), "rank": int(rank)})

    scores = evaluate(network, loader, each=keep)
    scores["unreadable"] = len(loader.unreadable)
    say(f"loss {scores['loss']:.4f}   top-1 {scores['top1']:.1%}   top-5 {scores['top5']:.1%}   of {scores['images']} images"
        + f", {scores['unreadable']} unreadable left out" * bool(loader.unreadable))
    if args.json:
        from .checkpoint import write_beside
        write_beside(args.json, json.dumps({**scores, "per_image": images}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
