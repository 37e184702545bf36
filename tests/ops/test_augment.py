"""The input kernel against its reference, numpy slices, and SciPy's affine_transform."""

import numpy as np
import pytest

from minialex.data.augment import Input
from minialex.device.reference import Reference
from minialex.functional import augment_images
from minialex.gradcheck import to_host
from minialex.ops.augment import FILLS, augment

PLAIN = np.concatenate([np.eye(3).ravel(), np.zeros(3)])      # the colour map that changes nothing


def maps(random, n, side, size):
    """Affine maps that turn, stretch and shift by a few pixels, also beyond the picture."""
    warp = np.array([side / size, 0, 0, 0, side / size, 0]) + random.normal(0, [0.3, 0.3, 2, 0.3, 0.3, 2], (n, 6))
    return np.concatenate([warp, random.normal(0, 0.01, (n, 12))], axis=1).astype(np.float32)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("n, side, size, mean", [(1, 1, 1, False), (3, 5, 5, True), (2, 11, 37, False), (2, 37, 31, True), (5, 40, 1, False), (0, 6, 4, True)])
def test_against_the_reference(device, n, side, size, mean, fill):
    random = np.random.default_rng(side)
    images, views = random.integers(0, 256, (n, side, side, 3), np.uint8), maps(random, n, side, size)
    more = {"fill": fill, "constant": 77.0, "mean": random.uniform(0, 255, (side, side, 3)).astype(np.float32) if mean else None}
    truth = augment_images(images, views, size, **more, device="numpy")
    y = to_host(augment_images(images, views, size, **more, device=device))
    assert y.shape == (n, size, size, 3) and y.dtype == np.float32
    np.testing.assert_allclose(y, truth, rtol=1e-5, atol=1e-4)      # a coordinate of 40 pixels is right to 4e-6


@pytest.mark.parametrize("n, side, size", [(1, 1, 1), (4, 11, 7), (2, 37, 31)])
def test_a_crop_is_a_slice(device, n, side, size):
    random, way = np.random.default_rng(side), Input(side, size, scale=(1 / 58, 0.5, 2.0))
    images = random.integers(0, 256, (n, side, side, 3), np.uint8)
    crops = random.integers(0, side - size + 1, (n, 3))
    crops[:, 2] = np.arange(n) % 2
    pieces = [image[top:top + size, left:left + size][:, ::-1 if flip else 1] for image, (top, left, flip) in zip(images, crops)]
    truth = (np.array(pieces, float) - way.mean) * way.scale
    for mean in (None, np.zeros((side, side, 3), np.float32)):      # two ways through the kernel
        y = to_host(augment_images(images, way.cropped(crops), size, mean=mean, device=device))
        np.testing.assert_allclose(y, truth, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("warp", [(1, 0, 2, 0, 0.5, 1), (1, 0, 2, 0, 1, 0.5), (1, 0, 0.5, 0, 1, 1), (1, 0, -3, 0, 1, 2), (1, 0, 2, 0, 1, 9), (1, 0, 2, 0, -1, 3),
                                  (0.5, 0, 1, 0, 1, 0), (1, 0.5, 0, 0, 1, 0), (1, 0, 40, 0, 1, -70)], ids=str)
def test_what_is_nearly_a_crop_is_none(device, warp, fill):
    """Whole rows but not columns, or the other way round, and pieces that reach outside."""
    images = np.random.default_rng(4).integers(0, 256, (1, 11, 11, 3), np.uint8)
    view = np.concatenate([warp, PLAIN]).astype(np.float32)[None]
    truth = augment_images(images, view, 7, fill=fill, constant=77.0, device="numpy")
    np.testing.assert_allclose(to_host(augment_images(images, view, 7, fill=fill, constant=77.0, device=device)), truth, atol=1e-3)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("far", [2.0**22, 2.0**25 + 4, 2.0**30])
def test_far_outside_a_pixel_stands_for_others(device, far, fill):
    """Further than functions let a view reach: whole pixels, where 1 - (row - top) may be lost in rounding."""
    images = np.random.default_rng(5).integers(1, 256, (4, 7, 7, 3), np.uint8)
    views = np.zeros((4, 18), np.float32)
    views[:, 6:] = PLAIN
    views[:, 2], views[:, 5] = (far, -far, 3, far), (far, 3, -far, -far)
    views[0, 0] = views[2, 1] = views[3, 4] = 128      # what float32 still adds to the farthest
    results = []
    for place in (device, Reference(np.float32)):
        y = place.empty((4, 3, 3, 3))
        place.launch(augment, 4 * 3, place.array(images), place.array(views), place.zeros((1,)), y, 7, 3, FILLS.index(fill), 77.0, 0)
        results.append(to_host(y))
    assert results[1].min() >= 1
    np.testing.assert_array_equal(*results)


def test_the_mean_image_moves_with_the_picture(device):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), np.uint8)
    views = maps(np.random.default_rng(1), 3, 20, 16)
    y = to_host(augment_images(images[:1].repeat(3, 0), views, 16, mean=images[0].astype(np.float32), device=device))
    np.testing.assert_allclose(y, np.broadcast_to(views[:, None, None, 15:], y.shape), atol=1e-5)      # nothing is left but the offset


@pytest.mark.parametrize("fill, mode", [("nearest", "nearest"), ("constant", "grid-constant"), ("reflect", "reflect"), ("wrap", "grid-wrap")])
def test_against_scipy(device, fill, mode):
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed: no warp is compared with its affine_transform")
    random, side = np.random.default_rng(3), 23
    images, views = random.integers(0, 256, (4, side, side, 3), np.uint8), maps(random, 4, side, side)
    views[:, 6:] = PLAIN
    y = to_host(augment_images(images, views, side, fill=fill, constant=50.0, device=device))
    for image, view, got in zip(images, views.astype(np.float64), y):
        for c in range(3):
            truth = ndimage.affine_transform(image[..., c].astype(float), view[:6].reshape(2, 3)[:, :2], view[[2, 5]], order=1, mode=mode, cval=50.0)
            np.testing.assert_allclose(got[..., c], truth, atol=2e-3)      # of 255: float32 coordinates


IMAGES, VIEWS = np.zeros((2, 6, 6, 3), np.uint8), np.zeros((2, 18), np.float32)


@pytest.mark.parametrize("arguments, options, text", [
    ((IMAGES, VIEWS + np.float32("nan"), 4), {}, "views: an affine map has a number that is not finite"),
    ((IMAGES, VIEWS + np.float32(1e7), 4), {}, "beyond a million pixels"),
    ((IMAGES, VIEWS + np.float32(1e5), 6), {}, "beyond a million pixels"), ((IMAGES, VIEWS - np.float32(1e5), 6), {}, "beyond a million pixels"),
    ((IMAGES, VIEWS[:1], 4), {}, "views: expected shape (2, 18), got (1, 18)"),
    ((IMAGES, VIEWS[:, :6], 4), {}, "views: expected shape (2, 18), got (2, 6)"),
    ((IMAGES, VIEWS.astype(int), 4), {}, "views: expected float32, got int64"),
    ((IMAGES, VIEWS, 0), {}, "size: expected at least 1 pixel, got 0"),
    ((IMAGES, VIEWS, 4), {"fill": "mirror"}, "fill: expected one of nearest, constant, reflect, wrap, got 'mirror'"),
    ((IMAGES, VIEWS, 4), {"mean": np.zeros((4, 4, 3), np.float32)}, "mean: expected the pictures' shape (6, 6, 3), got (4, 4, 3)"),
    ((IMAGES.astype(np.float32), VIEWS, 4), {}, "images: expected uint8 (N, S, S, 3), got float32"),
    ((IMAGES[:, :5], VIEWS, 4), {}, "images: expected uint8 (N, S, S, 3), got uint8 (2, 5, 6, 3)"),
    ((IMAGES[0], VIEWS, 4), {}, "images: expected uint8 (N, S, S, 3)"),
])
def test_mistakes_name_the_argument(arguments, options, text):
    with pytest.raises((ValueError, TypeError)) as told:
        augment_images(*arguments, **options)
    assert text in str(told.value)
