"""The AlexNets' weights: recognised in other libraries' files by names and shapes, kept as a run folder, and given out under other libraries' names.

Elsewhere convolutions are OIHW and dense layers (features, inputs), the inputs of the first one counted (C, H, W); here, as in Keras, HWIO and
(inputs, features), counted (H, W, C). Caffe's pictures are B, G, R; here they are R, G, B, so that the channels of the first convolution change places.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import nets
from ..data.augment import Input
from ..errors import UserError, shown
from ..nets import Net
from ..ops.conv import Conv
from ..version import __version__
from . import checkpoint, tensors
from .folder import RunFolder, net_of
from .settings import DEFAULTS, OPTIONS

# torchvision/models/alexnet.py
TORCHVISION = {"conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8", "conv5": "features.10", "fc6": "classifier.1",
               "fc7": "classifier.4", "fc8": "classifier.6"}
# The order of Caffe's layers, by which nets of the same names and shapes are told apart.
CAFFE = {("norm1", "pool1"): "alexnet-caffe", ("pool1", "norm1"): "caffenet"}
# What those who published a net's weights fed it: the side that pictures are decoded at, how, and the mean and scale of their pixels.
# owt: torchvision's references/classification; half: the Keras tutorial; Caffe's: the mean colour of ilsvrc_2012_mean.npy, on pixels as they are.
IMAGENET_MEAN = "mean=122.679:116.669:104.007,scale=1"
INPUTS = {"owt": (256, "crop", "mean=123.675:116.28:103.53,scale=1/58.395:1/57.12:1/57.375"), "half": (224, "squash", "mean=none,scale=1/255"),
          "caffenet": (256, "crop", IMAGENET_MEAN), "alexnet-caffe": (256, "crop", IMAGENET_MEAN)}
MOST_TOLD = 6      # faults of a file
WEIGHT, BIAS = r"(weights?|kernel|w|vars/0|0)", r"(bias(es)?|b|vars/1|1)"


@dataclass
class Weights:
    """Weights with all that using them takes: `values` are {"conv1.weight": array} as a Network has them, `mean` the mean image, if the input has one,
    and `source` where they come from, as a sentence may say it. `classes` are None where nobody has named them."""

    net: Net
    values: dict[str, np.ndarray]
    input: Input
    classes: list[str] | None
    source: str
    mean: np.ndarray | None = None


def read(source: str | os.PathLike | Mapping[str, Any], net: str | Net | None = None, size: int | None = None, channels: str | None = None) -> Weights:
    """Weights of a run folder (the best, if it has them), of a file, or of a state dict in memory.

    net: which one, where names and shapes leave it open, or one's own; size: pixels of its input, where not the published ones. channels: "rgb" or
    "bgr", the order that the first convolution was trained with (default: bgr for Caffe's nets).
    """
    if channels not in (None, "rgb", "bgr"):
        raise UserError(f"--channels {channels}: choose rgb or bgr")
    if not isinstance(source, Mapping) and (Path(source) / "config.json").exists():
        if net is not None or size is not None or channels is not None:
            raise UserError(f"{shown(source)} is a run folder, which says itself what its net is: leave --net, --size and --channels out")
        return of_run(RunFolder(source))
    if isinstance(source, Mapping):
        found = tensors.Found("the given dict", "torch", dict(tensors.flat(source)))
    else:
        found = tensors.read(source)
    made, values = recognised(found, net, size)
    order = channels or ("bgr" if made.name in ("caffenet", "alexnet-caffe") else "rgb")
    first = f"{next(iter(made.layers))}.weight"
    if order == "bgr":
        if made.inputs[first.split(".")[0]][-1:] != (3,) or first not in values or values[first].ndim != 4:
            raise UserError("--channels bgr: the net's first layer is no convolution, whose channels could change places")
        values[first] = np.ascontiguousarray(values[first][:, :, ::-1])
    return Weights(made, values, usual_input(made), None, found.path)


def of_run(folder: RunFolder) -> Weights:
    """The weights that a run's evaluation goes by."""
    config = folder.config()
    net, path = net_of(config), folder.checkpoint()
    held, _, name = checkpoint.read(path)
    values = {key.removeprefix("parameter "): array for key, array in held.items() if key.startswith("parameter ")}
    values |= {key.removeprefix("average "): array for key, array in held.items() if key.startswith("average ")}
    wrong = faults({key: array.shape for key, array in values.items()}, net.parameters())
    if wrong or name != net.name:
        raise UserError(f"{path} is not of the run that config.json beside it describes ({(wrong or [f'it is of net {name}'])[0]})")
    wanted = Input.from_config(config)
    return Weights(net, values, wanted, config["classes"], str(folder), folder.mean(wanted))


def usual_input(net: Net) -> Input:
    """How a net takes pictures if nothing else is said."""
    side, fit, text = INPUTS.get(net.name, (0, "crop", ""))
    published = nets.NETS[net.name][1] if net.name in nets.NETS else 0
    return Input(round(net.size * side / published) if side else net.side, net.size, fit).with_text(text)


# ---------------------------------------------------------------- recognising

def recognised(found: tensors.Found, net: str | Net | None = None, size: int | None = None) -> tuple[Net, dict[str, np.ndarray]]:
    """-> the net that a file's arrays are of, and its parameters in our layouts. A UserError names what is missing, too many or of another shape."""
    parts = grouped(found)
    last = [stem for stem in parts if parts[stem]["weight"].ndim == 2][-1:]
    classes = len(parts[last[0]]["bias"]) if last else None
    torchvision = any(last_of(stem, TORCHVISION["conv1"]) for stem in parts)
    if isinstance(net, Net):
        candidates = [net]
    elif net is not None:
        candidates = [nets.build(net, classes, size)]
    else:
        at = tuple(name for name in found.layers if name in ("norm1", "pool1"))
        names = ["owt"] if torchvision else [CAFFE[at]] if at in CAFFE else list(nets.NETS)
        candidates = [nets.build(name, classes, size) for name in names]
    tried = [(made, *assigned(parts, made, found.kind, torchvision)) for made in candidates]
    whole = [(made, values) for made, values, wrong in tried if not wrong]
    if len(whole) > 1:
        raise UserError(f"{found.path}: its arrays have the shapes of {', '.join(made.name for made, _ in whole)}: say with --net which one it is")
    if not whole:
        made, _, wrong = min(tried, key=lambda one: len(one[2]))
        more = f"; and {len(wrong) - MOST_TOLD} more" * (len(wrong) > MOST_TOLD)
        raise UserError(f"{found.path} does not have the weights of {made.name} at {made.size}x{made.size}"
                        + ", the nearest net" * (len(tried) > 1) + f": {'; '.join(wrong[:MOST_TOLD])}{more}")
    return whole[0]


def grouped(found: tensors.Found) -> dict[str, dict[str, np.ndarray]]:
    """{what the file calls a layer: {"weight", "bias", and their own names as "weight name", "bias name"}}: convolutions first, each kind in the order
    of its names (2 before 10)."""
    parts: dict[str, dict[str, Any]] = {}
    for name, array in found.arrays.items():
        for part, words in ("weight", WEIGHT), ("bias", BIAS):
            match = re.search(rf"(^|[./_]){words}(:0)?$", name, re.IGNORECASE)
            if match and (array.ndim == 1) == (part == "bias"):
                parts.setdefault(name[:match.start()], {}).update({part: array, f"{part} name": name})
                break
        else:
            raise UserError(f"{found.path}: {name} of shape {array.shape} is neither weight nor bias of a convolution or dense layer by its name and shape")
    for stem, own in parts.items():
        if missing := [part for part in ("weight", "bias") if part not in own]:
            raise UserError(f"{found.path}: {shown(stem)} has no {missing[0]}")
        for part in "weight", "bias":
            if own[part].dtype.kind != "f":
                raise UserError(f"{found.path}: {own[f'{part} name']} is of {own[part].dtype}, and weights are float numbers")
            own[part] = own[part].astype(np.float32, copy=False)
            if not np.isfinite(own[part]).all():
                raise UserError(f"{found.path}: {own[f'{part} name']} has numbers that are not finite")
    if not parts:
        raise UserError(f"{found.path}: it holds no arrays of weights")

    def place(stem: str) -> tuple:
        return parts[stem]["weight"].ndim != 4, [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", stem)]
    return {stem: parts[stem] for stem in sorted(parts, key=place)}


def last_of(stem: str, name: str) -> bool:
    """Whether a layer has this name, perhaps with others before it, as in module.features.0."""
    return stem == name or stem.endswith((f".{name}", f"/{name}"))


def assigned(parts: dict[str, dict[str, np.ndarray]], net: Net, kind: str, torchvision: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """-> the parameters of a net, as far as the file has them, and what is wrong with them, as parts of a sentence."""
    layers = [name for name in net.layers if f"{name}.weight" in net.parameters()]
    called = TORCHVISION if torchvision and layers == list(TORCHVISION) else {name: name for name in layers}
    stems = {layer: next((stem for stem in parts if last_of(stem, name)), None) for layer, name in called.items()}
    if not any(stems.values()):      # names of another kind: one by one, convolutions and dense layers apart
        stems = {}
        for convolution in True, False:
            theirs = [stem for stem in parts if (parts[stem]["weight"].ndim == 4) == convolution]
            ours = [name for name in layers if isinstance(net.layers[name], Conv) == convolution]
            stems |= {layer: theirs[i] if i < len(theirs) else None for i, layer in enumerate(ours)}
    wrong = [f"it lacks {called[layer]}" for layer, stem in stems.items() if stem is None]
    wrong += [f"it has {parts[stem]['weight name']}, for which there is no place" for stem in parts if stem not in stems.values()]
    shapes = net.parameters()
    first = next(((parts[stem]["weight"].shape, shapes[f"{layer}.weight"]) for layer, stem in stems.items() if stem and parts[stem]["weight"].ndim == 4), ((), ()))
    turned = kind != "keras" and (first[0] != first[1] or first[0] == turned_shape(first[1]))      # dumps for TensorFlow have our layouts too
    values: dict[str, np.ndarray] = {}
    for layer, stem in stems.items():
        if stem is None:
            continue
        for part in "weight", "bias":
            array, wanted = parts[stem][part], shapes[f"{layer}.{part}"]
            expected = turned_shape(wanted) if turned else wanted
            if array.shape != expected:
                wrong.append(f"its {parts[stem][f'{part} name']} has shape {array.shape} instead of {expected}")
            else:
                values[f"{layer}.{part}"] = inside(array, net.inputs[layer]) if turned else array
    return values, wrong


def faults(shapes: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> list[str]:
    """What is wrong with arrays of these shapes, as parts of a sentence."""
    return ([f"it lacks {name}" for name in wanted if name not in shapes] + [f"it has {name}, for which there is no place" for name in shapes if name not in wanted]
            + [f"its {name} has shape {shapes[name]} instead of {wanted[name]}" for name in wanted if name in shapes and tuple(shapes[name]) != tuple(wanted[name])])


# ---------------------------------------------------------------- layouts

def turned_shape(shape: tuple) -> tuple:
    """Of a parameter elsewhere, from its shape here."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def inside(array: np.ndarray, input: tuple) -> np.ndarray:
    """A parameter from OIHW, or (features, inputs) counted (C, H, W), as it is here. input: the shape of what its layer takes."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2 and len(input) == 3:
        height, width, channels = input
        array = array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(array.shape[::-1])
    else:
        array = array.T
    return np.ascontiguousarray(array)


def outside(array: np.ndarray, input: tuple) -> np.ndarray:
    """What `inside` makes it from."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2 and len(input) == 3:
        array = array.reshape(*input, -1).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    else:
        array = array.T
    return np.ascontiguousarray(array)


def to_torchvision(net: Net, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of torchvision's AlexNet, {"features.0.weight": float32 array, ...}, from weights as a Network has them.

    A UserError if the net is not torchvision's: `owt`, with maps of 6x6 before its first dense layer, as they are at 224 pixels.
    """
    theirs = nets.build("owt", net.classes)
    if plain(net) != plain(theirs):
        raise UserError(f"{net.name} is not torchvision's AlexNet, which is the net owt: only its weights can have torchvision's names")
    if net.inputs["fc6"] != theirs.inputs["fc6"]:
        raise UserError(f"torchvision's AlexNet averages the last maps to 6x6, and at {net.size} pixels this net's are {nets.by(net.inputs['fc6'])}, so that its dense "
                        f"layers have other shapes: only a net for {theirs.size} pixels or so can be torchvision's")
    return {f"{called}.{part}": outside(np.asarray(weights[f"{layer}.{part}"]), net.inputs[layer]) for layer, called in TORCHVISION.items() for part in ("weight", "bias")}


def to_keras(net: Net, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The datasets of a .weights.h5 of Keras 3, {"layers/conv2d/vars/0": float32 array, ...}, for a Sequential or functional model of the same layers: they are
    counted by their kinds, conv2d, conv2d_1, ..., dense, dense_1, ..., whatever their names are."""
    counts = {"conv2d": 0, "dense": 0}
    arrays: dict[str, np.ndarray] = {}
    for layer in [name for name in net.layers if f"{name}.weight" in net.parameters()]:
        kind = "conv2d" if isinstance(net.layers[layer], Conv) else "dense"
        called = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        arrays |= {f"layers/{called}/vars/{i}": np.asarray(weights[f"{layer}.{part}"]) for i, part in enumerate(("weight", "bias"))}
    return arrays


def plain(net: Net) -> list[tuple]:
    """What a net computes, layer by layer: without how it begins and trains."""
    own = {"std", "bias", "algorithm", "lr"}
    return [(name, type(layer), {key: value for key, value in vars(layer).items() if key not in own}) for name, layer in net.layers.items() if not layer.trained_only]


# ---------------------------------------------------------------- keeping

def named(classes: str | os.PathLike | Iterable[str] | None, count: int) -> list[str]:
    """The names of a net's classes: given, or from a file with a name in each line (or a JSON list), or numbers."""
    if classes is None:
        return [f"class {i:0{len(str(count - 1))}}" for i in range(count)]
    where = "classes"
    if isinstance(classes, (str, os.PathLike)):
        where = f"--classes {shown(classes)}"
        try:
            text = Path(classes).read_text(encoding="utf-8")
            listed = json.loads(text) if text.lstrip().startswith("[") else [line.strip() for line in text.splitlines() if line.strip()]
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{where}: it is no text in UTF-8, or no list in JSON ({error})") from None
    else:
        listed = list(classes)
    if not all(isinstance(name, str) and name for name in listed):
        raise UserError(f"{where}: expected names, each a text")
    if len(listed) != count:
        raise UserError(f"{where}: {len(listed):,} names, and the net has {count:,} classes")
    twice = {name for name in listed if listed.count(name) > 1}      # ImageNet has two cranes
    return [f"{name} ({i})" if name in twice else name for i, name in enumerate(listed)]


def with_mean(weights: Weights, path: str | os.PathLike) -> Weights:
    """The weights of a net that takes this mean image from its pictures, decoded at its side."""
    image = tensors.mean_image(path)
    if image.shape[0] < weights.input.size:
        raise UserError(f"--mean {shown(path)}: the mean image has {image.shape[0]} pixels a side, fewer than the net's input of {weights.input.size}")
    return replace(weights, input=replace(weights.input, side=image.shape[0], mean="image"), mean=image)


def keep(weights: Weights, out: str | os.PathLike) -> RunFolder:
    """Makes a run folder of weights, for evaluate, predict and train --init; nothing is written before all is known to be right."""
    folder, net = RunFolder(out), weights.net
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UserError(f"{folder} is there already and not an empty folder: give another")
    folder.require_place()
    config: dict[str, Any] = {
        "net": net.name, "size": net.size, "began": time.strftime("%Y-%m-%d %H:%M"), "input": asdict(weights.input),
        "classes": weights.classes or named(None, net.classes), "threads": 1,
        "options": {**dict.fromkeys(OPTIONS), **DEFAULTS, "net": net.name, "size": net.size, "side": weights.input.side, "fit": weights.input.fit},
        "machine": {"minialex": __version__}, "data": {}, "converted": {"from": os.path.basename(weights.source)}}
    if not net.published:
        config["layers"] = net.described()
    folder.take()
    try:
        if weights.mean is not None:
            folder.save_mean(weights.mean)
        held = {f"parameter {name}": weights.values[name] for name in net.parameters()}
        checkpoint.write(folder.best, held, {"epoch": 0, "val_top1": None}, net.name)
        folder.save_config(config)
    finally:
        folder.release()
    return folder
