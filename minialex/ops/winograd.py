"""Winograd's convolution: T^2 products for each tile of M x M outputs, where im2col takes M^2 R^2. kernels/winograd.cu says why.

forward    y = A^T [(G w G^T) * (B^T x B)] A
backward   dx = A^T [(G w' G^T) * (B^T dy B)] A, with the filters w' turned by half a turn and channels and filters exchanged, and
           dw' = G^T [sum of (A x A^T) * (B^T dy B)] G, which takes the same B^T dy B; where nobody needs dx,
           dw = G^T [sum of (A dy A^T) * (B^T x B)] G, as dy has no fewer channels.
"""

import functools
from typing import Any

import numpy as np

from ..device import Array, Device, kernel
from .bias import bias_gradient
from .im2col import steps
from .layer import Shape, Site
from .transpose import launch_transpose

POINTS = 0, 1, -1, 2, -2, 1 / 2, -1 / 2
STRIP = 32      # as in kernels/winograd.cu
FORMS = {3: (4, 5), 5: (4,)}      # R: M, as with_form in kernels/winograd.cu has them


@functools.lru_cache(maxsize=None)
def matrices(m, r):
    """A (T, M), B^T (T, T) and G (T, R) in float64, from the points as kernels/winograd.cu has them."""
    t = m + r - 1
    infinity = 1 - t % 2
    points = np.array(POINTS[:t - infinity])
    scales = np.array([np.prod(p - points[points != p]) for p in points])

    def evaluate(n):
        return np.vstack([np.vander(points, n, increasing=True), *[np.eye(n)[-1]] * infinity])

    products = [np.polynomial.polynomial.polyfromroots(points[points != p]) for p in points]
    interpolate = np.vstack([*(np.append(product, [0] * infinity) for product in products), *[np.polynomial.polynomial.polyfromroots(points)] * infinity])
    return evaluate(m), interpolate, evaluate(r) / np.append(scales, [1] * infinity)[:, None]


def form(r, height, width):
    """The M whose tiles of an output take the fewest multiplications: tiles of 5 x 5 where they cover 13 pixels by three, 55 by eleven."""
    return min(FORMS[r], key=lambda m: -(-height // m) * -(-width // m) * (m + r - 1) ** 2)


def tiles_of(x, rows, size, step, height, width, channels, down, across, pad_top, pad_left, groups):
    """(groups, N * down * across, channels/groups, size, size): the tiles of images, `step` apart, zeros outside."""
    x = x.reshape(-1, height, width, channels)
    padded = np.pad(x, ((0, 0), (pad_top, max(0, (down - 1) * step + size - pad_top - height)),
                        (pad_left, max(0, (across - 1) * step + size - pad_left - width)), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, :down * step:step, :across * step:step]
    return windows.reshape(-1, groups, channels // groups, size, size).transpose(1, 0, 2, 3, 4)


def planes_of(planes, matrix, pitch, tiles):
    """The planes as written: matrix tiles matrix^T. tiles (groups, ..., n, n) fill the first floats of each plane."""
    values = np.einsum("ai,bj,...ij->ab...", matrix, matrix, tiles)
    values = values.reshape(values.shape[0] * values.shape[1] * len(tiles), -1)
    planes.reshape(-1)[:len(values) * pitch].reshape(-1, pitch)[:, :values.shape[1]] = values


def tiles_from(planes, matrix, pitch, groups, count, own):
    """matrix^T v matrix of the planes, (groups, count, own, n, n)."""
    t = len(matrix)
    values = planes.reshape(-1)[:t * t * groups * pitch].reshape(t, t, groups, pitch)[..., :count * own].reshape(t, t, groups, count, own)
    return np.einsum("ai,bj,ab...->...ij", matrix, matrix, values)


@kernel("winograd.cu")
def winograd_input(rows, x, planes, m, r, height, width, channels, down, across, pad_top, pad_left, groups, pitch):
    """planes[v, g, tile, c] = B^T d B of the tiles d of T x T pixels, M apart, from -pad on"""
    planes_of(planes, matrices(m, r)[1], pitch, tiles_of(x, rows, m + r - 1, m, height, width, channels, down, across, pad_top, pad_left, groups))


@kernel("winograd.cu")
def winograd_spread(rows, x, planes, m, r, height, width, channels, down, across, groups, pitch):
    """planes[v, g, tile, c] = A h A^T of the tiles h of M x M pixels"""
    planes_of(planes, matrices(m, r)[0], pitch, tiles_of(x, rows, m, m, height, width, channels, down, across, 0, 0, groups))


@kernel("winograd.cu")
def winograd_output(rows, planes, y, bias, m, r, height, width, channels, down, across, groups, pitch, add, relu):
    """y = A^T v A of the tiles v of the planes, + bias if add, then max(y, 0) if relu"""
    n, own = rows // (down * across * groups), channels // groups
    tiles = tiles_from(planes, matrices(m, r)[0], pitch, groups, n * down * across, own)
    full = tiles.reshape(groups, n, down, across, own, m, m).transpose(1, 2, 5, 3, 6, 0, 4).reshape(n, down * m, across * m, channels)
    out = full[:, :height, :width] + (bias if add else 0)
    y[...] = (np.where(out < 0, 0, out) if relu else out).reshape(y.shape)


@kernel("winograd.cu")
def winograd_filter(rows, w, planes, m, r, groups, own, group_pitch, row_pitch, tap_pitch, pitch, turned):
    """planes[v, g, c, o] = G w G^T of the filters whose places are w[g * group_pitch + c * row_pitch + tap * tap_pitch + o]"""
    first = rows // strips(own) // groups
    at = (np.arange(groups)[:, None, None, None] * group_pitch + np.arange(first)[:, None, None] * row_pitch + np.arange(own)[:, None]
          + np.arange(r * r)[::-1 if turned else 1] * tap_pitch)
    planes_of(planes, matrices(m, r)[2], pitch, w.reshape(-1)[at].reshape(*at.shape[:3], r, r))


@kernel("winograd.cu")
def winograd_filter_gradient(rows, planes, dw, m, r, groups, filters, pitch, turned, accumulate):
    """dw = G^T v G of the planes[v, g, c, o], turned by half a turn if turned, added to dw if accumulate"""
    own = filters // groups
    first = rows // strips(own) // groups
    tiles = tiles_from(planes, matrices(m, r)[2], pitch, groups, first, own)
    out = (tiles[..., ::-1, ::-1] if turned else tiles).transpose(3, 4, 1, 0, 2).reshape(dw.shape)
    dw[...] = dw + out if accumulate else out


@kernel("winograd.cu")
def winograd_blocks(rows, x, blocks, step, height, width, channels, down, across, pad_top, pad_left):
    """blocks[n, h, w, i, j, c] = x[n, h step + i - pad_top, w step + j - pad_left, c], 0 outside"""
    tiles = tiles_of(x, rows, step, step, height, width, channels, down, across, pad_top, pad_left, 1)[0]
    blocks.reshape(-1)[:tiles.size] = tiles.transpose(0, 2, 3, 1).reshape(-1)


@kernel("winograd.cu")
def winograd_pixels(rows, blocks, x, step, height, width, channels, down, across, pad_top, pad_left, accumulate):
    """x from its blocks, 0 where there is none, added to x if accumulate"""
    n = rows // (height * width)
    whole = blocks.reshape(-1)[:n * down * across * step * step * channels].reshape(n, down, across, step, step, channels).transpose(0, 1, 3, 2, 4, 5)
    whole = whole.reshape(n, down * step, across * step, channels)[:, pad_top:pad_top + height, pad_left:pad_left + width]
    out = np.pad(whole, ((0, 0), (0, height - whole.shape[1]), (0, width - whole.shape[2]), (0, 0))).reshape(x.shape)
    x[...] = x + out if accumulate else out


class Winograd:
    """A convolution, a Conv, of inputs of one shape. Planes of values lie `pitch_of` floats apart, those of a place in the tile group by group.

    One of a larger stride is computed over blocks of pixels, `shape` and `pad` being those of the blocks, which are made of x in pieces.
    """

    def __init__(self, conv: Any, shape: Shape) -> None:
        self.conv, self.pixels, self.out, self.groups = conv, shape, conv.output(shape), conv.groups
        self.step, self.r = conv.window.stride[0], -(-conv.window.size[0] // conv.window.stride[0])
        (pad_top, _), (pad_left, _) = conv.window.pad
        if self.step == 1:
            self.shape, self.pad, self.blocks = shape, (pad_top, pad_left), 0
        else:
            self.shape = self.out[0] + self.r - 1, self.out[1] + self.r - 1, self.step ** 2 * shape[2]
            self.pad, self.blocks = (0, 0), int(np.prod(self.shape))      # floats of an image's blocks
            self.geometry = self.step, *shape, *self.shape[:2], pad_top, pad_left
        self.m = form(self.r, *self.out[:2])
        self.values = (self.m + self.r - 1) ** 2 * self.groups
        self.channels, self.filters = self.shape[2] // self.groups, conv.filters // self.groups
        self.forward_tiles, self.backward_tiles = ((-(-height // self.m), -(-width // self.m)) for height, width, _ in (self.out, self.shape))
        self.weights = self.values * pitch_of(self.channels * self.filters)      # floats of the filters' planes
        self.padded = self.r ** 2 * self.channels * conv.filters if self.blocks else 0      # of the weights as blocks have them

    @staticmethod
    def fits(conv: Any) -> bool:
        """Whether there is a form for this convolution."""
        (height, width), (step, other) = conv.window.size, conv.window.stride
        if height != width or step != other or -(-height // step) not in FORMS:
            return False
        return max(max(pad) for pad in conv.window.pad) < height if step == 1 else conv.groups == 1

    def image(self, tiles: tuple[int, int]) -> int:
        """Floats of the planes of an image's tiles, of inputs and outputs, and of its blocks."""
        return self.values * (tiles[0] * tiles[1] * (self.channels + self.filters) + 2 * 32) + self.blocks

    def columns(self, device: Device, images: int, backward: bool, dx: bool) -> tuple[int, int]:
        """Floats of workspace, the least and the best."""
        image = self.image(self.backward_tiles if backward and dx else self.forward_tiles)
        parts = self.weights + self.padded if backward else 0
        # On a GPU as many as fill it twice with products, or with tiles of which a multiprocessor holds 16, as a product's tile of 128 x 128.
        images = min(images, device.images_at_once(int(np.prod(self.forward_tiles)) * min(self.values * self.filters, self.groups * 128 * 128 // 16)))
        return image + parts, image * images + parts

    def prepared(self, backward: bool) -> dict[str, Shape]:
        blocks = {"blocks": (self.r, self.r, self.channels, self.conv.filters)} if self.blocks else {}
        if not backward:
            return blocks | {"filters": (self.weights,)}
        return blocks | {"transposed": (self.conv.filters, self.r ** 2 * self.channels), "turned": (self.weights,)}

    def prepare(self, device: Device, at: Site, backward: bool) -> None:
        weight, filters, taps, pitch = at.parameters["weight"], self.conv.filters, self.r * self.r, pitch_of(self.channels * self.filters)
        if self.blocks:
            device.launch(winograd_blocks, taps, weight, at.prepared["blocks"], *self.weight_geometry)
            weight = at.prepared["blocks"]
        if not backward:
            device.launch(winograd_filter, self.groups * self.channels * strips(self.filters), weight, at.prepared["filters"], self.m, self.r,
                          self.groups, self.filters, self.filters, filters, self.channels * filters, pitch, 0)
        else:      # of the transposed weights, whose lanes are the channels
            launch_transpose(device, weight.reshape(-1, filters), at.prepared["transposed"])
            device.launch(winograd_filter, self.groups * self.filters * strips(self.channels), at.prepared["transposed"], at.prepared["turned"], self.m,
                          self.r, self.groups, self.channels, self.filters * taps * self.channels, taps * self.channels, self.channels, pitch, 1)

    @property
    def weight_geometry(self) -> tuple[int, ...]:
        """The weights as an image of taps, whose blocks are those of the window."""
        return self.step, *self.conv.window.size, self.pixels[2] * self.conv.filters, self.r, self.r, 0, 0

    def forward(self, device: Device, at: Site) -> None:
        filters = self.planes(at.prepared["filters"], self.channels, self.filters)
        for images in steps(len(at.x), max(1, at.columns.size // self.image(self.forward_tiles))):
            count = len(at.x[images]) * self.forward_tiles[0] * self.forward_tiles[1]
            x, room = self.input(device, at.x[images], at.columns)
            room, rest = self.cut(room, count * self.channels)
            device.launch(winograd_input, count * self.groups, x, room, self.m, self.r, *self.shape, *self.forward_tiles, *self.pad, self.groups,
                          pitch_of(count * self.channels))
            device.gemm(self.planes(room, count, self.channels), filters, self.planes(rest, count, self.filters))
            self.output(device, rest, count, at.y[images], at.parameters["bias"], self.forward_tiles, not at.pooled)

    def backward(self, device: Device, at: Site) -> None:
        if not at.pooled:
            bias_gradient(device, at.y, at.dy, at.gradients.get("bias"), at.columns, self.conv.relu, at.accumulate)
        dplanes, dblocks, all_room = (at.columns[first:last] for first, last in ((0, self.weights), (self.weights, self.weights + self.padded),
                                                                                 (self.weights + self.padded, at.columns.size)))
        needed = at.dx is not None
        tiles = self.backward_tiles if needed else self.forward_tiles
        for images in steps(len(at.x), max(1, all_room.size // self.image(tiles))):
            count = len(at.x[images]) * tiles[0] * tiles[1]
            x, room = self.input(device, at.x[images], all_room)
            slopes, rest = self.cut(room, count * self.filters)
            of_x = (self.m, self.r, *self.shape, *tiles), (self.groups, pitch_of(count * self.channels))
            of_dy = (self.m, self.r, *self.out, *tiles), (self.groups, pitch_of(count * self.filters))
            if needed:
                pads = self.r - 1 - self.pad[0], self.r - 1 - self.pad[1]
                device.launch(winograd_input, count * self.groups, at.dy[images], slopes, *of_dy[0], *pads, *of_dy[1])
                if at.gradients:
                    device.launch(winograd_spread, count * self.groups, x, rest, *of_x[0], *of_x[1])
            else:
                device.launch(winograd_spread, count * self.groups, at.dy[images], slopes, *of_dy[0], *of_dy[1])
                device.launch(winograd_input, count * self.groups, x, rest, *of_x[0], *self.pad, *of_x[1])
            dy, inputs = self.planes(slopes, count, self.filters), self.planes(rest, count, self.channels)
            if at.gradients:
                device.gemm(inputs, dy, self.planes(dplanes, self.channels, self.filters), transpose_a=True, accumulate=images.start > 0)
            if needed:
                device.gemm(dy, self.planes(at.prepared["turned"], self.filters, self.channels), inputs)
                dx = x if self.blocks else at.dx[images]      # of x the products have what they need
                self.output(device, rest, count, dx.reshape(-1, *self.shape), at.parameters["bias"], tiles, False)
                if self.blocks:
                    device.launch(winograd_pixels, len(at.x[images]) * self.pixels[0] * self.pixels[1], dx, at.dx[images], *self.geometry, 0)
        if not at.gradients:
            return
        dweight = dblocks if self.blocks else at.gradients["weight"]
        device.launch(winograd_filter_gradient, self.groups * self.channels * strips(self.filters), dplanes, dweight, self.m, self.r, self.groups,
                      self.conv.filters, pitch_of(self.channels * self.filters), int(needed), int(at.accumulate and not self.blocks))
        if self.blocks:
            device.launch(winograd_pixels, self.conv.window.size[0] * self.conv.window.size[1], dblocks, at.gradients["weight"], *self.weight_geometry,
                          int(at.accumulate))

    def input(self, device: Device, x: Array, room: Array) -> tuple[Array, Array]:
        """The images that tiles are cut from, and the rest of the room: x, or its blocks, which are launched."""
        if not self.blocks:
            return x, room
        blocks = room[:len(x) * self.blocks]
        device.launch(winograd_blocks, len(x) * self.shape[0] * self.shape[1], x, blocks, *self.geometry)
        return blocks, room[len(blocks):]

    def output(self, device: Device, planes: Array, count: int, y: Array, bias: Array, tiles: tuple[int, int], biased: bool) -> None:
        """Launches y, (N, height, width, channels), from its values at the points; biased: with bias and ReLU."""
        device.launch(winograd_output, count * self.groups, planes, y, bias, self.m, self.r, *y.shape[1:], *tiles, self.groups,
                      pitch_of(count * y.shape[3] // self.groups), int(biased), int(biased and self.conv.relu))

    def cut(self, room: Array, floats: int) -> tuple[Array, Array]:
        """The part of `room` for planes of so many floats, and the rest."""
        return room[:self.values * pitch_of(floats)], room[self.values * pitch_of(floats):]

    def planes(self, room: Array, rows: int, lanes: int) -> Array:
        """The first floats of `room` as matrices (values, rows, lanes)."""
        pitch = pitch_of(rows * lanes)
        return room[:self.values * pitch].reshape(self.values, pitch)[:, :rows * lanes].reshape(self.values, rows, lanes)


def strips(lanes: int) -> int:
    """Rows of the kernels of filters that so many of their lanes take."""
    return -(-lanes // STRIP)


def pitch_of(floats: int) -> int:
    """Floats from plane to plane: an odd number of cache lines, so that the values of a tile do not meet in one set of the cache."""
    return (-(-floats // 16) | 1) * 16
