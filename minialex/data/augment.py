"""How a net takes pictures: which part of each, warped how, in which colours; and what training draws anew for every epoch.

All draws are functions of (seed, epoch, place in the listing): batch size, threads, device and resuming never change them.
Maps are made here in float64; kernels/augment.cu takes them as 18 floats a picture, a "view".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import UserError
from ..ops.augment import FILLS
from ..philox import below, philox
from ..progress import silent
from .image import UnreadableImage, picture

# What is drawn has a number in the counter's third word. Dropout draws with the same key and has its layer's number there:
# layers count from 0, the data from the other end.
ORDER, CROP, WARP, ZOOM, COLOUR, PCA = range(0xFFFFFFFF, 0xFFFFFFF9, -1)
LUMINANCE = np.array([0.299, 0.587, 0.114])       # ITU-R BT.601, as Pillow converts to grey


def draw(seed, epoch, index, purpose):
    """Four random words for each place in the listing: uint32 (n, 4)."""
    index = np.asarray(index, np.int64)
    return philox(seed, index & 0xFFFFFFFF, index >> 32, purpose, epoch)


@dataclass(frozen=True)
class Input:
    """The input of a net of `size` pixels, from pictures decoded at `side` pixels: y = (pixel - mean) * scale, augmented in training.

    As text, KEY=VALUE,... (`with_text`), what a value may be stands beside each key below.
    """

    side: int
    size: int
    fit: str = "crop"               # crop: the centre square of each picture; squash: all of it, by nearest neighbour
    mean: Any = (124.0, 117.0, 104.0)    # per colour R:G:B; or colour, image, to be measured on the training set; or none
    scale: tuple = (1 / 58,) * 3    # one number or R:G:B, also 1/255
    crop: str = "random"            # random: a size x size piece; resized: a piece of random area and shape (Szegedy 2014); centre
    area: tuple = (0.08, 1.0)       # of a resized crop, LOW:HIGH of the picture's
    ratio: tuple = (3 / 4, 4 / 3)   # of a resized crop, width to height
    flip: str = "h"                 # h, v, hv or none
    rotation: float = 0.0           # up to so many degrees either way
    shift: tuple = (0.0, 0.0)       # up to that part of the height and width either way: one number or HEIGHT:WIDTH
    shear: float = 0.0              # up to so many degrees either way, as Keras shears
    zoom: tuple = (1.0, 1.0)        # of height and width apart: Z for 1-Z:1+Z, or LOW:HIGH; below 1 enlarges
    fill: str = "nearest"           # what lies outside the picture: nearest, constant, reflect or wrap
    constant: float = 0.0           # the pixels of fill=constant
    brightness: float = 0.0         # B: times 1-B to 1+B; likewise contrast (about the mean grey) and saturation
    contrast: float = 0.0
    saturation: float = 0.0
    pca: str = "none"               # colour noise along the training set's principal components (Krizhevsky 2012, 4.1): by
    pca_strength: float = 0.1       # eigenvalue as the paper writes (of pixels from 0 to 1), or by std as its program did
    colours: Any = None          # {"mean", "eigenvalues", "eigenvectors"} of the training set's pixels, where they were measured

    def __post_init__(self):
        if self.side < self.size:
            raise UserError(f"--side {self.side}: pictures must be decoded at no less than the input's {self.size} pixels")
        if self.mean == "image" and (self.brightness or self.contrast or self.saturation):      # they would change the difference from it
            raise UserError("--augment mean=image goes with none of brightness, contrast and saturation: use mean=colour")

    @classmethod
    def from_config(cls, config: dict) -> "Input":
        """The Input that a run's config.json describes."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in config["input"].items()}
        return cls(**values)

    def with_text(self, text: str) -> "Input":
        """A copy with the keys of KEY=VALUE,... changed; a key or value that makes no sense is a UserError."""
        changes, known = {}, [field.name for field in fields(self) if field.name not in ("side", "size", "fit", "colours")]
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            if key not in known:
                raise UserError(f"--augment {part}: the keys are {', '.join(known)}")
            try:
                changes[key] = parsed(key, value)
            except (ValueError, ZeroDivisionError):
                raise UserError(f"--augment {part}: {EXPECTED.get(key, 'expected a number of 0 or more')}") from None
        return replace(self, **changes)

    def with_colours(self, colours: dict) -> "Input":
        """A copy for a training set whose pixels have been measured (`measure`)."""
        mean = tuple(colours["mean"]) if self.mean == "colour" else self.mean
        return replace(self, mean=mean, colours={name: np.asarray(value).tolist() for name, value in colours.items()})

    @property
    def to_measure(self) -> bool:
        """Whether the training set's colours are needed."""
        return self.mean in ("colour", "image") or self.pca != "none" or self.contrast > 0

    def prepare(self, items: Sequence[Any]) -> np.ndarray:
        """Pictures as networks with this input take them: uint8 (n, side, side, 3) from paths, PIL images or uint8 arrays."""
        return np.stack([picture(item, self.side, self.fit) for item in items]) if len(items) else np.zeros((0, self.side, self.side, 3), np.uint8)

    def cropped(self, crops: Any) -> np.ndarray:
        """Views of plain crops: crops (n, 3) of (top, left, flip)."""
        crops = np.asarray(crops, np.float64)
        return self.views(placed(crops[:, 0], crops[:, 1]) @ flipped(self.size, crops[:, 2] > 0, np.zeros(len(crops), bool)))

    def centre(self, n: int) -> np.ndarray:
        """Views of the centre crop, unflipped, of n pictures."""
        return self.cropped([[self.margin // 2, self.margin // 2, 0]] * n if n else np.zeros((0, 3)))

    def ten(self, n: int) -> list[np.ndarray]:
        """Ten arrays of views of n pictures: four corners and the centre, each plain and mirrored (Krizhevsky 2012, section 4.1)."""
        edge, middle = self.margin, self.margin // 2
        return [self.cropped(np.tile([top, left, flip], (n, 1))) for flip in (0, 1)
                for top, left in ((0, 0), (0, edge), (edge, 0), (edge, edge), (middle, middle))]

    @property
    def mean_colour(self) -> np.ndarray:
        """What views subtract; the kernel subtracts a mean image by itself."""
        return np.zeros(3) if isinstance(self.mean, str) else np.asarray(self.mean)

    @property
    def margin(self) -> int:
        return self.side - self.size

    def draw(self, seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
        """The views that training takes of the pictures at these places of the listing in this epoch: float32 (n, 18)."""
        n = len(index)
        where, zooms = draw(seed, epoch, index, CROP), draw(seed, epoch, index, ZOOM)
        flips = where[:, 2:] < 1 << 31      # word < p * 2**32
        mirror = flipped(self.size, flips[:, 0] & ("h" in self.flip), flips[:, 1] & ("v" in self.flip))
        if self.crop == "random":
            place = placed(below(where[:, 0], self.margin + 1), below(where[:, 1], self.margin + 1))
        elif self.crop == "centre":
            place = placed(*np.full((2, n), self.margin // 2))
        else:
            place = self.resized(where, zooms)
        warp = place @ self.affine(draw(seed, epoch, index, WARP), zooms) @ mirror
        return self.views(warp, *self.jitter(draw(seed, epoch, index, COLOUR), draw(seed, epoch, index, PCA)))

    def resized(self, where: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Maps from the output to pieces of random area and shape, cut where they would not fit."""
        area = self.side**2 * between(words[:, 2], *self.area)
        ratio = np.exp(between(words[:, 3], *np.log(self.ratio)))
        height, width = (np.clip(np.rint(np.sqrt(s)), 1, self.side).astype(np.int64) for s in (area / ratio, area * ratio))
        return placed(below(where[:, 0], self.side - height + 1), below(where[:, 1], self.side - width + 1), height / self.size, width / self.size)

    def affine(self, words: np.ndarray, zooms: np.ndarray) -> np.ndarray:
        """Rotation, shift, shear and zoom about the centre of the output, composed in Keras' order; identity where none is asked for."""
        return keras_affine(self.size, between(words[:, 0], -self.rotation, self.rotation),
                            self.size * between(words[:, 1], -self.shift[1], self.shift[1]), self.size * between(words[:, 2], -self.shift[0], self.shift[0]),
                            between(words[:, 3], -self.shear, self.shear), between(zooms[:, 0], *self.zoom), between(zooms[:, 1], *self.zoom))

    def jitter(self, words: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colour maps of each picture: matrices (n, 3, 3) and offsets (n, 3), on pixels of 0 to 255."""
        bright, contrast, saturation = (between(words[:, i], 1 - b, 1 + b) for i, b in enumerate((self.brightness, self.contrast, self.saturation)))
        matrix = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * LUMINANCE
        matrix, offset = (bright * contrast)[:, None, None] * matrix, np.zeros((len(words), 3))
        if self.contrast:      # about grey of the mean colour, which a change of saturation leaves alone
            offset += ((1 - contrast) * (LUMINANCE @ self.colours["mean"]))[:, None]
        if self.pca != "none":
            values, vectors = np.asarray(self.colours["eigenvalues"]), np.asarray(self.colours["eigenvectors"])
            spread = values / 255 if self.pca == "eigenvalue" else np.sqrt(values)
            offset += (normal(more)[:, :3] * self.pca_strength * spread) @ vectors.T
            if self.pca == "std":      # so that the noise does not widen the input's spread (convdata_jpeg.py of the 2012 program)
                shrink = 1 / (1 + self.pca_strength)
                matrix, offset = matrix * shrink, offset * shrink + self.mean_colour * (1 - shrink)
        return matrix, offset

    def views(self, warp: np.ndarray, matrix: np.ndarray = np.eye(3), offset: np.ndarray = np.zeros(3)) -> np.ndarray:
        """float32 (n, 18) from maps (n, 3, 3) of (row, column, 1) and colour maps on pixels, followed by (pixel - mean) * scale."""
        n, scale = len(warp), np.broadcast_to(self.scale, 3)
        colour = np.broadcast_to(matrix * scale[:, None], (n, 3, 3)).reshape(n, 9)
        return np.concatenate([warp[:, :2].reshape(n, 6), colour, np.broadcast_to((offset - self.mean_colour) * scale, (n, 3))], axis=1).astype(np.float32)


def between(words, low, high):
    """Words as float64 numbers from low up to high."""
    return low + (high - low) * (words / 2.0**32)


def normal(words):
    """Four words as four standard normal numbers (Box and Muller 1958): float64 (n, 4)."""
    radius, angle = np.sqrt(-2 * np.log((words[:, :2] + 1.0) / 2.0**32)), 2 * np.pi * words[:, 2:] / 2.0**32
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def maps(n, **entries):
    """n maps of (row, column, 1), the identity but for entries such as rc=..., row from column."""
    out = np.tile(np.eye(3), (n, 1, 1))
    for place, value in entries.items():
        out[:, "rc1".index(place[0]), "rc1".index(place[1])] = value
    return out


def placed(top, left, down=1.0, right=1.0):
    """Maps to the piece at (top, left), `down` and `right` picture pixels an output pixel; the corners of the outermost pixels meet."""
    return maps(len(top), rr=down, cc=right, r1=top + 0.5 * np.asarray(down) - 0.5, c1=left + 0.5 * np.asarray(right) - 0.5)


def flipped(size, horizontally, vertically):
    return maps(len(horizontally), rr=np.where(vertically, -1, 1), r1=np.where(vertically, size - 1, 0),
                cc=np.where(horizontally, -1, 1), c1=np.where(horizontally, size - 1, 0))


def keras_affine(size, theta, tx, ty, shear, zx, zy):
    """Maps as Keras' apply_affine_transform makes them, x along columns: rotation and shear in degrees, shifts in pixels, about the centre."""
    n, theta, shear, centre = len(theta), np.deg2rad(theta), np.deg2rad(shear), (size - 1) / 2
    rotation = maps(n, rr=np.cos(theta), rc=np.sin(theta), cr=-np.sin(theta), cc=np.cos(theta))
    return (maps(n, r1=centre, c1=centre) @ rotation @ maps(n, r1=ty, c1=tx) @ maps(n, rr=np.cos(shear), cr=-np.sin(shear))
            @ maps(n, rr=zy, cc=zx) @ maps(n, r1=-centre, c1=-centre))


CHOICES = {"crop": ("random", "resized", "centre"), "flip": ("h", "v", "hv", "none"), "fill": FILLS, "pca": ("none", "eigenvalue", "std")}
EXPECTED = {key: f"expected {', '.join(values[:-1])} or {values[-1]}" for key, values in CHOICES.items()} | {
    "mean": "expected colour, image, none, or three numbers R:G:B", "scale": "expected a number, such as 1/255, or three R:G:B",
    "area": "expected LOW:HIGH, parts of the picture's area", "ratio": "expected LOW:HIGH, width to height", "zoom": "expected Z below 1, or LOW:HIGH up to 100",
    "shift": "expected a part of the picture's side from 0 to 1, or HEIGHT:WIDTH", "brightness": "expected a number from 0 to 1",
    "contrast": "expected a number from 0 to 1", "saturation": "expected a number from 0 to 1"}


def parsed(key, value):
    """The value of a key from its text; ValueError if it makes no sense."""
    if key in CHOICES:
        return require(value, value in CHOICES[key])
    if key == "mean" and value in ("colour", "image", "none"):
        return (0.0,) * 3 if value == "none" else value
    numbers = tuple(float(of) / float(by or 1) for of, _, by in (number.partition("/") for number in value.split(":")))
    require(numbers, all(map(math.isfinite, numbers)) and (key != "scale" or all(numbers)) and (key != "zoom" or max(numbers) <= 100))
    if key in ("mean", "scale"):
        return require(numbers * (3 if key == "scale" and len(numbers) == 1 else 1), len(numbers) == 3 or key == "scale" and len(numbers) == 1)
    if key == "zoom" and len(numbers) == 1:
        numbers = 1 - numbers[0], 1 + numbers[0]
    if key in ("area", "ratio", "zoom"):
        return require(numbers, len(numbers) == 2 and 0 < numbers[0] <= numbers[1] and (key != "area" or numbers[1] <= 1))
    if key == "shift":
        return require(numbers * (2 // len(numbers)), len(numbers) <= 2 and all(0 <= number <= 1 for number in numbers))
    return require(numbers[0], len(numbers) == 1 and 0 <= numbers[0] <= (1 if key in ("brightness", "contrast", "saturation") else math.inf)
                   or key == "constant" and len(numbers) == 1)


def require(value, condition):
    if not condition:
        raise ValueError
    return value


def measure(source, side, fit, most=10_000, image=False, bar=silent):
    """Mean colour and principal components of a source's pixels, and its mean image if `image`: ({...}, (side, side, 3) or None).

    Of more than `most` pictures, so many are taken at even distances. Pictures that cannot be read do not count.
    """
    places = np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64)
    count, total, square, pictures = 0, np.zeros(3), np.zeros((3, 3)), np.zeros((side, side, 3)) if image else None
    for place in bar(iterable=places, unit="image", desc="measuring colours"):
        try:
            picture = source.picture(int(place), side, fit)
        except UnreadableImage:
            continue
        pixels = picture.reshape(-1, 3).astype(np.float64)
        count += 1
        total += pixels.sum(axis=0)
        square += pixels.T @ pixels
        if image:
            pictures += picture
    if not count:
        raise UserError(f"no image could be read from {source.root}")
    mean = total / (count * side * side)
    values, vectors = np.linalg.eigh(square / (count * side * side) - np.outer(mean, mean))
    order = np.argsort(-values)
    vectors = vectors[:, order] * np.where(vectors[:, order].sum(axis=0) < 0, -1, 1)      # eigh leaves the sign open
    return ({"mean": mean, "eigenvalues": np.maximum(values[order], 0), "eigenvectors": vectors},
            (pictures / count).astype(np.float32) if image else None)
