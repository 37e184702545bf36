"""Why a network says what it says of a picture: what of it counts, what its layers answer to, and which training images are like it."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..nets import Net
from ..network import Network
from ..ops.conv import Conv
from ..progress import Bar, silent

GRID, SQUARE, GREY = 16, 0.2, 128      # places of the square across and down; its side as a part of the picture's; its pixels
MOST = 10_000                          # training images that are looked at for neighbours; of more, so many at even distances


@dataclass(frozen=True)
class Channel:
    """A channel's largest value, after ReLU, and the part of the picture that it depends on: (top, left, bottom, right) in pixels of `Explanation.picture`.
    active: float32 (height, width), all its values."""

    number: int
    value: float
    sees: tuple[int, int, int, int]
    active: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A training image, as the net sees it (uint8 (size, size, 3)), with its path below its folder and its Euclidean distance in the last hidden layer."""

    path: str
    name: str
    distance: float
    picture: np.ndarray = field(repr=False)


@dataclass(eq=False)
class Explanation:
    """Of a picture, as the net sees it (uint8 (size, size, 3)), and the likeliest of its `classes`, [(class, probability), ...].

    occlusion: float32 (16, 16), the probability of that class with a grey square centred there, a fifth of the picture high and wide (Zeiler and
    Fergus 2013, section 4.2), and covered: the class that is likeliest then. gradient: float32 (size, size, 3), of the class's score (before the
    softmax) with respect to each pixel's grey levels. channels: {layer: the strongest channels of a convolution}. neighbours: the nearest
    training images in the last hidden layer (Krizhevsky 2012, figure 4), or None where there are none to look at.
    """

    picture: np.ndarray = field(repr=False)
    path: str | None
    classes: list[tuple[str, float]]
    occlusion: np.ndarray = field(repr=False)
    covered: list[list[str]] = field(repr=False)
    gradient: np.ndarray = field(repr=False)
    channels: dict[str, list[Channel]] = field(repr=False)
    neighbours: list[Neighbour] | None = field(default=None, repr=False)


def explain(network: Network, images: np.ndarray, paths: Iterable[str | None], classes: list[str], channels: int,
            bar: Bar = silent) -> tuple[list[Explanation], np.ndarray]:
    """Explanations of decoded pictures (n, side, side, 3), and what the last hidden layer makes of them, (n, features). network: with `to_input`, for some
    images at a time."""
    found, features, paths = [], [], list(paths)
    with bar(total=len(images), unit="image") as done:
        for first in range(0, len(images), network.batch):
            some = images[first:first + network.batch]
            n, views = len(some), network.input.centre(len(some))
            network.evaluate(some, np.zeros(n, np.int32), views)
            p = network.probabilities(n)
            features.append(hidden_features(network, n))
            gradient = network.input_gradient(some, views, np.eye(network.net.classes, dtype=np.float32)[p.argmax(axis=1)])
            gradient = gradient * np.broadcast_to(network.input.scale, 3).astype(np.float32)      # of pixels instead of what is made of them
            active = network.activations()
            for i in range(n):
                likely = np.argsort(-p[i], kind="stable")[:5]
                occluded, covered = occlusion(network, some[i], int(likely[0]), GRID)
                found.append(Explanation(seen(network, some[i]), paths[first + i], [(classes[k], float(p[i, k])) for k in likely], occluded,
                                         [[classes[k] for k in row] for row in covered], gradient[i],
                                         strongest(network.net, {name: value[i] for name, value in active.items()}, channels)))
                done.update()
    return found, np.concatenate(features)


def seen(network: Network, image: np.ndarray) -> np.ndarray:
    """The centre crop of a decoded picture, as a copy."""
    edge, size = network.input.margin // 2, network.net.size
    return image[edge:edge + size, edge:edge + size].copy()


def occlusion(network: Network, image: np.ndarray, label: int, grid: int = GRID, part: float = SQUARE) -> tuple[np.ndarray, np.ndarray]:
    """Of a decoded picture (side, side, 3): the probability of class `label`, float32, and the likeliest class, as grids (grid, grid) of the places of
    a grey square whose centre goes over the picture."""
    edge, size = network.input.margin // 2, network.net.size
    half = max(1.0, part * size) / 2
    spans = [slice(edge + max(0, round(centre - half)), edge + min(size, max(round(centre + half), 1))) for centre in (np.arange(grid) + 0.5) * size / grid]
    places, found = list(product(spans, spans)), []
    for first in range(0, len(places), network.batch):
        some = places[first:first + network.batch]
        covered = np.repeat(image[None], len(some), axis=0)
        for own, place in zip(covered, some):
            own[place] = GREY
        network.evaluate(covered, np.zeros(len(some), np.int32), network.input.centre(len(some)))
        found.append(network.probabilities(len(some)))
    p = np.concatenate(found)
    return p[:, label].astype(np.float32).reshape(grid, grid), p.argmax(axis=1).reshape(grid, grid)


def strongest(net: Net, active: dict[str, np.ndarray], most: int) -> dict[str, list[Channel]]:
    """{layer: its `most` channels with the largest values} of the convolutions but the one that gives the classes, from {layer: output (H, W, C)} of one
    picture; a channel that is 0 everywhere is none of them."""
    last, found = [name.split(".")[0] for name in net.parameters()][-1], {}
    for name, layer in net.layers.items():
        if not isinstance(layer, Conv) or name == last:
            continue
        height, width, channels = active[name].shape
        values = active[name].reshape(-1, channels)
        at, top = values.argmax(axis=0), values.max(axis=0)
        found[name] = [Channel(k, float(top[k]), net.receptive_field(name, *divmod(int(at[k]), width)), active[name][:, :, k].copy())
                       for k in np.argsort(-top, kind="stable")[:most].tolist() if top[k] > 0]
    return found


def hidden_layer(net: Net) -> str | None:
    """The last hidden layer: the one whose output the last layer with parameters takes, fc7 of AlexNet; None where no layer before has parameters."""
    *hidden, last = dict.fromkeys(name.split(".")[0] for name in net.parameters())
    names = list(net.layers)
    return next(name for name in reversed(names[:names.index(last)]) if not net.layers[name].in_place) if hidden else None


def hidden_features(network: Network, n: int) -> np.ndarray:
    """What the last hidden layer made of the n images of the last pass: (n, features)."""
    name = hidden_layer(network.net)
    return network.device.to_numpy(network.arrays[f"activation {name}"][:n]).reshape(n, -1) if name else np.zeros((n, 0), np.float32)


def features_of(network: Network, images: np.ndarray) -> np.ndarray:
    """What the last hidden layer makes of decoded pictures: (n, features)."""
    found = []
    for first in range(0, len(images), network.batch):
        some = images[first:first + network.batch]
        network.evaluate(some, np.zeros(len(some), np.int32), network.input.centre(len(some)))
        found.append(hidden_features(network, len(some)))
    return np.concatenate(found)


def nearest(network: Network, features: np.ndarray, source: Any, count: int, *, workers: int = 2, warn: Callable[[str], Any] | None = None,
            bar: Bar = silent) -> list[list[Neighbour]]:
    """For each of some features (n, features) the `count` images of a data source, of at most MOST, that are nearest to it by Euclidean distance; of equally
    near ones those that come first in the listing."""
    if len(source) > MOST:
        source = source.part(np.linspace(0, len(source) - 1, MOST).astype(np.int64), False)
    loader = Loader(source, network.input.side, network.batch, fit=network.input.fit, shuffle=False, cache_mb=0, workers=workers, warn=warn)
    best: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in features]
    for batch in bar(iterable=loader.epoch(0), total=len(loader), unit="batch", desc="training images"):
        if not len(batch):
            continue
        others = features_of(network, batch.images)
        for own, feature in zip(best, features):
            distances = np.sqrt(((others - feature) ** 2).sum(axis=1, dtype=np.float64))
            worst = own[-1][0] if len(own) == count else np.inf
            own += [(float(distances[k]), int(batch.index[k]), seen(network, batch.images[k])) for k in np.flatnonzero(distances < worst)]
            own.sort(key=lambda entry: entry[:2])
            del own[count:]
    return [[Neighbour(os.path.relpath(source.paths[place], source.root), source.classes[source.labels[place]], distance, picture)
             for distance, place, picture in own] for own in best]
