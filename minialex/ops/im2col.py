"""Convolution by im2col: each window is laid out as a row, so that a group's output is a matrix product of rows and weights.

Backward multiplies by the transposed matrices (the weights', transposed once for all images), and col2im gathers the input's gradient
from its columns. Where there is memory for it the forward pass keeps its columns, for the weights' gradient; then those of the input's take their place.
"""

from typing import Any

import numpy as np

from ..device import Array, Device, kernel
from .add import BLOCK, add_parts
from .bias import add_bias, bias_gradient
from .layer import Shape, Site
from .transpose import launch_transpose

STAGED = 1024      # as in kernels/im2col.cu
LEAST = 32         # pixels of a slice of the weight gradient's sum: shorter ones spend their time reading and writing their parts
MANY = 338         # rows of columns; a product of fewer spends its time packing the weights


def taps(x_height, x_width, out_height, out_width, kernel_height, kernel_width, stride_h, stride_w, pad_top, pad_left):
    """(kh, kw, output slices, input slices) of each place in the window, for the outputs whose input is inside."""
    for kh in range(kernel_height):
        for kw in range(kernel_width):
            pick = []
            for k, stride, pad, length, out in ((kh, stride_h, pad_top, x_height, out_height), (kw, stride_w, pad_left, x_width, out_width)):
                first = max(0, -(-(pad - k) // stride))
                last = min(out - 1, (length - 1 + pad - k) // stride)
                start = first * stride - pad + k
                pick.append((slice(first, max(last + 1, first)), slice(start, start + max(last - first + 1, 0) * stride, stride)))
            yield kh, kw, (pick[0][0], pick[1][0]), (pick[0][1], pick[1][1])


@kernel("im2col.cu")
def im2col(rows, x, columns, height, width, channels, out_height, out_width, kernel_height, kernel_width, stride_h,
           stride_w, pad_top, pad_left, groups, pitch, strip):
    """columns[g, (n, oh, ow), (kh, kw, c)] = x[n, oh*stride_h - pad_top + kh, ow*stride_w - pad_left + kw, g*C/groups + c]"""
    n, own = rows // (groups * out_height * -(-out_width // strip)), channels // groups
    rows = groups * n * out_height * out_width
    images = x.reshape(n, height, width, groups, own)
    out = np.zeros((groups, n, out_height, out_width, kernel_height, kernel_width, own), x.dtype)
    for kh, kw, (oh, ow), (h, w) in taps(height, width, out_height, out_width, kernel_height, kernel_width, stride_h, stride_w, pad_top, pad_left):
        out[:, :, oh, ow, kh, kw] = images[:, h, w].transpose(3, 0, 1, 2, 4)
    columns.reshape(-1)[:rows * pitch].reshape(rows, pitch)[:, :kernel_height * kernel_width * own] = out.reshape(rows, -1)


@kernel("im2col.cu")
def col2im(rows, columns, dx, height, width, channels, out_height, out_width, kernel_height, kernel_width, stride_h,
           stride_w, pad_top, pad_left, groups, pitch):
    """dx[n, h, w, c] = sum of the column entries that im2col copies from x[n, h, w, c]"""
    n, own = rows // (groups * height * width), channels // groups
    used = columns.reshape(-1)[:groups * n * out_height * out_width * pitch].reshape(-1, pitch)[:, :kernel_height * kernel_width * own]
    used = used.reshape(groups, n, out_height, out_width, kernel_height, kernel_width, own)
    out = np.zeros((n, height, width, groups, own), dx.dtype)
    for kh, kw, (oh, ow), (h, w) in taps(height, width, out_height, out_width, kernel_height, kernel_width, stride_h, stride_w, pad_top, pad_left):
        out[:, h, w] += used[:, :, oh, ow, kh, kw].transpose(1, 2, 3, 0, 4)
    dx[...] = out.reshape(dx.shape)


class Im2col:
    """A convolution, a Conv, of inputs of one shape."""

    def __init__(self, conv: Any, shape: Shape) -> None:
        self.conv, self.shape, self.out, self.groups = conv, shape, conv.output(shape), conv.groups
        self.fan_in = conv.fan_in(shape)
        self.pitch = -(-self.fan_in // 8) * 8      # column rows start on a 32-byte sector
        self.line = self.groups * self.out[1] * self.pitch      # floats of the columns of a line of the output,
        self.image = self.out[0] * self.line                    # and of an image

    def columns(self, device: Device, images: int, backward: bool, dx: bool) -> tuple[int, int]:
        """Floats of workspace, the least (a line of the output, or an image where col2im gathers from its columns) and the best."""
        parts = self.slices(device) * self.fan_in * self.conv.filters if backward and self.slices(device) > 1 else 0
        least = self.image if backward and dx else self.line
        best = self.image * min(images, device.images_at_once(int(np.prod(self.out))))
        if device.tile:
            best = max(least, min(best, self.tile(device)))
        return least + parts, best + parts

    def slices(self, device: Device) -> int:
        """Parts into which the weight gradient's long sum over pixels is cut: its product alone has few tiles."""
        return device.slices(self.groups * -(-self.fan_in // 128) * -(-self.conv.filters // self.groups // 128))

    def tile(self, device: Device, rows: int = MANY) -> int:
        """Floats of columns that a product should have: those that stay in cache, and `rows` rows."""
        return max(device.tile or 1 << 62, self.line, rows * self.groups * self.pitch)

    def prepared(self, backward: bool) -> dict[str, Shape]:
        return {"transposed": (self.conv.filters, self.fan_in)} if backward else {}

    def prepare(self, device: Device, at: Site, backward: bool) -> None:
        if backward:
            launch_transpose(device, at.parameters["weight"].reshape(-1, self.conv.filters), at.prepared["transposed"])

    def forward(self, device: Device, at: Site) -> None:
        weight = self.grouped(at.parameters["weight"])
        for images, lines in self.pieces(device, at, at.columns.size):
            y = piece(at.y, images, lines)
            device.gemm(self.unfold(device, at, images, lines)[:, :, :self.fan_in], weight, self.grouped(y))
            if not at.pooled:
                add_bias(device, y, at.parameters["bias"], self.conv.relu)

    def backward(self, device: Device, at: Site) -> None:
        if not at.pooled:
            bias_gradient(device, at.y, at.dy, at.gradients.get("bias"), at.columns, self.conv.relu, at.accumulate)
        if at.gradients:
            self.weight_gradient(device, at)
        if at.dx is not None:
            self.input_gradient(device, at)

    def weight_gradient(self, device: Device, at: Site) -> None:
        dweight, accumulate, wanted = self.grouped(at.gradients["weight"]), at.accumulate, self.slices(device)
        room = at.columns.size - (wanted * at.gradients["weight"].size if wanted > 1 else 0)
        for images, lines in self.pieces(device, at, room, rows=0):
            dy = piece(at.dy, images, lines)
            columns = self.shaped(self.room(at), len(dy)) if "columns" in at.kept else self.unfold(device, at, images, lines)
            slices, sliced = cut_evenly(len(dy), wanted)
            if slices > 1:
                self.add_slices(device, at, columns[:, :sliced], dy[:sliced], slices, accumulate)
            else:
                sliced = 0
            if sliced < len(dy):
                device.gemm(columns[:, sliced:, :self.fan_in], self.grouped(dy[sliced:]), dweight, transpose_a=True, accumulate=accumulate or sliced > 0)
            accumulate = True

    def input_gradient(self, device: Device, at: Site) -> None:
        transposed, room = at.prepared["transposed"].reshape(self.groups, -1, self.fan_in), self.room(at)
        for images in steps(len(at.x), max(1, min(self.tile(device), room.size) // self.image)):
            n = images.stop - images.start
            device.gemm(self.grouped(at.dy[images]), transposed, self.shaped(room, n * self.out[0] * self.out[1])[:, :, :self.fan_in])
            device.launch(col2im, n * self.shape[0] * self.shape[1] * self.groups, room, at.dx[images], *self.geometry())

    def add_slices(self, device: Device, at: Site, columns: Array, dy: Array, slices: int, accumulate: bool) -> None:
        """The weight gradient of columns (groups, pixels, pitch) and dy (pixels, filters) as a sum over slices of the pixels."""
        weight, own = at.gradients["weight"], self.conv.filters // self.groups
        parts = at.columns[at.columns.size - slices * weight.size:]
        for g in range(self.groups):
            device.gemm(columns[g].reshape(slices, -1, columns.shape[2])[:, :, :self.fan_in], dy.reshape(slices, -1, self.groups, own)[:, :, g],
                        parts.reshape(slices, self.fan_in, self.groups, own)[:, :, g], transpose_a=True)
        device.launch(add_parts, -(-weight.size // BLOCK), parts, weight, weight.size, slices, int(accumulate))

    def pieces(self, device: Device, at: Site, room: int, rows: int = MANY) -> list[tuple[slice, slice]]:
        """A pass as [(images, lines of their output), ...] whose columns fit into `room` floats, and into the cache where there is one."""
        height, room = self.out[0], at.kept["columns"].size if "columns" in at.kept else min(room, self.tile(device, rows))
        if room >= self.image:
            return [(images, slice(0, height)) for images in steps(len(at.x), room // self.image)]
        count = -(-height // (room * height // self.image))
        edges = [height * i // count for i in range(count + 1)]
        return [(slice(i, i + 1), slice(*lines)) for i in range(len(at.x)) for lines in zip(edges, edges[1:])]

    def unfold(self, device: Device, at: Site, images: slice, lines: slice) -> Array:
        """im2col of some lines of some images. -> columns (groups, pixels, pitch), of which the first fan_in of each row are used"""
        room = self.room(at)
        self.launch(device, at.x[images], room, lines)
        return self.shaped(room, (images.stop - images.start) * (lines.stop - lines.start) * self.out[1])

    def room(self, at: Site) -> Array:
        """The floats for columns: those of all images where they are kept."""
        return at.kept["columns"].reshape(-1) if "columns" in at.kept else at.columns

    def shaped(self, room: Array, pixels: int) -> Array:
        return room[:self.groups * pixels * self.pitch].reshape(self.groups, pixels, self.pitch)

    def launch(self, device: Device, x: Array, columns: Array, lines: slice | None = None) -> None:
        """Launches im2col of x, all of its images."""
        lines = lines or slice(0, self.out[0])
        device.launch(im2col, self.groups * len(x) * (lines.stop - lines.start) * -(-self.out[1] // self.strip), x, columns, *self.geometry(lines), self.strip)

    @property
    def strip(self) -> int:
        """Output pixels that an im2col row lays out together: one, unless a pixel's channels do not fill whole sectors."""
        if self.shape[2] // self.groups % 8 == 0:
            return 1
        (kernel_height, kernel_width), width = self.conv.window.size, self.out[1]
        most = (STAGED // (kernel_height * self.shape[2]) - kernel_width) // self.conv.window.stride[1] + 1
        return -(-width // -(-width // most)) if most > 1 else 1

    def geometry(self, lines: slice | None = None) -> tuple[int, ...]:
        """What im2col and col2im take; lines of the output from a later one on are those of an image that starts lower."""
        height, *between, pad_top, pad_left = self.conv.window.arguments(*self.shape[:2])
        if lines:
            height, pad_top = lines.stop - lines.start, pad_top - lines.start * self.conv.window.stride[0]
        return (*self.shape, height, *between, pad_top, pad_left, self.groups, self.pitch)

    def grouped(self, matrix: Array) -> Array:
        """(..., filters) as (groups, rows, filters/groups), without a copy."""
        return matrix.reshape(-1, self.groups, self.conv.filters // self.groups).transpose(1, 0, 2)


def cut_evenly(pixels: int, wanted: int) -> tuple[int, int]:
    """Slices of a sum over pixels, of at least LEAST and about as many as wanted: so many that as few as possible are left over. -> (slices, pixels in them)"""
    most = max(1, min(wanted, pixels // LEAST))
    slices = min(range(most, most - most // 4 - 1, -1), key=lambda count: pixels % count)
    return slices, pixels - pixels % slices


def steps(n: int, size: int) -> list[slice]:
    """0 .. n-1 as slices of up to `size`."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def piece(array: Array, images: slice, lines: slice) -> Array:
    """Some lines of one image, or all lines of some images, of (N, OH, OW, filters) as (pixels, filters), without a copy."""
    return array[images.start, lines].reshape(-1, array.shape[3]) if images.stop - images.start == 1 else array[images].reshape(-1, array.shape[3])
