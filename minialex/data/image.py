"""The one place that prepares pictures: a file, a PIL image or an array becomes 8-bit RGB, or an UnreadableImage that names it.

picture() is what train, evaluate and predict share: the centre square of a picture at one size, or all of it. decode() gives
the whole picture as it is. All may be called from several threads. Colour profiles are ignored, as is usual in the field.
"""

import logging
import os
import stat
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError, features
# Imported by name so that every format is registered before threads start to decode.
from PIL import (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin,  # noqa: F401
                 PpmImagePlugin, TiffImagePlugin, WebPImagePlugin)

from ..errors import UserError, shown

# Only these: among the others that Pillow knows is one that starts Ghostscript (EPS). Names of files end in one of EXTENSIONS.
FORMATS = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]
EXTENSIONS = set("jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm".split())
REMEDIES = {}      # endings that are not read here -> what would make them so


def _jpeg_2000():
    from PIL import Jpeg2KImagePlugin  # noqa: F401
    return features.check_codec("jpg_2000")


def _avif():
    from PIL import AvifImagePlugin, _avif  # noqa: F401
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1      # there are decoding threads enough
    return True


def _heif():
    import pillow_heif
    pillow_heif.register_heif_opener(thumbnails=False)
    return True


for _format, _endings, _there, _remedy in (("JPEG2000", "jp2 j2k j2c jpc jpf jpx", _jpeg_2000, "pip install -U pillow"),
                                           ("AVIF", "avif", _avif, "pip install -U pillow"),
                                           ("HEIF", "heic heif hif", _heif, "pip install 'minialex[heif]'")):
    try:
        _here = _there()
    except ImportError:
        _here = False
    if _here:
        FORMATS.append(_format)
        EXTENSIONS.update(_endings.split())
    else:
        REMEDIES.update(dict.fromkeys(_endings.split(), _remedy))

# Where Pillow begins to warn of decompression bombs. 89 million pixels take 360 MB once decoded, in every worker.
MAX_PIXELS = 89_478_485

# Pillow's warnings (odd metadata, mostly) say nothing that the result does not. warnings.catch_warnings() swaps
# a list that all threads share, so they are filtered once, here. The pixel limit is checked by hand below.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

ORIENTATION_TAG = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(UserError):
    """A file that does not hold a picture which can be used; the text names the file and the cause."""

    def __init__(self, path, reason):
        super().__init__(path, reason)
        self.path, self.reason = path, reason      # what is no file is named in words

    def __str__(self):
        return f"{shown(self.path)}: {self.reason}"


def picture(item: str | os.PathLike | Image.Image | np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
    """A picture as a net's input takes it before augmentation: uint8 (size, size, 3).

    item: a path, a PIL image, or a uint8 array (height, width), (height, width, 3) or (height, width, 4). fit: "crop" for the
    centre square, "squash" for the whole picture. Raises UnreadableImage, which names the item and the cause.
    """
    return {"crop": square, "squash": squash}[fit](item, size)


def decode(path):
    """The whole picture, upright, as a PIL image of mode RGB."""
    with _opened(path) as image:
        image.load()
        return _upright(_rgb(_eight_bit(image)), _orientation(image))


def square(path, size):
    """The picture's centre square, upright, at size x size: uint8 (size, size, 3)."""
    with _opened(path) as image:
        # JPEG can decode at 1/2, 1/4 or 1/8 for a fraction of the time; the result is never smaller than asked.
        image.draft(None, (size, size))
        image.load()
        # Cropped before anything is converted, and turned last, so that what is allocated stays small.
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        picture = _rgb(_eight_bit(image).crop((left, top, left + side, top + side)))
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)  # antialiased when it shrinks
        return np.array(_upright(picture, _orientation(image)))


def squash(path, size):
    """The whole picture, upright, at size x size by nearest neighbour: uint8 (size, size, 3).

    Pixel for pixel what Keras' load_img(path, target_size=(size, size), interpolation="nearest") gives for an 8-bit
    picture that is stored upright and has no transparency.
    """
    with _opened(path) as image:
        # No draft and nothing cropped: which pixels are taken depends on the full width and height, after turning.
        image.load()
        picture = _upright(_rgb(_eight_bit(image)), _orientation(image))
        return np.array(picture.resize((size, size), Image.Resampling.NEAREST))


def named(item):
    """What sentences call a picture."""
    if isinstance(item, np.ndarray):
        return f"an array of {item.dtype} {item.shape}"
    return f"a PIL image of {item.width} x {item.height} pixels" if isinstance(item, Image.Image) else item


def _of_array(array):
    """An array as a PIL image."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (1, 3, 4) or not array.size:
        raise UnreadableImage(named(array), "expected uint8 of shape (height, width), (height, width, 3) or (height, width, 4), from 0 to 255; "
                              "floats from 0 to 1 become that by (255 * array).astype('uint8')")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


@contextmanager
def _opened(path):
    """The file opened by Pillow, not yet loaded; or a picture that is none, as it is. Whatever goes wrong inside becomes an UnreadableImage."""
    try:
        if isinstance(path, (Image.Image, np.ndarray)):
            image = _of_array(path) if isinstance(path, np.ndarray) else path.copy()      # a draft would change the caller's
            path = named(path)
            yield image
            return
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # opening a FIFO would wait for a writer
            raise UnreadableImage(path, "it is not a regular file")
        with open(path, "rb") as file:
            image = Image.open(file, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(path, f"its {width} x {height} pixels are more than the {MAX_PIXELS:,} allowed")
            if width < 1 or height < 1:
                raise UnreadableImage(path, "it has no pixels")
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        remedy = REMEDIES.get(os.path.splitext(path)[1][1:].lower())
        reason = f"it is not an intact image of a format that is read here ({', '.join(FORMATS)}" + f"; {remedy} may add its own" * bool(remedy) + ")"
        raise UnreadableImage(path, reason if about.st_size else "it is empty") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"it has more than the {MAX_PIXELS:,} pixels allowed") from error
    except MemoryError as error:
        raise UnreadableImage(path, "there is not enough memory to decode it") from error
    except Exception as error:  # damaged files raise OSError, ValueError, TypeError, SyntaxError, struct.error ...
        reason = getattr(error, "strerror", None)  # the system's word: no such file, permission denied
        told = " ".join(str(error).split()) or type(error).__name__      # libheif's has several lines
        raise UnreadableImage(path, reason or f"it cannot be decoded: {told}") from error


def _orientation(image):
    """EXIF orientation of a loaded image, 1 if there is none. Call it only after load(): it loads, and a loading
    error swallowed here would leave a black picture."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata, in as many exception types as pixels, is no reason to drop sound pixels
        return 1


def _upright(image, orientation):
    method = TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _eight_bit(image):
    """Deep greyscale scaled to 8 bits, where Pillow would clip it at 255. Other images are returned as they are."""
    if image.mode.startswith("I;16"):
        twelve = getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE) == (12,)
        white = 4095 if twelve else 65535
    elif image.mode == "I" and image.format in ("PNG", "PPM"):      # how Pillow may open their 16 bits
        white = 65535
    elif image.mode in ("I", "F"):
        # A white guessed for each file by its own values would make the brightness of a set's pictures incomparable.
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"its pixels are {kind}, which do not say what value is white: save it with 8 or 16 bits, scaled alike for the whole set")
    else:
        return image
    pixels = np.asarray(image, np.float32) * np.float32(255 / white)
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _rgb(image):
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    # Over white, as a browser shows it. Dropping alpha would bring up whatever colour lies hidden beneath.
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
