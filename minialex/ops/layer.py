"""What a layer is, and how one runs alone."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..device import Array, Device, open_device

Shape = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Site:
    """The arrays that one pass of a layer works on: some images, and room for its work. Without `gradients`, those of the parameters are not computed."""

    x: Array = None                  # input, (N, ...)
    y: Array = None                  # output, (N, ...); x itself if the layer is in_place
    dy: Array = None                 # gradient of the output; backward may overwrite it
    dx: Array = None                 # gradient of the input, None where nobody needs it
    parameters: dict[str, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)
    accumulate: bool = False         # add to the parameters' gradients
    pooled: bool = False             # of a convolution: the max-pool behind it has its bias and ReLU
    relu: bool = False               # of that max-pool
    kept: dict[str, Array] = field(default_factory=dict)     # what forward leaves for backward
    prepared: dict[str, Array] = field(default_factory=dict) # what `prepare` leaves for a pass
    columns: Array = None            # workspace, as `columns` and `partials` ask for
    first: int = 0                   # place of x[0] in the batch
    seed: int = 0
    number: int = 0                  # the layer's number, for its random stream
    now: Array = None                # (2,) float64 on the device: step, learning rate


# What a field or an argument of that type takes, in words, and what it becomes: Python's own, which JSON and kernels know.
FIELDS: dict[Any, tuple[Any, str, Callable]] = {
    int: (numbers.Integral, "a whole number", int), float: (numbers.Real, "a number", float), bool: ((bool, np.bool_), "True or False", bool),
    float | None: (numbers.Real, "a number or None", float)}


def of_type(name: str, value: Any, wanted: Any) -> Any:
    """A number of one of the types above, numpy's or Python's, as Python's own; a ValueError that names it where it is none."""
    if value is None and wanted == float | None:
        return None
    kind, words, own = FIELDS[wanted]
    if not isinstance(value, kind) or isinstance(value, bool) and own is not bool:
        raise ValueError(f"{name}: expected {words}, got {value!r}")
    return own(value)


def own_fields(described: Any) -> None:
    """Makes the fields of a dataclass what their types say, or refuses one by its name."""
    for part in fields(described):
        if part.type in FIELDS:
            object.__setattr__(described, part.name, of_type(part.name, getattr(described, part.name), part.type))      # it may be frozen


def require_rate(lr: float) -> None:
    """A ValueError if it cannot be what a learning rate is times."""
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr: expected a number of 0 or more, got {lr}")


def frozen(value: Any) -> Any:
    """Lists, as JSON has them, and numpy's arrays as tuples, numpy's whole numbers as ints."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


@dataclass(repr=False)
class Layer:
    """A layer of a net, a dataclass whose fields are all that there is to say of it.

    Shapes are those of one image: (H, W, C), or (features,).
    """

    in_place = False      # forward writes over its input, backward over dy
    dense = False         # works on the whole batch, and is cut by features instead of images
    trained_only = False  # does nothing in evaluation
    lr = 1.0              # of layers with parameters a field: what their learning rate is times; of one with 0 nothing is learnt, and no gradient computed
    exchanges = False     # meets the other tower's, see towers.py
    numbered = True       # has a number of its own for its random stream

    def __post_init__(self) -> None:
        """Refuses, with its name, a field that is not of its type; a layer checks more here, after this."""
        own_fields(self)

    def __repr__(self) -> str:
        """As it is written, without what is the default."""
        shown = [f"{part.name}={value!r}" if part.default is not MISSING else repr(value)
                 for part in fields(self) if (value := getattr(self, part.name)) != part.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def output(self, shape: Shape) -> Shape:
        """The output's shape for an input of `shape`; a ValueError says what does not fit."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        """{name: shape} of what is learnt."""
        return {}

    def kept(self, shape: Shape) -> dict[str, tuple[Shape, Any]]:
        """{name: (shape per image, dtype)} of what forward leaves for backward besides y."""
        return {}

    def keepable(self, shape: Shape) -> dict[str, tuple[Shape, Any]]:
        """{name: (shape per image, dtype)} of what forward may leave besides, where there is room, for backward to do less."""
        return {}

    def prepared(self, shape: Shape, backward: bool) -> dict[str, Shape]:
        """{name: shape} of what `prepare(device, site, backward)` makes of the parameters before a pass, once for all its images."""
        return {}

    def columns(self, device: Device, shape: Shape, images: int, training: bool, dx: bool) -> tuple[int, int]:
        """Floats of workspace, the least without which the layer cannot work and the best where it takes `images` at a time; training: with
        backward, dx: with the input's gradient."""
        return 0, 0

    def partials(self, shape: Shape, images: int) -> int:
        """Floats of `columns` that backward needs at least for `images` images."""
        return 0

    def macs(self, shape: Shape) -> int:
        """Multiply-accumulates of a forward pass of one image."""
        return 0

    def forward(self, device: Device, at: Site) -> None:
        """Launches y from x."""
        raise NotImplementedError

    def prepare(self, device: Device, at: Site, backward: bool) -> None:
        """Launches what is `prepared`."""
        raise NotImplementedError

    def backward(self, device: Device, at: Site) -> None:
        """Launches dx, unless it is None, and the gradients of the parameters from dy, x and y."""
        raise NotImplementedError


def on_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """A function of minialex.functional: each argument becomes what its annotation says before the function sees it, or is refused by name.

    Numbers may be Python's or numpy's. Arrays are numpy's or the device's, or any that numpy can read, such as PyTorch's on the CPU.
    """
    declared = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        given = declared.bind(*args, **named)
        for name, value in given.arguments.items():
            wanted = declared.parameters[name].annotation
            if wanted in FIELDS:
                given.arguments[name] = of_type(name, value, wanted)
            elif wanted == Array or wanted == Array | None:
                given.arguments[name] = readable(name, value)
            elif wanted == Sequence[Array]:
                given.arguments[name] = [readable(f"{name}[{i}]", one) for i, one in enumerate(value)]
            elif name == "device":
                given.arguments[name] = device_of(value)
            else:
                given.arguments[name] = frozen(value)
        return function(*given.args, **given.kwargs)
    return call


def readable(name: str, value: Any) -> Any:
    """An array of another library, whose dtypes are not numpy's as CuPy's are, as numpy's in the same memory; anything else as it is."""
    if isinstance(getattr(value, "dtype", None), np.dtype):
        return value
    try:
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value) if hasattr(value, "__dlpack__") else value
    except Exception as error:      # whatever a library says of its array: on a GPU, of a type that numpy lacks, ...
        raise TypeError(f"{name}: numpy cannot read this {type(value).__module__}.{type(value).__qualname__} ({str(error).strip().splitlines()[0]})") from None


def as_array(name: str, value: Array, dims: tuple[str, ...] | None = None, dtype: str = "float32") -> Array:
    """The argument of a function on arrays, checked; a message names it."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    if getattr(value.dtype, "kind", "none") not in ("f" if dtype == "float32" else "iu"):
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if dims is not None and value.ndim != len(dims):
        raise ValueError(f"{name}: expected {len(dims)} dimensions ({', '.join(dims)}), got shape {tuple(value.shape)}")
    if value.ndim == 0:
        raise ValueError(f"{name}: expected at least 1 dimension, got a single number")
    return value


_devices: dict[str, Device] = {}


def device_of(device: str | Device) -> Device:
    """The Device for a `device=` argument: a name ("cpu", "cuda", "numpy"), or one that is open already."""
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"device: expected the name of one or one that is open, got {device!r}")
    if device not in _devices:
        if device == "numpy":
            from ..device.reference import Reference
            opened: Device = Reference(np.float64)
        else:
            opened = open_device(device)[0]
        _devices.setdefault(device, opened)      # another thread may have been faster
    return _devices[device]


def run_alone(layer: Layer, device: str | Device, x: Array, dy: Array = None, parameters: dict[str, Array] | None = None, step: int = 0,
              **more: Any) -> Site:
    """Forward, and with dy also backward, of one layer on arrays. -> Site with y (and dx, gradients)."""
    device = device_of(device)
    shape, n = tuple(x.shape[1:]), x.shape[0]
    if 0 in shape:
        raise ValueError(f"x: only the first size may be 0 (an empty batch), got shape {tuple(x.shape)}")
    out = layer.output(shape)
    floats = device.float
    site = Site(x=put(device, x), parameters={k: put(device, v) for k, v in (parameters or {}).items()},
                now=device.array(np.array([step, 0.0]), np.float64), **more)
    site.y = site.x if layer.in_place else device.empty((n, *out), floats)
    kept = layer.kept(shape) | (layer.keepable(shape) if device.spare() else {})
    site.kept = {k: device.empty((n, *s), d) for k, (s, d) in kept.items()}
    _, columns = layer.columns(device, shape, max(n, 1), dy is not None, True)
    site.columns = device.empty((max(columns, layer.partials(shape, n)),), floats)
    ready(layer, device, site, False)
    if n:
        layer.forward(device, site)
    if dy is not None:
        if tuple(dy.shape) != (n, *out):
            raise ValueError(f"dy: expected shape {(n, *out)}, got {tuple(dy.shape)}")
        site.dy = put(device, dy)
        site.gradients = {k: device.zeros(v.shape, floats) for k, v in site.parameters.items()}
        site.dx = site.dy if layer.in_place else device.empty((n, *shape), floats)
        ready(layer, device, site, True)
        if n:
            layer.backward(device, site)
    device.synchronize()
    return site


def ready(layer: Layer, device: Device, site: Site, backward: bool) -> None:
    """Makes and launches what a pass of one layer takes `prepared`."""
    site.prepared = {k: device.empty(s, device.float) for k, s in layer.prepared(site.x.shape[1:], backward).items()}
    if site.prepared:
        layer.prepare(device, site, backward)


def put(device: Device, array: Array) -> Array:
    """A copy on the device (CuPy arrays stay where they are on a GPU)."""
    if isinstance(array, device.array_type) and array.dtype.kind != "f":
        return array.copy()
    return device.array(array)
