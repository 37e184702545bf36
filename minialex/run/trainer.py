"""The training loop: a network, batches of pictures, a schedule. It keeps no files and prints nothing."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from ..data.loader import Batch, Loader
from ..errors import UserError
from ..network import Network
from ..progress import Bar, silent
from .scores import Collector, validate

READ_EVERY = 0.5        # seconds between readings of the loss, for which a GPU must finish what is queued


class Diverged(UserError):
    """Training has come to numbers that are not finite."""


class Trainer:
    """Moves a network on, batch by batch, and validates it after each epoch.

    network: a Network laid out for training. train, val: Loaders. schedule: a function of (step, metrics) such as Schedule.
    `state` is all that a checkpoint needs besides the network's arrays; `metrics` are a dict for each epoch that is done. After an
    epoch `collector` has what a report shows of its validation. early_stop: so many epochs without a higher validation top-1 are the
    end, 0 for no such end; bar: of a validation.

    Where the network's team has more ranks than one, all of them go through this together, and what is decided by a clock or by stop() is decided on all
    ranks' values.
    """

    def __init__(self, network: Network, train: Loader, val: Loader, schedule: Callable[[int, list[dict]], float], *, epochs: int,
                 seed: int = 0, early_stop: int = 0, bar: Bar = silent) -> None:
        self.network, self.train, self.val, self.schedule, self.epochs, self.seed = network, train, val, schedule, epochs, seed
        self.early_stop, self.bar, self.team = early_stop, bar, network.team
        # sums: of losses, top-1 hits and images of the epoch so far
        self.state: dict[str, Any] = {"epoch": 0, "batch": 0, "step": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": [], "best": -1.0}
        self.unread = 0         # images that the sums do not have yet
        self.last: tuple = ()      # of the last step: its images, labels and views, its number and rate
        self.collector: Collector | None = None
        self.times: dict[str, float] = {}
        self.waited = 0, 0.0
        self.began, self.read_at = time.perf_counter(), time.monotonic()

    @property
    def metrics(self) -> list[dict]:
        return self.state["metrics"]

    @property
    def finished(self) -> bool:
        return self.state["epoch"] >= self.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether validation top-1 has not risen for `early_stop` epochs: by the metrics alone, so that a resumed run sees the same."""
        if not self.early_stop or not self.metrics:
            return False
        return self.metrics[-1]["epoch"] - max(self.metrics, key=lambda m: m["val_top1"])["epoch"] >= self.early_stop

    def go_on(self, state: dict) -> None:
        """Takes the state of a checkpoint whose arrays the network has."""
        if state.keys() != self.state.keys():
            raise UserError("it does not say where the run stands: it is of another version of minialex, which can still continue the run")
        self.state = {**state, "batch": min(state["batch"], len(self.train))}      # images may have been removed since
        self.waited = self.state["step"], 0.0

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Trains to the last epoch, or until stop() is true after a step or in a validation.

        Yields "begin" before the first batch of an epoch, "step" after each, "validate" before its validation and "epoch" after it, when
        `metrics` has the epoch's.
        """
        state = self.state
        while not self.finished:
            yield "begin"
            self.began = time.perf_counter()
            with contextlib.closing(self.batches(state["epoch"], state["batch"])) as batches:
                for parts, count in batches:
                    if count:
                        self.take(parts, count)
                        if self.team.most(time.monotonic() - self.read_at) > READ_EVERY:
                            self.read()
                    state["batch"] += 1
                    self.clock()
                    yield "step"
                    # Of an epoch's last step the end of the epoch must see what there is to see before it stops.
                    if state["batch"] < len(self.train) and self.team.most(stop()):
                        return
            self.clock()
            self.read()
            layers = self.layers()
            yield "validate"
            scores = self.validated(stop)
            if scores is None:
                return
            self.end_epoch(scores, layers)
            yield "epoch"

    def batches(self, epoch: int, start: int = 0) -> Generator[tuple[tuple[Batch, ...], int], None, None]:
        """Yields for each batch of an epoch this rank's parts, and how many images all ranks have of it."""
        with contextlib.closing(self.train.epoch(epoch, start)) as found:
            for parts in zip(*[iter(found)] * len(self.team.own)):
                yield parts, sum(self.team.of_parts(sum(map(len, parts))))

    def validated(self, stop: Callable[[], bool] | None = None) -> dict | None:
        """Scores of the validation set as `validate` gives them, and the `collector` of it."""
        self.collector = Collector(self.network, self.val.folder)
        scores = validate(self.network, self.val, stop, self.collector, self.bar)
        if scores is not None:
            self.collector.merge(self.team, self.val.order(0))
        return scores

    def take(self, parts: Sequence[Batch], count: int) -> None:
        """One step, with what `batches` yields."""
        if self.team.parts == 1:
            self.step(parts[0])
        else:
            self.step_of_parts(parts, count)

    def step(self, batch: Batch) -> None:
        state, n = self.state, len(batch)
        views = self.network.input.draw(self.seed, state["epoch"], batch.index)
        rate = self.schedule(state["step"], state["metrics"])
        timed = state["batch"] == len(self.train) // 2      # one step an epoch is looked at closely
        took = self.network.train_step(batch.images, batch.labels, views, state["step"], rate, timed)
        self.last, self.times = (batch.images, batch.labels, views, state["step"], rate), took or self.times
        state["step"] += 1
        self.unread += n

    def step_of_parts(self, parts: Sequence[Batch], count: int) -> None:
        """As `step`, of a batch that is cut: this rank's parts, and the images of all."""
        state, timed = self.state, self.state["batch"] == len(self.train) // 2
        rate = self.schedule(state["step"], state["metrics"])
        fed = [(batch.images, batch.labels, self.network.input.draw(self.seed, state["epoch"], batch.index)) for batch in parts]
        took = self.network.train_parts(fed, count, state["step"], rate, timed)
        if len(parts[0]):
            self.last = *fed[0], state["step"], rate
        self.times = took or self.times
        state["step"] += 1
        self.unread += count

    def clock(self) -> None:
        """Moves the time since it was last called to the epoch's."""
        now = time.perf_counter()
        self.state["seconds"] += now - self.began
        self.began = now

    def read(self) -> None:
        """Takes the epoch's scores from the device. They stay there: rounding must not depend on when they are read."""
        loss, hits, _ = self.network.totals().sum(axis=1)
        if not math.isfinite(loss):
            self.diverged("loss")
        self.state["sums"] = [float(loss), int(hits), self.state["sums"][2] + self.unread]
        self.unread, self.read_at = 0, time.monotonic()

    def so_far(self) -> dict[str, float]:
        """{"loss", "top1"} of the epoch, as far as it was read."""
        loss, hits, count = self.state["sums"]
        return {"loss": loss / count, "top1": hits / count} if count else {}

    def require_finite(self) -> None:
        """Diverged if a parameter is not finite: such a network must not replace a checkpoint."""
        if not all(np.isfinite(self.network.device.to_numpy(array)).all() for array in self.network.parameters.values()):
            self.diverged("network")

    def diverged(self, what: str) -> NoReturn:
        than = f" than {self.schedule.lr:g}" if hasattr(self.schedule, "lr") else ""
        raise Diverged(f"the {what} is not finite at step {self.state['step']} (epoch {self.state['epoch'] + 1}): try a smaller --lr{than}, "
                       "a longer warm-up, or --init he")

    def layers(self) -> dict[str, dict]:
        """What the last step has left in each layer, as Network.statistics tells it; nothing but on the first rank, which has the first part of each batch."""
        if self.team.rank and self.team.towers == 1:
            return {}
        self.last = self.last or self.last_of(self.state["epoch"])
        return self.network.statistics(*self.last)

    def last_of(self, epoch: int) -> tuple:
        """`last` of an epoch behind whose last step the run was resumed."""
        for at in range(len(self.train) - 1, -1, -1):
            batch, step = next(self.train.epoch(epoch, at)), self.state["step"] - 1
            if len(batch):
                views = self.network.input.draw(self.seed, epoch, batch.index)
                return batch.images, batch.labels, views, step, self.schedule(step, self.state["metrics"][:epoch])
        raise UserError(f"no training image could be read from {self.train.folder.root}")

    def end_epoch(self, scores: dict, layers: dict[str, dict]) -> None:
        """Adds the metrics of an epoch, and sets the state to the beginning of the next."""
        if not math.isfinite(scores["loss"]):
            self.diverged("validation loss")
        state = self.state
        loss, hits, count = state["sums"]
        if count == 0:
            raise UserError(f"no training image could be read from {self.train.folder.root}")
        metrics = {"epoch": state["epoch"] + 1, "step": state["step"], "train_loss": loss / count, "train_top1": hits / count,
                   "val_loss": scores["loss"], "val_top1": scores["top1"], "val_top5": scores["top5"], "images_per_s": count / state["seconds"],
                   "lr": self.last[-1] if self.last else None, "layers": layers, **self.time_split(),
                   "unreadable": {"train": (len(self.train) * self.train.batch if self.train.drop_last else len(self.train.folder)) - count,
                                  "val": len(self.val.folder) - scores["images"]}}
        if self.train.drop_last and scores["whole"] is not None:
            metrics["val_top1_whole_batches"] = scores["whole"]
        state |= {"epoch": state["epoch"] + 1, "batch": 0, "sums": [0.0, 0, 0], "seconds": 0.0, "metrics": state["metrics"] + [metrics]}
        self.network.scores()      # sets them back

    def time_split(self) -> dict:
        """Seconds of a step, an epoch's mean: forward, backward and update as in the one that was looked at; data, the wait for pictures; and
        what else there is."""
        began, waited = self.waited
        self.waited = self.state["step"], self.train.wait_seconds
        parts = {"data": (self.train.wait_seconds - waited) / max(1, self.state["step"] - began), "forward": 0.0, "backward": 0.0, "update": 0.0}
        for place, seconds in self.times.items():
            part = place.split()[-1]
            parts[part if part in parts else "forward"] += seconds      # the loss belongs to forward
        rest = self.state["seconds"] / len(self.train) - (sum(parts.values()) - parts["data"])
        if self.network.device.name == "cuda":      # which works while the host waits for pictures: only what it is short of counts
            parts["data"] = max(0.0, min(parts["data"], rest))
        parts["other"] = max(0.0, rest - parts["data"])
        slowest = sorted(self.times.items(), key=lambda item: -item[1])[:8]
        return {"seconds": parts, "slowest": [list(item) for item in slowest]} if self.times else {}
