"""The window that slides over an image, for convolution and pooling."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .layer import Layer, Shape, frozen

Extent = int | Sequence[int]                                # one number, or (height, width)
Pad = int | Sequence[int] | Sequence[Sequence[int]]         # and ((top, bottom), (left, right))

LARGEST = 1 << 28      # kernels reckon with sums of a size, pads and strides in 32 bits


class OutOfPixels(ValueError):
    """A window does not fit into an image."""


def image(layer: Layer, shape: Shape) -> Shape:
    """An input's shape as (height, width, channels); a ValueError where it is another."""
    if len(shape) != 3:
        raise ValueError(f"a {type(layer).__name__} takes images, (height, width, channels): put it before the dense layers")
    return shape


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """(height, width) from an int or a pair of ints."""
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, (tuple, list)) or len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{name}: expected an int or (height, width), got {value!r}")
    if min(values) < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    if max(values) > LARGEST:
        raise ValueError(f"{name}: expected at most {LARGEST}, got {value!r}")
    return values[0], values[1]


@dataclass(frozen=True)
class Window:
    """`size` and `stride` are (height, width), `pad` is ((top, bottom), (left, right)); `ceil` rounds the output size up,
    with the last window still starting inside the image or its top/left padding (Caffe, torch)."""

    size: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[tuple[int, int], tuple[int, int]]
    ceil: bool = False

    @staticmethod
    def of(size: Extent, stride: Extent, pad: Pad, ceil: bool = False) -> "Window":
        """From the loose forms users write: 3, (3, 5), pad 1, (1, 2) for height and width, ((1, 2), (1, 2))."""
        if isinstance(pad, int):
            pad = (pad, pad)
        if not isinstance(pad, (tuple, list)) or len(pad) != 2:
            raise ValueError(f"pad: expected an int, (height, width) or ((top, bottom), (left, right)), got {pad!r}")
        rows, columns = (pair("pad", side, 0) for side in pad)
        return Window(pair("size", size, 1), pair("stride", stride, 1), (rows, columns), ceil)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """(out_height, out_width); OutOfPixels where the window does not fit."""
        out = []
        for name, length, size, stride, (before, after) in zip(("height", "width"), (height, width), self.size, self.stride, self.pad):
            room = length + before + after - size
            if room < 0:
                raise OutOfPixels(f"a window of {name} {size} does not fit into {length} pixels with padding {before}+{after}")
            count = -(-room // stride) + 1 if self.ceil else room // stride + 1
            if self.ceil and (count - 1) * stride >= length + before:
                count -= 1
            out.append(count)
        return out[0], out[1]

    def arguments(self, height: int, width: int) -> tuple[int, ...]:
        """The two sizes, strides and pads as kernels take them, after the output's size."""
        return (*self.output(height, width), *self.size, *self.stride, self.pad[0][0], self.pad[1][0])


known = functools.lru_cache(maxsize=None)(Window.of)      # for a recording, which asks for the same ones thousands of times
