"""The folder of a run: it keeps, and does nothing else.

    config.json        what the run is: net, input, classes, options, machine and data
    last.safetensors   where it stands; best.safetensors: the weights with the best validation top-1
    metrics.jsonl      a line for each epoch; written after the report, so that a resumed run sees whether that is missing
    near-duplicates.txt  the validation images that are also in training, where there are such
    mean.npy           the training set's mean image, where the input subtracts one
    report.html        the report; curve.png and filters.png beside it
    .lock              held by the process that writes here
"""

import contextlib
import errno
import io
import json
import os
import re
from pathlib import Path

import numpy as np

from .. import nets
from ..data.augment import Input
from ..errors import UserError, typed
from ..files import take_lock, write_beside
from ..ops.lrn import LRN

# What `write_beside` has not finished when it is killed.
UNFINISHED = re.compile(r"\.((last|best)\.safetensors|config\.json|metrics\.jsonl|report\.html|mean\.npy|near-duplicates\.txt|[a-z]+\.png)\.\d+")
# What a config.json has; "layers" too where the net is none of minialex.nets.
CONFIG = {"net": str, "size": int, "input": dict, "classes": list, "threads": int, "options": dict, "machine": dict, "data": dict}


class RunFolder:
    """A run's folder, which need not be there yet. `last`, `best`, `report` are the paths of its files; sentences name it as it was given."""

    def __init__(self, path, numbered=False):
        self.numbered, self.lock = numbered, None
        self.name(path)

    def name(self, path):
        self.given, self.path = Path(path), Path(os.path.abspath(path))      # the working directory may change meanwhile
        self.last, self.best, self.report = (self.path / name for name in ("last.safetensors", "best.safetensors", "report.html"))

    def __str__(self):
        return str(self.given)

    # Who writes

    def require_new(self):
        """A UserError if it holds a run that has saved something."""
        if self.last.exists() or (self.path / "metrics.jsonl").exists():
            raise UserError(f"{self} holds a run already: continue it with --resume {typed(self.given)}, or give another --out")

    def require_place(self):
        """A UserError if it cannot be made for want of a folder to make it in, or of the right to."""
        above = self.path
        while not os.path.lexists(above):
            above = above.parent
        number = 0 if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK) else errno.EACCES if os.path.isdir(above) else errno.ENOTDIR
        if number:
            raise UserError(f"the run folder {self} cannot be made ({os.strerror(number)}): give another --out")

    def take(self):
        """Makes the folder, keeps others out until `release` or the end of this process, and removes what a kill left half written."""
        try:
            self.make()
        except OSError as error:
            raise UserError(f"the run folder {self} cannot be made ({error.strerror}): give another --out") from None
        try:
            self.lock = open(self.path / ".lock", "wb")
        except OSError as error:
            raise UserError(f"the run folder {self} cannot be written ({error.strerror}): make it writable, or give another --out") from None
        take_lock(self.lock, f"another run is writing to {self} now: wait for it, or give another --out")
        for path in self.path.iterdir():
            if UNFINISHED.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def make(self):
        """Makes it; a numbered one is always new: if it is there, since another run began in the same second, it gets a number behind its name."""
        given, count = self.given, 1
        while True:
            try:
                return self.path.mkdir(parents=True, exist_ok=not self.numbered)
            except FileExistsError:
                if not self.numbered:      # it is a file
                    raise
                count += 1
                self.name(f"{given}-{count}")

    def release(self):
        if self.lock:
            self.lock.close()

    # What it keeps

    def config(self):
        """The content of config.json, checked."""
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self} is not a run folder: it has no config.json") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error})") from None
        missing = [key for key, kind in CONFIG.items() if not isinstance(config, dict) or not isinstance(config.get(key), kind)]
        try:
            input = None if missing else Input.from_config(config)
            if not missing and "layers" in config and (not isinstance(config["layers"], dict) or net_of(config).classes != len(config["classes"])):
                missing = ["layers"]
        except TypeError:
            missing = ["input"]
        except UserError as error:
            raise UserError(f"{path} does not describe a run ({error}): it is damaged, or of another version of minialex, which can still use it") from None
        if missing or input.size != config["size"]:
            raise UserError(f"{path} does not describe a run (its {(missing or ['size'])[0]} is missing or not as it should be): it is damaged, or of "
                            "another version of minialex, which can still use it")
        return config

    def save_config(self, config):
        write_beside(self.path / "config.json", json.dumps(config, indent=1) + "\n")

    def metrics(self):
        """A dict for each epoch that was reported; empty where there is none yet."""
        path = self.path / "metrics.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error})") from None

    def save_metrics(self, metrics):
        write_beside(self.path / "metrics.jsonl", lines_of(metrics))

    def told(self, metrics):
        """Whether these metrics, and so the report of them, are there."""
        path = self.path / "metrics.jsonl"
        return path.exists() and path.read_bytes() == lines_of(metrics).encode() and self.report.exists()

    def mean(self, input):
        """The mean image that an input subtracts, float32 (side, side, 3), or None."""
        if input.mean != "image":
            return None
        path = self.path / "mean.npy"
        try:
            image = np.load(path)
            if image.shape != (input.side, input.side, 3):
                raise ValueError(f"its shape is {image.shape}, not {(input.side, input.side, 3)}")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}, the mean image that the net's input needs, cannot be read ({error})") from None
        return image

    def save_mean(self, image):
        data = io.BytesIO()
        np.save(data, image)
        write_beside(self.path / "mean.npy", data.getvalue())

    def save_duplicates(self, text):
        """Keeps what names validation images that are also in training; empty: there are none."""
        path = self.path / "near-duplicates.txt"
        if text:
            write_beside(path, text.encode("utf-8", "surrogateescape"))
        else:
            path.unlink(missing_ok=True)      # of a run that was killed before it saved anything

    def checkpoint(self, which=None):
        """The path of the "best" or the "last" checkpoint; None takes the best there is."""
        return self.best if which == "best" or which is None and self.best.exists() else self.last


def net_of(config):
    """The net that a config.json describes."""
    if "layers" in config:
        return nets.from_description(config["layers"], config["size"], config["net"])
    net = nets.build(config["net"], len(config["classes"]), config["size"])
    if config["net"] == "paper" and config["machine"].get("minialex") == "0.1.0":      # whose LRN crossed from tower to tower
        for layer in net.layers.values():
            if isinstance(layer, LRN):
                layer.groups = 1
    return net


def lines_of(metrics):
    return "".join(json.dumps(m) + "\n" for m in metrics)
