"""The validation set that is drawn from a set without one."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from minialex.data.folder import ImageFolder, find_splits, open_folder, open_split
from minialex.data.listing import Paths
from minialex.data.pack import pack
from minialex.data.split import draw_split, words_of
from minialex.errors import UserError
from minialex.philox import philox


def tree(root, **counts):
    """Class folders of so many images, which are empty files."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:03}.jpg").touch()
    return root


def names(source):
    return [os.path.relpath(path, source.root) for path in source.paths]


def test_each_class_gives_its_part(tmp_path):
    root = tree(tmp_path / "set", one=1, two=2, three=3, ten=10, many=101)
    for fraction, expected in (0.2, [0, 1, 1, 2, 20]), (0.5, [0, 1, 2, 5, 50]), (0.01, [0, 1, 1, 1, 1]), (0.99, [0, 1, 2, 9, 100]):
        train, val = find_splits(root, val_fraction=fraction)
        classes = ["one", "two", "three", "ten", "many"]
        assert [(val.labels == val.classes.index(name)).sum() for name in classes] == expected
        assert sorted(names(train) + names(val)) == names(open_folder(root)) and not set(names(train)) & set(names(val))
        for part in train, val:
            assert [part.classes[label] for label in part.labels] == [os.path.dirname(name) for name in names(part)], "labels go with their pictures"
            assert part.labels.dtype == np.int32 and names(part) == sorted(names(part))


def test_it_depends_on_the_seed_and_the_names_alone(tmp_path):
    counts = dict(a=40, b=30)
    one, other = (find_splits(tree(tmp_path / name, **counts)) for name in ("one", "other"))
    assert names(one[1]) == names(other[1]) and one[1].fingerprint() == other[1].fingerprint()
    assert names(find_splits(tmp_path / "one", seed=1)[1]) != names(one[1])
    os.rename(tmp_path / "one/a/039.jpg", tmp_path / "one/a/new.jpg")
    assert len(set(names(find_splits(tmp_path / "one")[1])) ^ set(names(one[1]))) <= 2
    word = philox(7, *np.frombuffer(hashlib.sha256(b"a/000.jpg").digest()[:16], "<u4")).tolist()
    assert words_of(open_folder(tmp_path / "one"), 7)[0] == word[0] << 32 | word[1]


def test_a_new_picture_moves_at_most_one_other(tmp_path):
    root = tree(tmp_path / "set", a=50, b=50)
    before = set(names(find_splits(root)[1]))
    for i in range(40):
        (root / f"a/new{i}.jpg").touch()
        after = set(names(find_splits(root)[1]))
        assert len((before ^ after) - {f"a/new{i}.jpg"}) <= 1 and not any(name.startswith("b/") for name in before ^ after)
        before = after
    assert sum("new" in name for name in before) in range(3, 16), "those that are new are drawn as well"


def test_lists_and_packed_sets_are_drawn_alike(tmp_path):
    for name in "a", "b":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (9, 9), (20 * i, 200 * (name == "a"), 50)).save(tmp_path / f"set/{name}/{i}.png")
    (tmp_path / "set/a/film.mov").touch()
    whole = open_split(tmp_path / "set")
    pack(whole, tmp_path / "packed", 8)
    (tmp_path / "set/all.txt").write_text("".join(f"{name} {os.path.dirname(name)}\n" for name in names(whole)[::-1]))
    plain, packed, listed = (find_splits(tmp_path / place, seed=3) for place in ("set", "packed", "set/all.txt"))
    for one, two, three in zip(plain, packed, listed):
        assert names(one) == names(two) == sorted(names(three)) and one.labels.tolist() == two.labels.tolist()
        assert str(one) == f"{len(one)} images in 2 classes"
        for place in range(len(one)):
            np.testing.assert_array_equal(one.picture(place, 8), two.picture(place, 8))
    assert [part.beside.other for part in (*plain, *packed)] == [{".mov": 1}, {}] * 2, "counted once"


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(UserError, match="no class with two images"):
        find_splits(tree(tmp_path / "single", a=1, b=1))
    with pytest.raises(UserError, match="only one class, a"):
        (tmp_path / "lone.txt").write_text(f"{tmp_path}/single/a/000.jpg a\n" * 2)
        find_splits(tmp_path / "lone.txt")
    with pytest.raises(UserError, match="does not hold the two splits"):
        find_splits(tree(tmp_path / "train", train=2, other=2))


def test_it_is_drawn_from_all_over_the_listing():
    n = 20_000
    source = ImageFolder("r", ["a", "b"], Paths.of("r", map(str, range(n))), np.arange(n, dtype=np.int32) % 2)
    train, val = draw_split(source, 0, 0.25)
    assert len(val) == n // 4 and (val.labels == 0).sum() == n // 8
    assert abs(np.mean([int(os.path.basename(path)) for path in val.paths]) - n / 2) < n / 50
