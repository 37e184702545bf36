"""Decoding: sound pictures come out right, unsound ones are refused by name, and nothing else happens."""

import os
import pickle
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minialex.data import image as image_module
from minialex.data.image import MAX_PIXELS, UnreadableImage, decode, square, squash
from minialex.errors import UserError
from odd_files import FILES, chunk, png_header, scene

ROOT = Path(__file__).resolve().parents[2]

# pytest puts filters of its own in the place of those of image.py; a test below looks at a process without them.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def refusal(function, *arguments):
    with pytest.raises(UnreadableImage) as caught:
        function(*arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.isprintable()
    assert sentence.startswith(str(arguments[0])) or sentence.startswith(repr(str(arguments[0])))
    return sentence


# Odd files

@pytest.mark.parametrize("name", FILES, ids=[ascii(name[:40]) for name in FILES])
def test_odd_file(odd, name, capfd):
    path, expected = odd / name, FILES[name][0]
    if expected is None:
        refusal(decode, path)
        refusal(square, path, 32)
        refusal(squash, path, 32)
    elif isinstance(expected, tuple):
        picture = decode(path)
        assert picture.mode == "RGB" and picture.size == expected
        assert np.asarray(picture).any(), "a black picture"
        pixels = square(path, 32)
        assert pixels.shape == (32, 32, 3) and pixels.any()
        np.testing.assert_array_equal(squash(path, 32), np.asarray(picture.resize((32, 32), Image.Resampling.NEAREST)))
    else:  # either is sane, or the folder listing leaves it out: but an UnreadableImage or RGB, nothing else
        for function, arguments in (decode, ()), (square, (32,)), (squash, (32,)):
            try:
                assert np.asarray(function(path, *arguments)).shape[2] == 3
            except UnreadableImage as error:
                assert error.reason
    assert capfd.readouterr() == ("", "")


# Depths and modes

@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_is_scaled(tmp_path, name):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = save(tmp_path / name, ramp)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for channel in np.moveaxis(np.asarray(decode(path)), 2, 0):
        np.testing.assert_array_equal(channel, expected)
    np.testing.assert_array_equal(square(path, 256)[..., 0], expected)


def test_dark_16_bit_stays_dark(tmp_path):
    assert np.asarray(decode(save(tmp_path / "dark.pgm", np.full((8, 8), 200, np.uint16)))).max() == 1


def test_big_endian_16_bit(tmp_path):
    ramp = np.linspace(0, 65535, 100).astype(">u2").reshape(10, 10)
    entries = [(256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
               (277, 3, 1, 1), (278, 3, 1, 10), (279, 4, 1, 200)]
    path = tmp_path / "motorola.tif"
    path.write_bytes(tiff(entries, ramp.tobytes(), ">"))
    np.testing.assert_array_equal(np.asarray(decode(path))[..., 0], np.rint(ramp / 257).astype(np.uint8))


def test_12_bit_tiff(tmp_path):
    """Pillow opens 12 bits as 16-bit values up to 4095: a sixteenth of white, if taken for 16 bits."""
    packed = bytes([0xFF, 0xF0, 0x00]) * 50  # 4095 and 0 in turn
    entries = [(256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
               (277, 3, 1, 1), (278, 3, 1, 10), (279, 4, 1, 150)]
    path = tmp_path / "twelve.tif"
    path.write_bytes(tiff(entries, packed, "<"))
    np.testing.assert_array_equal(np.asarray(decode(path))[0, :, 0], [255, 0] * 5)


def tiff(entries, pixels, order):
    """A TIFF by hand, its pixels at byte 200."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in entries:
        head += struct.pack(order + ("HHIHxx" if kind == 3 else "HHII"), tag, kind, count, value)
    return (head + bytes(4)).ljust(200, b"\0") + pixels


@pytest.mark.parametrize("kind, words", [(np.float32, "floats"), (np.int32, "signed or 32-bit integers"), (np.int16, "signed or 32-bit integers")])
def test_pixels_that_do_not_say_what_is_white_are_refused(tmp_path, kind, words):
    """Two files of a set, one of them dark: a white of each would make them equally bright."""
    for name, top in ("bright.tif", 255), ("dark.tif", 1):
        pixels = np.linspace(0, top, 64).astype(kind).reshape(8, 8)
        if kind == np.int16:
            entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
                       (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 128), (339, 3, 1, 2)]
            (path := tmp_path / name).write_bytes(tiff(entries, pixels.tobytes(), "<"))
        else:
            path = save(tmp_path / name, pixels)
        for function, more in (decode, ()), (square, (4,)), (squash, (4,)):
            assert f"its pixels are {words}, which do not say what value is white" in refusal(function, path, *more)
    if kind != np.int16:
        with pytest.raises(UnreadableImage, match="what value is white"):
            square(Image.fromarray(pixels), 4)


def test_cmyk(tmp_path):
    picture = Image.fromarray(scene(40, 40))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    for name in "cmyk.jpg", "cmyk.tif":
        np.testing.assert_allclose(np.asarray(decode(tmp_path / name), int), scene(40, 40), atol=8)
        np.testing.assert_allclose(square(tmp_path / name, 40).astype(int), scene(40, 40), atol=8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.gif", "x.tif"])
def test_modes(tmp_path, mode, name):
    picture = Image.fromarray(scene(30, 20)).convert(mode)
    picture.save(tmp_path / name)
    expected = np.asarray(picture.convert("RGB"), int)
    tolerance = 40 if name == "x.gif" and mode == "RGB" else 0  # a palette
    np.testing.assert_allclose(np.asarray(decode(tmp_path / name), int), expected, atol=tolerance)


def test_transparency_is_shown_over_white(tmp_path):
    hidden = np.zeros((6, 6, 4), np.uint8)  # black beneath
    hidden[0, 0] = 10, 20, 30, 255
    hidden[0, 1] = 0, 0, 0, 128
    pixels = np.asarray(decode(save(tmp_path / "rgba.png", hidden)))
    assert pixels[0, 0].tolist() == [10, 20, 30] and pixels[5, 5].tolist() == [255, 255, 255]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1
    np.testing.assert_array_equal(square(tmp_path / "rgba.png", 6), pixels)
    save(tmp_path / "la.png", np.dstack([np.full((4, 4), 9, np.uint8), np.zeros((4, 4), np.uint8)]))
    assert np.asarray(decode(tmp_path / "la.png")).min() == 255


@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_transparent_palette_entry(tmp_path, name):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / name, transparency=0)
    pixels = np.asarray(decode(tmp_path / name))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[3, 3].tolist() == [200, 100, 50]


def test_transparent_colour_of_a_png_without_palette(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    Image.new("L", (4, 4), 7).save(tmp_path / "l.png", transparency=7)
    assert np.asarray(decode(tmp_path / "rgb.png")).min() == 255
    assert np.asarray(decode(tmp_path / "l.png")).min() == 255


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_animation_gives_its_first_frame(tmp_path, name):
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    options = {"lossless": True} if name == "x.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    assert np.asarray(decode(tmp_path / name))[8, 8].tolist() == [250, 0, 0]


def test_mpo_is_read_as_the_jpeg_that_it_begins_with(tmp_path):
    Image.new("RGB", (16, 16), (250, 0, 0)).save(tmp_path / "phone.jpg", "MPO", save_all=True,
                                                 append_images=[Image.new("RGB", (16, 16), (0, 0, 250))])
    assert np.asarray(decode(tmp_path / "phone.jpg"))[8, 8, 0] > 240


# Orientation

def oriented(path, array, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, array, exif=exif, **options)


# How the stored picture comes from the upright one, by the text of the EXIF standard.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("name", ["o.jpg", "o.png", "o.tif", "o.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, name, orientation):
    upright = scene(48, 32)
    stored = np.ascontiguousarray(STORED[orientation](upright))
    path = oriented(tmp_path / name, stored, orientation, quality=100)
    pixels = np.asarray(decode(path), int)
    assert pixels.shape == upright.shape
    np.testing.assert_allclose(pixels, upright, atol=12)
    np.testing.assert_allclose(square(path, 32).astype(int), upright[:, 8:40], atol=12)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_orientation_out_of_range_is_upright(tmp_path, orientation):
    pixels = np.asarray(decode(oriented(tmp_path / "o.png", scene(48, 32), orientation)))
    np.testing.assert_array_equal(pixels, scene(48, 32))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x", bytes(40)])
def test_damaged_exif_costs_nothing_but_itself(tmp_path, exif, capfd):
    path = save(tmp_path / "e.png", scene(48, 32), exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(path)), scene(48, 32))
    save(tmp_path / "e.jpg", scene(48, 32), exif=exif, quality=100)
    np.testing.assert_allclose(np.asarray(decode(tmp_path / "e.jpg"), int), scene(48, 32), atol=12)
    assert capfd.readouterr() == ("", "")


# Damage

def test_damaged_png_is_never_black(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = oriented(tmp_path / "flip.png", noise, 6)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    refusal(decode, path)
    refusal(square, path, 32)


def require_format(name):
    """Skips where files of this ending are not read."""
    remedy = image_module.REMEDIES.get(name.rpartition(".")[2])
    if remedy:
        pytest.skip(f"this Python reads no {name[name.index('.'):]} ({remedy})")


@pytest.mark.parametrize("name", ["t.jp2", "t.avif", "t.heic"])
def test_formats_of_phones_and_archives(tmp_path, name):
    require_format(name)
    picture, turned = Image.fromarray(scene(60, 40)), Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / name, quality=95) if name != "t.jp2" else picture.save(tmp_path / name)
    np.testing.assert_allclose(np.asarray(decode(tmp_path / name), int), scene(60, 40), atol=16)
    np.testing.assert_allclose(square(tmp_path / name, 40).astype(int), scene(60, 40)[:, 10:50], atol=16)
    if name == "t.avif":
        picture.save(tmp_path / name, quality=95, exif=turned)
        np.testing.assert_allclose(np.asarray(decode(tmp_path / name), int), np.rot90(scene(60, 40), -1), atol=16)


@pytest.mark.parametrize("name", ["t.jpg", "t.png", "t.gif", "t.webp", "t.bmp", "t.tif", "t.ppm", "t.jp2", "t.avif", "t.heic"])
def test_truncated(tmp_path, name):
    require_format(name)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / name, noise)
    whole = path.read_bytes()
    for length in 0, 1, 20, len(whole) // 2, len(whole) * 9 // 10:
        path.write_bytes(whole[:length])
        refusal(decode, path)
        assert ("empty" in refusal(square, path, 32)) == (length == 0)


@pytest.mark.parametrize("side", [9_460, 12_000, 20_000, 60_000])
def test_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    assert "pixels" in refusal(decode, path)
    assert "pixels" in refusal(square, path, 32)


def test_the_limit_is_our_own(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", scene(30, 20))
    monkeypatch.setattr(image_module, "MAX_PIXELS", 599)
    assert "30 x 20" in refusal(decode, path)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 600)
    assert decode(path).size == (30, 20)


def test_zero_width(tmp_path):
    path = tmp_path / "zero.png"
    path.write_bytes(png_header(0, 5) + chunk(b"IEND", b""))
    refusal(decode, path)


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in "fifo.jpg", "folder.jpg", "dangling.jpg", "loop.jpg", "missing.jpg", "a\nb.jpg", "bad\udcff.jpg":
        refusal(decode, tmp_path / name)  # a FIFO would hang here
        refusal(square, tmp_path / name, 8)


def test_other_content(tmp_path):
    path = tmp_path / "page.jpg"
    for content in b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", bytes(999):
        path.write_bytes(content)
        assert "not an intact image" in refusal(decode, path)


def test_what_would_read_a_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(image_module, "REMEDIES", {"heic": "pip install 'minialex[heif]'"})
    (tmp_path / "x.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    assert "; pip install 'minialex[heif]' may add its own)" in refusal(decode, tmp_path / "x.HEIC")


def test_error_is_a_user_error_and_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "it is empty")))
    assert isinstance(error, UserError) and str(error) == "a/b.jpg: it is empty"
    assert (error.path, error.reason) == ("a/b.jpg", "it is empty")


def test_pillow_warnings_do_not_reach_the_terminal(tmp_path):
    save(tmp_path / "e.jpg", scene(48, 32), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\x00\x12\x01\x03\0")
    (tmp_path / "bomb.png").write_bytes(png_header(12_000, 12_000) + chunk(b"IEND", b""))
    program = ("import sys; from minialex.data.image import decode, UnreadableImage\n"
               "decode(sys.argv[1])\n"
               "try: decode(sys.argv[2])\n"
               "except UnreadableImage: print('refused')")
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "e.jpg", tmp_path / "bomb.png"],
                         env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("refused\n", "")


# The square

@pytest.mark.parametrize("width, height", [(1, 1), (2, 3), (7, 100), (100, 5), (64, 64), (301, 200)])
def test_square_of_any_size(tmp_path, width, height):
    path = save(tmp_path / "x.png", scene(width, height))
    for size in 1, 31, 64:
        pixels = square(path, size)
        assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_square_is_the_centre(tmp_path):
    wide = scene(300, 100)
    np.testing.assert_array_equal(square(save(tmp_path / "wide.png", wide), 100), wide[:, 100:200])
    np.testing.assert_array_equal(square(save(tmp_path / "tall.png", wide.swapaxes(0, 1).copy()), 100),
                                  wide.swapaxes(0, 1)[100:200])


def test_square_is_antialiased(tmp_path):
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = square(save(tmp_path / "x.png", checks), 32).astype(int)
    assert abs(pixels - 127).max() < 8  # point sampling would give 0 or 255


def test_a_strip_gives_its_middle(tmp_path):
    for width, height in ((1000, 1), (1, 1000), (301, 5)):
        pixels, side = scene(width, height), min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        middle = Image.fromarray(pixels[top:top + side, left:left + side]).resize((8, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(square(save(tmp_path / "strip.png", pixels), 8), np.asarray(middle))


def test_jpeg_draft_is_near_the_full_decoding_and_never_too_small(tmp_path, monkeypatch):
    path = save(tmp_path / "big.jpg", scene(1000, 700), quality=95)
    reference = np.asarray(Image.fromarray(scene(1000, 700)).crop((150, 0, 850, 700))
                           .resize((80, 80), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(square(path, 80).astype(int), reference, atol=6)
    shorter = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: shorter.append(self.size) or resize(self, *a, **k))
    for size in 80, 87, 88, 175, 176, 350, 351, 700, 701:
        square(path, size)
        assert min(shorter[-1]) >= min(size, 700)
    assert min(shorter[0]) < 700  # drafted at all


# The whole, squashed

@pytest.mark.parametrize("width, height", [(1, 1), (7, 100), (64, 64), (301, 200), (50, 333)])
@pytest.mark.parametrize("name, mode", [("x.jpg", "RGB"), ("x.jpg", "L"), ("x.jpg", "CMYK"), ("x.png", "P"), ("x.png", "RGB"), ("x.png", "1")])
def test_squash_is_what_keras_loads(tmp_path, width, height, name, mode):
    Image.fromarray(scene(width, height)).convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:      # load_img(path, target_size=..., interpolation="nearest")
        image = image.convert("RGB")
        for size in 1, 31, 64, 224:
            pixels = squash(tmp_path / name, size)
            np.testing.assert_array_equal(pixels, np.asarray(image.resize((size, size), Image.Resampling.NEAREST)))
            assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
def test_squash_is_upright(tmp_path, orientation):
    upright = scene(48, 30)
    path = oriented(tmp_path / "o.png", np.ascontiguousarray(STORED[orientation](upright)), orientation)
    rows, columns = ((2 * np.arange(16) + 1) * side // 32 for side in (30, 48))      # no pixel begins at a middle
    np.testing.assert_array_equal(squash(path, 16), upright[rows][:, columns])
    # Where one does, it is taken from the upright picture as Pillow rounds.
    np.testing.assert_array_equal(squash(path, 20), np.asarray(Image.fromarray(upright).resize((20, 20), Image.Resampling.NEAREST)))


def test_squash_scales_16_bit(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(squash(save(tmp_path / "deep.png", ramp), 256)[..., 0], np.rint(ramp / 257).astype(np.uint8))


def test_squash_does_not_draft(tmp_path):
    path = save(tmp_path / "big.jpg", np.random.default_rng(0).integers(0, 256, (800, 1000, 3)).astype(np.uint8))
    np.testing.assert_array_equal(squash(path, 50), np.asarray(decode(path))[8::16, 10::20])


def test_squash_refuses_what_square_does(tmp_path):
    assert "No such file" in refusal(squash, tmp_path / "missing.jpg", 8)
    path = save(tmp_path / "t.jpg", scene(64, 64))
    path.write_bytes(path.read_bytes()[:-200])
    refusal(squash, path, 8)


def test_threads_agree(tmp_path):
    paths = [save(tmp_path / f"{i}.{kind}", scene(200 + i, 150)) for i in range(10) for kind in ("jpg", "png", "gif")]
    alone = [square(path, 64) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(lambda path: square(path, 64), paths)):
            np.testing.assert_array_equal(one, other)
