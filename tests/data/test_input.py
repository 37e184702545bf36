"""What is drawn for a picture, the maps that follow from it, and the measured colours."""

from collections import Counter

import numpy as np
import pytest

from minialex.data import augment
from minialex.data.augment import Input, between, draw, keras_affine, measure, normal
from minialex.data.image import UnreadableImage
from minialex.errors import UserError
from minialex.functional import augment_images

EVERYTHING = ("crop=resized,area=0.3:0.9,flip=hv,rotation=40,shift=0.1:0.2,shear=10,zoom=0.2,brightness=0.3,contrast=0.2,saturation=0.5,"
              "pca=eigenvalue,mean=colour,scale=1/50")
COLOURS = {"mean": [120.0, 110.0, 90.0], "eigenvalues": [9000.0, 900.0, 100.0], "eigenvectors": np.linalg.qr(np.arange(9).reshape(3, 3) ** 2 + np.eye(3))[0]}


def full(side=40, size=32):
    return Input(side, size).with_text(EVERYTHING).with_colours(COLOURS)


def test_draws_depend_on_seed_epoch_and_place_alone():
    way, some = full(), np.array([17, 3, 999])
    every = way.draw(3, 5, np.arange(1000))
    assert every.shape == (1000, 18) and every.dtype == np.float32
    np.testing.assert_array_equal(way.draw(3, 5, some), every[some])
    assert (way.draw(3, 6, some) != every[some]).any(axis=1).all() and (way.draw(4, 5, some) != every[some]).any(axis=1).all()
    assert way.draw(3, 5, []).shape == (0, 18)
    assert len({augment.ORDER, augment.CROP, augment.WARP, augment.ZOOM, augment.COLOUR, augment.PCA}) == 6
    far = np.array([2**33])
    assert (draw(0, 0, far, augment.CROP) != draw(0, 0, far & 0xFFFFFFFF, augment.CROP)).any()


def test_the_draws_are_those_of_always():
    """A run that is resumed with another version draws the same."""
    v = Input(61, 32).draw(3, 5, np.arange(2))
    assert v[:, 2].tolist() == [29, 12] and v[:, 4].tolist() == [-1, -1] and (v[:, 5] - 31).tolist() == [17, 24]


def test_random_crops_cover_the_margin_evenly_and_half_are_flipped():
    way = Input(35, 32)
    views = way.draw(0, 0, np.arange(40_000))
    for column in (2, 5):
        start = views[:, column] - np.where(views[:, 4] < 0, 31, 0) * (column == 5)
        counts = Counter(start.tolist())
        assert set(counts) == {0, 1, 2, 3} and all(9_500 < count < 10_500 for count in counts.values())
    assert 19_500 < (views[:, 4] == -1).sum() < 20_500 and (views[:, 0] == 1).all()
    assert (Input(35, 32).with_text("flip=none").draw(0, 0, np.arange(100))[:, 4] == 1).all()
    vertical = Input(35, 32).with_text("flip=v").draw(0, 0, np.arange(100))
    assert set(vertical[:, 0]) == {1, -1} and (vertical[:, 4] == 1).all()


def test_centre_and_ten_views():
    way = Input(40, 32, mean=(0, 0, 0), scale=(1, 1, 1))
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), np.uint8)
    assert way.centre(0).shape == (0, 18) and len(way.ten(3)) == 10 and way.ten(3)[0].shape == (3, 18)
    np.testing.assert_array_equal(augment_images(image, way.centre(1), 32)[0], image[0, 4:36, 4:36])
    places = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for views, (top, left), flip in zip(way.ten(1), places * 2, [1] * 5 + [-1] * 5):
        np.testing.assert_array_equal(augment_images(image, views, 32)[0], image[0, top:top + 32, left:left + 32][:, ::flip])


def test_resized_crops_are_pieces_of_the_asked_area_and_shape():
    way = Input(100, 50).with_text("crop=resized,area=0.2:0.5,ratio=1/2:2,flip=none")
    v = way.draw(0, 0, np.arange(20_000)).astype(float)
    height, width = v[:, 0] * 50, v[:, 4] * 50
    top, left = v[:, 2] + 0.5 - v[:, 0] / 2, v[:, 5] + 0.5 - v[:, 4] / 2
    assert top.min() > -1e-4 and left.min() > -1e-4 and (top + height).max() < 100.001 and (left + width).max() < 100.001
    area, ratio = height * width / 1e4, width / height
    inside = (height < 100) & (width < 100)
    assert 0.19 < area[inside].min() and area.max() < 0.51 and 0.33 < area.mean() < 0.36      # 0.35 but for rounding and cutting
    assert 0.48 < ratio.min() < 0.55 and 1.85 < ratio.max() < 2.1 and 0.95 < np.median(ratio) < 1.05


def test_each_part_of_a_warp_stays_in_its_range_and_reaches_it():
    n = np.arange(20_000)
    turn = Input(40, 40).with_text("rotation=40,flip=none").draw(0, 0, n).astype(float)
    angle = np.degrees(np.arctan2(turn[:, 3], turn[:, 0]))
    assert -40 <= angle.min() < -39.9 and 39.9 < angle.max() <= 40 and abs(angle.mean()) < 1
    middle = turn[:, 0] * 19.5 + turn[:, 1] * 19.5 + turn[:, 2], turn[:, 3] * 19.5 + turn[:, 4] * 19.5 + turn[:, 5]
    np.testing.assert_allclose(middle, 19.5, atol=1e-4)      # the centre of 40 pixels stays
    shift = Input(40, 40).with_text("shift=0.1:0.2,flip=none").draw(0, 0, n)
    assert -4 <= shift[:, 2].min() < -3.99 and 7.98 < shift[:, 5].max() <= 8
    zoom = Input(40, 40).with_text("zoom=0.2,flip=none").draw(0, 0, n)
    assert 0.8 <= zoom[:, 0].min() < 0.801 and 1.199 < zoom[:, 4].max() < 1.2001 and abs(np.corrcoef(zoom[:, 0], zoom[:, 4])[0, 1]) < 0.03


def test_flips_come_last_as_in_keras():
    """A flip mirrors the warped picture: the output row runs backwards through the unflipped map."""
    text = "rotation=30,shift=0.2,shear=20,zoom=0.3,crop=centre"
    plain, flipped = (Input(20, 16).with_text(f"{text},flip={flip}").draw(1, 0, np.arange(50)).astype(float) for flip in ("none", "h"))
    mirrored = np.abs(plain[:, 4] - flipped[:, 4]) > 1e-6
    assert 10 < mirrored.sum() < 40
    np.testing.assert_allclose(flipped[mirrored, 5], (plain[:, 4] * 15 + plain[:, 5])[mirrored], atol=1e-5)
    np.testing.assert_allclose(flipped[~mirrored], plain[~mirrored])


def test_colours_against_the_formulas():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    way = Input(8, 8).with_text("crop=centre,flip=none,brightness=0.3,contrast=0.4,saturation=0.5,mean=10:20:30,scale=2").with_colours(COLOURS)
    words = draw(0, 0, [7], augment.COLOUR)[0] / 2.0**32
    bright, contrast, saturation = 0.7 + 0.6 * words[0], 0.6 + 0.8 * words[1], 0.5 + 1.0 * words[2]
    pixel = image[0] * bright
    pixel = contrast * pixel + (1 - contrast) * (0.299 * 120 + 0.587 * 110 + 0.114 * 90)
    pixel = saturation * pixel + (1 - saturation) * (pixel @ [0.299, 0.587, 0.114])[..., None]
    np.testing.assert_allclose(augment_images(image, way.draw(0, 0, [7]), 8)[0], (pixel - (10, 20, 30)) * 2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind, spread", [("eigenvalue", np.array(COLOURS["eigenvalues"]) / 255), ("std", np.sqrt(COLOURS["eigenvalues"]) / 1.1)])
def test_colour_noise_has_the_spread_of_its_reading(kind, spread):
    """The paper's: eigenvalues of pixels from 0 to 1. Its program's: standard deviations, and the input divided by 1.1."""
    way = Input(8, 8).with_text(f"crop=centre,flip=none,mean=none,scale=1,pca={kind},pca_strength=0.1").with_colours(COLOURS)
    views = way.draw(0, 0, np.arange(50_000)).astype(float)
    along = views[:, 15:] @ np.asarray(COLOURS["eigenvectors"])
    np.testing.assert_allclose(along.std(axis=0), 0.1 * spread, rtol=0.02)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=0.003 * spread.max())
    np.testing.assert_allclose(views[:, 6:15], np.broadcast_to(np.eye(3).ravel() / (1.1 if kind == "std" else 1), (50_000, 9)), atol=1e-6)


def test_with_std_noise_the_mean_colour_still_becomes_zero():
    way = Input(8, 8).with_text("crop=centre,flip=none,mean=120:110:90,scale=1,pca=std,pca_strength=0.1").with_colours(COLOURS)
    grey = np.broadcast_to(np.uint8([120, 110, 90]), (2000, 8, 8, 3))
    assert np.abs(augment_images(grey, way.draw(0, 0, np.arange(2000)), 8).mean(axis=(0, 1, 2))).max() < 0.6


def test_normals_are_normal():
    z = normal(draw(0, 0, np.arange(100_000), augment.PCA))
    np.testing.assert_allclose([z.mean(0), z.std(0), (z**3).mean(0), (z**4).mean(0)], np.outer([0, 1, 0, 3], np.ones(4)), atol=0.06)
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 0.02 and np.isfinite(normal(np.array([[0, 2**32 - 1, 0, 2**32 - 1]], np.uint32))).all()
    assert between(np.uint32([0]), 2, 5) == 2 and between(np.uint32([2**32 - 1]), 2, 5) < 5


class Source:
    """Pictures in memory; None cannot be read."""

    def __init__(self, pictures):
        self.pictures, self.root = pictures, "memory"

    def __len__(self):
        return len(self.pictures)

    def picture(self, place, size, fit):
        if self.pictures[place] is None:
            raise UnreadableImage(str(place), "nothing there")
        return self.pictures[place]


def test_measured_colours_equal_numpys():
    random = np.random.default_rng(0)
    pictures = np.clip(random.normal(120, 40, (6, 9, 9, 1)) + random.normal(0, 10, (6, 9, 9, 3)), 0, 255).astype(np.uint8)
    colours, image = measure(Source([*pictures[:3], None, *pictures[3:]]), 9, "crop", image=True)
    pixels = pictures.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(colours["mean"], pixels.mean(0))
    np.testing.assert_allclose(colours["eigenvectors"] * colours["eigenvalues"] @ colours["eigenvectors"].T, np.cov(pixels.T, bias=True), atol=1e-9)
    assert (np.diff(colours["eigenvalues"]) <= 0).all() and (colours["eigenvectors"][:, 0] > 0).all()
    np.testing.assert_allclose(image, pictures.mean(0), rtol=1e-6)
    seen = []
    measure(Source(list(pictures)), 9, "crop", most=3, bar=lambda iterable, **about: seen.extend(iterable) or iterable)
    assert seen == [0, 2, 5]
    with pytest.raises(UserError, match="no image could be read from memory"):
        measure(Source([None, None]), 9, "crop")


def test_a_config_gives_the_same_input_back():
    import json
    from dataclasses import asdict
    for way in (Input(40, 32), full(), Input(40, 32).with_text("mean=image,shift=0.1")):
        again = Input.from_config(json.loads(json.dumps({"input": asdict(way)})))
        assert again == way
        np.testing.assert_array_equal(again.draw(0, 0, np.arange(5)), way.draw(0, 0, np.arange(5)))


@pytest.mark.parametrize("text, words", [
    ("crop=left", "--augment crop=left: expected random, resized or centre"), ("zoom", "--augment zoom: expected Z below 1, or LOW:HIGH"), ("zoom=1:101", "expected Z below 1, or LOW:HIGH up to 100"),
    ("scale=0", "--augment scale=0: expected a number"), ("mean=image,contrast=0.1", "mean=image goes with none of brightness, contrast and saturation"),
    ("turn=3", "--augment turn=3: the keys are mean, scale, crop"), ("rotation=-3", "--augment rotation=-3: expected a number of 0 or more"),
    ("rotation=x", "--augment rotation=x: expected a number of 0 or more"), ("scale=1/0", "--augment scale=1/0: expected a number, such as 1/255"),
    ("mean=1:2", "--augment mean=1:2: expected colour, image, none, or three numbers R:G:B"), ("area=0:1", "--augment area=0:1: expected LOW:HIGH"),
    ("shift=2", "--augment shift=2: expected a part of the picture's side"), ("brightness=1.5", "--augment brightness=1.5: expected a number from 0 to 1"),
    ("fill=mirror", "--augment fill=mirror: expected nearest, constant, reflect or wrap"), ("side=3", "--augment side=3: the keys are"),
    ("rotation=nan", "--augment rotation=nan"), ("rotation=inf", "--augment rotation=inf"), ("mean=nan:1:1", "--augment mean=nan:1:1")])
def test_a_text_that_makes_no_sense_is_refused(text, words):
    with pytest.raises(UserError) as told:
        Input(8, 8).with_text(text)
    assert words in str(told.value)
    with pytest.raises(UserError, match="--side 7: pictures must be decoded at no less than the input's 8 pixels"):
        Input(7, 8)


def test_later_keys_win():
    way = Input(8, 8).with_text("rotation=40,flip=hv,rotation=10,zoom=0.5:0.9")
    assert (way.rotation, way.flip, way.zoom, way.shift) == (10, "hv", (0.5, 0.9), (0, 0))


def test_keras_maps_are_identities_without_parameters():
    still = keras_affine(17, *(np.full(3, value) for value in (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)))
    np.testing.assert_array_equal(still, np.broadcast_to(np.eye(3), (3, 3, 3)))
