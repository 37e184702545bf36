"""Pictures drawn for the tests: one like a photograph, and every kind of odd or broken file that a folder of downloads may hold."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def scene(width, height):
    """A smooth picture in which every corner has a colour of its own."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 90 + 0 * x], axis=2).astype(np.uint8)


def photograph(seed, width, height):
    """Smooth fields of many sizes and the noise of a sensor, which PNG and JPEG find about as hard as a photograph."""
    random, pixels = np.random.default_rng(seed), np.full((height, width, 3), 128.0)
    for cells in 2, 5, 12, 30, 80:
        field = random.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        pixels += (np.asarray(Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)) - 128.0) * 2 / cells**0.7
    return np.clip(pixels + random.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """Of a PNG of one bit a pixel."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))


def black_png(side):
    """A whole PNG of one bit a pixel, whose file is small however many pixels it has."""
    return png_header(side, side) + chunk(b"IDAT", zlib.compress(bytes(side * (1 + -(-side // 8))), 1)) + chunk(b"IEND", b"")


def saved(picture, kind="PNG", **options):
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def changed(data, at, to):
    return data[:at] + to + data[at + len(to):]


def draw():
    """{name: (width and height if it must load, None if it must be refused, "either" or "no image", bytes)}; an image is what the name says it is."""
    random, turned, wild = np.random.default_rng(0), Image.Exif(), Image.Exif()
    turned[0x0112], wild[0x0112] = 6, 99
    noise = random.integers(0, 256, (128, 128, 3)).astype(np.uint8)
    jpeg, png, ramp = saved(photograph(1, 128, 128), "JPEG"), saved(noise), np.arange(65536).reshape(256, 256)
    middle, square, deep = len(jpeg) // 2, (128, 128), (256, 256)
    palette = Image.fromarray(noise).convert("P")
    transparent = Image.fromarray(np.dstack([noise, np.zeros((128, 128), np.uint8)]))
    return {
        "progressive.jpg": (square, saved(noise, "JPEG", progressive=True)),
        "subsample_444_q100.jpg": (square, saved(noise, "JPEG", quality=100, subsampling=0)),
        "restart_markers.jpg": (square, saved(noise, "JPEG", restart_marker_blocks=4)),
        "cmyk.jpg": (square, saved(Image.fromarray(noise).convert("CMYK"), "JPEG")),
        "grey.jpg": (square, saved(noise[..., 0], "JPEG")),
        "turned.jpg": ((90, 60), saved(scene(60, 90), "JPEG", exif=turned)),
        "exif_orientation_99.jpg": ((60, 90), saved(scene(60, 90), "JPEG", exif=wild)),
        "damaged_exif.jpg": (square, saved(noise, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
        "png_content.JPEG": (square, png),      # as ImageNet's n02105855_2933.JPEG
        **{name: (square, jpeg) for name in (
            "UPPER.JPG", "name with  spaces .jpg", "-leading-dash.jpg", "new\nline.jpg", "comma,quote\".jpg", 240 * "x" + ".jpg")},
        **{f"tiny_{width}x{height}.png": ((width, height), saved(scene(width, height) | 1))
           for width, height in ((1, 1), (1, 500), (500, 1), (2, 3), (3000, 8), (8, 3000))},
        "other_size.png": ((451, 334), saved(photograph(2, 451, 334))),
        "grey16.png": (deep, saved(ramp.astype(np.uint16))),
        "bilevel.png": (square, saved(Image.fromarray(noise).convert("1"))),
        "grey_alpha.png": (square, saved(Image.fromarray(noise).convert("LA"))),
        "all_transparent.png": (square, saved(transparent)),
        "palette_transparent.png": (square, saved(palette, transparency=0)),
        "animated.gif": (square, saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)])),

        "float32.tif": (None, saved((ramp / 257).astype(np.float32), "TIFF")),      # what is white?
        "int32.tif": (None, saved(ramp.astype(np.int32), "TIFF")),
        "truncated_half.jpg": (None, jpeg[:middle]),
        "truncated_header.jpg": (None, jpeg[:20]),
        "bit_flipped.png": (None, changed(png, len(png) // 2, bytes([png[len(png) // 2] ^ 1]))),
        "bomb_header.png": (None, png_header(50_000, 50_000)),
        "bomb_144_megapixels.png": (None, black_png(12_000)),      # where Pillow only warns
        "bomb_400_megapixels.png": (None, black_png(20_000)),
        "zero_width.png": (None, png_header(0, 5) + chunk(b"IEND", b"")),
        "zero_bytes.jpg": (None, b""),
        "text.jpg": (None, b"this is no picture\n"),
        "error_page.jpg": (None, b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"),
        "svg.png": (None, b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\n'),
        "random.png": (None, random.bytes(5000)),

        "no_end_marker.jpg": ("either", jpeg[:-2]),
        "corrupt_scan.jpg": ("either", changed(jpeg, middle, random.bytes(64))),

        "._UPPER.JPG": ("no image", b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(80)),
        "image.jpg.part": ("no image", jpeg[:200]),
        "dotlessjpg": ("no image", jpeg),
        **{name: ("no image", b"something else\n") for name in (".DS_Store", "Thumbs.db", "desktop.ini", "labels.csv")},
    }


FILES = draw()
