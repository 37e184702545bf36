"""A run under way: what was asked for is made ready, trained, and kept in the run's folder as it goes."""

import contextlib
import os
import platform
import time
import zlib
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np

from .. import nets, tune
from ..data import duplicates
from ..data.augment import Input, measure
from ..data.folder import drawn_fraction, open_data
from ..data.listing import twins
from ..data.image import UnreadableImage
from ..data.loader import CACHE_MB, LEAST_AHEAD, Loader
from ..data.packed import Packed
from ..device import cuda, in_short, open_device
from ..device.base import cores
from ..errors import UserError, shown, typed
from ..limits import free_memory
from ..nets import Net
from ..network import Network
from ..optim import Schedule
from ..progress import silent
from ..team import Team
from ..version import __version__
from . import advice, board, checkpoint, page, weights
from .folder import net_of
from .settings import CHOICES, input_of, optimizer_of, rates_of
from .trainer import Diverged, Trainer

SAVE_EVERY = 600        # seconds between checkpoints inside a long epoch
REPORT = 200 << 20      # bytes that the drawing of a report may take


def describe_machine(device):
    """What must be the same for a resumed run to be the same bit for bit."""
    about = {"device": device.name, "device_model": device.model, "python": platform.python_version(), "processor": platform.machine()}
    return about | {"minialex": __version__, "products": device.products} | {package: version(package) for package in ("numpy", "pillow")}


class Session:
    """Everything up to the first step, then `run`. Used as `with`, which holds the folder's lock.

    options, config (of a run to resume, else None) and folder as `settle` gives them; own: a Net to train instead of options["net"].
    tell(topic, text) is called with what a user should know, topic "warning" or "skipped" with what is not as expected.
    dry: nothing is kept, and the folder is not touched; for `try_step`. team: of the ranks that train together, each of which has a session; the first
    alone tells anything, and touches the folder.
    """

    def __init__(self, options, config, folder, own=None, *, tell=lambda topic, text: None, bar=silent, dry=False, team=None):
        self.options, self.folder, self.tell, self.bar, self.dry, self.unreported = options, folder, tell, bar, dry, False
        self.team = team or Team()
        self.first = self.team.rank == 0
        if not self.first:
            self.tell, self.bar = (lambda topic, text: None), silent
        try:
            self.prepare(config, own)
        except BaseException:
            folder.release()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.folder.release()

    def prepare(self, config, own):
        options, tell, self.fresh, team = self.options, self.tell, not config, self.team
        team.divide(options["parts"], options["towers"])
        # A second run is refused before it takes time and memory.
        if self.first and not self.folder.numbered and not self.dry and (self.folder.path / ".lock").exists():
            self.take_folder(config)
        for name in ("data", "train", "val"):      # a run can be resumed from anywhere
            options[name] = os.path.abspath(options[name]) if options[name] else None
        # A wrong path is told before anything is compiled; the built-in set may have to be drawn, and waits.
        sources = self.opened() if any(options[name] for name in ("data", "train", "val")) else None
        self.device, reason = open_device(self.device_name(), self.threads(config), announce=lambda text: tell("compiling", text))
        self.device.take_precision(options["precision"])
        by = team.take(self.device)
        tell("device", in_short(self.device, reason))
        if team.towers > 1:
            tell("team", f"{team.size} ranks, {team.local[1]} of them on this machine, have a tower each; bytes go by {by}")
        elif team.size > 1:
            tell("team", f"{team.size} ranks, {team.local[1]} of them on this machine, have {len(team.own)} of the {team.parts} parts of each batch each; "
                 f"bytes go by {by}")
        elif team.parts > 1:
            tell("team", f"each batch is taken in {team.parts} parts, one after another")
        train, val = sources or self.opened()
        tell("train", f"{train} from {train.root}")
        tell("val", f"{val} from {val.root}")
        net = self.net_for(train, config, own)
        options["size"] = net.size
        self.input, self.mean = team.share(self.measured(train, config, net) if self.first else None)
        options["side"] = self.input.side
        began = config.get("began") if config else time.strftime("%Y-%m-%d %H:%M")
        rated = net.with_rates(rates_of(options))
        self.config = {"net": net.name, "size": net.size, "began": began, "input": asdict(self.input), "classes": train.classes, "threads": self.device.threads,
                       "options": options, "machine": describe_machine(self.device),
                       "data": {split: source.fingerprint() | {"left_out": source.beside.other} for split, source in (("train", train), ("val", val))}}
        if not net.published:
            self.config["layers"] = net.described()
        if config:
            self.warn_of_differences(config)
        resumed = team.share(self.first and config and self.has_checkpoint())
        conv = (config or {}).get("convolutions", options["conv"])      # a resumed run goes on as it began
        network = self.network_of(rated, train, not resumed, max(len(train), len(val)), conv)
        if not resumed:
            self.begin_with(network)
        train, val = self.loaders(train, val, network.edges)
        schedule = Schedule(options["schedule"], options["lr"], len(train), options["epochs"])
        self.trainer = Trainer(network, train, val, schedule, epochs=options["epochs"], seed=options["seed"], early_stop=options["early_stop"], bar=self.bar)
        if self.first:
            alike = config["data"].get("val", {}).get("near_duplicates") if config else self.duplicates(train.folder, val.folder)
            self.config["data"]["val"]["near_duplicates"] = alike
            if not self.folder.lock and not self.dry:
                self.take_folder(config)
        if resumed:
            self.load(config)
        self.saved_at = time.monotonic()

    def opened(self):
        """(train, val) as data sources; what is drawn of a set that has no validation set is kept with the options."""
        options = self.options
        where = options["data"], options["train"], options["val"]
        if any(where) or options["val_fraction"] is not None:
            options["val_fraction"] = drawn_fraction(*where, **{"asked" if self.fresh else "kept": options["val_fraction"]})
        train, val = open_data(*where, self.bar, seed=options["seed"], val_fraction=options["val_fraction"], warn=lambda text: self.tell("skipped", text))
        if options["val_fraction"] is not None:
            alone = len(train.classes) - len(set(val.labels.tolist()))
            self.tell("split", f"--val-fraction {options['val_fraction']:g}: {len(val):,} of {len(train) + len(val):,} images are drawn for validation, by "
                      f"seed {options['seed']} and their names, from each class" + f" but {alone} that {'has' if alone == 1 else 'have'} one image" * (alone > 0))
        return train, val

    def duplicates(self, train, val):
        """How many validation images are also in training, told, and kept as text until the folder is there; None where that is not looked for."""
        self.alike = ""
        if not any(self.options[name] for name in ("data", "train")):      # the built-in set has none
            return None
        if len(train) + len(val) > duplicates.MOST:
            self.tell("val", f"of more than {duplicates.MOST:,} images it is not looked whether some are also in training")
            return None
        pairs = duplicates.near_duplicates(train, val, self.device.decoders, self.bar)
        if pairs:
            self.alike = duplicates.listed(pairs, train, val)
            self.tell("warning", f"{len(pairs):,} of {len(val):,} validation images are also in training (near-duplicates.txt in the run's folder, which "
                      "minialex.evaluate takes as --without FILE)")
        return len(pairs)

    def device_name(self):
        """The device that is asked for; of several GPUs of a machine each of its ranks has its own."""
        name, (number, ranks) = self.options["device"] or "auto", self.team.local
        if ranks == 1 or name not in ("auto", "cuda") or cuda.why_not():
            return name
        return f"cuda:{number % cuda.count()}"

    def threads(self, config):
        """How many are asked for, None for all cores, of which ranks on one machine have the same part; a resumed run keeps its number, on which its bits
        depend, where there are cores for so many."""
        asked, ranks = self.options["threads"], self.team.local[1]
        if asked is None and config and config["machine"].get("device") == "cpu" and config["threads"] * ranks <= cores():
            return config["threads"]
        return asked if asked is not None or ranks == 1 else max(1, cores() // ranks)

    def network_of(self, net, train, drawn, most, conv):
        """The network to train; drawn: with its first weights; most: images of a batch at most, however large it is to be; conv: as in Network."""
        options, weights = self.options, None
        init = options["init"] if options["init"] in CHOICES["init"] else "he"      # of others `begin_with` takes most
        if options["class_weights"] == "balanced":
            weights = balanced(np.asarray(train.labels), net.classes)
            self.tell("weights", ", ".join(f"{weights[k]:.3g} of class {shown(train.classes[k])}" for k in dict.fromkeys((weights.argmin(), weights.argmax()))))
        if not self.first:      # what one of them has measured, all take
            conv = self.team.share(None)
        network = Network(net, self.device, options["batch"], input=self.input, optimizer=optimizer_of(options), smoothing=options["label_smoothing"],
                          class_weights=weights, clip_norm=options["clip_norm"], init=init if drawn else None, seed=options["seed"],
                          workspace_mb=options["workspace_mb"], most=most, conv=conv,
                          average=options["average"], team=self.team)
        self.config["convolutions"] = tune.algorithms(network.net)
        if self.first:
            self.team.share(self.config["convolutions"])
        network.load_mean(self.mean)
        self.tell("net", f"{net.name}, {net.size}x{net.size}, {net.count():,} parameters, {net.macs() / 1e9:.3f} GMAC per image; "
                  f"a step of {network.batch}{', a part,' * (self.team.parts > 1)} takes {network.layout.bytes() / 2**20:,.0f} MB" + tune.told(network.net)
                  + (f"; frozen: {', '.join(frozen)}" if (frozen := [name for name, layer in net.layers.items() if not layer.lr]) else ""))
        kept, left = sum(map(network.layout.bytes, ("parameter ", *optimizer_of(options).slots, "average "))), free_memory()
        more = 2 * kept + LEAST_AHEAD * network.layout.bytes("input images") + REPORT      # a checkpoint is copied, and put together
        if left is not None and left < more:
            self.tell("warning", f"{left / 2**20:,.0f} MB are left, and checkpoints, pictures to come and the report may take {more / 2**20:,.0f} MB for a "
                      "while: if the system ends the run, use a smaller --batch or --workspace-mb")
        return network

    def loaders(self, train, val, edges):
        options, warn, ranks = self.options, lambda text: self.tell("skipped", text), self.team.local[1]
        common = {"seed": options["seed"], "workers": self.device.decoders, "warn": warn, "fit": self.input.fit, "room": self.device.pictures,
                  "edges": edges, "own": self.team.own, **({"cache_mb": CACHE_MB / ranks} if ranks > 1 else {})}
        fits = sum(len(source) for source in (train, val) if not isinstance(source, Packed)) * 3 * self.input.side**2
        left = free_memory()
        if left is not None and fits * ranks > left // 2:      # what is not kept is decoded anew, with the same results
            common["cache_mb"] = 0
        train = Loader(train, self.input.side, options["batch"], drop_last=options["drop_last"], **common)
        # Where Keras counts whole batches only, it must not always be the last class that is left out.
        val = Loader(val, self.input.side, options["batch"], shuffle=options["drop_last"], **common)
        if kept := train.cache_bytes + val.cache_bytes:
            self.tell("memory", f"decoded pictures come to take {kept / 2**20:,.0f} MB besides" + ", in each rank" * (ranks > 1))
        elif fits and common.get("cache_mb") == 0:
            self.tell("memory", f"{left / 2**20:,.0f} MB are left, too little to keep decoded pictures: each epoch decodes them anew")
        if not len(train):
            raise UserError(f"--batch {options['batch']}: the {len(train.folder)} images of {train.folder.root} do not fill one, "
                            "and --drop-last leaves out what is less")
        return train, val

    def net_for(self, train, config, own):
        self.initial = None if config else self.initial_weights(own)
        if self.initial is not None and own is None:
            net = self.initial.net.with_classes(len(train.classes))
            if self.options["size"]:
                net = Net(net.layers, self.options["size"], net.name)
            self.options["net"] = net.name
        else:
            net = net_of(config) if config else own or nets.build(self.options["net"], len(train.classes), self.options["size"])
        if net.classes != len(train.classes) and not config:
            raise UserError(f"the net has {net.classes} outputs and {train.root} has {len(train.classes)} classes: give its last layer, "
                            f"{list(net.layers)[-1]}, {len(train.classes)} outputs")
        return net

    def initial_weights(self, own):
        """The weights that --init names, or None where it says how to draw them."""
        init, options = self.options["init"], self.options
        if init in CHOICES["init"]:
            return None
        folder = os.path.isdir(init)
        found = weights.read(init, *(() if folder else (own or options["net"], options["size"])))
        if folder and own is None and options["net"] not in (None, found.net.name):
            raise UserError(f"--net {options['net']}: {shown(init)} has the weights of {found.net.name}; leave --net out")
        return found

    def begin_with(self, network):
        """Takes the first weights from where --init says, by name: all but those of the last layer, where the classes are others."""
        found = self.initial = self.initial or self.initial_weights(None)
        if found is None:
            return
        net = network.net_of_all
        last = list(net.layers)[-1]
        same = found.net.classes == net.classes and found.classes in (None, self.config["classes"])
        taken = {name: value for name, value in found.values.items() if same or not name.startswith(f"{last}.")}
        wanted = {name: shape for name, shape in net.parameters().items() if same or not name.startswith(f"{last}.")}
        if wrong := weights.faults({name: value.shape for name, value in taken.items()}, wanted):
            raise UserError(f"--init {shown(self.options['init'])}: its weights, of {found.net.name} at {found.net.size}x{found.net.size}, are not those of {net.name} at "
                            f"{net.size}x{net.size}: {wrong[0]}")
        own = {name: network.own_part(value) for name, value in taken.items()}
        network.load_parameters(network.weights() | own)      # a running mean begins after the first step
        why = "since the classes have other names" if found.net.classes == net.classes else f"for {net.classes} classes instead of {found.net.classes}"
        self.tell("init", f"weights of {found.source}" + f"; {last} is drawn anew, {why}" * (not same))
        self.initial = None      # it takes memory

    def measured(self, train, config, net):
        """-> (Input, mean image or None): as the run began, or measured on the training set where the options ask for that."""
        if config:
            wanted = Input.from_config(config)
            return wanted, self.folder.mean(wanted)
        begun = self.initial and self.initial.input
        if begun and begun.mean == "image":      # of another training set, perhaps of another size: its colour is what both have
            begun = replace(begun, mean=tuple(map(float, self.initial.mean.mean((0, 1)))))
        wanted, image = input_of(self.options, net, train, begun), None
        if wanted.to_measure:
            colours, image = measure(train, wanted.side, wanted.fit, image=wanted.mean == "image", bar=self.bar)
            wanted = wanted.with_colours(colours)
        return wanted, image

    def warn_of_differences(self, config):
        for name, was in config["machine"].items():
            now = self.config["machine"].get(name)
            if now != was:
                self.tell("warning", f"the run was started with {name} {was!r}, now it is {now!r}: it continues, but not bit for bit")
        if config["threads"] != self.config["threads"]:
            self.tell("warning", f"the run was started with {config['threads']} threads, now there are {self.config['threads']}: "
                      f"it continues, but not bit for bit; --threads {config['threads']} keeps to them")
        if config["options"]["towers"] != self.options["towers"]:
            self.tell("warning", f"the run had {config['options']['towers']} towers, now it has {self.options['towers']}: it continues, but not bit for bit")
        if config["classes"] != self.config["classes"]:
            raise UserError(f"the classes of {self.options['data'] or self.options['train']} are not those of the run in {self.folder}"
                            + twins(config["classes"], self.config["classes"]))
        if any(config["data"].get(split, {}).get(key) != now[key] for split, now in self.config["data"].items() for key in ("images", "sha256")):
            self.tell("warning", "the image files are not those that the run was started with: it continues, but not bit for bit")

    # The folder

    def take_folder(self, config):
        self.folder.take()
        if not config:
            self.folder.require_new()      # another run may have been faster

    def has_checkpoint(self):
        """Whether the run to resume has saved one; if not, for it was stopped before the first, it begins anew."""
        last = self.folder.last
        if not last.exists() and (self.folder.path / "metrics.jsonl").exists():
            raise UserError(f"{last} is missing, without which the run cannot be continued: put it back, or train anew with another --out")
        if not last.exists():
            self.tell("resume", f"{self.folder} has no checkpoint yet: the run begins anew")
        return last.exists()

    def load(self, config):
        trainer = self.trainer
        state = checkpoint.restore(self.folder.last, trainer.network)
        try:
            trainer.go_on(state)
        except UserError as error:
            raise UserError(f"{self.folder.last}: {error}") from None
        self.tell("resume", f"{self.folder} at epoch {trainer.state['epoch'] + 1}, step {trainer.state['step']}")
        self.warn_of_rate(config["options"]["epochs"])
        if trainer.stopped_early:
            self.tell("warning", f"{self.folder} has stopped early, as its validation top-1 has not risen for {trainer.early_stop} epochs, and nothing is left "
                      "to train: give a larger --early-stop, or 0 for none")
        elif trainer.finished:
            self.tell("warning", f"{self.folder} has its {trainer.epochs} epochs already, and nothing is left to train: give more --epochs")

    def warn_of_rate(self, epochs):
        """More epochs, or fewer, move a cosine: what comes next is not what the rate had come down to."""
        trainer, options = self.trainer, self.options
        step, metrics, planned = trainer.state["step"], trainer.metrics, Schedule(options["schedule"], options["lr"], len(trainer.train), epochs)
        if step and not trainer.finished and trainer.schedule(step, metrics) != planned(step, metrics):
            self.tell("warning", f"--epochs {options['epochs']} instead of {epochs} moves the schedule {options['schedule']}: the learning rate was "
                      f"{planned(step - 1, metrics):.2g} in the last step, and is {trainer.schedule(step, metrics):.2g} in the next")

    def begin_folder(self):
        """Keeps what the run is, and a report that a kill has prevented."""
        metrics = self.trainer.metrics
        if self.first and self.fresh:
            with contextlib.suppress(OSError):
                self.folder.best.unlink()      # of a run that was killed before it saved its last
            with contextlib.suppress(OSError):
                (self.folder.path / board.NAME).unlink()
            if self.mean is not None:
                self.folder.save_mean(self.mean)
            self.folder.save_duplicates(self.alike)
        if self.first:
            self.folder.save_config(self.config)
            self.tell("run", str(self.folder))
        if metrics and self.team.share(self.first and not self.folder.told(metrics)):      # a kill came between the checkpoint and these
            self.trainer.validated()
            self.report()
        self.log()

    # The run

    def run(self, stop=lambda: False):
        """Trains to the end, or until stop() becomes true, and saves; yields what Trainer.run yields, after it was kept."""
        trainer = self.trainer
        self.team.begin()
        self.begin_folder()
        try:
            for at in trainer.run(stop):
                whole = at == "step" and trainer.state["batch"] == len(trainer.train)      # its last step is yet to be looked at
                if at == "epoch":
                    self.keep_epoch()
                elif at != "begin" and not whole and self.team.most(time.monotonic() - self.saved_at) > SAVE_EVERY:
                    self.save()
                yield at
            if not trainer.finished:
                self.save()
        except Diverged as error:
            raise UserError(f"{error}; {self.folder}: {self.kept_before()}") from None

    def save(self):
        self.trainer.read()
        self.trainer.require_finite()
        self.require_same()
        checkpoint.save(self.folder.last, self.trainer.network, self.trainer.state)
        self.saved_at = time.monotonic()

    def require_same(self):
        """A UserError if the ranks' weights, and what goes with them, are not those of the first."""
        own, arrays = 0, self.trainer.network.arrays
        if len(self.team.own) == self.team.parts:
            return
        for name in [name for name in arrays if name.endswith(" all") and name != "gradient all"]:
            own = zlib.crc32(self.device.to_numpy(arrays[name]), own)
        every = self.team.gather(own)
        others = [rank for rank, crc in enumerate(every) if crc != every[0]]
        if others:
            raise UserError(f"the weights of rank{'s' * (len(others) > 1)} {', '.join(map(str, others))} are no longer those of rank 0, as they must be at "
                            f"step {self.trainer.state['step']}: are their machines, libraries and kernels the same? {self.folder}: {self.kept_before()}")

    def kept_before(self):
        return "its last checkpoint is from before" if self.folder.last.exists() else "nothing was saved"

    def keep_epoch(self):
        state, metrics = self.trainer.state, self.trainer.metrics[-1]
        for loader in self.trainer.train, self.trainer.val:      # what other ranks could not read
            for path, reason in [item for found in self.team.gather(loader.unreadable) for item in found.items() if item[0] not in loader.unreadable]:
                loader.unreadable[path] = reason
                loader.warn(f"skipped {UnreadableImage(path, reason)}")
        if metrics["val_top1"] > state["best"]:
            state["best"] = metrics["val_top1"]
            self.trainer.require_finite()
            checkpoint.save(self.folder.best, self.trainer.network, {"epoch": state["epoch"], "val_top1": state["best"]}, optimizer=False)
        self.save()
        self.report()
        self.log()

    def log(self):
        """Writes what was asked for besides; training goes on where that fails."""
        if self.first and self.options["log"] == "tensorboard":
            try:
                board.write(self.folder.path, self.trainer.metrics)
            except OSError as error:
                self.tell("warning", f"{self.folder.path / board.NAME} cannot be written ({error.strerror}): the run goes on without")

    def try_step(self):
        """One training step, of which nothing is kept. -> {"images", "loss", "seconds"}"""
        trainer = self.trainer
        with contextlib.closing(trainer.batches(0)) as batches:
            parts, count = next(((parts, count) for parts, count in batches if count), ((), 0))
        if not count:
            raise UserError(f"no training image could be read from {trainer.train.folder.root}")
        began = time.perf_counter()
        trainer.take(parts, count)
        trainer.read()
        return {"images": count, "loss": trainer.so_far()["loss"], "seconds": time.perf_counter() - began}

    def report(self):
        """Writes the report of the epochs so far, and then metrics.jsonl. A report that fails is told of once, and training goes on."""
        trainer, filters = self.trainer, page.first_filters(self.trainer.network)
        if not self.first:
            return
        try:
            images, labels, views, *_ = trainer.last or trainer.last_of(len(trainer.metrics) - 1)
            seen = page.augmented(self.input, images[:page.SHOWN], views[:page.SHOWN], self.device, self.mean)
            page.write(self.folder.path, self.config, trainer.metrics, seen=seen, labels=labels[:page.SHOWN], **filters,
                       **trainer.collector.found())
        except Exception as error:
            if not self.unreported:
                why = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.tell("warning", f"the report could not be written ({why}), and training goes on without; later, "
                          f"python -m minialex.report {typed(self.folder.given)} writes it")
            self.unreported = True
        self.folder.save_metrics(trainer.metrics)

    def remarks(self):
        """Sentences on the epoch that was just kept: what a user should know at once."""
        trainer, metrics = self.trainer, self.trainer.metrics
        unread = len(self.trainer.train.unreadable), len(self.trainer.val.unreadable)
        if any(unread) and len(metrics) == 1:
            yield "skipped", f"left out {unread[0]} unreadable training images and {unread[1]} validation images"
        unlearnt = advice.unlearnt(self.config, metrics)
        if unlearnt and not any(advice.unlearnt(self.config, metrics[:i]) for i in range(1, len(metrics))):      # once in a run, resumed or not
            yield "warning", unlearnt[0].lower() + unlearnt[1:].removesuffix(".")
        if trainer.stopped_early and len(metrics) < trainer.epochs:
            best = max(metrics, key=lambda m: m["val_top1"])
            yield "stop", (f"validation top-1 has not risen for {trainer.early_stop} epochs, since {best['val_top1']:.1%} of epoch {best['epoch']}: the run ends "
                           f"after {len(metrics)} of {trainer.epochs}")


def balanced(labels, classes):
    """Weights of classes: n / (C n_c), where n_c of the n images are of class c and C classes have any; 1 of a class without images.

    So that the weights of all images have a mean of 1, as scikit-learn's "balanced" have.
    """
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts, counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)
