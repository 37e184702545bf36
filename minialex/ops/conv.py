"""Convolution: y[n, oh, ow, o] = b[o] + sum over kh, kw, c of x[n, oh*s - top + kh, ow*s - left + kw, c] w[kh, kw, c, o].

im2col lays each window out as a row, so that a group's output is a matrix product of rows and weights; backward
multiplies by the transposed matrices (the weights', transposed once for all images), and col2im gathers the input's gradient
from its columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..device import Array, Device, kernel
from .bias import add_bias, bias_gradient, bias_partials
from .layer import Layer, Shape, Site, as_array, device_of, on_arrays, put, run_alone
from .transpose import launch_transpose
from .window import Extent, Pad, Window, frozen, image, known

STAGED = 1024      # as in kernels/im2col.cu
BLOCK = 32         # as in kernels/add.cu
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


@kernel("add.cu")
def add_parts(rows, parts, to, count, slices, accumulate):
    """to = the sum of the slices of parts, added to `to` if accumulate"""
    total = parts.reshape(-1)[:slices * count].reshape(slices, *to.shape).sum(axis=0)
    to[...] = to + total if accumulate else total


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


@dataclass(repr=False)
class Conv(Layer):
    """`filters` filters of `size`, with bias; relu=True applies ReLU in the bias's pass.

    size, stride: int or (height, width); pad: int, (height, width) or ((top, bottom), (left, right)), zeros.
    std and bias are what the net's publication initialises with (see nets.py).
    """

    filters: int
    size: Extent
    stride: Extent = 1
    pad: Pad = 0
    groups: int = 1
    relu: bool = True
    std: float | None = None
    bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size, self.stride, self.pad = frozen(self.size), frozen(self.stride), frozen(self.pad)
        Window.of(self.size, self.stride, self.pad)      # refuses what is none
        if self.filters < 1:
            raise ValueError(f"filters: expected at least 1, got {self.filters}")
        if self.groups < 1 or self.filters % self.groups:
            raise ValueError(f"groups: {self.filters} filters cannot be cut into {self.groups} groups")

    @property
    def window(self) -> Window:
        return known(self.size, self.stride, self.pad)

    def output(self, shape: Shape) -> Shape:
        height, width, channels = image(self, shape)
        if channels % self.groups:
            raise ValueError(f"groups: {channels} channels cannot be cut into {self.groups} groups")
        return (*self.window.output(height, width), self.filters)

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weight": (*self.window.size, shape[2] // self.groups, self.filters), "bias": (self.filters,)}

    def prepared(self, shape: Shape) -> dict[str, Shape]:
        return {"transposed": (self.filters, self.fan_in(shape))}

    def macs(self, shape: Shape) -> int:
        height, width, filters = self.output(shape)
        return height * width * filters * self.fan_in(shape)

    def fan_in(self, shape: Shape) -> int:
        return self.window.size[0] * self.window.size[1] * shape[2] // self.groups

    def pitch(self, shape: Shape) -> int:
        return -(-self.fan_in(shape) // 8) * 8      # column rows start on a 32-byte sector

    def workspace(self, shape: Shape) -> int:
        height, width, _ = self.output(shape)
        return self.groups * height * width * self.pitch(shape)

    def partials(self, shape: Shape, images: int) -> int:
        height, width, filters = self.output(shape)
        return bias_partials(images * height * width, filters)

    def slices(self, shape: Shape, slices: Callable[[int], int]) -> int:
        """Parts into which the weight gradient's long sum over pixels is cut: its product alone has few tiles."""
        return slices(self.groups * -(-self.fan_in(shape) // 128) * -(-self.filters // self.groups // 128))

    def split(self, shape: Shape, slices: Callable[[int], int]) -> int:
        parts = self.slices(shape, slices)
        return parts * self.fan_in(shape) * self.filters if parts > 1 else 0

    def least(self, shape: Shape, dx: bool) -> int:
        """Floats of `columns` for the smallest piece of work: a line of the output, or an image where col2im gathers from its columns."""
        return self.workspace(shape) if dx else self.workspace(shape) // self.output(shape)[0]

    def tile(self, shape: Shape, tile: int | None, rows: int = MANY) -> int | None:
        """Floats of columns that a product should have: those that stay in cache, and `rows` rows; None: no limit."""
        return tile and max(tile, self.workspace(shape) // self.output(shape)[0], rows * self.groups * self.pitch(shape))

    def pieces(self, device: Device, at: Site, reserved: int = 0, rows: int = MANY) -> list[tuple[slice, slice]]:
        """A pass as [(images, lines of their output), ...] whose columns fit into the workspace, and into the cache where there is one."""
        shape = at.x.shape[1:]
        image, height, room = self.workspace(shape), self.output(shape)[0], at.columns.size - reserved
        if device.tile:
            room = min(room, self.tile(shape, device.tile, rows))
        if room >= image:
            return [(images, slice(0, height)) for images in steps(len(at.x), room // image)]
        count = -(-height // (room * height // image))
        edges = [height * i // count for i in range(count + 1)]
        return [(slice(i, i + 1), slice(*lines)) for i in range(len(at.x)) for lines in zip(edges, edges[1:])]

    def unfold(self, device: Device, at: Site, images: slice, lines: slice) -> Array:
        """im2col of some lines of some images. -> columns (groups, pixels, pitch), of which the first fan_in of each row are used"""
        shape = at.x.shape[1:]
        self.launch_im2col(device, at.x[images], at.columns, lines)
        pixels = (images.stop - images.start) * (lines.stop - lines.start) * self.output(shape)[1]
        return at.columns[:self.groups * pixels * self.pitch(shape)].reshape(self.groups, pixels, self.pitch(shape))

    def launch_im2col(self, device: Device, x: Array, columns: Array, lines: slice | None = None) -> None:
        shape, strip = x.shape[1:], self.strip(x.shape[1:])
        height, width, _ = self.output(shape)
        lines = lines or slice(0, height)
        device.launch(im2col, self.groups * len(x) * (lines.stop - lines.start) * -(-width // strip), x, columns,
                      *self.geometry(shape, lines), strip)

    def strip(self, shape: Shape) -> int:
        """Output pixels that an im2col row lays out together: one, unless a pixel's channels do not fill whole sectors."""
        if shape[2] // self.groups % 8 == 0:
            return 1
        (kernel_height, kernel_width), width = self.window.size, self.output(shape)[1]
        most = (STAGED // (kernel_height * shape[2]) - kernel_width) // self.window.stride[1] + 1
        return -(-width // -(-width // most)) if most > 1 else 1

    def geometry(self, shape: Shape, lines: slice | None = None) -> tuple[int, ...]:
        """What im2col and col2im take; lines of the output from a later one on are those of an image that starts lower."""
        height, *between, pad_top, pad_left = self.window.arguments(*shape[:2])
        if lines:
            height, pad_top = lines.stop - lines.start, pad_top - lines.start * self.window.stride[0]
        return (*shape, height, *between, pad_top, pad_left, self.groups, self.pitch(shape))

    def grouped(self, matrix: Array) -> Array:
        """(..., filters) as (groups, rows, filters/groups), without a copy."""
        return matrix.reshape(-1, self.groups, self.filters // self.groups).transpose(1, 0, 2)

    def forward(self, device: Device, at: Site) -> None:
        weight, fan_in = self.grouped(at.parameters["weight"]), self.fan_in(at.x.shape[1:])
        for images, lines in self.pieces(device, at):
            y = piece(at.y, images, lines)
            device.gemm(self.unfold(device, at, images, lines)[:, :, :fan_in], weight, self.grouped(y))
            add_bias(device, y, at.parameters["bias"], self.relu)

    def prepare(self, device: Device, at: Site) -> None:
        launch_transpose(device, at.parameters["weight"].reshape(-1, self.filters), at.prepared["transposed"])

    def backward(self, device: Device, at: Site) -> None:
        dweight = self.grouped(at.gradients["weight"])
        shape, fan_in, accumulate = at.x.shape[1:], self.fan_in(at.x.shape[1:]), at.accumulate
        bias_gradient(device, at.y, at.dy, at.gradients["bias"], at.columns, self.relu, at.accumulate)
        for images, lines in self.pieces(device, at, self.split(shape, device.slices), rows=0):
            columns, dy, n = self.unfold(device, at, images, lines), piece(at.dy, images, lines), images.stop - images.start
            slices = min(n, self.slices(shape, device.slices))
            sliced = len(dy) // n * (n // slices * slices) if slices > 1 else 0      # pixels, of whole images
            if sliced:
                self.add_slices(device, at, columns[:, :sliced], dy[:sliced], slices, accumulate)
            if sliced < len(dy):
                device.gemm(columns[:, sliced:, :fan_in], self.grouped(dy[sliced:]), dweight, transpose_a=True, accumulate=accumulate or sliced > 0)
            accumulate = True
        if at.dx is None:
            return
        transposed = at.prepared["transposed"].reshape(self.groups, -1, fan_in)
        for images in steps(len(at.x), max(1, min(self.tile(shape, device.tile) or at.columns.size, at.columns.size) // self.workspace(shape))):
            n = images.stop - images.start
            columns = at.columns[:n * self.workspace(shape)].reshape(self.groups, -1, self.pitch(shape))[:, :, :fan_in]
            device.gemm(self.grouped(at.dy[images]), transposed, columns)
            device.launch(col2im, n * shape[0] * shape[1] * self.groups, at.columns, at.dx[images], *self.geometry(shape))

    def add_slices(self, device: Device, at: Site, columns: Array, dy: Array, slices: int, accumulate: bool) -> None:
        """The weight gradient of columns (groups, pixels, pitch) and dy (pixels, filters) as a sum over slices of the pixels."""
        weight, fan_in, own = at.gradients["weight"], self.fan_in(at.x.shape[1:]), self.filters // self.groups
        parts = at.columns[at.columns.size - slices * weight.size:]
        for g in range(self.groups):
            device.gemm(columns[g].reshape(slices, -1, columns.shape[2])[:, :, :fan_in], dy.reshape(slices, -1, self.groups, own)[:, :, g],
                        parts.reshape(slices, fan_in, self.groups, own)[:, :, g], transpose_a=True)
        device.launch(add_parts, -(-weight.size // BLOCK), parts, weight, weight.size, slices, int(accumulate))


def steps(n: int, size: int) -> list[slice]:
    """0 .. n-1 as slices of up to `size`."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def piece(array, images, lines):
    """Some lines of one image, or all lines of some images, of (N, OH, OW, filters) as (pixels, filters), without a copy."""
    return array[images.start, lines].reshape(-1, array.shape[3]) if images.stop - images.start == 1 else array[images].reshape(-1, array.shape[3])


@on_arrays
def conv2d(x: Array, w: Array, b: Array | None = None, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, device: str | Device = "cpu") -> Array:
    """x (N, H, W, C), w (KH, KW, C/groups, O), b (O,) -> y (N, OH, OW, O), float32.

    stride: int or (h, w); pad: int, (h, w) or ((top, bottom), (left, right)), zeros.
    """
    layer, parameters = conv_arguments(x, w, b, stride, pad, groups)
    return run_alone(layer, device, x, parameters=parameters).y


@on_arrays
def conv2d_backward(dy: Array, x: Array, w: Array, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1,
                    device: str | Device = "cpu") -> tuple[Array, Array, Array]:
    """dy (N, OH, OW, O) -> (dx, dw, db): the gradients of conv2d's input, weights and bias."""
    layer, parameters = conv_arguments(x, w, None, stride, pad, groups)
    site = run_alone(layer, device, x, as_array("dy", dy, ("N", "OH", "OW", "O")), parameters)
    return site.dx, site.gradients["weight"], site.gradients["bias"]


def conv_arguments(x, w, b, stride, pad, groups):
    as_array("x", x, ("N", "H", "W", "C"))
    as_array("w", w, ("KH", "KW", "C/groups", "O"))
    layer = Conv(w.shape[3], w.shape[:2], stride, pad, groups, relu=False)
    if x.shape[3] != w.shape[2] * groups:
        raise ValueError(f"w: expected {x.shape[3]} / {groups} input channels, got shape {tuple(w.shape)}")
    if b is None:
        b = np.zeros(w.shape[3], np.float32)
    elif as_array("b", b, ("O",)).shape[0] != w.shape[3]:
        raise ValueError(f"b: expected shape ({w.shape[3]},), got {tuple(b.shape)}")
    return layer, {"weight": w, "bias": b}


@on_arrays
def unfold(x: Array, size: Extent, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, device: str | Device = "cpu") -> Array:
    """im2col: x (N, H, W, C) -> columns (groups, N * OH * OW, KH * KW * C/groups)."""
    layer, device = Conv(groups, size, stride, pad, groups), device_of(device)
    n, *shape = as_array("x", x, ("N", "H", "W", "C")).shape
    layer.output(shape)
    columns = device.zeros((groups, n * layer.workspace(shape) // (layer.pitch(shape) * groups), layer.pitch(shape)))
    if n:
        layer.launch_im2col(device, put(device, x), columns)
    return columns[:, :, :layer.fan_in(shape)]


@on_arrays
def fold(columns: Array, shape: Shape, size: Extent, *, stride: Extent = 1, pad: Pad = 0, groups: int = 1, device: str | Device = "cpu") -> Array:
    """col2im, the transpose of im2col: columns (groups, N * OH * OW, KH * KW * C/groups) -> dx of `shape` (N, H, W, C)."""
    layer, device = Conv(groups, size, stride, pad, groups), device_of(device)
    if not isinstance(shape, tuple) or len(shape) != 4 or not all(isinstance(length, int) for length in shape):
        raise ValueError(f"shape: expected (N, H, W, C), got {shape!r}")
    n, shape = shape[0], tuple(shape[1:])
    expected = groups, n * layer.workspace(shape) // (layer.pitch(shape) * groups), layer.fan_in(shape)
    if as_array("columns", columns, ("groups", "pixels", "taps")).shape != expected:
        raise ValueError(f"columns: expected shape {expected}, got {tuple(columns.shape)}")
    padded, dx = device.zeros((*expected[:2], layer.pitch(shape))), device.empty((n, *shape))
    if n:
        padded[:, :, :expected[2]] = put(device, columns)
        device.launch(col2im, n * shape[0] * shape[1] * groups, padded, dx, *layer.geometry(shape))
    return dx
