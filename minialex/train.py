"""python -m minialex.train: trains an AlexNet on folders of images, without arguments on a set that it makes itself."""

import argparse
import hashlib
import json
import math
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from . import nets
from .checkpoint import load, read_config, save, write_beside
from .data.folder import find_splits
from .data.loader import Loader, centre, crops
from .device import open_device
from .errors import UserError, run_command
from .network import MEAN, SCALE, Network
from .optim import SGD, Schedule

SAVE_EVERY = 600        # seconds between checkpoints inside a long epoch
READ_EVERY = 0.5        # seconds between readings of the loss, for which a GPU must finish what is queued

DEFAULTS = {"net": "half", "epochs": 30, "batch": 64, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine,warmup:1",
            "seed": 0, "init": "he", "form": "2012", "workspace_mb": None, "size": None}
SHAPES_DEFAULTS = {"epochs": 8, "batch": 32, "size": 98}       # reaches 97 % on the built-in set in a minute on two cores


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m minialex.train", description="Train an AlexNet on folders of images; without "
                                     "arguments, on a small set of ten classes that it makes itself.")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", help="folder with train/ and val/, each with one folder of images per class")
    data.add_argument("--train", metavar="DIR", help="training folder, with --val instead of --data")
    data.add_argument("--val", metavar="DIR", help="validation folder")
    data.add_argument("--size", type=int, help=f"input size in pixels (default: the net's published one, {SHAPES_DEFAULTS['size']} for half on the built-in set)")
    net = parser.add_argument_group("network and optimizer")
    net.add_argument("--net", choices=list(nets.NETS), help="default half")
    net.add_argument("--init", choices=["he", "published"], help="first weights: he (default) trains from scratch on small data")
    net.add_argument("--epochs", type=int, help=f"default {DEFAULTS['epochs']}, {SHAPES_DEFAULTS['epochs']} on the built-in set")
    net.add_argument("--batch", type=int, help=f"images per step (default {DEFAULTS['batch']}, {SHAPES_DEFAULTS['batch']} on the built-in set)")
    net.add_argument("--lr", type=float, help=f"learning rate (default {DEFAULTS['lr']})")
    net.add_argument("--momentum", type=float, help="default 0.9")
    net.add_argument("--weight-decay", type=float, help="default 5e-4, none on biases")
    net.add_argument("--form", choices=["2012", "torch"], help="which form of SGD with momentum (default 2012)")
    net.add_argument("--schedule", help="constant, cosine or step:EPOCHS, then ,warmup:EPOCHS (default cosine,warmup:1)")
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
        moved = any(args[name] for name in ("data", "train", "val"))
        options = {**config["options"], **{name: args[name] for name in ("epochs", "device", "threads") if args[name] is not None}}
        if moved:
            options |= {name: args[name] for name in ("data", "train", "val")}
        check_ranges(options)
        return options, config, run
    own = {} if args["data"] or args["train"] or args["val"] else dict(SHAPES_DEFAULTS)
    if args["net"] not in (None, "half"):
        own.pop("size", None)
    options = {name: own.get(name, DEFAULTS.get(name)) if value is None else value for name, value in args.items()}
    check_ranges(options)
    del options["resume"]
    run = Path(options.pop("out") or Path("runs") / time.strftime(f"{options['net']}-%Y%m%d-%H%M%S"))
    if (run / "last.safetensors").exists():
        raise UserError(f"{run} holds a run already: continue it with --resume {run}, or give another --out")
    return options, None, run


def check_ranges(options):
    for name, least in (("epochs", 1), ("batch", 1), ("size", 1), ("threads", 1), ("seed", 0)):
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name} {options[name]}: expected at least {least}")
    for name in ("lr", "momentum", "weight_decay"):
        if not 0 <= options[name] < (1 if name == "momentum" else math.inf):
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: expected {'0 up to below 1' if name == 'momentum' else '0 or more'}")
    if options["seed"] >= 1 << 64:
        raise UserError(f"--seed {options['seed']}: expected less than 2**64")
    Schedule(options["schedule"], options["lr"], 1, options["epochs"])


def open_data(options):
    """-> (train, val) ImageFolders; the options get absolute paths, so that a run can be resumed from anywhere."""
    for name in ("data", "train", "val"):
        options[name] = options[name] and os.path.abspath(options[name])
    if options["data"] or options["train"] or options["val"]:
        return find_splits(options["data"], options["train"], options["val"])
    from tqdm import tqdm

    from .data.shapes import default_set
    with tqdm(disable=None, leave=False, unit="image", desc="drawing the built-in set, once") as bar:
        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)
        return find_splits(default_set(progress))


def describe_machine(device):
    """What must be the same for a resumed run to be the same bit for bit."""
    about = {"device": device.name, "device_model": device.model, "python": platform.python_version(), "processor": platform.machine()}
    return about | {package: version(package) for package in ("numpy", "pillow", "scipy-openblas32")}


def listing_of(folder):
    names = "\n".join(os.path.relpath(path, folder.root) for path in folder.paths)
    return {"images": len(folder.paths), "sha256": hashlib.sha256(os.fsencode(names)).hexdigest()}


class Interrupts:
    """Ctrl-C and SIGTERM ask for a checkpoint and an end after the current step; a second Ctrl-C ends at once."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


class Run:
    """One training run: the state that a checkpoint holds, and the loop that moves it on."""

    def __init__(self, arguments=None):
        self.options, config, self.folder = settle(parse(arguments))
        threads = self.options["threads"]
        if config and threads is None and config["machine"]["device"] == "cpu":
            threads = config["threads"]
        self.device, reason = open_device(self.options["device"] or "auto", threads, announce=say)
        say(f"device   {self.device.name} ({reason}): {self.device}")
        train, val = open_data(self.options)
        say(f"train    {train} from {train.root}")
        say(f"val      {val} from {val.root}")
        options = self.options
        net = nets.build(options["net"], len(train.classes), options["size"])
        options["size"] = net.size
        self.state = {"epoch": 0, "batch": 0, "step": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": [], "best": -1.0}
        self.config = {"net": net.name, "size": net.size, "side": net.side, "mean": MEAN, "scale": SCALE, "classes": train.classes,
                       "threads": self.device.threads, "options": options, "machine": describe_machine(self.device),
                       "data": {"train": listing_of(train), "val": listing_of(val)}}
        if config:
            self.warn_of_differences(config)
        optimizer = SGD(options["momentum"], options["weight_decay"], options["form"])
        self.network = Network(net, self.device, options["batch"], side=net.side, optimizer=optimizer,
                               init=None if config else options["init"], seed=options["seed"], workspace_mb=options["workspace_mb"])
        say(f"net      {net.name}, {net.size}x{net.size}, {sum(a.size for a in self.network.parameters.values()):,} parameters, "
            f"{net.macs() / 1e9:.3f} GMAC per image; a step of {options['batch']} takes {self.network.layout.bytes() / 2**20:,.0f} MB")
        workers = max(1, min(4, self.device.threads))
        self.train = Loader(train, net.side, options["batch"], seed=options["seed"], workers=workers, warn=say)
        self.val = Loader(val, net.side, options["batch"], shuffle=False, workers=workers, warn=say)
        if config:
            parameters, velocity, self.state = load(self.folder / "last.safetensors")
            self.network.load_parameters(parameters)
            self.network.load_parameters(velocity, self.network.velocity)
            self.state["batch"] = min(self.state["batch"], len(self.train))      # images may have been removed since
            say(f"resume   {self.folder} at epoch {self.state['epoch'] + 1}, step {self.state['step']}")
        self.schedule = Schedule(options["schedule"], options["lr"], len(self.train), options["epochs"])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be made ({error.strerror}): give another --out") from None
        write_beside(self.folder / "config.json", json.dumps(self.config, indent=1) + "\n")
        say(f"run      {self.folder}")
        if self.state["metrics"]:
            self.write_metrics()      # a kill may have come between the checkpoint and these
        self.saved_at = self.read_at = time.monotonic()
        self.unread = 0      # images whose scores are still on the device
        self.interrupts = Interrupts()

    def warn_of_differences(self, config):
        for name, was in config["machine"].items():
            now = self.config["machine"].get(name)
            if now != was:
                say(f"warning: the run was started with {name} {was!r}, now it is {now!r}: it continues, but not bit for bit")
        if config["threads"] != self.config["threads"]:
            say(f"warning: the run was started with {config['threads']} threads, now there are {self.config['threads']}: "
                "it continues, but not bit for bit")
        if config["classes"] != self.config["classes"]:
            raise UserError(f"the classes of {self.options['data'] or self.options['train']} are not those of the run in {self.folder}")
        if config["data"] != self.config["data"]:
            say("warning: the image files are not those that the run was started with: it continues, but not bit for bit")

    def clock(self):
        """Moves the time since it was last called to the epoch's."""
        now = time.perf_counter()
        self.state["seconds"] += now - self.began
        self.began = now

    def save(self):
        self.read()
        if not all(np.isfinite(self.device.to_numpy(array)).all() for array in self.network.parameters.values()):
            self.diverged("network")
        save(self.folder / "last.safetensors", self.network, self.state)
        self.saved_at = time.monotonic()

    def go(self):
        from tqdm import tqdm
        state = self.state
        while state["epoch"] < self.options["epochs"]:
            self.began = time.perf_counter()
            bar = tqdm(self.train.epoch(state["epoch"], state["batch"]), total=len(self.train), initial=state["batch"], leave=False,
                       disable=None, unit="step", desc=f"epoch {state['epoch'] + 1}/{self.options['epochs']}")
            for batch in bar:
                if len(batch):
                    self.step(batch)
                    if time.monotonic() - self.read_at > READ_EVERY:
                        self.read()
                        bar.set_postfix(loss=f"{state['sums'][0] / state['sums'][2]:.3f}", top1=f"{state['sums'][1] / state['sums'][2]:.3f}")
                state["batch"] += 1
                if self.interrupts.signal is not None:
                    bar.close()
                    self.clock()
                    return self.stop()
                if time.monotonic() - self.saved_at > SAVE_EVERY:
                    self.clock()
                    self.save()
            self.clock()
            if not self.end_epoch():
                return self.stop()
        say(f"done     {state['step']} steps; best validation top-1 {state['best']:.1%}; {self.folder / 'curve.png'}")
        return 0

    def step(self, batch):
        state, n = self.state, len(batch)
        places = crops(self.options["seed"], state["epoch"], batch.index, self.config["side"] - self.config["size"])
        self.network.train_step(batch.images, batch.labels, places, state["step"], self.schedule(state["step"]))
        state["step"] += 1
        self.unread += n

    def read(self):
        """Adds the scores of the steps since the last reading to the epoch's."""
        (loss, hits, _), sums = self.network.scores(), self.state["sums"]
        if not math.isfinite(loss):
            self.diverged("loss")
        self.state["sums"] = [sums[0] + loss, sums[1] + hits, sums[2] + self.unread]
        self.unread, self.read_at = 0, time.monotonic()

    def diverged(self, what):
        saved = "its last checkpoint is from before" if (self.folder / "last.safetensors").exists() else "nothing was saved"
        raise UserError(f"the {what} is not finite at step {self.state['step']} (epoch {self.state['epoch'] + 1}): try a smaller --lr than "
                        f"{self.options['lr']:g}, a longer warm-up, or --init he; {self.folder}: {saved}")

    def end_epoch(self):
        """Validates, reports and saves. False if a signal came in between."""
        self.read()
        state = self.state
        scores = evaluate(self.network, self.val, self.interrupts)
        if scores is None:
            return False
        if not math.isfinite(scores["loss"]):
            self.diverged("validation loss")
        loss, hits, count = state["sums"]
        if count == 0:
            raise UserError(f"no training image could be read from {self.train.folder.root}")
        images_per_s = count / state["seconds"]
        metrics = {"epoch": state["epoch"] + 1, "step": state["step"], "train_loss": loss / count, "train_top1": hits / count,
                   "val_loss": scores["loss"], "val_top1": scores["top1"], "val_top5": scores["top5"], "images_per_s": images_per_s}
        say(f"epoch {metrics['epoch']:3d}  train loss {metrics['train_loss']:.4f} top-1 {metrics['train_top1']:6.1%}   val loss "
            f"{metrics['val_loss']:.4f} top-1 {metrics['val_top1']:6.1%} top-5 {metrics['val_top5']:6.1%}   {images_per_s:.0f} images/s")
        unread = len(self.train.unreadable), len(self.val.unreadable)
        if any(unread) and state["epoch"] == 0:
            say(f"left out {unread[0]} unreadable training images and {unread[1]} validation images")
        classes = len(self.config["classes"])
        if classes > 1 and min(metrics["train_loss"], metrics["val_loss"]) > 0.98 * math.log(classes):
            say(f"warning: the loss stays at ln({classes}) = {math.log(classes):.3f} or above, that of guessing: nothing is learnt so far. "
                + ("Try --init he: the published initialisation needs much data and time" if self.options["init"] == "published" else
                   "Try a larger --lr, more epochs of warm-up, or fewer classes; and see that the images are in the right folders"))
        state |= {"epoch": state["epoch"] + 1, "batch": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": state["metrics"] + [metrics]}
        if metrics["val_top1"] > state["best"]:
            state["best"] = metrics["val_top1"]
            save(self.folder / "best.safetensors", self.network, {"epoch": state["epoch"], "val_top1": state["best"]}, velocity=False)
        self.save()
        self.write_metrics()
        return True

    def write_metrics(self):
        write_beside(self.folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in self.state["metrics"]))
        from .curve import plot
        title = f"{self.config['net']}, {len(self.config['classes'])} classes, {self.config['data']['train']['images']} images"
        plot(self.state["metrics"], self.folder / "curve.png", title)

    def stop(self):
        self.save()
        say(f"stopped  at step {self.state['step']}, saved; continue with: python -m minialex.train --resume {self.folder}")
        return 128 + self.interrupts.signal


def evaluate(network, loader, interrupts=None, each=None):
    """Centre-crop scores over a loader. -> {"loss", "top1", "top5", "images"}, or None if interrupted.

    each(batch, losses, ranks) is called for every batch.
    """
    count = 0
    for batch in loader.epoch(0):
        if interrupts is not None and interrupts.signal is not None:
            network.scores()      # or the training epoch would count them
            return None
        if not len(batch):
            continue
        network.evaluate(batch.images, batch.labels, centre(len(batch), network.layout.side - network.net.size))
        count += len(batch)
        if each:
            each(batch, *network.results(len(batch)))
    if not count:
        raise UserError(f"no image could be read from {loader.folder.root}")
    loss, top1, top5 = network.scores()
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count, "images": count}


def say(text):
    """A line of the run's report; progress bars step aside for it."""
    from tqdm import tqdm
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def main(arguments=None):
    return Run(arguments).go()


if __name__ == "__main__":
    run_command(main)
