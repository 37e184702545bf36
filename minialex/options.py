"""The options of python -m minialex.train: read, filled in from a recipe or a run to resume, and checked."""

import argparse
import math
import time
from pathlib import Path

from . import nets
from .checkpoint import read_config
from .data.augment import Input
from .errors import UserError
from .optim import Schedule
from .recipes import RECIPES

DEFAULTS = {"net": "half", "epochs": 30, "batch": 64, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine,warmup:1",
            "seed": 0, "init": "he", "form": "2012", "workspace_mb": None, "size": None, "side": None, "fit": None, "augment": "",
            "optimizer": "sgd", "bias_lr": 1.0, "bias_decay": 0.0, "label_smoothing": 0.0, "drop_last": False}
SGD_ONLY = "momentum", "weight_decay", "form", "bias_lr", "bias_decay"
SHAPES_DEFAULTS = {"epochs": 8, "batch": 32, "size": 98}       # reaches 97 % on the built-in set in a minute on two cores


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m minialex.train", description="Train an AlexNet on folders of images; without "
                                     "arguments, on a small set of ten classes that it makes itself.")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", help="folder with train/ and val/, each with one folder of images per class")
    data.add_argument("--train", metavar="DIR", help="training folder, with --val instead of --data")
    data.add_argument("--val", metavar="DIR", help="validation folder")
    data.add_argument("--size", type=int, help=f"input size in pixels (default: the net's published one, {SHAPES_DEFAULTS['size']} for half on the built-in set)")
    data.add_argument("--side", type=int, help="pixels of the decoded pictures (default: 8/7 of the input size)")
    data.add_argument("--fit", choices=["crop", "squash"], help="decode each picture's centre square (default), or all of it out of shape")
    data.add_argument("--augment", metavar="KEY=VALUE,...", help="what training draws anew for each picture: crop (random, resized, centre), area, "
                      "ratio, flip (h, v, hv, none), rotation, shift, shear, zoom, fill (nearest, constant, reflect, wrap), constant, brightness, "
                      "contrast, saturation, pca (none, eigenvalue, std), pca_strength; and mean (R:G:B, colour, image, none), scale of all input")
    data.add_argument("--drop-last", action=argparse.BooleanOptionalAction, help="leave the last, smaller batch of an epoch out")
    net = parser.add_argument_group("network and optimizer")
    net.add_argument("--recipe", choices=list(RECIPES), help="options of a known training run; those given beside it replace its own")
    net.add_argument("--net", choices=list(nets.NETS), help="default half")
    net.add_argument("--init", choices=["he", "published", "2012-code"], help="first weights: he (default) trains from scratch on small data")
    net.add_argument("--epochs", type=int, help=f"default {DEFAULTS['epochs']}, {SHAPES_DEFAULTS['epochs']} on the built-in set")
    net.add_argument("--batch", type=int, help=f"images per step (default {DEFAULTS['batch']}, {SHAPES_DEFAULTS['batch']} on the built-in set)")
    net.add_argument("--lr", type=float, help=f"learning rate (default {DEFAULTS['lr']})")
    net.add_argument("--momentum", type=float, help="default 0.9")
    net.add_argument("--weight-decay", type=float, help="default 5e-4, none on biases")
    net.add_argument("--optimizer", choices=["sgd", "adam"], help="SGD with momentum (default), or Adam in Keras' form")
    net.add_argument("--form", choices=["2012", "torch"], help="which form of SGD with momentum (default 2012)")
    net.add_argument("--bias-lr", type=float, help="of biases, times the learning rate (default 1)")
    net.add_argument("--bias-decay", type=float, help="of biases, times the weight decay (default 0)")
    net.add_argument("--label-smoothing", type=float, help="part of the target that all classes share (default 0)")
    net.add_argument("--schedule", help="constant, cosine, step:EPOCHS, multistep:EPOCH:EPOCH:... or plateau:EPOCHS, then ,warmup:EPOCHS and "
                     "factor:F (default cosine,warmup:1)")
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=int, help="of weights, order, crops and dropout (default 0)")
    run.add_argument("--device", choices=["auto", "cpu", "cuda", "numpy"], help="default auto: a working GPU, else the CPU")
    run.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    run.add_argument("--workspace-mb", type=float, help="most memory for convolution's columns, all shares together")
    run.add_argument("--out", metavar="DIR", help="run folder (default: a new one in runs/)")
    run.add_argument("--resume", metavar="RUN", help="continue the run in this folder; only --epochs, --device, --threads and a data "
                     "folder that has moved may be given with it")
    return vars(parser.parse_args(arguments))


def settle(args):
    """Options, config of the run and its folder, from the command line or from the run to resume."""
    if args["resume"]:
        given = [name for name, value in args.items() if value is not None
                 and name not in ("resume", "epochs", "device", "threads", "data", "train", "val")]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} cannot be given with --resume, which takes it from the run's config.json")
        run = Path(args["resume"])
        config = read_config(run)
        missing = [name for name in args if name not in config["options"] and name not in ("resume", "out")]
        if missing:
            raise UserError(f"{run / 'config.json'} lacks the option {missing[0]}: it is of another version of minialex, which can still continue the run")
        moved = any(args[name] for name in ("data", "train", "val"))
        options = {**config["options"], **{name: args[name] for name in ("epochs", "device", "threads") if args[name] is not None}}
        if moved:
            options |= {name: args[name] for name in ("data", "train", "val")}
        check_ranges(options)
        return options, config, run
    own = dict(RECIPES.get(args["recipe"]) or ({} if args["data"] or args["train"] or args["val"] else SHAPES_DEFAULTS))
    own.pop("side", None)      # depends on the input size and on the data, see train.input_of
    if args["net"] not in (None, own.get("net", "half")):      # the size is for the recipe's own net
        own.pop("size", None)
    options = {name: own.get(name, DEFAULTS.get(name)) if value is None else value for name, value in args.items()}
    if options["optimizer"] == "adam":
        for name in SGD_ONLY:
            if args[name] is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --optimizer sgd, Adam has no such thing here: leave it out")
            options[name] = None
    options["augment"] = ",".join(filter(None, (own.get("augment"), args["augment"])))      # later keys win
    check_ranges(options)
    del options["resume"]
    run = Path(options.pop("out") or Path("runs") / time.strftime(f"{options['net']}-%Y%m%d-%H%M%S"))
    require_new(run)
    return options, None, run


def require_new(run):
    """A UserError if a folder holds a run that has saved something."""
    if any((run / name).exists() for name in ("last.safetensors", "metrics.jsonl")):
        raise UserError(f"{run} holds a run already: continue it with --resume {run}, or give another --out")


def check_ranges(options):
    for name, least in (("epochs", 1), ("batch", 1), ("size", 1), ("side", 1), ("threads", 1), ("seed", 0)):
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name} {options[name]}: expected at least {least}")
    for name in ("lr", "momentum", "weight_decay", "bias_lr", "bias_decay", "label_smoothing"):
        below_1 = name in ("momentum", "label_smoothing")
        if options[name] is not None and not 0 <= options[name] < (1 if below_1 else math.inf):
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: expected {'0 up to below 1' if below_1 else '0 or more'}")
    if options["seed"] >= 1 << 64:
        raise UserError(f"--seed {options['seed']}: expected less than 2**64")
    Schedule(options["schedule"], options["lr"], 1, options["epochs"])
    Input(1, 1).with_text(options["augment"])
