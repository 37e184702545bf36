"""SGD with momentum, in the two forms that were published, and schedules of the learning rate."""

import math
from dataclasses import dataclass

import numpy as np

from .device import kernel
from .errors import UserError
from .ops.layer import as_array, device_of, put

BLOCK = 256        # as in kernels/sgd.cu


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

    def __post_init__(self):
        if self.form not in ("2012", "torch"):
            raise ValueError(f"form: expected '2012' or 'torch', got {self.form!r}")

    def update(self, device, name, w, v, g, now):
        """Launches the update of one parameter from its gradient."""
        bias = name.endswith(".bias")
        device.launch(sgd, -(-w.size // BLOCK), w, v, g, w.size, now, self.bias_lr if bias else 1.0, self.momentum,
                      self.weight_decay * (self.bias_decay if bias else 1.0), int(self.form == "2012"))


def sgd_update(w, v, g, *, lr, momentum=0.9, weight_decay=0.0, form="2012", device="cpu"):
    """One step for a parameter w with velocity v and gradient g, all of one shape. -> (w, v), new arrays."""
    device = device_of(device)
    w, v, g = (put(device, as_array(name, a)) for name, a in (("w", w), ("v", v), ("g", g)))
    if not w.shape == v.shape == g.shape:
        raise ValueError(f"v, g: expected the shape of w {w.shape}, got {v.shape} and {g.shape}")
    if w.size:
        SGD(momentum, weight_decay, form).update(device, "w", w, v, g, device.array(np.array([0.0, lr]), np.float64))
    device.synchronize()
    return w, v


class Schedule:
    """The learning rate of each step, from its text: `constant`, `cosine`, `step:EPOCHS` (a tenth every so many epochs),
    each with `,warmup:EPOCHS` if wanted. Cosine falls to 0 at the end of the run."""

    def __init__(self, text, lr, steps_per_epoch, epochs):
        self.lr, self.total = lr, max(1, steps_per_epoch * epochs)
        shape, *rest = text.split(",")
        self.shape, _, every = shape.partition(":")
        try:
            self.every = float(every or 30) * steps_per_epoch
            named = dict(part.split(":") for part in rest)
            self.warmup = float(named.pop("warmup", 0)) * steps_per_epoch
            known = self.shape in ("constant", "cosine", "step") and not named and self.every > 0 and self.warmup >= 0
        except ValueError:
            known = False
        if not known:
            raise UserError(f"--schedule {text!r}: expected constant, cosine or step:EPOCHS, then ,warmup:EPOCHS if wanted")

    def __call__(self, step):
        """The learning rate of step 0, 1, 2, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1.0, self.total - self.warmup))))
        if self.shape == "step":
            return self.lr * 0.1 ** int(step // self.every)
        return self.lr
