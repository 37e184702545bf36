"""Crop, flip, and (pixel - mean) * scale, against numpy slices."""

import numpy as np
import pytest

from minialex.functional import crop_images
from minialex.gradcheck import to_host

MEAN, SCALE = (124.0, 117.0, 104.0), (1 / 58.0, 0.5, 2.0)


def plain(images, crops, size):
    pieces = [image[top:top + size, left:left + size][:, ::-1 if flip else 1] for image, (top, left, flip) in zip(images, crops)]
    return (np.array(pieces, float).reshape(-1, size, size, 3) - MEAN) * SCALE


@pytest.mark.parametrize("n, side, size", [(1, 1, 1), (3, 5, 5), (4, 11, 7), (2, 37, 31), (5, 40, 1), (0, 6, 4)])
def test_against_slices(device, n, side, size):
    random = np.random.default_rng(side)
    images = random.integers(0, 256, (n, side, side, 3), np.uint8)
    crops = random.integers(0, side - size + 1, (n, 3))
    crops[:, 2] = np.arange(n) % 2
    truth = plain(images, crops, size)
    np.testing.assert_allclose(crop_images(images, crops, size, mean=MEAN, scale=SCALE, device="numpy"), truth, atol=1e-5)
    y = to_host(crop_images(images, crops, size, mean=MEAN, scale=SCALE, device=device))
    assert y.shape == (n, size, size, 3) and y.dtype == np.float32
    np.testing.assert_allclose(y, truth, rtol=1e-6, atol=1e-5)


def test_corners_and_flips(device):
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    for top, left in ((0, 0), (0, 2), (2, 0), (2, 2)):
        for flip in (0, 1):
            y = to_host(crop_images(image, np.array([[top, left, flip]]), 2, mean=(0, 0, 0), scale=(1, 1, 1), device=device))
            piece = image[:, top:top + 2, left:left + 2]
            np.testing.assert_array_equal(y, piece[:, :, ::-1] if flip else piece)


IMAGES, CROPS = np.zeros((2, 6, 6, 3), np.uint8), np.zeros((2, 3), int)


@pytest.mark.parametrize("arguments, options, text", [
    ((IMAGES, CROPS + [3, 0, 0], 4), {}, "crops: (top, left) must be from 0 to 2, got 0 to 3"),
    ((IMAGES, CROPS - [0, 1, 0], 4), {}, "crops: (top, left) must be from 0 to 2, got -1 to 0"),
    ((IMAGES, CROPS[:1], 4), {}, "crops: expected shape (2, 3), got (1, 3)"),
    ((IMAGES, CROPS[:, :2], 4), {}, "crops: expected shape (2, 3), got (2, 2)"),
    ((IMAGES, CROPS + 0.5, 4), {}, "crops: expected integers, got float64"),
    ((IMAGES, CROPS, 7), {}, "size: expected 1 to 6 (the pictures' side), got 7"),
    ((IMAGES, CROPS, 0), {}, "size: expected 1 to 6"),
    ((IMAGES, CROPS, 4), {"mean": 0}, "mean, scale: expected 3 numbers each, one per colour, got shapes () and (3,)"),
    ((IMAGES, CROPS, 4), {"scale": (1, 2)}, "mean, scale: expected 3 numbers each"),
    ((IMAGES.astype(np.float32), CROPS, 4), {}, "images: expected uint8 (N, S, S, 3), got float32"),
    ((IMAGES[:, :5], CROPS, 4), {}, "images: expected uint8 (N, S, S, 3), got uint8 (2, 5, 6, 3)"),
    ((IMAGES[0], CROPS, 4), {}, "images: expected uint8 (N, S, S, 3)"),
])
def test_mistakes_name_the_argument(arguments, options, text):
    with pytest.raises((ValueError, TypeError)) as told:
        crop_images(*arguments, **{"mean": MEAN, "scale": SCALE, **options})
    assert text in str(told.value)
