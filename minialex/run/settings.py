"""What a run is asked to be: options filled in from a recipe or from the run to resume, and checked."""

import math
import os
import shlex
import time
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path

from .. import tune
from ..data.augment import Input
from ..device.base import PRECISIONS
from ..errors import UserError, shown
from ..errors import typed as shell
from ..optim import SGD, Adam, Schedule
from . import board
from .folder import RunFolder
from .recipes import RECIPES

# Options that came later, and what a run has that was begun before there were these: nothing of the kind, and the one algorithm there was.
NEUTRAL = {"val_fraction": None, "clip_norm": None, "class_weights": "none", "early_stop": 0, "log": "none", "average": None, "precision": "float32",
           "freeze": None, "lr_of": None, "parts": 1, "towers": 1}
OLDER = NEUTRAL | {"conv": "im2col"}
DEFAULTS = {"net": "half", "epochs": 30, "batch": 64, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine,warmup:1",
            "seed": 0, "init": "he", "form": "2012", "workspace_mb": None, "size": None, "side": None, "fit": None, "augment": "",
            "optimizer": "sgd", "bias_lr": 1.0, "bias_decay": 0.0, "label_smoothing": 0.0, "drop_last": False, "conv": "auto", **NEUTRAL}
# All that can be asked for.
OPTIONS = "data", "train", "val", "device", "threads", "recipe", *DEFAULTS
INTEGERS = "epochs", "batch", "size", "side", "threads", "seed", "early_stop", "parts", "towers"
NUMBERS = "lr", "momentum", "weight_decay", "bias_lr", "bias_decay", "label_smoothing", "workspace_mb", "val_fraction", "clip_norm", "average"
SGD_ONLY = "momentum", "weight_decay", "form", "bias_lr", "bias_decay"
SHAPES_DEFAULTS = {"epochs": 8, "batch": 32, "size": 98}       # reaches 97 % on the built-in set in a minute on two cores
CHOICES = {"fit": ("crop", "squash"), "optimizer": ("sgd", "adam"), "form": ("2012", "torch"), "init": ("he", "published", "2012-code"),
           "class_weights": ("none", "balanced"), "conv": tune.CHOICES, "precision": PRECISIONS, "log": ("none", "tensorboard")}
ANEW = "epochs", "early_stop", "log", "device", "threads", "towers"
RESUMED = *ANEW, "data", "train", "val"       # what may be asked for anew when a run is resumed


def settle(given, out=None, resume=None, ranks=1):
    """-> (options, config of the run to resume or None, its RunFolder). given: {option: value, or None where it is not asked for}; ranks: how many train
    together"""
    given = {name: typed(name, value) for name, value in given.items()}
    for name, path in ("data", given["data"]), ("train", given["train"]), ("val", given["val"]), ("out", out), ("resume", resume):
        if path is not None and not os.fspath(path):
            raise UserError(f"--{name} is empty: name a folder, or leave it out")
    if resume is not None:
        if out is not None:
            raise UserError("--out cannot be given with --resume, which goes on in the folder of the run")
        return resumed(given, RunFolder(resume), ranks)
    if given["recipe"] not in (None, *RECIPES):
        raise UserError(f"--recipe {given['recipe']}: choose one of {', '.join(RECIPES)}")
    own = dict(RECIPES.get(given["recipe"]) or ({} if given["data"] or given["train"] or given["val"] else SHAPES_DEFAULTS))
    own.pop("side", None)      # depends on the input size and on the data, see `input_of`
    begun = given["init"] is not None and given["init"] not in CHOICES["init"]      # with weights of a run or file, whose net is taken with them
    if given["net"] not in (None, own.get("net", "half")) or begun:      # the size is for the recipe's own net
        own.pop("size", None)
    if given["recipe"] == "finetune" and not begun:
        raise UserError("--recipe finetune begins with the weights of a run or a file: name it with --init RUN or --init FILE")
    if begun and not os.path.exists(given["init"]):
        raise UserError(f"--init {shown(given['init'])}: choose {', '.join(CHOICES['init'])}, or name a run folder or a file of weights; there is none of this name")
    options = {name: own.get(name, DEFAULTS.get(name)) if value is None else value for name, value in given.items()}
    if given["parts"] is None and options["towers"] == 1:
        options["parts"] = ranks
    if options["optimizer"] == "adam":
        for name in SGD_ONLY:
            if given[name] is not None:
                raise UserError(f"--{name.replace('_', '-')} is for --optimizer sgd, Adam has no such thing here: leave it out")
            options[name] = None
    if begun:
        options["net"], options["init"] = given["net"], os.path.abspath(given["init"])
    options["augment"] = ",".join(filter(None, (own.get("augment"), given["augment"])))      # later keys win; `command_of` takes them apart
    check_ranges(options)
    schedule = Schedule(options["schedule"], options["lr"], 1, options["epochs"])
    if given["schedule"] is not None and schedule.warm_epochs > options["epochs"]:      # that of a recipe may be tried out with an epoch or two
        raise UserError(f"--schedule {options['schedule']}: its warm-up is longer than the run's {options['epochs']} epochs")
    folder = RunFolder(out or Path("runs", (options["net"] or "finetuned") + time.strftime("-%Y%m%d-%H%M%S")), numbered=out is None)
    if out is not None:
        folder.require_new()
        folder.require_place()
    return options, None, folder


def typed(name, value):
    """An option's value as config.json keeps it: numpy's numbers become Python's, and what is of another kind is refused."""
    if value is None:
        return None
    if name in INTEGERS:
        kind, word, fits = int, "an integer", isinstance(value, Integral) and not isinstance(value, bool)
    elif name in NUMBERS:
        kind, word, fits = float, "a number", isinstance(value, Real) and not isinstance(value, bool)
    elif name == "drop_last":
        kind, word, fits = bool, "True or False", isinstance(value, bool)
    else:
        kind, word, fits = str, "a text", isinstance(value, str)
    if not fits:
        raise UserError(f"--{name.replace('_', '-')} {value!r}: expected {word}")
    return kind(value)


def resumed(given, folder, ranks=1):
    """What `settle` gives for a run that goes on."""
    for name, value in given.items():
        if value is not None and name not in RESUMED:
            raise UserError(f"--{name.replace('_', '-')} cannot be given with --resume, which takes it from the run's config.json")
    config = folder.config()
    if "converted" in config:
        raise UserError(f"{folder} has weights that were converted, and is no run to go on with: train from them with --init {shell(folder.given)}")
    config["options"] |= {name: value for name, value in OLDER.items() if name not in config["options"]}
    missing = [name for name in given if name not in config["options"]]
    if missing:
        raise UserError(f"{folder.path / 'config.json'} lacks the option {missing[0]}: it is of another version of minialex, which can still continue the run")
    options = {**config["options"], **{name: given[name] for name in ANEW if given[name] is not None}}
    if given["towers"] is None and options["towers"] != ranks:      # what a run is does not depend on them
        options["towers"] = 1
    if any(given[name] for name in ("data", "train", "val")):      # it has moved
        options |= {name: given[name] for name in ("data", "train", "val")}
    check_ranges(options)
    return options, config, folder


def check_ranges(options):
    for name, known in CHOICES.items():
        if options[name] is not None and options[name] not in known and name != "init":      # of which `settle` knows more
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: choose one of {', '.join(known)}")
    for name, least in (("epochs", 1), ("batch", 1), ("size", 1), ("side", 1), ("threads", 1), ("seed", 0), ("early_stop", 0), ("parts", 1)):
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: expected at least {least}")
    for name in ("lr", "momentum", "weight_decay", "bias_lr", "bias_decay", "label_smoothing"):
        below_1 = name in ("momentum", "label_smoothing")
        if options[name] is not None and not 0 <= options[name] < (1 if below_1 else math.inf):
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: expected {'0 up to below 1' if below_1 else '0 or more'}")
    if options["towers"] not in (1, 2):
        raise UserError(f"--towers {options['towers']}: expected 2, as there were in 2012, or 1 for none")
    if options["parts"] > options["batch"]:
        raise UserError(f"--parts {options['parts']}: a batch of {options['batch']} has no image for each of them; use fewer, or a larger --batch")
    if options["val_fraction"] is not None and not 0 < options["val_fraction"] < 1:
        raise UserError(f"--val-fraction {options['val_fraction']}: expected more than 0 and less than 1, as 0.2 is")
    if options["workspace_mb"] is not None and not 0 < options["workspace_mb"] < math.inf:
        raise UserError(f"--workspace-mb {options['workspace_mb']}: expected megabytes, more than 0")
    if options["clip_norm"] is not None and not 0 < options["clip_norm"] < math.inf:
        raise UserError(f"--clip-norm {options['clip_norm']}: expected a number above 0, the largest norm of all gradients together")
    if options["average"] is not None and not 0 < options["average"] < 1:
        raise UserError(f"--average {options['average']}: expected more than 0 and less than 1, as 0.998 is: what is kept of the mean in a step")
    if options["log"] == "tensorboard":
        board.require()
    if options["seed"] >= 1 << 64:
        raise UserError(f"--seed {options['seed']}: expected less than 2**64")
    rates_of(options)
    Schedule(options["schedule"], options["lr"], 1, options["epochs"])
    Input(1, 1).with_text(options["augment"])


def rates_of(options):
    """{layer: what its learning rate is times}, 0 of frozen ones, as --freeze and --lr-of say."""
    frozen, rates = list(filter(None, (options["freeze"] or "").split(","))), {}
    for part in filter(None, (options["lr_of"] or "").split(",")):
        name, _, value = part.partition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            rates[name] = math.nan
        if not name or not 0 <= rates[name] < math.inf:
            raise UserError(f"--lr-of {part}: expected LAYER=FACTOR, such as fc8=10, with a factor of 0 or more")
    if twice := [name for name in frozen if rates.get(name)]:
        raise UserError(f"--freeze {twice[0]} and --lr-of {twice[0]}={rates[twice[0]]:g}: a frozen layer has no learning rate, so leave one out")
    return rates | dict.fromkeys(frozen, 0.0)


def command_of(options):
    """The command that asks for the options of a config.json, without those that it would take by itself."""
    own = DEFAULTS | dict(RECIPES.get(options.get("recipe")) or ({} if any(options.get(name) for name in ("data", "train", "val")) else SHAPES_DEFAULTS))
    words = ["python", "-m", "minialex.train"]
    usual = own | {"side": round((options.get("size") or 0) * 8 / 7)}
    for name, value in options.items():
        if name == "augment" and value:
            value = value.removeprefix(own["augment"]).removeprefix(",")
        if value not in (None, "", usual.get(name)):
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else ["--no-" + flag[2:]] if value is False else [flag, str(value)]
    return shlex.join(words)


def input_of(options, net, train, begun=None):
    """How the net takes pictures: as the options say, else as they were packed, else as much of them as the recipe takes. begun: the Input that the weights it
    begins with were trained with, whose mean and scale it keeps."""
    recipe = RECIPES.get(options["recipe"], {})
    usual = round(net.size * recipe["side"] / recipe["size"]) if recipe.get("net") == net.name else net.side
    if begun and begun.size == net.size:
        usual = begun.side
    side, fit = options["side"] or getattr(train, "size", usual), options["fit"] or getattr(train, "fit", begun.fit if begun else "crop")
    usual = Input(side, net.size, fit)
    if begun:
        usual = replace(usual, mean=begun.mean, scale=begun.scale)
    return usual.with_text(options["augment"])


def optimizer_of(options):
    if options["optimizer"] == "adam":
        return Adam()
    return SGD(options["momentum"], options["weight_decay"], options["form"], options["bias_lr"], options["bias_decay"])
