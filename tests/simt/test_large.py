"""Tensors of more than 2^31 elements: the last rows of each kernel give what they give on a small tensor.

The arrays are mapped without memory behind them; only the pages of the last image are ever touched.
"""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simt.device import SIMT, why_not

from minialex.ops import augment, bias, dropout, relu, softmax
from minialex.ops.add import BLOCK as PARTS_BLOCK
from minialex.ops.add import add_parts
from minialex.ops.conv import Conv
from minialex.ops.im2col import Im2col, col2im, im2col
from minialex.ops.lrn import lrn, lrn_backward
from minialex.ops.pool import MaxPool, max_pool, max_pool_backward
from minialex.ops.winograd import (strips, winograd_blocks, winograd_filter, winograd_filter_gradient, winograd_input, winograd_output, winograd_pixels,
                                   winograd_spread)
from minialex.optim import BLOCK, SLICE, adam, average, scale_gradient, sgd, squares

MANY = 2**31
pytestmark = [pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}")]


def sparse(shape, dtype):
    """Zeros without memory behind them."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)      # MAP_NORESERVE
    except OSError as error:
        pytest.skip(f"the system maps no {size >> 30} GB without memory behind them ({error})")
    return np.frombuffer(memory, dtype).reshape(shape)


def drawn(shape, dtype=np.float32):
    values = np.random.default_rng(sum(shape)).standard_normal(shape)
    return np.abs(values * 3).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


# Each case: images, and for n images (kernel, rows, arguments), where an array's axis of images is the one of size n.
def pool(kernel):
    layer, shape = MaxPool(3, 2), (55, 55, 96)
    out = layer.output(shape)

    def launch(n, array):
        x, y, winner = array(n, *shape), array(n, *out), array(n, *out, dtype=np.uint8)
        rest = (*shape, *layer.window.arguments(55, 55))
        return (max_pool, n * out[0] * out[1], (x, y, winner, np.full(96, 0.5, np.float32), *rest, 1, 1)) if kernel is max_pool else (max_pool_backward, n * 55 * 55, (y, winner, x, *rest))
    return 2 * MANY // (out[0] * out[1] * 96) if kernel is max_pool_backward else MANY // (55 * 55 * 96) + 2, launch


def conv(kernel, groups, channels, size, window, pad):
    layer, shape = Conv(groups, window, 1 if pad else 4, pad, groups), (size, size, channels)
    way = Im2col(layer, shape)
    (height, width, _), pitch, strip = way.out, way.pitch, way.strip

    def launch(n, array):
        x, columns = array(n, *shape), array(groups, n, height, width, pitch)
        if kernel is im2col:
            return im2col, groups * n * height * -(-width // strip), (x, columns, *way.geometry(), strip)
        return col2im, n * size * size * groups, (columns, x, *way.geometry())
    return MANY // (height * width * pitch * groups) + 2, launch


def tiles(kernel):
    """F(4x4, 3x3) of 13 x 13 pixels, 2 groups of 64 channels: 4 x 4 tiles an image."""
    def launch(n, array):
        x, planes, form = array(n, 13, 13, 128), array(72, n, 16, 64), (4, 3, 13, 13, 128, 4, 4)
        if kernel is winograd_output:
            return kernel, n * 32, (planes, x, drawn((128,)), *form, 2, n * 1024, 1, 1)
        return kernel, n * 32, (x, planes, *form, *(1, 1) * (kernel is winograd_input), 2, n * 1024)
    return MANY // (6 * 2 * 1024) + 2, launch      # where a step down a column of planes is that many


def filters(kernel):
    """Of 3 x 3 and 64 filters, with as many channels as it takes."""
    def launch(n, array):
        w, planes, rows = array(9, n, 64), array(36, n, 64), n * strips(64)
        if kernel is winograd_filter:
            return kernel, rows, (w, planes, 4, 3, 1, 64, 0, 64, n * 64, n * 64, 1)
        return kernel, rows, (planes, w, 4, 3, 1, 64, n * 64, 1, 1)
    return MANY // (6 * 64) + 2, launch


def blocks(kernel):
    """14 x 14 of 4 x 4 pixels, from (0, -1) on."""
    def launch(n, array):
        x, made, geometry = array(n, 55, 55, 96), array(n, 14, 14, 16 * 96), (4, 55, 55, 96, 14, 14, 0, 1)
        return (kernel, n * 14 * 14, (x, made, *geometry)) if kernel is winograd_blocks else (kernel, n * 55 * 55, (made, x, *geometry, 1))
    return MANY // (55 * 55 * 96) + 2, launch


def flat(kernel, *rest, arrays, block):
    """n blocks in a row."""
    def launch(n, array):
        return kernel, n, (*(array(n, block) for _ in range(arrays)), n * block, *rest)
    return MANY // block + 3, launch


def cross_entropy_case(n, array):
    return softmax.cross_entropy_rows, n, (array(n, 1000), array(n, dtype=np.int32), np.ones(1000, np.float32), array(n), array(n), np.zeros((3, n)),
                                           array(n, 1000), 1000, n, 1, 1.0, 0.1)


def rows_of(kernel, *rest, width, arrays):
    def launch(n, array):
        return kernel, n, (*(array(n, *([width] if wide else []), dtype=np.int32 if wide is None else np.float32) for wide in arrays), *rest)
    return MANY // width + 3, launch


NOW = np.array([3.0, 0.01])
CASES = {
    "max_pool": pool(max_pool), "max_pool_backward": pool(max_pool_backward),
    "im2col of 3 channels": conv(im2col, 1, 3, 227, 11, 0), "im2col of groups": conv(im2col, 2, 96, 27, 5, 2),
    "col2im": conv(col2im, 1, 3, 227, 11, 0), "col2im of groups": conv(col2im, 2, 96, 27, 5, 2),
    **{kernel.name: tiles(kernel) for kernel in (winograd_input, winograd_spread, winograd_output)},
    **{kernel.name: blocks(kernel) for kernel in (winograd_blocks, winograd_pixels)},
    **{kernel.name: filters(kernel) for kernel in (winograd_filter, winograd_filter_gradient)},
    "relu_in_place": flat(relu.relu_in_place, arrays=1, block=relu.BLOCK),
    "relu_backward_in_place": flat(relu.relu_backward_in_place, arrays=2, block=relu.BLOCK),
    "average": flat(average, NOW, 0.9, arrays=2, block=BLOCK),
    "adam": flat(adam, NOW, 0.1, 0.001, 1e-7, arrays=4, block=BLOCK),
    "scale_gradient": (MANY // BLOCK + 3, lambda n, array: (scale_gradient, n, (array(n, BLOCK), np.array([2, 0.5], np.float32), n * BLOCK))),
    "squares": (MANY // SLICE + 3, lambda n, array: (squares, n, (array(n, SLICE), array(n), n * SLICE))),
    "sgd": flat(sgd, NOW, 1.0, 0.9, 5e-4, 1, arrays=3, block=BLOCK),
    "lrn": rows_of(lrn, 96, 5, 0.8, 0.75, 2.0, width=96, arrays=(True, True)),
    "lrn_backward": rows_of(lrn_backward, 96, 5, 0.8, 0.75, 2.0, width=96, arrays=(True, True, True)),
    "softmax_rows": rows_of(softmax.softmax_rows, 1000, width=1000, arrays=(True, True)),
    "cross_entropy_rows": (MANY // 1000 + 3, cross_entropy_case),
    "augment": (MANY // (256 * 256 * 3) + 2, lambda n, array: (augment.augment, n * 227, (
        array(n, 256, 256, 3, dtype=np.uint8), array(n, 18), np.zeros(1, np.float32), array(n, 227, 227, 3), 256, 227, 0, 0.0, 0))),
}


def last(array, n):
    """What belongs to the last image of n."""
    return array[(slice(None),) * array.shape.index(n) + (slice(-1, None),)] if n in array.shape else array


@pytest.mark.parametrize("name", CASES)
def test_the_last_image_of_a_large_tensor_is_as_that_of_a_small_one(name):
    images, launch = CASES[name]
    device, few = SIMT(), 4      # no side of any array but that of its images
    small = launch(few, lambda *shape, dtype=np.float32: drawn(shape, dtype))
    large = launch(images, lambda *shape, dtype=np.float32: sparse(shape, dtype))
    assert max(a.size for a in large[2] if isinstance(a, np.ndarray)) > MANY
    for little, big in zip(small[2], large[2]):
        if isinstance(little, np.ndarray) and images in big.shape:
            last(big, images)[...] = last(little, few)
    groups = small[2][-3] if name.startswith("im2col") else 1      # its rows go group by group: only the last one's last image
    for kernel, rows, arguments in (small, large):
        n = few if arguments is small[2] else images
        device.only = slice(rows - rows // n // groups, rows)
        device.launch(kernel, rows, *arguments)
    for declared, little, big in zip(small[0].arguments[1:], small[2], large[2]):
        if declared.written:
            little, big = last(little, few), last(big, images)
            np.testing.assert_array_equal(big[-1], little[-1], err_msg=declared.name)


def test_dropout_continues_its_stream_beyond_two_to_the_32():
    n, first, device = 2**23 + 3, 2**32 - 700, SIMT()
    x = sparse((n * dropout.BLOCK,), np.float32)
    x[-1024:] = 1
    device.only = slice(n - 4, n)
    device.launch(dropout.dropout_in_place, n, x, x.size, first, 2**31, 2.0, 7, 1, NOW)
    true = np.ones(1024)
    dropout.dropout_in_place.reference(4, true, 1024, first + x.size - 1024, 2**31, 2.0, 7, 1, NOW)
    np.testing.assert_array_equal(x[-1024:], true)


def test_sums_over_a_large_tensor():
    channels, device = 96, SIMT()
    pixels = MANY // channels + 7
    slice_, count = bias.slices(pixels)
    y, dy, partial = sparse((pixels, channels), np.float32), sparse((pixels, channels), np.float32), device.empty((count, channels))
    y[-50:], dy[-50:] = drawn((50, channels)), drawn((channels, 50)).T
    true = np.where(y[-50:] > 0, dy[-50:].astype(np.float64), 0).sum(axis=0)
    rows = count * -(-channels // bias.STRIP)
    device.only = slice(rows - 4, rows)
    device.launch(bias.bias_backward, rows, y, dy, partial, pixels, channels, slice_, 1)
    np.testing.assert_allclose(partial[-1], true, rtol=1e-5, atol=1e-5)
    rows = pixels
    device.only = slice(rows - 4, rows)
    device.launch(bias.bias_relu, rows, y, np.full(channels, 0.5, np.float32), channels, 0)
    np.testing.assert_array_equal(y[-4:], drawn((50, channels))[-4:] + np.float32(0.5))

    rows, slices = MANY // 64 // PARTS_BLOCK + 4, 64
    parts, to = sparse((slices, rows * PARTS_BLOCK), np.float32), sparse((rows * PARTS_BLOCK,), np.float32)
    parts[:, -100:] = drawn((slices, 100))
    device.only = slice(rows - 4, rows)
    device.launch(add_parts, rows, parts, to, to.size, slices, 0)
    np.testing.assert_allclose(to[-100:], drawn((slices, 100)).sum(axis=0), rtol=1e-5, atol=1e-5)


def test_a_place_that_leaves_the_range_of_an_int_is_caught():
    """Seeded: the same check on a kernel that counts in 32 bits."""
    program = """if 1:
        import numpy as np
        from simt.test_large import MANY, SIMT, sparse
        from simt.test_simt import FAULTS, fault
        device = SIMT()
        device.libraries[FAULTS] = device.builder.build("faults", device.text(FAULTS))
        for rows in (64, MANY // 96 + 64):
            x = sparse((rows, 96), np.float32)
            device.only = slice(rows - 4, rows)
            device.launch(fault("int_index", "x", "channels"), rows, x, 96)
            print((x[-4:] == 1).all(), flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.stdout == "True\n" and done.returncode == -11, done      # it writes 8 GB below x
