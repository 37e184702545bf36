"""The network's input: an affine warp of each decoded picture, sampled bilinearly, and an affine map of its colours."""

import numpy as np

from ..device import Array, Device, kernel
from .layer import as_array, device_of, on_arrays, put

FILLS = "nearest", "constant", "reflect", "wrap"        # numbered as in kernels/augment.cu


@kernel("augment.cu")
def augment(rows, images, views, mean, y, side, size, fill, constant, has_mean):
    """y[n] = M p + o, where p is the picture less the mean at the warped pixel; a view is (a b c, d e f, M, o)"""
    h, w = np.mgrid[:size, :size]
    for n, v in enumerate(views[:rows // size]):
        row, column = v[0] * h + v[1] * w + v[2], v[3] * h + v[4] * w + v[5]
        top, left = np.floor(row).astype(int), np.floor(column).astype(int)
        p = np.zeros((size, size, 3), y.dtype)
        for i, weight_i in ((top, 1 - (row - top)), (top + 1, row - top)):
            for j, weight_j in ((left, 1 - (column - left)), (left + 1, column - left)):
                weight, at = (weight_i * weight_j)[..., None], (stand_in(i, side, fill), stand_in(j, side, fill))
                none = (fill == FILLS.index("constant")) & ((i < 0) | (i >= side) | (j < 0) | (j >= side))
                p += weight * (np.where(none[..., None], constant, images[n][at]) - (mean[at] if has_mean else 0))
        y[n] = p @ v[6:15].reshape(3, 3).T + v[15:]


def stand_in(i, n, fill):
    """The pixel 0 .. n-1 that stands for pixel i."""
    if FILLS[fill] == "reflect":
        return np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n))
    return i % n if FILLS[fill] == "wrap" else np.clip(i, 0, n - 1)


def check_views(views: Array, size: int) -> None:
    """Refuses what no float32 could place: views (n, 18) for outputs of size x size that reach further than a million pixels."""
    views = np.asarray(views)
    corners = np.array([[h, w, 1] for h in (0, size - 1) for w in (0, size - 1)], np.float64).T
    if not np.isfinite(views).all() or np.abs(views[:, :6].reshape(-1, 3) @ corners).max(initial=0) > 1e6:
        raise ValueError("views: an affine map has a number that is not finite, or reaches beyond a million pixels")


@on_arrays
def augment_images(images: Array, views: Array, size: int, *, fill: str = "nearest", constant: float = 0.0, mean: Array | None = None,
                   device: str | Device = "cpu") -> Array:
    """images (N, S, S, 3) uint8, views (N, 18) float32 -> (N, size, size, 3) float: each picture warped, its colours mapped.

    A view is six floats a .. f, which take output pixel (h, w) from pixel (a h + b w + c, d h + e w + f) of the picture, a
    colour matrix M (3x3) and an offset o (3): y = M (pixel - mean) + o. fill says what lies outside the picture: "nearest",
    "constant" (pixels of that value), "reflect" (d c b a | a b c d) or "wrap". mean: (S, S, 3).
    """
    device = device_of(device)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images: expected uint8 (N, S, S, 3), got {images.dtype} {tuple(images.shape)}")
    if as_array("views", views, ("N", "18")).shape != (len(images), 18):
        raise ValueError(f"views: expected shape ({len(images)}, 18), got {tuple(views.shape)}")
    if size < 1 or images.shape[1] < 1:
        raise ValueError(f"size: expected at least 1 pixel, got {size} from pictures of {images.shape[1]}")
    if fill not in FILLS:
        raise ValueError(f"fill: expected one of {', '.join(FILLS)}, got {fill!r}")
    if mean is not None and as_array("mean", mean, ("S", "S", "3")).shape != images.shape[1:]:
        raise ValueError(f"mean: expected the pictures' shape {tuple(images.shape[1:])}, got {tuple(mean.shape)}")
    check_views(views if isinstance(views, np.ndarray) else device.to_numpy(views), size)
    y = device.empty((len(images), size, size, 3))
    if len(images):
        device.launch(augment, len(images) * size, put(device, images), put(device, views), device.zeros((1,)) if mean is None else put(device, mean),
                      y, images.shape[1], size, FILLS.index(fill), float(constant), int(mean is not None))
    return y
