"""What dropout and augmentation do against overfitting: the same net trained with both, with either, and with neither, on pictures of your own.

python benchmarks/overfitting.py --data DIR [--size 96] [--epochs 60] [--seed 0] [--json FILE] [--plot FILE]

Net `half` with the first weights, rate and schedule of `python -m minialex.train`. Without augmentation each picture is its centre square, the same in each epoch.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from plots import save, subplots

import minialex
from minialex.command import parser_of, run_command, say
from minialex.data.folder import open_data
from minialex.files import write_beside
from minialex.ops.dropout import Dropout

PLAIN = "crop=centre,flip=none"
DRAWN = "crop=resized,area=0.25:1,flip=h,brightness=0.2"      # as in recipe `small`
WAYS = {"dropout and augmentation": (True, DRAWN), "augmentation alone": (False, DRAWN), "dropout alone": (True, PLAIN), "neither": (False, PLAIN)}


def trained(data, classes, size, dropout, augment, **options):
    """The metrics of each epoch."""
    layers = {name: layer for name, layer in minialex.nets.half(classes).items() if dropout or not isinstance(layer, Dropout)}
    with tempfile.TemporaryDirectory() as out:
        run = minialex.fit(data, net=minialex.Net(layers, size, "half" if dropout else "half-without-dropout"), augment=augment, out=str(Path(out) / "run"), **options)
        return [{key: metrics[key] for key in ("epoch", "train_loss", "train_top1", "val_loss", "val_top1")} for metrics in run.history]


def main(arguments=None):
    parser = parser_of("overfitting", __doc__.split("\n")[0], zero=("seed",))
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder with train/ and val/")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args(arguments)
    classes = len(open_data(args.data, None, None)[0].classes)
    options = {"epochs": args.epochs, "seed": args.seed, "batch": 32, **({"threads": args.threads} if args.threads else {})}
    found = {name: trained(args.data, classes, args.size, *way, **options) for name, way in WAYS.items()}
    say(f"{'':26}{'training loss, top-1':>22}{'validation loss, top-1':>26}{'gap in top-1':>14}   lowest validation loss at epoch")
    for name, epochs in found.items():
        last, best = epochs[-1], min(epochs, key=lambda metrics: metrics["val_loss"])
        say(f"{name:26}{last['train_loss']:12.2f}{last['train_top1']:10.1%}{last['val_loss']:16.2f}{last['val_top1']:10.1%}"
            f"{100 * (last['train_top1'] - last['val_top1']):11.1f} pp   {best['epoch']} ({best['val_loss']:.2f})")
    if args.json:
        write_beside(args.json, json.dumps(found))
    if args.plot:
        plot(found, args.plot)
    return 0


def plot(found, path):
    figure, sides = subplots(1, 2, size=(10, 4))
    for i, (name, epochs) in enumerate(found.items()):
        x = [metrics["epoch"] for metrics in epochs]
        for side, key in zip(sides, ("loss", "top1")):
            times = 100 if key == "top1" else 1
            side.plot(x, times * np.array([metrics[f"train_{key}"] for metrics in epochs]), f"C{i}:", linewidth=1.2)
            side.plot(x, times * np.array([metrics[f"val_{key}"] for metrics in epochs]), f"C{i}-", label=name, linewidth=1.5)
    for side, label in zip(sides, ("loss", "top-1, %")):
        side.set_xlabel("epoch")
        side.set_ylabel(label)
    sides[0].set_ylim(bottom=0)
    sides[1].legend(title="validation (dotted: training)", loc="lower right")
    save(figure, path, 120)


if __name__ == "__main__":
    run_command(main)
