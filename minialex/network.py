"""A net made runnable: buffers laid out once for a largest batch, launches recorded once for each batch size."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data.augment import Input
from .device import Array, Device, open_device
from .device.kernel import address
from .errors import UserError
from .layout import Layout, cut
from .limits import free_memory
from .nets import Net
from .ops.add import BLOCK, add_parts
from .ops.augment import FILLS, augment, check_views
from .ops.columns import move
from .ops.layer import Site, as_array
from .ops.softmax import check_labels, cross_entropy_rows, softmax_rows
from .optim import BLOCK as SCALED
from .optim import SGD, Adam, add_to_average, clip, scale_gradient
from .team import PairwiseSum, Team, copied
from .towers import Gather, half, tower_of
from .tune import settled


TRAINED = "train", "gradient", "part"      # passes with dropout, and with gradients of the parameters


class Network:
    """A net on a device, for batches of up to `batch` decoded pictures, of which `input` says how the net takes them.

    `parameters`, `velocity` and `gradients` are {name: device array}; `gradients` holds those of the mean loss. `state` is
    all that the optimizer keeps, {"velocity conv1.weight": device array, ...}. device: "auto", "cpu", "cuda", "numpy", or an open one.
    In training, smoothing is that of the labels, class_weights (classes,) what an image's loss is times by its label, and clip_norm the
    largest norm of all gradients together. average: the decay of a running mean of the parameters, by which evaluation then goes. conv: the
    algorithm of the convolutions, as minialex.tune takes it. most: images that there are at all; a larger batch is not laid out for more, and
    gives the same results. to_input: with room for `input_gradient`. team: of the ranks that train together. Where it has more than one part, a pass takes
    one of them, and `train_parts` makes a step.
    """

    def __init__(self, net: Net, device: str | Device, batch: int, *, input: Input | None = None, training: bool = True, optimizer: SGD | Adam = SGD(),
                 smoothing: float = 0.0, class_weights: np.ndarray | None = None, clip_norm: float | None = None, init: str | None = "he", seed: int = 0,
                 workspace_mb: float | None = None, most: int | None = None, conv: str | Mapping[str, Any] = "auto",
                 average: float | None = None, to_input: bool = False, team: Team | None = None) -> None:
        if batch < 1:
            raise UserError(f"--batch {batch}: a batch has at least one image")
        device = open_device(device)[0] if isinstance(device, str) else device
        self.team = team or Team()
        self.edges, self.full = self.team.edges(batch), batch
        totals, part = batch, int(np.diff(self.edges).max())
        batch = min(part, most or part)
        self.net_of_all = net
        if self.team.towers > 1:
            net = tower_of(net, self.team.rank)
            if clip_norm is not None:
                raise UserError("--clip-norm is not for --towers, each of which knows its own gradients alone: leave one of them out")
        net = settled(net, device, part, *cut(device, part), training=training, conv=conv)
        self.net, self.device, self.batch, self.optimizer, self.seed, self.training = net, device, batch, optimizer, seed, training
        self.smoothing, self.clip_norm, self.average, self.passed = smoothing, clip_norm, average, 0      # images of the last pass
        slots = (*optimizer.slots, *(["average"] if average is not None else [])) if training else ()
        self.layout = Layout(net, device, batch, input=input, training=training or to_input, workspace_mb=workspace_mb, slots=slots,
                             clipped=clip_norm is not None, totals=totals, to_input=to_input)
        if training and self.team.parts > 1:
            self.layout.arrays |= self.team.arrays(self.layout.arrays["gradient all"][0][0], device.float)
        self.input = self.layout.input
        left = free_memory() if device.array_type is np.ndarray else None
        if left is not None and self.layout.bytes() > left:
            raise UserError(f"{self.needs()} and {left / 2**20:,.0f} MB are free: use a smaller {'--batch or --workspace-mb' if training else 'batch'}")
        self.arrays: dict[str, Array] = {}
        self.allocate("parameter ")
        self.parameters = self.named("parameter ")
        for name, value in self.net_of_all.draw(init, seed) if init is not None else ():      # before the rest takes its memory
            device.upload(self.parameters[name], self.own_part(value))
        self.allocate("")
        ones = np.ones(net.classes)      # of an evaluation
        device.upload(self.arrays["input class weights"], np.stack([ones, ones if class_weights is None else class_weights]))
        self.velocity = self.named("velocity ")
        self.state = {f"{slot} {name}": array for slot in slots for name, array in self.named(f"{slot} ").items()}
        self.averages = self.named("average ")
        for name, mean in self.averages.items():
            device.upload(mean, device.to_numpy(self.parameters[name]))
        self.gradients = self.named("gradient ")
        self.of_shares = [self.gradients, *({} for _ in range(self.layout.shares - 1 if self.layout.training else 0))]
        for share, own in enumerate(self.of_shares[1:]):
            for i, of in enumerate(self.layout.shared):
                own.update({name: self.layout.view(name, self.arrays[f"gradient shares {i}"][share], of.start)
                            for name, (at, _) in self.layout.places.items() if of.start <= at < of.stop})
        self.tapes: dict[tuple, Any] = {}

    def __repr__(self) -> str:
        return f"Network of {self.net!r}, on {self.device.name}, for {'' if self.training else 'evaluation of '}up to {self.batch} images at a time"

    def allocate(self, kind: str) -> None:
        """Makes the arrays of the layout whose names start with `kind`, and that are not there yet."""
        try:
            self.arrays |= {name: self.device.zeros(shape, dtype) for name, (shape, dtype) in self.layout.arrays.items()
                            if name.startswith(kind) and name not in self.arrays}
        except MemoryError:
            raise UserError(f"{self.needs()}, more than device {self.device.name} has free: use a smaller batch") from None

    def needs(self) -> str:
        return f"{self.net.name} at {'--batch' if self.training else 'batch'} {self.batch} takes {self.layout.bytes() / 2**20:,.0f} MB"

    def own_part(self, value: np.ndarray) -> np.ndarray:
        """What this rank's tower has of an array of a parameter: all of it where there are no towers."""
        return value[..., half(value.shape[-1], self.team.rank)] if self.team.towers > 1 else value

    def whole(self, array: Array) -> np.ndarray:
        """An array of a parameter, on the host, put together from the towers' parts."""
        own = self.device.to_numpy(array)
        return np.concatenate(self.team.gather(own), axis=-1) if self.team.towers > 1 else own

    def named(self, kind: str) -> dict[str, Array]:
        """{name: array} of the parameters, or of another kind of array that has their places."""
        return {name: self.layout.view(name, self.arrays[f"{kind}all"]) for name in self.net.parameters()} if f"{kind}all" in self.arrays else {}

    def load_parameters(self, values: dict[str, np.ndarray], into: dict[str, Array] | None = None) -> None:
        """Copies {name: array} into the parameters (or into `into`, such as velocity)."""
        into = self.parameters if into is None else into
        for name in into:
            if name not in values:
                raise UserError(f"{name} is missing among the given arrays")
            if tuple(values[name].shape) != tuple(into[name].shape):
                raise UserError(f"{name}: expected shape {tuple(into[name].shape)}, got {tuple(values[name].shape)}")
            self.device.upload(into[name], np.asarray(values[name]))

    def load_mean(self, image: np.ndarray | None) -> None:
        """Takes the mean image (side, side, 3), where the input has one."""
        if image is not None:
            if image.shape != self.arrays["input mean"].shape:
                raise UserError(f"the mean image has shape {image.shape}, the input needs {self.arrays['input mean'].shape}")
            self.device.upload(self.arrays["input mean"], image)

    def train_step(self, images: np.ndarray, labels: np.ndarray, views: np.ndarray, step: int, lr: float, timed: bool = False) -> dict[str, float] | None:
        """One step of the optimizer. images (n, side, side, 3) uint8, labels (n,), views (n, 18) as Input gives them.

        timed: launch by launch, to say what takes how long. -> {"conv1 forward": seconds, ...} or None
        """
        return self.run("train", images, labels, views, step, lr, timed)

    def train_parts(self, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int, step: int, lr: float,
                    timed: bool = False) -> dict[str, float] | None:
        """One step of the optimizer on a batch that is cut into parts. parts: this rank's, (images, labels, views) of each as `train_step` takes them,
        which may be of no image; count: images of all parts of all ranks, 1 or more.

        timed: the first part launch by launch. -> as train_step
        """
        total, own, took = self.arrays["gradient all"], PairwiseSum(self.device), None
        for number, part in zip(self.team.own, parts):
            if len(part[0]):
                took = self.run("part", *part, step, lr, timed and number == self.team.own[0], number) or took
            else:
                total.fill(0)
            own.add(number, 1, total)
            if number < self.team.own[-1]:
                first, width, _ = own.blocks[-1]
                kept = self.arrays["gradient parts"][len(own.blocks) - 1]
                copied(self.device, total, kept)
                own.blocks[-1] = first, width, kept
        self.team.add(self.device, own.blocks, self.arrays.get("workspace pieces"))
        scale = self.arrays["input scale"], np.array([0, self.full / count], np.float64)
        self.play(("update" if count == self.full else "scaled update", 0), step, lr, [scale])
        return took

    def gradient(self, images: np.ndarray, labels: np.ndarray, views: np.ndarray, step: int = 0) -> None:
        """Forward and backward as in a training step, without the update: `gradients` of the mean loss."""
        self.run("gradient", images, labels, views, step, 0.0)

    def input_gradient(self, images: np.ndarray, views: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(n, size, size, 3): the gradient of the sum over k of wanted[n, k] times the number that the last layer gives class k, before the softmax and
        without dropout, with respect to the net's input, pixels as `views` scale them (Simonyan 2013, section 3). wanted (n, classes) float32: of
        one class, 1 at its place."""
        if "input wanted" not in self.arrays:
            raise RuntimeError("this network was laid out without the gradient of its input: make it with to_input=True")
        if as_array("wanted", wanted, ("N", "classes")).shape != (len(images), self.net.classes):
            raise ValueError(f"wanted: expected shape {(len(images), self.net.classes)}, got {wanted.shape}")
        if len(images) <= self.batch:
            self.device.upload(self.arrays["input wanted"][:len(images)], wanted)
        self.run("input gradient", images, np.zeros(len(images), np.int32), views, 0, 0.0)
        return self.device.to_numpy(self.arrays["output input gradient"][:len(images)])

    def evaluate(self, images: np.ndarray, labels: np.ndarray, views: np.ndarray, part: int = 0) -> None:
        """Forward without dropout; then `results` has the losses and ranks, `probabilities` the softmax. part: the number of this one."""
        self.run("evaluate", images, labels, views, 0, 0.0, part=part)

    def scores(self) -> tuple[float, int, int]:
        """(sum of losses, top-1 hits, top-5 hits) of all passes since this was last asked; waits for them."""
        totals = self.totals().sum(axis=1)
        self.arrays["output totals"].fill(0)      # in order with the launches
        return float(totals[0]), int(totals[1]), int(totals[2])

    def totals(self) -> np.ndarray:
        """(3, batch), sums by place in the batch of losses, top-1 hits and top-5 hits, each from the rank whose part it is in."""
        own = self.device.to_numpy(self.arrays["output totals"])
        if len(self.team.own) == self.team.parts:
            return own
        return np.concatenate(self.team.gather(own[:, self.edges[self.team.own.start]:self.edges[self.team.own.stop]]), axis=1)

    def results(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(losses, ranks) of the n images of the last pass, float arrays on the host; rank 0 is a top-1 hit."""
        loss, rank = (self.device.to_numpy(self.arrays[name][:n]) for name in ("output loss", "output rank"))
        return loss, rank

    def probabilities(self, n: int) -> np.ndarray:
        """(n, classes) of the last `evaluate`."""
        return self.device.to_numpy(self.arrays["output probabilities"][:n])

    def weights(self) -> dict[str, np.ndarray]:
        """{"conv1.weight": array, ...} on the host, copies."""
        return {name: self.device.to_numpy(array) for name, array in self.parameters.items()}

    def activations(self) -> dict[str, np.ndarray]:
        """{layer: its outputs in the last pass, (n, ...)} on the host. Layers in place, ReLU and Dropout, have changed those of the layer before.
        A convolution right before a max-pool has left bias and ReLU to that one: they are added here, the biases as they are after a training step."""
        if not self.layout.training:
            raise UserError("a network for evaluation only keeps its activations for a few images at a time: make it with training=True to see them")
        return {name: self.activation(name, self.passed) for name, layer in self.net.layers.items() if not layer.in_place}

    def activation(self, name: str, n: int) -> np.ndarray:
        """A layer's outputs for the first n images of the last pass, on the host."""
        layer: Any = self.net.layers[name]
        y = self.device.to_numpy(self.arrays[f"activation {name}"][:n])
        if name in self.net.pooled:
            y += self.device.to_numpy(self.parameters[f"{name}.bias"])
            y[(y <= 0) & layer.relu] = 0
        return y

    def run(self, mode: str, images: np.ndarray, labels: np.ndarray, views: np.ndarray, step: int, lr: float,
            timed: bool = False, part: int = 0) -> dict[str, float] | None:
        n = len(images)
        if not 0 < n <= self.batch:
            raise ValueError(f"images: expected 1 to {self.batch}, got {n}")
        if images.dtype != np.uint8:
            raise TypeError(f"images: expected uint8, got {images.dtype}")
        for name, host, kind in (("images", images, "integers"), ("labels", labels, "integers"), ("views", views, "float32")):
            if as_array(name, host, dtype=kind).shape != self.arrays[f"input {name}"][:n].shape:
                raise ValueError(f"{name}: expected shape {self.arrays[f'input {name}'][:n].shape}, got {host.shape}")
        check_labels(labels, self.net.classes)
        check_views(views, self.net.size)
        self.passed = n
        fed = [(self.arrays[f"input {name}"][:n], host) for name, host in (("images", images), ("labels", labels), ("views", views))]
        return self.play((mode, n, *[part] * bool(part)), step, lr, fed, timed)

    def play(self, what: tuple, step: int, lr: float, fed: Sequence[tuple[Array, np.ndarray]], timed: bool = False) -> dict[str, float] | None:
        """Plays the recording of (mode, images) or (mode, images, number of the part), after [(array, host array), ...] were fed to it."""
        now = [(step, factor * self.optimizer.rate(step, lr)) for factor in self.layout.factors]
        self.device.feed([*fed, (self.arrays["input now"], np.array(now, np.float64).reshape(-1))])
        if what not in self.tapes:
            sections: list[Any] = []
            with self.device.record():
                self.sections = sections
                self.record(*what)
                sections.append(self.device.section())
            self.tapes[what] = sections[0] if len(sections) == 1 else Sections(sections)
        return self.tapes[what].play_timed() if timed else self.tapes[what].play()

    def record(self, mode: str, n: int, part: int = 0) -> None:
        """Launches a whole pass over n images: the stack share by share, the tail on the whole batch, and back; or an update alone."""
        if "update" in mode:
            return self.update(self.arrays["gradient all"], mode != "update")
        layout, device, backward, trained, place = self.layout, self.device, mode != "evaluate", mode in TRAINED, self.edges[part]
        if trained and not self.training:
            raise RuntimeError("this network was laid out for evaluation only")
        shares = max(1, min(layout.shares, n // 4))
        edges = [n * share // shares for share in range(shares + 1)]
        chunks = [[(i, min(i + layout.chunk, to)) for i in range(of, to, layout.chunk)] for of, to in zip(edges, edges[1:])]

        self.prepare(mode, False)
        stack, tail = ([name for name in names if trained or not self.net.layers[name].trained_only] for names in (layout.stack, layout.tail))
        for names in self.between(stack):
            for share in device.parallel(shares):
                for first, last in chunks[share]:
                    if names[:1] == stack[:1]:
                        device.place = "input forward"
                        self.view(share, first, last)
                    for name in names:
                        if not self.net.layers[name].exchanges:
                            device.place = f"{name} forward"
                            self.net.layers[name].forward(device, self.site(name, mode, share, first, last, place))
            if names and self.net.layers[names[-1]].exchanges:
                self.meet_forward(names[-1], self.site(names[-1], mode, 0, 0, n, place))
        for name in tail:
            device.place = f"{name} forward"
            site = self.site(name, mode, 0, 0, n, place)
            if self.net.layers[name].exchanges:
                self.meet_forward(name, site)
            else:
                self.net.layers[name].forward(device, site)
        device.place = "loss"
        slope = self.arrays["input wanted"][:n] if mode == "input gradient" else self.loss(n, mode, place)
        if not backward:
            return

        self.prepare(mode, True)
        slopes = self.arrays["workspace dense gradients"]
        # Of the lowest layer that does not work in place, the input's gradient has an array of its own, and those below change it there.
        lowest = next(name for name, layer in self.net.layers.items() if not layer.in_place) if mode == "input gradient" else None
        dy, bottom = slope.reshape(n, *self.net.outputs[list(self.net.layers)[-1]]), None if lowest else self.net.bottom
        for name in reversed(tail):
            layer, site = self.net.layers[name], self.site(name, mode, 0, 0, n, place)
            device.place = f"{name} backward"
            site.dy, site.dx = dy, dy
            if not layer.in_place:
                other = slopes[1] if same_memory(dy, slopes[0]) else slopes[0]
                site.dx = shaped(other, site.x.shape) if name != lowest else self.arrays["output input gradient"][:n]
            if name == bottom:
                site.dx = None
            if layer.exchanges:
                self.meet_backward(name, site)
            else:
                layer.backward(device, site)
            if name == bottom:
                break
            dy = site.dx.reshape(n, *self.net.inputs[name])
        runs = self.between(stack) if stack and (lowest or bottom in stack) else []
        for number, names in reversed(list(enumerate(runs))):
            dy = self.stack_backward(names, mode, n, place, chunks, dy, lowest, number > 0)
        if not trained:
            return
        device.place, gradient = "update", self.arrays["gradient all"]
        for i, of in enumerate(layout.shared):
            if shares > 1 and of.stop > of.start:
                parts, total = self.arrays[f"gradient shares {i}"][:shares - 1], gradient[of]
                device.launch(add_parts, -(-total.size // BLOCK), parts, total, total.size, len(parts), 1)
        if mode == "train":
            self.update(gradient)

    def between(self, stack: list[str]) -> list[list[str]]:
        """The layers of the stack in runs, each of which ends where the towers meet, or where the stack does."""
        runs: list[list[str]] = [[]]
        for name in stack:
            runs[-1].append(name)
            if self.net.layers[name].exchanges:
                runs.append([])
        return runs if runs[-1] or len(runs) == 1 else runs[:-1]

    def stack_backward(self, names: list[str], mode: str, n: int, place: int, chunks: list[list[tuple[int, int]]], dy: Array,
                       lowest: str | None, goes_on: bool) -> Array:
        """Launches the way back through a run of the stack's layers, from the gradient of its output. goes_on: there is a run below. -> that of its
        input, if so"""
        device, bottom, under = self.device, None if lowest else self.net.bottom, None
        if self.net.layers[names[-1]].exchanges:
            *names, meeting = names
            site = self.site(meeting, mode, 0, 0, n, place)
            site.dy, site.dx = dy, shaped(self.arrays["workspace exchange gradients"][1], site.x.shape)
            self.meet_backward(meeting, site)
            dy = site.dx
        if goes_on:
            under = shaped(self.arrays["workspace exchange gradients"][0], (n, *self.net.inputs[names[0]]))
        for share in device.parallel(len(chunks)):
            room = self.arrays["workspace stack gradients"][share]
            for i, (first, last) in enumerate(chunks[share]):
                slope = dy[first:last]
                for name in reversed(names):
                    layer, site = self.net.layers[name], self.site(name, mode, share, first, last, place)
                    device.place = f"{name} backward"
                    site.dy, site.accumulate = slope, i > 0
                    site.gradients = {part: self.of_shares[share][of] for part, of in self.learnt(name, mode).items()}
                    if name == bottom:
                        site.dx = None
                    elif layer.in_place:
                        site.dx = slope
                    elif name == lowest:
                        site.dx = self.arrays["output input gradient"][first:last]
                    elif name == names[0] and under is not None:
                        site.dx = under[first:last]
                    else:
                        other = room[1] if same_memory(slope, room[0]) else room[0]
                        site.dx = shaped(other, site.x.shape)
                    layer.backward(device, site)
                    if name == bottom:
                        break
                    slope = site.dx
                if under is not None and self.net.layers[names[0]].in_place:
                    copied(device, slope.reshape(-1), under[first:last].reshape(-1))
        return under

    def meet(self, place: str, sent: Array, received: Array) -> None:
        """Ends a section of the recording: what both towers send each other then is there for the launches that follow."""
        self.sections += [self.device.section(), Meeting(self.team, self.device, place, sent, received)]
        self.device.place = place

    def meet_forward(self, name: str, site: Site) -> None:
        """Launches the input of both towers side by side."""
        layer, own = self.net.layers[name], site.x.shape[-1]
        assert isinstance(layer, Gather)
        others = layer.channels - own
        there = shaped(self.arrays["workspace exchange"][1], (*site.x.shape[:-1], others))
        self.meet(f"{name} forward", site.x.reshape(-1), there.reshape(-1))
        move(self.device, site.x, 0, site.y, layer.at, own)
        move(self.device, there, 0, site.y, own if layer.at == 0 else 0, others)

    def meet_backward(self, name: str, site: Site) -> None:
        """Launches the sum of what both towers have found for this one's half: each has it of all channels, from its own part of the layers above."""
        layer, own = self.net.layers[name], site.x.shape[-1]
        assert isinstance(layer, Gather)
        self.device.place, others, dy = f"{name} backward", layer.channels - own, site.dy.reshape(site.y.shape)
        if layer.last:      # of the loss, which both have computed
            move(self.device, dy, layer.at, site.dx, 0, own)
            return
        away, there = (shaped(self.arrays["workspace exchange"][i], (*site.x.shape[:-1], width)) for i, width in enumerate((others, own)))
        move(self.device, dy, own if layer.at == 0 else 0, away, 0, others)
        self.meet(f"{name} backward", away.reshape(-1), there.reshape(-1))
        move(self.device, dy, layer.at, site.dx, 0, own)
        move(self.device, there, 0, site.dx, 0, own, accumulate=True)

    def prepare(self, mode: str, backward: bool) -> None:
        """Launches what a pass takes of the parameters in another form."""
        for name, layer in self.net.layers.items():
            if layer.prepared(self.net.inputs[name], backward) and not (backward and name not in self.layout.above):      # nobody needs its input's gradient
                self.device.place = f"{name} {'backward' if backward else 'forward'}"
                layer.prepare(self.device, self.site(name, mode, 0, 0, 1), backward)

    def update(self, gradient: Array, scaled: bool = False) -> None:
        """Launches the step of all parameters, and of their running means. scaled: from gradients times what "input scale" says, as a batch is not full."""
        a, now = self.arrays, self.arrays["input now"]
        if scaled:
            self.device.place = "scale update"
            self.device.launch(scale_gradient, -(-gradient.size // SCALED), gradient, a["input scale"], gradient.size)
        if self.clip_norm is not None:
            self.device.place = "clip update"
            clip(self.device, [gradient], self.clip_norm, a["workspace norm"], a["output norm"])
        self.device.place = "update"
        for name, of, factor in self.layout.updates:
            state = {slot: a[f"{slot} all"][of] for slot in self.optimizer.slots}
            self.optimizer.update(self.device, name, a["parameter all"][of], state, gradient[of], now[2 * factor:2 * factor + 2])
        if self.average is not None:
            add_to_average(self.device, a["average all"], a["parameter all"], now, self.average)

    def statistics(self, images: np.ndarray, labels: np.ndarray, views: np.ndarray, step: int, lr: float,
                   most: int = 8) -> dict[str, dict[str, float | None]]:
        """{layer: {...}} of those with weights, for a batch without dropout: mean |y|, std of y and the part of it that is 0, the part of
        channels that are 0 everywhere, and the norm of the update in this step beside the weights'. Of convolutions `most` images."""
        totals, found, rate = self.device.to_numpy(self.arrays["output totals"]), {}, self.optimizer.rate(step, lr)
        self.evaluate(images, labels, views)
        self.device.upload(self.arrays["output totals"], totals)      # this pass does not count
        for name, layer in self.net.layers.items():
            if not layer.parameters(self.net.inputs[name]):
                continue
            n, weight = len(images) if layer.dense else min(len(images), most), f"{name}.weight"
            y = self.activation(name, n)
            zero, state = y == 0, {slot: self.state[f"{slot} {weight}"] for slot in self.optimizer.slots}
            found[name] = {"mean": float(np.abs(y).mean()), "std": float(y.std()), "zero": float(zero.mean()),
                           "dead": float(zero.reshape(-1, y.shape[-1]).all(axis=0).mean()),
                           "ratio": self.optimizer.step_ratio(self.device, weight, self.parameters[weight], state, layer.lr * rate) if layer.lr else None}
        return found

    def view(self, share: int, first: int, last: int) -> None:
        """Launches the input kernel for images first .. last-1."""
        a, size, input = self.arrays, self.net.size, self.layout.input
        self.device.launch(augment, (last - first) * size, a["input images"][first:last], a["input views"][first:last], a["input mean"],
                           self.rows("activation input", share, first, last), input.side, size, FILLS.index(input.fill), float(input.constant),
                           int(input.mean == "image"))

    def rows(self, name: str, share: int, first: int, last: int) -> Array:
        """The part of an array that belongs to images first .. last-1: their own in training, a share's chunk otherwise."""
        array = self.arrays[name]
        if len(array) < self.batch:
            first, last = share * self.layout.chunk, share * self.layout.chunk + last - first
        return array[first:last]

    def site(self, name: str, mode: str, share: int, first: int, last: int, place: int = 0) -> Site:
        """The Site of a layer for images first .. last-1 of a part that begins at `place` in the batch."""
        layers, layer = list(self.net.layers), self.net.layers[name]
        activation = {}
        at = "activation input"
        for other in layers:
            activation[other] = at
            at = at if self.net.layers[other].in_place else f"activation {other}"
            if other == name:
                break
        number = sum(self.net.layers[other].numbered for other in layers[:layers.index(name)])      # as in the whole net
        x, y = self.rows(activation[name], share, first, last), self.rows(at, share, first, last)
        parts = self.net.held(name)
        below: Any = self.net.layers[layers[layers.index(name) - 1]]
        own = self.averages if self.averages and mode not in TRAINED else self.parameters
        return Site(x=x, y=y, parameters={part: own[of] for part, of in parts.items()},
                    gradients={part: self.gradients[of] for part, of in self.learnt(name, mode).items()},
                    pooled=name in self.net.pooled, relu=name in self.net.pooled.values() and below.relu,
                    prepared={k: self.arrays[array] for backward in (False, True) for k in layer.prepared(self.net.inputs[name], backward)
                              if (array := f"prepared {name}.{k}") in self.arrays},
                    kept={k: self.rows(array, share, first, last) for k in layer.kept(self.net.inputs[name]) | layer.keepable(self.net.inputs[name])
                          if (array := f"kept {name}.{k}") in self.arrays},
                    columns=self.arrays["workspace dense"] if layer.dense and self.layout.training else self.arrays["workspace columns"][share],
                    first=place + first, seed=self.seed, number=number, now=self.arrays["input now"])

    def learnt(self, name: str, mode: str) -> dict[str, str]:
        """Of what a layer holds, {part: "layer.part"} of those whose gradients a pass computes: that are not frozen."""
        return {part: of for part, of in self.net.held(name).items() if mode in TRAINED and self.net.layers[of.split(".")[0]].lr}

    def loss(self, n: int, mode: str, place: int) -> Array:
        """Launches the loss of n images that begin at `place` in the batch. -> gradient of the logits of the mean loss; of a part, of its loss in a full
        batch's mean"""
        a, classes, device = self.arrays, self.net.classes, self.device
        logits, labels = a[f"activation {list(self.net.layers)[-1]}"][:n].reshape(n, classes), a["input labels"][:n]
        probabilities = a["output probabilities"][:n]
        dlogits = shaped(a["workspace dense gradients"][0], (n, classes)) if mode != "evaluate" else probabilities
        totals = a["output totals"]
        device.launch(cross_entropy_rows, n, logits, labels, a["input class weights"][int(mode != "evaluate")], a["output loss"][:n], a["output rank"][:n],
                      totals.reshape(-1)[place:] if place else totals, dlogits, classes, totals.shape[1], int(mode != "gradient"),
                      1.0 / (self.full if mode == "part" else n),
                      self.smoothing if mode != "evaluate" else 0.0)
        if mode == "evaluate":
            device.launch(softmax_rows, n, logits, probabilities, classes)
        return dlogits


class Meeting:
    """What two towers send each other between two recordings."""

    def __init__(self, team: Team, device: Device, place: str, sent: Array, received: Array) -> None:
        self.team, self.device, self.place, self.sent, self.received = team, device, place, sent, received

    def play(self) -> None:
        self.team.swap(self.device, self.sent, self.received)

    def play_timed(self) -> dict[str, float]:
        began = time.perf_counter()
        self.play()
        return {self.place: time.perf_counter() - began}


class Sections:
    """Recordings, and what is exchanged between them, in order."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def play(self) -> None:
        for part in self.parts:
            part.play()

    def play_timed(self) -> dict[str, float]:
        took: dict[str, float] = {}
        for part in self.parts:
            for place, seconds in part.play_timed().items():
                took[place] = took.get(place, 0.0) + seconds
        return took


def shaped(buffer: Array, shape: Sequence[int]) -> Array:
    """The start of a flat buffer as an array of `shape`."""
    return buffer[:int(np.prod(shape))].reshape(shape)


def same_memory(array: Array, buffer: Array) -> bool:
    """Whether an array starts where the buffer does."""
    return address(array) == address(buffer)
