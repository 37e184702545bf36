"""The default training set, drawn by program: what `python -m minialex.train` learns when no data is given.

A class is a shape and a texture together. Every shape wears two of the textures and every texture is worn
by three or four of the shapes, so neither decides alone; place, size, turn, colours, light and clutter are
drawn without looking at the class. Pixels and colours taken one by one therefore tell next to nothing
(tests/data/test_shapes.py measures it), while a small convolutional network gets nearly all of them right.
"""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, shown
from ..files import user_cache
from ..progress import silent

VERSION = 1  # goes up whenever a picture changes, so that a cached older set is not mistaken for this one
SIDE = 112  # pixels; 7/8 of it, the usual share of a random crop, is 98
CLASSES = (
    "checked_ring", "checked_star", "checked_triangle",
    "dotted_circle", "dotted_cross", "dotted_ring", "dotted_triangle",
    "striped_circle", "striped_cross", "striped_star",
)


# Shapes: signed distance to the outline (negative inside) in the shape's own frame, where it reaches out to
# radius 1. All have a mirror axis, so a flipped picture keeps its class.

def circle(x, y):
    return np.hypot(x, y) - 0.9


def ring(x, y):
    return np.abs(np.hypot(x, y) - 0.7) - 0.28


def cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.3, np.maximum(x, y) - 0.95)


def triangle(x, y):
    return pointed(x, y, 3, 0.5)


def star(x, y):
    return pointed(x, y, 5, 0.45)


def pointed(x, y, points, waist):
    """A star with its tips at radius 1 and its notches at radius `waist`; cos(pi/points) makes it a polygon."""
    half = math.pi / points
    angle = np.abs(np.arctan2(y, x) % (2 * half) - half)  # by symmetry one edge, tip (half) to notch (0), is enough
    radius = np.hypot(x, y)
    out, aside = math.sin(half) * waist, 1 - math.cos(half) * waist  # the edge's normal, seen from the tip
    length = math.hypot(out, aside)
    return (radius * np.cos(half - angle) - 1) * (out / length) + radius * np.sin(half - angle) * (aside / length)


# Textures: positive where the second colour goes; x and y in periods of the dots. `share` moves the balance of the
# two colours. Stripes are coarser: at the period of the dots the first convolution is slow to tell the two apart.

def striped(x, y, share):
    return np.cos(1.5 * np.pi * x) + share


def dotted(x, y, share):
    return np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y) - 0.8 + share  # without the 0.8 it would be a chessboard


def checked(x, y, share):
    return np.cos(2 * np.pi * x) * np.cos(2 * np.pi * y) * 2 + share / 4


SHAPES = {shape.__name__: shape for shape in (circle, ring, cross, triangle, star)}
TEXTURES = {texture.__name__: texture for texture in (striped, dotted, checked)}

# The middle of each pixel, from -1 to 1 across the picture.
Y, X = (np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5) * (2 / SIDE) - 1


def turned(x, y, angle):
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def coverage(d, pixel):
    """1 inside, 0 outside, and a ramp of one pixel between them: an outline without stairs."""
    return np.clip(0.5 - d / pixel, 0, 1)[..., None]


def colour(rng, saturation, value):
    """Any hue; saturation and value (as in HSV) from the given ranges."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    purity = np.clip(np.abs((hue + np.array([3, 1, 5])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - purity))).astype(np.float32)


def paint(canvas, shape, centre, radius, angle, ink, edge=2 / SIDE):
    """Lay `shape` over the canvas, touching only the square it can reach. `ink(x, y)` colours it; `edge`, the width
    of its outline's ramp, is a pixel unless it is to be soft."""
    reach = radius + edge
    rows, columns = (slice(max(0, int((c - reach + 1) * SIDE / 2)), int((c + reach + 1) * SIDE / 2) + 1)
                     for c in centre)
    part = canvas[rows, columns]
    y, x = Y[rows, columns] - float(centre[0]), X[rows, columns] - float(centre[1])
    u, v = turned(x, y, angle)
    part += coverage(shape(u / radius, v / radius), edge / radius) * (ink(x, y) - part)


def draw(shape, texture, rng):
    """One picture, uint8 SIDE x SIDE x 3. What is drawn from `rng`, and how often, does not depend on the class."""
    far, near = colour(rng, (0.1, 0.5), (0.45, 0.75)), colour(rng, (0.1, 0.5), (0.45, 0.75))
    light, dark = colour(rng, (0, 0.5), (0.9, 1)), colour(rng, (0.6, 1), (0.1, 0.45))
    # Either may be the ground and either the pattern: else a linear classifier finds the brightness it needs.
    first, second = (light, dark) if rng.random() < 0.5 else (dark, light)

    # Background: a gradient with soft clouds on it.
    slope = turned(X, Y, rng.uniform(0, 2 * math.pi))[0]
    clouds = Image.fromarray(rng.uniform(-0.4, 0.4, (6, 6)).astype(np.float32)).resize((SIDE, SIDE), Image.BICUBIC)
    canvas = far + np.clip(0.5 + 0.4 * slope + np.asarray(clouds), 0, 1)[..., None] * 0.7 * (near - far)

    # Clutter: small plain shapes of every kind, behind the one that counts.
    kinds = list(SHAPES.values())
    for _ in range(rng.integers(3, 8)):
        kind, centre, radius = kinds[rng.integers(len(kinds))], rng.uniform(-1, 1, 2), rng.uniform(0.08, 0.2)
        angle, plain = rng.uniform(0, 2 * math.pi), colour(rng, (0.2, 0.8), (0.3, 0.9))
        paint(canvas, kind, centre, radius, angle, lambda x, y: plain)

    centre, radius = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.58, 0.78)
    angle, grain = rng.uniform(0, 2 * math.pi, 2).tolist()
    period, share = radius * rng.uniform(0.32, 0.46), rng.uniform(-0.2, 0.2)
    across, along = rng.uniform(0, 1, 2).tolist()

    def woven(x, y):
        u, v = turned(x, y, grain)
        pattern = texture(u / period + across, v / period + along, share)
        return first + coverage(-pattern, 4 * math.pi / SIDE / period) * (second - first)

    shadow = centre + rng.uniform(-0.06, 0.06, 2)
    paint(canvas, shape, shadow, radius, angle, lambda x, y: np.float32(0.08), edge=0.12)
    paint(canvas, shape, centre, radius, angle, woven)

    # Light that falls off to one side, then the noise of a sensor.
    canvas *= 1 + rng.uniform(0, 0.3) * turned(X, Y, rng.uniform(0, 2 * math.pi))[0][..., None]
    canvas += rng.uniform(0, 0.04) * rng.standard_normal(canvas.shape, np.float32)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def make(root, *, train=300, val=50, seed=2012, bar=silent):
    """Draw the set into `root`/train/CLASS and `root`/val/CLASS, `train` and `val` pictures a class.

    It appears under its name only when it is complete.
    """
    root = Path(root)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{shown(root)} is there already: name a new or an empty folder for the pictures")
    root.parent.mkdir(parents=True, exist_ok=True)
    with (bar(total=(train + val) * len(CLASSES), unit="image", desc="drawing the built-in set, once") as done,
          tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as beside):
        for split, (name, count) in enumerate([("train", train), ("val", val)]):
            for label, kind in enumerate(CLASSES):
                folder = Path(beside, "set", name, kind)
                folder.mkdir(parents=True)
                texture, shape = kind.split("_")
                for index in range(count):
                    # A stream for each picture: it is the same however many others are drawn.
                    rng = np.random.default_rng([seed, split, label, index])
                    picture = draw(SHAPES[shape], TEXTURES[texture], rng)
                    Image.fromarray(picture).save(folder / f"{index:05}.jpg", quality=90)
                    done.update()
        os.rename(Path(beside, "set"), root)


def default_set(bar=silent):
    """The path of the default set, drawn on first use into the user's cache ($MINIALEX_CACHE names another)."""
    cache = user_cache()
    root = Path(cache, f"shapes-v{VERSION}")
    try:
        if not root.is_dir():
            make(root, bar=bar)
    except (OSError, UserError) as error:
        if root.is_dir():
            return root  # another process was first, and its set is the same
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the built-in pictures cannot be kept in {shown(cache)} ({reason}): "
                        "set MINIALEX_CACHE to a folder that can be written") from error
    return root
