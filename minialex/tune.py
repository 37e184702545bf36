"""Which algorithm each convolution of a net takes: the faster one on this machine, timed once and kept in the user's cache."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .device import Device
from .device.compiler import checksum, processor
from .device.kernel import source_text, sources
from .errors import UserError
from .files import user_cache, write_beside
from .nets import Net
from .ops.conv import ALGORITHMS, Conv
from .ops.layer import Shape, Site
from .ops.winograd import Winograd

CHOICES = "auto", *ALGORITHMS
PASSES = "forward", "backward"
FILES = "im2col.cu", "winograd.cu", "transpose.cu"
LEAST = 20e6      # multiplications of a batch, below which none is timed
GAIN = 0.97       # of im2col's time, which Winograd must stay below: its results are less exact
ROUNDS = 6


def settled(net: Net, device: Device, batch: int, shares: int, chunk: int, *, training: bool, conv: str | Mapping[str, Any] = "auto") -> Net:
    """The net with an algorithm for each convolution that leaves it open.

    conv: "auto", one of ALGORITHMS for all that can have it, or {layer: (forward, backward)} as an earlier call has found. shares, chunk: how a
    batch is cut, as Layout says.
    """
    if isinstance(conv, str) and conv not in CHOICES:
        raise UserError(f"--conv {conv}: choose one of {', '.join(CHOICES)}")
    if device.precision == "tf32" and isinstance(conv, str):
        if conv == "winograd":
            raise UserError("--conv winograd with --precision tf32: its transforms would make the rounding of such products ten to twenty times larger; "
                            "use --conv im2col, or --precision float32")
        conv = "im2col"
    layers = {}
    for name, layer in net.layers.items():
        if isinstance(layer, Conv) and layer.algorithm == "auto":
            if not Winograd.fits(layer):
                pair = "im2col", "im2col"
            elif isinstance(conv, str):
                pair = (conv, conv) if conv != "auto" else fastest(replace(layer, lr=1.0), net.inputs[name], device, batch, shares, chunk, training, name in net.above)
            else:
                found = conv.get(name, ("im2col", "im2col"))
                pair = tuple(found) if isinstance(found, (list, tuple)) else ()
                if len(pair) != 2 or not all(algorithm in ALGORITHMS for algorithm in pair):
                    raise UserError(f"convolutions of config.json: {name} has {found}; expected two of {', '.join(ALGORITHMS)}, for forward and backward")
            layer = replace(layer, algorithm=pair)
        layers[name] = layer
    return Net(layers, net.size, net.name)


def algorithms(net: Net) -> dict[str, tuple[str, str]]:
    """{layer: (forward, backward)} of a settled net."""
    return {name: layer.pair for name, layer in net.layers.items() if isinstance(layer, Conv)}


def told(net: Net) -> str:
    """Where Winograd's takes the place of im2col, as the end of a sentence."""
    ways = {way: [name for name, pair in algorithms(net).items() if pair[i] == "winograd"] for i, way in enumerate(PASSES)}
    both = [name for name in ways["forward"] if name in ways["backward"]]
    parts = [", ".join(both)] * bool(both) + [f"{way} of {', '.join(left)}" for way, names in ways.items() if (left := [n for n in names if n not in both])]
    return f"; Winograd's convolution in {', '.join(parts)}" if parts else ""


def open_to_choice(layer: Conv, shape: Shape, batch: int) -> bool:
    """Whether a layer is timed: both algorithms are for it, and it has enough to do."""
    return Winograd.fits(layer) and layer.macs(shape) * batch >= LEAST


def fastest(layer: Conv, shape: Shape, device: Device, batch: int, shares: int, chunk: int, training: bool, dx: bool) -> tuple[str, str]:
    """(forward, backward) of a layer."""
    if device.name not in ("cpu", "cuda") or not open_to_choice(layer, shape, batch):
        return "im2col", "im2col"
    took = times(layer, shape, device, batch, shares, chunk, training, dx)
    forward, *backward = ("winograd" if took[way]["winograd"] < GAIN * took[way]["im2col"] else "im2col" for way in PASSES[:1 + training])
    return forward, backward[0] if backward else forward


def times(layer: Conv, shape: Shape, device: Device, batch: int, shares: int, chunk: int, training: bool, dx: bool) -> dict[str, dict[str, float]]:
    """{pass: {algorithm: seconds of a batch}}, from what was measured here before if the user's cache has it."""
    about = [device.name, device.model, device.products, device.threads, processor(), *(source_text(sources() / file) for file in FILES),
             repr(layer), shape, shares, chunk, training, dx]
    file = user_cache() / "convolutions" / f"{checksum(json.dumps(about).encode())}.json"
    chunks = math.ceil(batch / (shares * chunk))

    def whole(found):
        """Of what is prepared once and of all chunks."""
        return {way: {name: float(found[way][name][0]) + chunks * float(found[way][name][1]) for name in ALGORITHMS} for way in PASSES[:1 + training]}

    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):      # not there, or damaged
        return whole(json.loads(file.read_text(encoding="utf-8")))
    found = measured(layer, shape, device, shares, chunk, training, dx)
    with contextlib.suppress(OSError, UserError):      # without a cache it is timed again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_beside(file, json.dumps(found))
    return whole(found)


def measured(layer: Conv, shape: Shape, device: Device, shares: int, chunk: int, training: bool, dx: bool) -> dict[str, dict[str, list[float]]]:
    """{pass: {algorithm: [seconds of what is prepared, of a chunk in each share]}}; the best of some rounds, in which the algorithms take turns."""
    tapes = {(way, name): pair for name in ALGORITHMS for way, pair in recorded(replace(layer, algorithm=name), shape, device, shares, chunk, training, dx).items()}
    best: dict[Any, list[float]] = {}
    for _ in range(ROUNDS):
        for key, pair in tapes.items():
            took = [clock(device, tape) for tape in pair]
            best[key] = [min(both) for both in zip(took, best.get(key, took))]
    return {way: {name: best[way, name] for name in ALGORITHMS} for way in PASSES[:1 + training]}


def recorded(layer: Conv, shape: Shape, device: Device, shares: int, chunk: int, training: bool, dx: bool) -> dict[str, tuple[Any, Any]]:
    """{pass: (tape of what is prepared, tape of a chunk in each share)} by the layer's own algorithm, on random numbers."""
    random, out = np.random.default_rng(0), layer.output(shape)
    room = max(layer.columns(device, shape, chunk, training, dx)[1], layer.partials(shape, chunk))
    weights = {part: device.array(random.standard_normal(size, np.float32) / math.sqrt(layer.fan_in(shape))) for part, size in layer.parameters(shape).items()}
    prepared = {part: device.empty(size) for backward in (False, True)[:1 + training] for part, size in layer.prepared(shape, backward).items()}
    sites, tapes = [], {}
    for _ in range(shares):
        x, dy = (device.array(random.standard_normal((chunk, *size), np.float32)) for size in (shape, out))
        sites.append(Site(x=x, y=device.empty((chunk, *out)), dy=dy, dx=device.empty((chunk, *shape)) if dx and training else None, parameters=weights,
                          gradients={part: device.zeros(w.shape) for part, w in weights.items()} if training else {}, prepared=prepared, accumulate=True,
                          kept={key: device.empty((chunk, *size), kind) for key, (size, kind) in (layer.keepable(shape) if training and device.spare() else {}).items()},
                          columns=device.empty((room,))))
    for backward, way in enumerate(PASSES[:1 + training]):
        with device.record() as once:
            if layer.prepared(shape, bool(backward)):
                layer.prepare(device, sites[0], bool(backward))
        with device.record() as each:
            for share in device.parallel(shares):
                (layer.backward if backward else layer.forward)(device, sites[share])
        tapes[way] = once, each
    return tapes


def clock(device: Device, tape: Any) -> float:
    """Seconds of a recording."""
    device.synchronize()
    began = time.perf_counter()
    tape.play()
    device.synchronize()
    return time.perf_counter() - began
