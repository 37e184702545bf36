"""Near-duplicates: copies and re-saves are found, other pictures are not."""

import io
import json
import os
import time

import numpy as np
import pytest
from odd_files import photograph
from PIL import Image

from minialex.data import duplicates
from minialex.data.duplicates import listed, near_duplicates
from minialex.data.folder import find_splits, open_split
from minialex.data.pack import pack
from minialex.run.scores import named_in


def scene(seed, width=160, height=120):
    """A picture with large things in it and some noise, as photographs have them."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(small, Image.fromarray(photograph(seed, width, height)), 0.4)


def resaved(picture, **options):
    picture.save(data := io.BytesIO(), "JPEG", **options)
    return data.getvalue()


@pytest.fixture
def album(tmp_path):
    """Training pictures of two classes and copies of some among the validation pictures. -> (train, val, what is to be found)"""
    for split in "train", "val":
        for name in "a", "b":
            (tmp_path / split / name).mkdir(parents=True)
    for i in range(12):
        scene(i).save(tmp_path / f"train/{'ab'[i % 2]}/{i:02}.jpg", quality=92)
    Image.new("RGB", (50, 50), (9, 9, 9)).save(tmp_path / "train/a/flat.png")
    (tmp_path / "train/a/damaged.jpg").write_bytes(b"")
    for i in range(20, 32):
        scene(i).save(tmp_path / f"val/{'ab'[i % 2]}/{i:02}.jpg", quality=92)
    copies = {"a/same.jpg": (0, (tmp_path / "train/a/00.jpg").read_bytes()),
              "b/name with space.jpg": (1, resaved(scene(1), quality=40)),
              "b/# smaller.jpg": (2, resaved(scene(2).resize((97, 73)), quality=85)),
              "a/larger.jpg": (3, resaved(scene(3).resize((320, 240), Image.Resampling.BICUBIC))),
              "a/brighter.jpg": (4, resaved(scene(4).point(lambda v: int(20 + 0.85 * v)))),
              "a/a\nline.jpg": (5, resaved(scene(5)))}
    for name, (_, data) in copies.items():
        (tmp_path / "val" / name).write_bytes(data)
    Image.new("RGB", (50, 50), (9, 9, 9)).save(tmp_path / "val/b/flat.png")
    Image.new("RGB", (50, 50), (200, 9, 9)).save(tmp_path / "val/b/other.png")
    (tmp_path / "val/a/damaged.jpg").write_bytes(b"")
    train, val = find_splits(tmp_path)
    return train, val, {name: f"{i:02}.jpg" for name, (i, _) in copies.items()} | {"b/flat.png": "flat.png"}


def named(pairs, train, val):
    return {os.path.relpath(val.paths[place], val.root): os.path.basename(train.paths[other]) for place, other in pairs}


def test_copies_are_found_and_nothing_else(album, monkeypatch):
    train, val, expected = album
    pairs = near_duplicates(train, val)
    assert named(pairs, train, val) == expected
    monkeypatch.setattr(duplicates, "AT_ONCE", 3)
    assert near_duplicates(train, val, workers=1) == pairs


def test_packed_sets_are_compared_as_they_are(album, tmp_path):
    train, val, expected = album
    for split in train, val:
        pack(split, tmp_path / "packed" / os.path.basename(split.root), 100, warn=str)
    packed = find_splits(tmp_path / "packed")
    assert named(near_duplicates(*packed), *packed) == expected
    assert named(near_duplicates(packed[0], val), packed[0], val) == expected, "one of them packed"


def test_the_file_is_one_that_evaluate_takes(album, tmp_path):
    train, val, expected = album
    path = tmp_path / "near-duplicates.txt"
    path.write_text(listed(near_duplicates(train, val), train, val))
    chosen, strangers = named_in(path, val, str(tmp_path))
    assert strangers == 0
    assert {os.path.relpath(val.paths[place], val.root) for place in np.flatnonzero(chosen)} == set(expected) - {"a/a\nline.jpg"}
    assert path.read_text().startswith(f"# {len(expected)} of {len(val)} validation images are also in training")
    assert "# 'a/a\\nline.jpg' is like b/05.jpg of the training set" in path.read_text()


def test_pictures_with_little_in_them_are_told_apart(tmp_path):
    """Strokes on white, whose signs are nearly all the same."""
    for split in "train", "val":
        for name in "a", "b":
            (tmp_path / split / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(60):
        pixels = np.full((64, 64), 255, np.uint8)
        top, left = random.integers(8, 40, 2)
        pixels[top:top + random.integers(2, 14), left:left + random.integers(2, 14)] = 0
        Image.fromarray(pixels).save(tmp_path / f"{'train' if i % 3 else 'val'}/{'ab'[i % 2]}/{i}.png")
    train, val = find_splits(tmp_path)
    assert not near_duplicates(train, val)


def test_an_interrupt_ends_it(album, monkeypatch):
    train, val, _ = album
    seen = []

    def picture(place, size, fit):
        seen.append(place)
        if place == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        return np.zeros((size, size, 3), np.uint8)
    monkeypatch.setattr(train, "picture", picture)
    with pytest.raises(KeyboardInterrupt):
        near_duplicates(train, val, workers=1)
    assert len(seen) < len(train)


@pytest.mark.slow
def test_those_of_the_monkeys_are_the_ones_that_are_known():
    root = os.path.join(os.environ.get("MINIALEX_SHARED", os.path.join(os.path.dirname(__file__), "../../../shared")), "data/monkeys")
    if not os.path.isdir(root):
        pytest.skip(f"no monkeys here: looked in {root}")
    train, val = open_split(f"{root}/train"), open_split(f"{root}/val")
    known = json.loads(open(f"{root}/leaks.json").read())["val_files_also_in_train"]
    found = near_duplicates(train, val)
    assert len(found) == len(known) == 52 and {os.path.relpath(val.paths[place], root) for place, _ in found} == set(known)
