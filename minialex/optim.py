"""SGD with momentum, in the two forms that were published, Adam, clipping of the gradients' norm, the running mean of weights, and schedules
of the learning rate.

An optimizer says what it keeps of each parameter (`slots`), what a step's launches read as the learning rate (`rate`), launches the
update, and tells how large the last one was (`step_ratio`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .device import Array, Device, kernel
from .errors import UserError
from .ops.layer import as_array, device_of, on_arrays, own_fields, put

BLOCK = 256        # as in kernels/sgd.cu, adam.cu, norm.cu and average.cu
SLICE = 4096       # as in kernels/norm.cu


@kernel("sgd.cu")
def sgd(rows, w, v, g, count, now, lr_factor, momentum, decay, form_2012):
    """2012: v = momentum v - lr (g + decay w), w += v.   torch: v = momentum v + (g + decay w), w -= lr v."""
    lr, step = now[1] * lr_factor, g + decay * w
    if form_2012:
        v[...] = momentum * v - lr * step
        w += v
    else:
        v[...] = momentum * v + step
        w -= lr * v


@kernel("adam.cu")
def adam(rows, w, m, v, g, count, now, take1, take2, epsilon):
    """m += take1 (g - m), v += take2 (g^2 - v), w -= lr_t m / (sqrt(v) + epsilon), with take = 1 - beta and lr_t in now[1]"""
    m += take1 * (g - m)
    v += take2 * (g * g - v)
    w -= now[1] * m / (np.sqrt(v) + epsilon)


@kernel("norm.cu")
def squares(rows, g, partial, count):
    """partial[r] = the sum of g^2 over slice r"""
    partial[...] = np.add.reduceat(g.reshape(-1) ** 2, np.arange(0, count, SLICE))


@kernel("norm.cu")
def clip_factor(rows, partial, norm, count, limit):
    """norm = (root of the sum of partial, min(1, limit / (that + 1e-6)))"""
    norm[0] = np.sqrt(partial[:count].sum())
    norm[1] = np.minimum(1, limit / (norm[0] + 1e-6))


@kernel("norm.cu")
def scale_gradient(rows, g, norm, count):
    """g *= norm[1]"""
    g *= norm[1]


@kernel("average.cu")
def average(rows, mean, w, count, now, decay):
    """mean += (1 - d) (w - mean), d = min(decay, step / (9 + step)), with the step, from 0 on, in now[0]"""
    take = 1 - min(decay, now[0] / (9 + now[0]))
    mean[...] = w if take == 1 else mean + take * (w - mean)


@dataclass(frozen=True)
class SGD:
    """Momentum and weight decay of all parameters; biases may have a learning rate and a decay of their own.

    form "2012": v = momentum v - lr (g + decay w), w += v (Krizhevsky 2012, section 5);
    form "torch": v = momentum v + (g + decay w), w -= lr v. They differ when lr changes.
    """

    momentum: float = 0.9
    weight_decay: float = 5e-4
    form: str = "2012"
    bias_lr: float = 1.0            # times the learning rate; the 2012 program has 2
    bias_decay: float = 0.0         # times weight_decay

    def __post_init__(self) -> None:
        own_fields(self)
        if self.form not in ("2012", "torch"):
            raise ValueError(f"form: expected '2012' or 'torch', got {self.form!r}")

    slots = ("velocity",)

    def rate(self, step: int, lr: float) -> float:
        """What the launches of a step read: the learning rate."""
        return lr

    def update(self, device: Device, name: str, w: Array, state: dict[str, Array], g: Array, now: Array) -> None:
        """Launches the update of one parameter from its gradient g and its state, {slot: array}."""
        bias = name.endswith(".bias")
        device.launch(sgd, -(-w.size // BLOCK), w, state["velocity"], g, w.size, now, self.bias_lr if bias else 1.0, self.momentum,
                      self.weight_decay * (self.bias_decay if bias else 1.0), int(self.form == "2012"))

    def step_ratio(self, device: Device, name: str, w: Array, state: dict[str, Array], rate: float) -> float | None:
        """The L2 norm of the last update of a parameter beside that of the parameter."""
        factor = 1.0 if self.form == "2012" else rate * (self.bias_lr if name.endswith(".bias") else 1.0)
        return ratio(factor * device.to_numpy(state["velocity"]), device.to_numpy(w))


@dataclass(frozen=True)
class Adam:
    """Adam in Keras' form and with its defaults, without weight decay. PyTorch adds epsilon to the root of the corrected second
    moment, Keras to that of the raw one, so that it counts for more in the first steps."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    slots = ("velocity", "square")      # the first and the second moment

    def __post_init__(self) -> None:
        own_fields(self)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 up to below 1, got {getattr(self, name)}")

    def rate(self, step: int, lr: float) -> float:
        """The learning rate of step 0, 1, ... times the correction of both moments, which start at 0."""
        return lr * math.sqrt(1 - self.beta2 ** (step + 1)) / (1 - self.beta1 ** (step + 1))

    def update(self, device: Device, name: str, w: Array, state: dict[str, Array], g: Array, now: Array) -> None:
        device.launch(adam, -(-w.size // BLOCK), w, state["velocity"], state["square"], g, w.size, now, 1 - self.beta1, 1 - self.beta2, self.epsilon)

    def step_ratio(self, device: Device, name: str, w: Array, state: dict[str, Array], rate: float) -> float | None:
        m, v = (device.to_numpy(state[slot]) for slot in self.slots)
        return ratio(rate * m / (np.sqrt(v) + self.epsilon), device.to_numpy(w))


def ratio(update: np.ndarray, w: np.ndarray) -> float | None:
    """|update| / |w|, None where w is 0."""
    size = float(np.linalg.norm(w))
    return float(np.linalg.norm(update)) / size if size else None


def norm_slices(sizes: Iterable[int]) -> int:
    """Floats of `partial` that `clip` needs for gradients of these sizes."""
    return sum(-(-size // SLICE) for size in sizes)


def clip(device: Device, gradients: Sequence[Array], limit: float, partial: Array, norm: Array) -> None:
    """Launches the scaling of all gradients by one factor, so that their norm together is at most `limit`. norm (2,): gets the norm before, and
    the factor."""
    at = 0
    for g in gradients:
        rows = norm_slices([g.size])
        device.launch(squares, rows, g, partial[at:at + rows], g.size)
        at += rows
    device.launch(clip_factor, 1, partial, norm, at, limit)
    for g in gradients:
        device.launch(scale_gradient, -(-g.size // BLOCK), g, norm, g.size)


@on_arrays
def clip_gradients(gradients: Sequence[Array], limit: float, *, device: str | Device = "cpu") -> tuple[list[Array], float]:
    """Gradients scaled so that their norm together is at most `limit`, as torch.nn.utils.clip_grad_norm_. -> (new arrays, the norm before)"""
    device = device_of(device)
    if not limit > 0:
        raise ValueError(f"limit: expected a number above 0, got {limit}")
    copies = [put(device, as_array(f"gradients[{i}]", g)) for i, g in enumerate(gradients)]
    partial, norm = device.empty((norm_slices(g.size for g in copies),)), device.empty((2,))
    clip(device, [g for g in copies if g.size], float(limit), partial, norm)
    return copies, float(device.to_numpy(norm)[0])


@on_arrays
def sgd_update(w: Array, v: Array, g: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, form: str = "2012",
               device: str | Device = "cpu") -> tuple[Array, Array]:
    """One step for a parameter w with velocity v and gradient g, all of one shape. -> (w, v), new arrays."""
    return stepped(SGD(momentum, weight_decay, form), device, 0, lr, w=w, v=v, g=g)


@on_arrays
def adam_update(w: Array, m: Array, v: Array, g: Array, *, step: int, lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7,
                device: str | Device = "cpu") -> tuple[Array, Array, Array]:
    """Step 0, 1, ... for a parameter w with moments m and v and gradient g, all of one shape. -> (w, m, v), new arrays."""
    if step < 0:
        raise ValueError(f"step: expected 0 or more, got {step}")
    return stepped(Adam(beta1, beta2, epsilon), device, step, lr, w=w, m=m, v=v, g=g)


def add_to_average(device: Device, mean: Array, w: Array, now: Array, decay: float) -> None:
    """Launches the step of the running mean of a parameter."""
    device.launch(average, -(-w.size // BLOCK), mean, w, w.size, now, decay)


@on_arrays
def average_update(mean: Array, w: Array, *, step: int, decay: float, device: str | Device = "cpu") -> Array:
    """The running mean of a parameter w after step 0, 1, ..., of which `mean` is that before (step 0 does not read it). -> a new array"""
    device = device_of(device)
    if step < 0:
        raise ValueError(f"step: expected 0 or more, got {step}")
    if not 0 < decay < 1:
        raise ValueError(f"decay: expected more than 0 and less than 1, got {decay}")
    mean, w = put(device, as_array("mean", mean)), put(device, as_array("w", w))
    if mean.shape != w.shape:
        raise ValueError(f"mean: expected the shape of w {w.shape}, got {mean.shape}")
    if w.size:
        add_to_average(device, mean, w, device.array(np.array([step, 0.0]), np.float64), float(decay))
    device.synchronize()
    return mean


def stepped(optimizer, device, step, lr, **arrays):
    """One update of copies of w, the optimizer's state and g. -> w and the state"""
    device = device_of(device)
    w, *state, g = (put(device, as_array(name, a)) for name, a in arrays.items())
    for name, array in arrays.items():
        if array.shape != w.shape:
            raise ValueError(f"{name}: expected the shape of w {w.shape}, got {array.shape}")
    if w.size:
        now = device.array(np.array([step, optimizer.rate(step, lr)]), np.float64)
        optimizer.update(device, "w", w, dict(zip(optimizer.slots, state)), g, now)
    device.synchronize()
    return w, *state


class Schedule:
    """The learning rate of each step, from its text: a shape, then `,warmup:EPOCHS` and `,factor:F` (default 0.1) if wanted.

    constant; cosine, which falls to 0 at the end of the run; step:EPOCHS, times the factor every so many epochs;
    multistep:EPOCH:EPOCH:..., times the factor at each of them; plateau:EPOCHS (default 5), times the factor when validation
    top-1 has not risen for so many epochs, those of the warm-up left out.
    """

    # How many numbers a shape takes, at least and at most; those that take none have no factor.
    SHAPES = {"constant": (0, 0), "cosine": (0, 0), "step": (1, 1), "multistep": (1, math.inf), "plateau": (0, 1)}

    def __init__(self, text: str, lr: float, steps_per_epoch: int, epochs: int) -> None:
        self.text, self.lr, self.epoch, self.total = text, lr, steps_per_epoch, max(1, steps_per_epoch * epochs)
        shape, *rest = text.split(",")
        self.shape, *numbers = shape.split(":")
        try:
            self.numbers = [float(number) for number in numbers]
            named = {name: float(value) for name, value in (part.split(":") for part in rest)}
            least, most = self.SHAPES.get(self.shape, (1, 0))
            self.warm_epochs, self.factor = named.get("warmup", 0.0), named.get("factor", 0.1)
            self.warmup = self.warm_epochs * steps_per_epoch
            known = (least <= len(numbers) <= most and all(0 < number < math.inf for number in self.numbers)
                     and (self.shape != "multistep" or all(a < b for a, b in zip(self.numbers, self.numbers[1:])))
                     and len(named) == len(rest) and set(named) <= ({"warmup", "factor"} if most else {"warmup"})
                     and 0 <= self.warmup < math.inf and 0 < self.factor < 1)
        except ValueError:
            known = False
        if not known:
            raise UserError(f"--schedule {text!r}: expected constant, cosine, step:EPOCHS, multistep:EPOCH:EPOCH:... (which rise) or "
                            "plateau:EPOCHS, then ,warmup:EPOCHS and ,factor:F (between 0 and 1) if wanted")

    def __repr__(self) -> str:
        return f"Schedule({self.text!r}, {self.lr:g}, {self.epoch}, {self.total // self.epoch})"

    def __call__(self, step: int, metrics: Sequence[dict[str, Any]] = ()) -> float:
        """The learning rate of step 0, 1, 2, ..., with the metrics of the epochs before it ("val_top1" of each)."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1.0, self.total - self.warmup))))
        return self.lr * self.factor ** self.drops(step, metrics)

    def drops(self, step: int, metrics: Sequence[dict[str, Any]]) -> int:
        """How often the rate has been lowered so far."""
        if self.shape == "step":
            return int(step // (self.numbers[0] * self.epoch))
        if self.shape == "multistep":
            return sum(step / self.epoch >= number for number in self.numbers)
        drops, best, waited = 0, -1.0, 0
        for epoch in metrics[math.ceil(self.warm_epochs):] if self.shape == "plateau" else ():
            best, waited = (epoch["val_top1"], 0) if epoch["val_top1"] > best else (best, waited + 1)
            if waited >= (self.numbers or [5])[0]:
                drops, waited = drops + 1, 0
        return drops
