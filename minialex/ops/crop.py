"""The network's input: a crop of each decoded picture, flipped or not, as (pixel - mean) * scale per colour."""

import numpy as np

from ..device import kernel
from .layer import as_array, device_of, put


@kernel("crop.cu")
def crop(rows, images, crops, mean, scale, y, side, size):
    """y[n] = (images[n] cut at (top, left), flipped if asked - mean) * scale"""
    for n, (top, left, flip) in enumerate(crops[:rows // size]):
        piece = images[n, top:top + size, left:left + size]
        y[n] = (piece[:, ::-1] if flip else piece) - mean
    y *= scale


def check_crops(crops, margin):
    crops = np.asarray(crops)
    if crops.size and (crops[:, :2].min() < 0 or crops[:, :2].max() > margin):
        raise ValueError(f"crops: (top, left) must be from 0 to {margin}, got {crops[:, :2].min()} to {crops[:, :2].max()}")


def crop_images(images, crops, size, *, mean, scale, device="cpu"):
    """images (N, S, S, 3) uint8, crops (N, 3) int32 of (top, left, flip), mean and scale (3,) -> (N, size, size, 3) float."""
    device = device_of(device)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images: expected uint8 (N, S, S, 3), got {images.dtype} {tuple(images.shape)}")
    if as_array("crops", crops, ("N", "3"), "integers").shape != (len(images), 3):
        raise ValueError(f"crops: expected shape ({len(images)}, 3), got {tuple(crops.shape)}")
    if not 1 <= size <= images.shape[1]:
        raise ValueError(f"size: expected 1 to {images.shape[1]} (the pictures' side), got {size}")
    mean, scale = np.asarray(mean, np.float32), np.asarray(scale, np.float32)
    if not mean.shape == scale.shape == (3,):
        raise ValueError(f"mean, scale: expected 3 numbers each, one per colour, got shapes {mean.shape} and {scale.shape}")
    check_crops(crops if isinstance(crops, np.ndarray) else device.to_numpy(crops), images.shape[1] - size)
    y = device.empty((len(images), size, size, 3))
    if len(images):
        device.launch(crop, len(images) * size, put(device, images), put(device, crops.astype(np.int32)),
                      put(device, mean), put(device, scale), y, images.shape[1], size)
    return y
