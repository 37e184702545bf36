"""Listings: what counts as an image of the set, in which order, and the sentences for what is amiss."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from minialex.data.folder import find_splits, open_folder
from minialex.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("MINIALEX_SHARED", ROOT / "../shared/data"))


def tree(root, *files):
    """Files that a listing takes for images: it looks at names, not into them."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"") if not file.endswith("/") else path.mkdir(exist_ok=True)
    return root


def names(folder):
    return [os.path.relpath(path, folder.root) for path in folder.paths]


def sentence(*arguments, function=open_folder, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_and_labels(tmp_path):
    folder = open_folder(tree(tmp_path, "dog/2.jpg", "dog/1.jpg", "cat/9.png", "ant/b.JPEG", "ant/B.jpeg"))
    assert folder.classes == ["ant", "cat", "dog"]
    assert names(folder) == ["ant/B.jpeg", "ant/b.JPEG", "cat/9.png", "dog/1.jpg", "dog/2.jpg"]
    assert folder.labels.tolist() == [0, 0, 1, 2, 2] and folder.labels.dtype == np.int32
    assert len(folder) == 5 and str(folder) == folder.describe() == "5 images in 3 classes"


def test_what_is_an_image(tmp_path):
    images = ["x.jpg", "x.JPG", "x.jpe", "x.jpeg", "x.png", "x.bmp", "x.gif", "x.webp", "x.tif", "x.TIFF", "x.ppm",
              "x.pgm", "two.dots.jpg", "new\nline.jpg", " .jpg", "-dash.jpg"]
    others = [".hidden.jpg", "._x.jpg", ".DS_Store", "Thumbs.db", "x.txt", "x.jpg.part", "xjpg", "jpg", ".jpg", "x.",
              "x.jpg~", ".git/x.jpg"]
    tree(tmp_path, *("a/" + name for name in images + others), "__MACOSX/x.jpg", ".cache/x.jpg", "loose.jpg")
    os.mkfifo(tmp_path / "a/fifo.jpg")
    folder = open_folder(tmp_path)
    assert folder.classes == ["a"]
    assert names(folder) == sorted("a/" + name for name in images)


def test_nested_folders_belong_to_their_class(tmp_path):
    folder = open_folder(tree(tmp_path, "a/x.jpg", "a/sub/y.jpg", "a/sub/deep/z.jpg", "a/folder.jpg/w.png", "b/x.jpg"))
    assert names(folder) == ["a/folder.jpg/w.png", "a/sub/deep/z.jpg", "a/sub/y.jpg", "a/x.jpg", "b/x.jpg"]
    assert folder.labels.tolist() == [0, 0, 0, 0, 1]


def test_links(tmp_path):
    tree(tmp_path, "store/one/x.jpg", "set/a/y.jpg")
    (tmp_path / "set/b").symlink_to(tmp_path / "store/one")
    (tmp_path / "set/a/link.jpg").symlink_to(tmp_path / "store/one/x.jpg")
    (tmp_path / "set/a/lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set/a")  # a loop
    folder = open_folder(tmp_path / "set")
    assert names(folder) == ["a/link.jpg", "a/lost.jpg", "a/y.jpg", "b/x.jpg"]


def test_what_is_amiss_in_a_folder(tmp_path):
    assert sentence(tmp_path / "none") == f"there is no folder {tmp_path}/none"
    assert "is not a folder" in sentence(tree(tmp_path, "file.jpg") / "file.jpg")
    assert "has no class folders: it must hold" in sentence(tree(tmp_path / "empty", "x.txt"))
    assert "has no class folders: its images" in sentence(tree(tmp_path / "flat", "x.jpg"))
    assert "there are no images" in sentence(tree(tmp_path / "texts", "a/x.txt", "b/"))
    assert "class folder b of" in sentence(tree(tmp_path / "one", "a/x.jpg", "b/x.txt"))
    many = tree(tmp_path / "many", "z/x.jpg", *(f"c{i}/" for i in range(8)))
    assert "class folders c0, c1, c2, c3, c4 and 3 more of" in sentence(many)
    assert "'a\\nb'" in sentence(tree(tmp_path / "odd", "z/x.jpg", "a\nb/"))


def test_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """Root may read every folder, so the refusal is acted."""
    def scandir(path, real=os.scandir):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sentence(tree(tmp_path, "a/x.jpg", "b/x.jpg")) == f"the folder {tmp_path}/b cannot be read: Permission denied"


def test_classes_of_the_training_set(tmp_path):
    tree(tmp_path, "b/1.jpg", "c/2.jpg", "a/3.jpg")
    folder = open_folder(tmp_path, ["c", "a", "b"])  # a checkpoint's order is kept
    assert folder.classes == ["c", "a", "b"]
    assert names(folder) == ["c/2.jpg", "a/3.jpg", "b/1.jpg"] and folder.labels.tolist() == [0, 1, 2]
    assert sentence(tmp_path, ["a", "b", "c", "d"]).endswith("but it lacks d")
    assert sentence(tmp_path, ["a"]).endswith("but it has b, c besides")
    assert sentence(tmp_path, ["b", "c", "x"]).endswith("but it lacks x and has a besides")


@pytest.mark.parametrize("train, val", [
    ("train", "val"), ("training", "validation"), ("training/training", "validation/validation"),
    ("training/training", "validation")])
def test_splits(tmp_path, train, val):
    tree(tmp_path, f"{train}/n0/1.jpg", f"{train}/n1/1.jpg", f"{val}/n0/2.jpg", f"{val}/n1/2.jpg", "labels.txt")
    for splits in find_splits(tmp_path), find_splits(train=tmp_path / train, val=tmp_path / val):
        assert [names(split) for split in splits] == [["n0/1.jpg", "n1/1.jpg"], ["n0/2.jpg", "n1/2.jpg"]]


def test_what_is_amiss_in_splits(tmp_path):
    tell = dict(function=find_splits)
    tree(tmp_path, "half/train/a/1.jpg", "good/train/a/1.jpg", "good/train/b/1.jpg", "good/val/a/1.jpg")
    assert sentence(tmp_path / "half", **tell).endswith("looked for train/ and val/ or training/ and validation/ in it")
    assert "there is no folder" in sentence(tmp_path / "none", **tell)
    assert "good/val must have the training set's classes, but it lacks b" in sentence(tmp_path / "good", **tell)
    assert "give a data folder" in sentence(**tell)
    assert "both" in sentence(train=tmp_path, **tell)
    assert "both ways" in sentence(tmp_path, train=tmp_path, val=tmp_path, **tell)
    tree(tmp_path, "lone/train/a/1.jpg", "lone/val/a/1.jpg")
    assert "only one class folder, a" in sentence(tmp_path / "lone", **tell)


@pytest.mark.skipif(not (SHARED / "dirty/manifest.json").exists(), reason=f"no odd files on this machine ({SHARED})")
def test_odd_files(tmp_path):
    (tmp_path / "odd").symlink_to((SHARED / "dirty/files").resolve())
    listed = {os.path.basename(path) for path in open_folder(tmp_path).paths}
    cases = json.loads((SHARED / "dirty/manifest.json").read_text())["cases"]
    assert listed == {os.path.basename(case["path"]) for case in cases if case["treatment"] != "ignore"}


@pytest.mark.skipif(not (SHARED / "monkeys").is_dir(), reason=f"no monkeys on this machine ({SHARED})")
def test_monkeys():
    train, val = find_splits(SHARED / "monkeys")
    assert (str(train), str(val)) == ("1096 images in 10 classes", "272 images in 10 classes")
    assert train.classes == [f"n{i}" for i in range(10)]
