"""python -m minialex.train: trains an AlexNet on folders of images, without arguments on a set that it makes itself."""

import contextlib
import json
import math
import os
import platform
import signal
import sys
import time
from dataclasses import asdict
from importlib.metadata import version

import numpy as np

from . import __version__, nets, report
from .checkpoint import Lock, load_mean, restore, save, save_mean, write_beside
from .data.augment import Input, measure
from .data.folder import find_splits
from .data.loader import Loader
from .device import open_device
from .errors import UserError, run_command
from .network import Network
from .optim import SGD, Adam, Schedule
from .options import parse, require_new, settle
from .recipes import RECIPES

SAVE_EVERY = 600        # seconds between checkpoints inside a long epoch
READ_EVERY = 0.5        # seconds between readings of the loss, for which a GPU must finish what is queued


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
    return about | {"minialex": __version__, "products": device.products} | {package: version(package) for package in ("numpy", "pillow")}


def input_of(options, net, train):
    """How the net takes pictures: as the options say, else as they were packed, else as much of them as the recipe takes."""
    recipe = RECIPES.get(options["recipe"], {})
    usual = round(net.size * recipe["side"] / recipe["size"]) if recipe.get("net") == net.name else net.side
    side, fit = options["side"] or getattr(train, "size", usual), options["fit"] or getattr(train, "fit", "crop")
    return Input(side, net.size, fit).with_text(options["augment"])


def optimizer_of(options):
    if options["optimizer"] == "adam":
        return Adam()
    return SGD(options["momentum"], options["weight_decay"], options["form"], options["bias_lr"], options["bias_decay"])


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
        self.lock = None
        try:
            self.prepare(config)
        except BaseException:
            self.release()
            raise

    def prepare(self, config):
        """Everything up to the first step; config: of a run to resume, else None."""
        if (self.folder / ".lock").exists():      # a second run is refused before it takes time and memory
            self.take_folder(config)
        threads = self.options["threads"]
        if config and threads is None and config["machine"].get("device") == "cpu":
            threads = config["threads"]
        self.device, reason = open_device(self.options["device"] or "auto", threads, announce=say)
        say(f"device   {self.device.name} ({reason}): {self.device}")
        train, val = open_data(self.options)
        say(f"train    {train} from {train.root}")
        say(f"val      {val} from {val.root}")
        options = self.options
        net = nets.build(options["net"], len(train.classes), options["size"])
        options["size"] = net.size
        self.input, self.mean = self.measured(train, config, net)
        options["side"] = self.input.side
        # sums: of losses, top-1 hits and images of the epoch so far
        self.state = {"epoch": 0, "batch": 0, "step": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": [], "best": -1.0}
        self.config = {"net": net.name, "size": net.size, "input": asdict(self.input), "classes": train.classes, "threads": self.device.threads,
                       "options": options, "machine": describe_machine(self.device), "data": {"train": train.fingerprint(), "val": val.fingerprint()}}
        if config:
            self.warn_of_differences(config)
        resumed = config and self.has_checkpoint()
        self.network = Network(net, self.device, options["batch"], input=self.input, optimizer=optimizer_of(options), smoothing=options["label_smoothing"],
                               init=None if resumed else options["init"], seed=options["seed"], workspace_mb=options["workspace_mb"])
        self.network.load_mean(self.mean)
        say(f"net      {net.name}, {net.size}x{net.size}, {sum(a.size for a in self.network.parameters.values()):,} parameters, "
            f"{net.macs() / 1e9:.3f} GMAC per image; a step of {options['batch']} takes {self.network.layout.bytes() / 2**20:,.0f} MB")
        common = {"seed": options["seed"], "workers": self.device.decoders, "warn": say, "fit": self.input.fit}
        self.train = Loader(train, self.input.side, options["batch"], drop_last=options["drop_last"], **common)
        # Where Keras counts whole batches only, it must not always be the last class that is left out.
        self.val = Loader(val, self.input.side, options["batch"], shuffle=options["drop_last"], **common)
        if kept := self.train.cache_bytes + self.val.cache_bytes:
            say(f"memory   decoded pictures come to take {kept / 2**20:,.0f} MB besides")
        if not len(self.train):
            raise UserError(f"--batch {options['batch']}: the {len(train)} images of {train.root} do not fill one, and --drop-last leaves out what is less")
        self.schedule = Schedule(options["schedule"], options["lr"], len(self.train), options["epochs"])
        if not self.lock:
            self.take_folder(config)
        if resumed:
            self.load()
        self.saved_at = self.read_at = time.monotonic()
        self.unread = 0         # images that the sums do not have yet
        self.last = None        # of the last step: its images, labels and views, its number and rate
        self.times, self.waited = {}, (self.state["step"], 0.0)
        self.interrupts = Interrupts()
        self.begin_folder(config)

    def measured(self, train, config, net):
        """-> (Input, mean image or None): as the run began, or measured on the training set where the options ask for that."""
        if config:
            wanted = Input.from_config(config)
            return wanted, load_mean(self.folder, wanted.side) if wanted.mean == "image" else None
        wanted, image = input_of(self.options, net, train), None
        if wanted.to_measure:
            from tqdm import tqdm
            colours, image = measure(train, wanted.side, wanted.fit, image=wanted.mean == "image",
                                     progress=lambda places: tqdm(places, disable=None, leave=False, unit="image", desc="measuring colours"))
            wanted = wanted.with_colours(colours)
        return wanted, image

    def has_checkpoint(self):
        """Whether the run to resume has saved one; if not, for it was stopped before the first, it begins anew."""
        last = self.folder / "last.safetensors"
        if not last.exists() and (self.folder / "metrics.jsonl").exists():
            raise UserError(f"{last} is missing, without which the run cannot be continued: put it back, or train anew with another --out")
        if not last.exists():
            say(f"resume   {self.folder} has no checkpoint yet: the run begins anew")
        return last.exists()

    def load(self):
        path = self.folder / "last.safetensors"
        state = restore(path, self.network)
        if state.keys() != self.state.keys():
            raise UserError(f"{path} does not say where the run stands: it is of another version of minialex, which can still continue the run")
        self.state = state
        self.state["batch"] = min(self.state["batch"], len(self.train))      # images may have been removed since
        say(f"resume   {self.folder} at epoch {self.state['epoch'] + 1}, step {self.state['step']}")

    def take_folder(self, config):
        """Makes the run folder, and keeps other runs out of it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be made ({error.strerror}): give another --out") from None
        self.lock = Lock(self.folder)
        if not config:
            require_new(self.folder)      # another run may have been faster

    def release(self):
        if self.lock:
            self.lock.release()

    def begin_folder(self, config):
        if not config:
            with contextlib.suppress(OSError):
                (self.folder / "best.safetensors").unlink()      # of a run that was killed before it saved its last
            if self.mean is not None:
                save_mean(self.folder, self.mean)
        write_beside(self.folder / "config.json", json.dumps(self.config, indent=1) + "\n")
        say(f"run      {self.folder}")
        path = self.folder / "metrics.jsonl"
        told = path.exists() and path.read_bytes() == self.lines().encode() and (self.folder / "report.html").exists()
        if self.state["metrics"] and not told:      # a kill came between the checkpoint and these
            collect = report.Collector(self.network, self.val.folder)
            evaluate(self.network, self.val, self.input, each=collect)
            self.write_metrics(self.state["epoch"] - 1, collect)

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
        self.require_finite()
        save(self.folder / "last.safetensors", self.network, self.state)
        self.saved_at = time.monotonic()

    def require_finite(self):
        if not all(np.isfinite(self.device.to_numpy(array)).all() for array in self.network.parameters.values()):
            self.diverged("network")

    def go(self):
        """Trains to the end, or to a signal. -> the command's exit code"""
        try:
            return self.loop()
        finally:
            self.release()

    def loop(self):
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
                if state["batch"] == len(self.train):
                    continue        # end_epoch() looks at the last step before it stops or saves
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
        say(f"done     {state['step']} steps; best validation top-1 {state['best']:.1%}; {self.folder / 'report.html'}")
        return 0

    def step(self, batch):
        state, n = self.state, len(batch)
        views = self.input.draw(self.options["seed"], state["epoch"], batch.index)
        rate = self.schedule(state["step"], state["metrics"])
        timed = state["batch"] == len(self.train) // 2      # one step an epoch is looked at closely
        took = self.network.train_step(batch.images, batch.labels, views, state["step"], rate, timed)
        self.last, self.times = (batch.images, batch.labels, views, state["step"], rate), took or self.times
        state["step"] += 1
        self.unread += n

    def read(self):
        """Takes the epoch's scores from the device. They stay there: rounding must not depend on when they are read."""
        loss, hits, _ = self.device.to_numpy(self.network.arrays["output totals"]).sum(axis=1)
        if not math.isfinite(loss):
            self.diverged("loss")
        self.state["sums"] = [float(loss), int(hits), self.state["sums"][2] + self.unread]
        self.unread, self.read_at = 0, time.monotonic()

    def diverged(self, what):
        saved = "its last checkpoint is from before" if (self.folder / "last.safetensors").exists() else "nothing was saved"
        raise UserError(f"the {what} is not finite at step {self.state['step']} (epoch {self.state['epoch'] + 1}): try a smaller --lr than "
                        f"{self.options['lr']:g}, a longer warm-up, or --init he; {self.folder}: {saved}")

    def end_epoch(self):
        """Validates, reports and saves. False if a signal came in between."""
        self.read()
        state, classes = self.state, len(self.config["classes"])
        self.last = self.last or self.last_again(state["epoch"])
        layers = self.network.statistics(*self.last)
        if time.monotonic() - self.saved_at > SAVE_EVERY:
            self.save()
        collect = report.Collector(self.network, self.val.folder)
        scores = evaluate(self.network, self.val, self.input, self.interrupts, collect)
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
        metrics |= {"lr": self.last[4], "layers": layers, **self.time_split()}
        if self.options["drop_last"] and scores["whole"] is not None:
            metrics["val_top1_whole_batches"] = scores["whole"]
        say(f"epoch {metrics['epoch']:3d}  train loss {metrics['train_loss']:.4f} top-1 {metrics['train_top1']:6.1%}   val loss "
            f"{metrics['val_loss']:.4f} top-1 {metrics['val_top1']:6.1%} top-5 {metrics['val_top5']:6.1%}   {images_per_s:.0f} images/s"
            + (f"   (val top-1 of whole batches, as Keras counts: {scores['whole']:.1%})" if "val_top1_whole_batches" in metrics else ""))
        unread = len(self.train.unreadable), len(self.val.unreadable)
        if any(unread) and state["epoch"] == 0:
            say(f"left out {unread[0]} unreadable training images and {unread[1]} validation images")
        if classes > 1 and min(metrics["train_loss"], metrics["val_loss"]) > 0.98 * math.log(classes):
            say(f"warning: the loss stays at ln({classes}) = {math.log(classes):.3f} or above, that of guessing: nothing is learnt so far. "
                + ("Try --init he: the published initialisation needs much data and time" if self.options["init"] == "published" else
                   "Try a larger --lr, more epochs of warm-up, or fewer classes; and see that the images are in the right folders"))
        state |= {"epoch": state["epoch"] + 1, "batch": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": state["metrics"] + [metrics]}
        self.network.scores()      # sets them back
        if metrics["val_top1"] > state["best"]:
            state["best"] = metrics["val_top1"]
            self.require_finite()
            save(self.folder / "best.safetensors", self.network, {"epoch": state["epoch"], "val_top1": state["best"]}, optimizer=False)
        self.save()
        self.write_metrics(metrics["epoch"] - 1, collect)
        return True

    def last_again(self, epoch):
        """`last` of an epoch behind whose last step the run was resumed."""
        for at in range(len(self.train) - 1, -1, -1):
            batch, step = next(self.train.epoch(epoch, at)), self.state["step"] - 1
            if len(batch):
                views = self.input.draw(self.options["seed"], epoch, batch.index)
                return batch.images, batch.labels, views, step, self.schedule(step, self.state["metrics"][:epoch])
        raise UserError(f"no training image could be read from {self.train.folder.root}")

    def time_split(self):
        """Seconds of a step, an epoch's mean: forward, backward and update as in the one that was looked at; data, the wait for pictures; and
        what else there is."""
        began, waited = self.waited
        self.waited = self.state["step"], self.train.wait_seconds
        parts = {"data": (self.train.wait_seconds - waited) / max(1, self.state["step"] - began), "forward": 0.0, "backward": 0.0, "update": 0.0}
        for place, seconds in self.times.items():
            part = place.split()[-1]
            parts[part if part in parts else "forward"] += seconds      # the loss belongs to forward
        rest = self.state["seconds"] / len(self.train) - (sum(parts.values()) - parts["data"])
        if self.device.name == "cuda":      # which works while the host waits for pictures: only what it is short of counts
            parts["data"] = max(0.0, min(parts["data"], rest))
        parts["other"] = max(0.0, rest - parts["data"])
        slowest = sorted(self.times.items(), key=lambda item: -item[1])[:8]
        return {"seconds": parts, "slowest": [list(item) for item in slowest]} if self.times else {}

    def lines(self):
        return "".join(json.dumps(m) + "\n" for m in self.state["metrics"])

    def write_metrics(self, epoch, collect):
        """The report and then metrics.jsonl, by which a resumed run sees whether it must write them again."""
        images, _, views, *_ = self.last or self.last_again(epoch)
        seen = report.augmented(self.input, images[:report.SHOWN], views[:report.SHOWN], self.device, self.mean)
        report.write(self.folder, self.config, self.state["metrics"], seen=seen, **report.first_filters(self.network), **collect.found())
        write_beside(self.folder / "metrics.jsonl", self.lines())

    def stop(self):
        self.save()
        say(f"stopped  at step {self.state['step']}, saved; continue with: python -m minialex.train --resume {self.folder}")
        return 128 + self.interrupts.signal


def evaluate(network, loader, input, interrupts=None, each=None):
    """Centre-crop scores over a loader. -> {"loss", "top1", "top5", "images", "whole"}, or None if interrupted.

    "whole" is top-1 over the batches that are full, None where there is none. each(batch, losses, ranks) is called for every batch.
    The scores of a training epoch that the network holds stay as they are.
    """
    totals, count, whole = network.arrays["output totals"], 0, [0, 0]
    before = network.device.to_numpy(totals)
    totals.fill(0)
    try:
        for batch in loader.epoch(0):
            if interrupts is not None and interrupts.signal is not None:
                return None
            if not len(batch):
                continue
            network.evaluate(batch.images, batch.labels, input.centre(len(batch)))
            count += len(batch)
            if each:
                losses, ranks = network.results(len(batch))
                if len(batch) == loader.batch:
                    whole = [whole[0] + int((ranks < 1).sum()), whole[1] + len(batch)]
                each(batch, losses, ranks)
        loss, top1, top5 = network.scores()
    finally:
        network.device.upload(totals, before)
    if not count:
        raise UserError(f"no image could be read from {loader.folder.root}")
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count, "images": count, "whole": whole[0] / whole[1] if whole[1] else None}


def say(text):
    """A line of the run's report; progress bars step aside for it."""
    from tqdm import tqdm
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or what is left would fail again at the end
        raise UserError(f"standard output cannot be written ({error.strerror}): {text}") from None


def main(arguments=None):
    return Run(arguments).go()


if __name__ == "__main__":
    run_command(main)
