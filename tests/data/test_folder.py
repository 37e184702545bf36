"""Listings: what counts as an image of the set, in which order, and the sentences for what is amiss."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from odd_files import FILES
from PIL import Image

from minialex.data.folder import ImageFolder, find_splits, open_data, open_folder, open_list, open_split, open_unlabelled, open_validation
from minialex.data.image import UnreadableImage, square, squash
from minialex.errors import UserError


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
    refuse_folder(monkeypatch, "b", PermissionError(13, "Permission denied"))
    assert sentence(tree(tmp_path, "a/x.jpg", "b/x.jpg")) == f"the folder {tmp_path}/b cannot be read: Permission denied"


def refuse_folder(monkeypatch, name, error):
    def scandir(path, real=os.scandir):
        if os.path.basename(path) == name:
            raise error
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


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
    ("training/training", "validation"), ("train", "validation"), ("train", "valid"), ("train", "test")])
def test_splits(tmp_path, train, val):
    tree(tmp_path, f"{train}/n0/1.jpg", f"{train}/n1/1.jpg", f"{val}/n0/2.jpg", f"{val}/n1/2.jpg", "labels.txt")
    for splits in find_splits(tmp_path), find_splits(train=tmp_path / train, val=tmp_path / val):
        assert [names(split) for split in splits] == [["n0/1.jpg", "n1/1.jpg"], ["n0/2.jpg", "n1/2.jpg"]]
    assert names(open_validation(tmp_path, ["n1", "n0"])) == ["n1/2.jpg", "n0/2.jpg"]


def test_of_several_validation_sets_the_one_named_val_is_taken(tmp_path):
    for name in "test", "valid", "validation", "val":      # each goes before those that are there already
        tree(tmp_path, "train/n0/1.jpg", "train/n1/1.jpg", f"{name}/n0/2.jpg", f"{name}/n1/2.jpg")
        assert find_splits(tmp_path)[1].root == open_validation(tmp_path, ["n0", "n1"]).root == str(tmp_path / name)
    assert names(open_validation(tree(tmp_path / "classes", "test/1.jpg", "other/1.jpg"), ["other", "test"])) == ["other/1.jpg", "test/1.jpg"]


def test_what_is_amiss_in_splits(tmp_path):
    tell = dict(function=find_splits)
    tree(tmp_path, "half/train/a/1.jpg", "good/train/a/1.jpg", "good/train/b/1.jpg", "good/val/a/1.jpg")
    how = (": give the two as --train X --val Y, or as --data one folder of class folders, from which --val-fraction F draws the validation set")
    assert sentence(tmp_path / "half", **tell).endswith("does not hold the two splits, only train without val" + how)
    assert sentence(tmp_path / "half/train", **tell).endswith("does not hold the two splits, but the one folder a" + how)
    assert sentence(tree(tmp_path / "flat", "1.jpg"), **tell).endswith("does not hold the two splits, nor class folders" + how)
    for have in dict(train=tmp_path / "good/train", val=tmp_path / "good/val"), dict(data=tmp_path / "good"):
        assert "there is a validation set" in sentence(val_fraction=0.5, **have, **tell)
    tree(tmp_path, "tars/ILSVRC2012_img_val.tar", "tars/ILSVRC2012_img_train/n00000001.tar", "tars/ILSVRC2012_img_train/n00000002.tar")
    assert sentence(tmp_path / "tars", **tell).endswith("but ILSVRC2012_img_val.tar (unpack each into a folder of that name)" + how)
    assert "unpack n00000001.tar, n00000002.tar into" in sentence(tmp_path / "tars/ILSVRC2012_img_train")
    assert "there is no folder" in sentence(tmp_path / "none", **tell)
    assert "good/val must have the training set's classes, but it lacks b" in sentence(tmp_path / "good", **tell)
    for none in {}, {"train": tmp_path}, {"val": tmp_path}:
        assert "give a data folder that holds both splits" in (told := sentence(**none, **tell)) and told.endswith(how)
    assert "both ways" in sentence(tmp_path, train=tmp_path, val=tmp_path, **tell)
    tree(tmp_path, "lone/train/a/1.jpg", "lone/val/a/1.jpg")
    assert "only one class, a" in sentence(tmp_path / "lone", **tell)


def test_classes_are_compared_before_anything_is_listed(tmp_path, monkeypatch):
    tree(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg")
    monkeypatch.setattr("minialex.data.folder.images_in", None)
    assert sentence(tmp_path, function=find_splits).endswith("but it lacks b and has c besides")


def test_validation_part(tmp_path):
    tree(tmp_path, "set/train/a/1.jpg", "set/train/b/1.jpg", "set/val/a/2.jpg", "set/val/b/2.jpg", "bare/a/3.jpg", "bare/b/3.jpg",
         "wrapped/validation/validation/a/4.jpg", "wrapped/validation/validation/b/4.jpg")
    for data, expected in ("set", "2"), ("set/val", "2"), ("set/train", "1"), ("bare", "3"), ("wrapped", "4"):
        assert names(open_validation(tmp_path / data, ["b", "a"])) == [f"b/{expected}.jpg", f"a/{expected}.jpg"]


def test_fingerprint(tmp_path):
    folder = open_folder(tree(tmp_path, "b/2.jpg", "a/1.jpg", "a/sub/new\nline.jpg"))
    sha256 = hashlib.sha256(b"a/1.jpg\na/sub/new\nline.jpg\nb/2.jpg").hexdigest()
    assert folder.fingerprint() == {"images": 3, "sha256": sha256}
    assert ImageFolder(folder.root, folder.classes, list(folder.paths), folder.labels).fingerprint() == folder.fingerprint()
    assert open_folder(tmp_path, ["b", "a"]).fingerprint() != folder.fingerprint()


def test_picture(tmp_path):
    tree(tmp_path, "a/2.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / "a/1.png")
    folder = open_folder(tmp_path)
    np.testing.assert_array_equal(folder.picture(0, 16), square(tmp_path / "a/1.png", 16))
    np.testing.assert_array_equal(folder.picture(0, 16, "squash"), squash(tmp_path / "a/1.png", 16))
    with pytest.raises(UnreadableImage, match="a/2.png: it is empty"):
        folder.picture(1, 16)


# Lists

def write(root, **texts):
    """Text files root/<name>.txt."""
    for name, text in texts.items():
        (root / f"{name}.txt").write_text(text)
    return root


def test_list(tmp_path):
    tree(tmp_path, "x/1.jpg", "x/2 b.jpg", "y.jpg")
    write(tmp_path, list=f"# a comment\n\nx/2 b.jpg  dog\n{tmp_path}/y.jpg\tcat\n  x/1.jpg dog  \r\n./gone.jpg ant")
    folder = open_split(tmp_path / "list.txt")
    assert folder.root == str(tmp_path) and folder.classes == ["ant", "cat", "dog"]
    assert list(folder.paths) == [f"{tmp_path}/x/2 b.jpg", f"{tmp_path}/y.jpg", f"{tmp_path}/x/1.jpg", f"{tmp_path}/./gone.jpg"]
    assert folder.labels.tolist() == [2, 1, 2, 0] and folder.labels.dtype == np.int32
    folder = open_split(tmp_path / "list.txt", ["dog", "ant", "cat", "cow"])
    assert folder.labels.tolist() == [0, 2, 0, 1] and folder.classes == ["dog", "ant", "cat", "cow"]
    assert "line 4: the training set has no class cat" in sentence(tmp_path / "list.txt", ["dog", "ant"], function=open_split)


def test_list_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tree(tmp_path, "1.jpg"), list="1.jpg 0"))
    folder = open_split("list.txt")
    assert os.path.exists(folder.paths[0]) and names(folder) == ["1.jpg"]


@pytest.mark.parametrize("text, told", [
    ("1.jpg 0\n\n1.jpg\n", "list.txt, line 3: expected the path of an image, a space and a label, not 1.jpg"),
    ("1.jpg,0\n", "line 1: expected"), ("my cat.jpg\n", "line 1: expected"), ("1.jpg 0\n1.jpg\0 0\n", "line 2: it is not text"),
    ("# nothing\n", "list.txt lists no images"), ("", "lists no images"),
    ("2.jpg 0\n", "2.jpg for one: its paths must be absolute or begin in")])
def test_what_is_amiss_in_a_list(tmp_path, text, told):
    assert told in sentence(write(tree(tmp_path, "1.jpg"), list=text) / "list.txt", function=open_split)


def test_numbers_as_labels(tmp_path):
    path = write(tree(tmp_path, "1.jpg"), list="1.jpg 10\n1.jpg 2\n1.jpg 0\n1.jpg 10") / "list.txt"
    folder = open_list(path)
    assert folder.classes == ["0", "2", "10"] and folder.labels.tolist() == [2, 1, 0, 2]
    words = [f"w{i}" for i in range(11)]
    counted = open_list(path, words)  # as Caffe counts the classes of the training set
    assert counted.classes == words and counted.labels.tolist() == [10, 2, 0, 10]
    assert open_list(path, ["0", "10", "2"]).labels.tolist() == [1, 2, 0, 1], "names that happen to be numbers"
    assert "line 1: label 10 is beyond the classes of the training set, 0 to 9" in sentence(path, words[:10], function=open_list)
    write(tmp_path, synset_words="".join(f"n{9 - i} word, of {i}\n" for i in range(11)))
    assert open_list(path).classes == ["n9", "n7", "n-1"] and open_list(path, ["n7", "n-1", "n9"]).labels.tolist() == [1, 0, 2, 1]
    write(tmp_path, classes="great white shark\n" + "\n".join(words[1:]))
    assert open_list(path).classes == ["great white shark", "w2", "w10"]
    write(tmp_path, classes="a\nb\nc\n")
    assert "line 1: label 10 is beyond the classes of" in sentence(path, function=open_list)
    write(tmp_path, classes="crane\nb\ncrane\n")
    assert "classes.txt, line 3: a second class is called crane, as in line 1" in sentence(path, function=open_list)


def test_lists_as_splits(tmp_path):
    """Caffe's train.txt and val.txt, with the images in train/ and val/ beside them."""
    tree(tmp_path, "val/v1.jpg", "val/v2.jpg", "train/n1/a.jpg", "train/n2/b.jpg")
    write(tmp_path, train="n1/a.jpg 0\nn2/b.jpg 1\n", val="v1.jpg 1\nv2.jpg 0\n")
    named = dict(train=tmp_path / "train.txt", val=tmp_path / "val.txt")
    for train, val in find_splits(tmp_path), find_splits(**named):
        assert names(train) == ["n1/a.jpg", "n2/b.jpg"] and names(val) == ["v1.jpg", "v2.jpg"] and val.root == str(tmp_path / "val")
        assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1, 0] and train.classes == val.classes
    assert find_splits(tmp_path)[0].classes == ["n1", "n2"] and find_splits(**named)[0].classes == ["0", "1"]
    only = write(tree(tmp_path / "only", "1.jpg"), train="1.jpg a\n1.jpg b", val="1.jpg b")
    assert [split.labels.tolist() for split in find_splits(only)] == [[0, 1], [1]]
    assert open_validation(only, ["b", "a"]).labels.tolist() == [0]


# ImageNet

WNIDS = ["n01440764", "n02100735", "n02119789"]
IDS = {1: "n02119789", 2: "n02100735", 3: "n01440764"}  # the development kit does not count in the order of the wnids
TRUTH = [3, 1, 2, 1]
VAL = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 5)]


def imagenet(root, train="ILSVRC2012_img_train", val="ILSVRC2012_img_val", **texts):
    return write(tree(root, *(f"{train}/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2)), *(f"{val}/{name}" for name in VAL)), **texts)


def truth(words=TRUTH):
    return dict(ILSVRC2012_validation_ground_truth="".join(f"{word}\n" for word in words))


def checked(root, classes=WNIDS[::-1]):
    train, val = find_splits(root)
    assert train.classes == val.classes == WNIDS and len(train) == 6
    assert [os.path.basename(path) for path in val.paths] == VAL and val.labels.tolist() == [0, 2, 1, 2]
    assert [classes[label] for label in open_validation(root, classes).labels] == [IDS[i] for i in TRUTH]


@pytest.mark.parametrize("name, text", [
    ("map_clsloc", "n02119789 1 kit_fox\nn02100735 2 English_setter\nn01440764 3 tench\n"),
    ("synsets", "n02119789\nn02100735\nn01440764\n"), ("synset_words", "3 n01440764\n1 n02119789\n2 n02100735"),
    ("LOC_synset_mapping", "n02119789 kit fox\nn02100735 English setter\nn01440764 tench, Tinca tinca\n")])
def test_imagenet_with_a_text_of_its_synsets(tmp_path, name, text):
    checked(imagenet(tmp_path, **truth(), **{name: text}))


@pytest.mark.parametrize("compressed", [True, False])
def test_imagenet_with_its_development_kit(tmp_path, compressed):
    io = pytest.importorskip("scipy.io", reason="no scipy here to write a meta.mat with")
    kit = tmp_path / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    imagenet(tmp_path), write(kit, **truth())
    rows = [(i, IDS.get(i, f"n1000000{i}"), "a, b", "", 0, np.zeros((1, 2 * i)), 0.0, 1300) for i in range(1, 6)]
    fields = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images".split()
    synsets = np.array(rows, dtype=[(field, object) for field in fields]).reshape(-1, 1)
    io.savemat(kit / "meta.mat", {"synsets": synsets}, do_compression=compressed)
    checked(tmp_path)
    (kit / "meta.mat").write_bytes((kit / "meta.mat").read_bytes()[:200])
    assert "meta.mat cannot be read as the development kit's" in sentence(tmp_path, function=find_splits)


def test_imagenet_as_kaggle_hands_it_out(tmp_path):
    wnids = [IDS[i] for i in TRUTH]
    solution = "ImageId,PredictionString\n" + "".join(f"{name[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n" for name, wnid in zip(VAL, wnids))
    imagenet(tmp_path, "ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val")
    assert "LOC_val_solution.csv beside it must tell" in sentence(tmp_path, function=find_splits)
    (tmp_path / "LOC_val_solution.csv").write_text(solution)
    for root in tmp_path, tmp_path / "ILSVRC", tmp_path / "ILSVRC/Data/CLS-LOC":
        checked(root)
    (tmp_path / "LOC_val_solution.csv").write_text(solution.replace("val_00000003", "val_30000000"))
    assert f"LOC_val_solution.csv does not tell the class of {tmp_path}/ILSVRC/Data/CLS-LOC/val/{VAL[2]}" in sentence(tmp_path, function=find_splits)


def test_imagenet_with_wnids_as_ground_truth(tmp_path):
    checked(imagenet(tmp_path / "own", **truth([IDS[i] for i in TRUTH])))
    checked(imagenet(tmp_path / "tf", "train", "val", imagenet_2012_validation_synset_labels="\n".join(IDS[i] for i in TRUTH)))


def test_imagenet_with_the_list_of_caffe(tmp_path):
    lines = "".join(f"{name} {label}\n" for name, label in zip(VAL, [0, 2, 1, 2]))
    checked(write(imagenet(tmp_path / "a"), val=lines), WNIDS)
    checked(write(imagenet(tmp_path / "b", "train", "val"), val=lines, synsets="\n".join(WNIDS)))


def test_imagenet_with_some_of_its_images(tmp_path):
    root = imagenet(tmp_path, **truth([IDS[i] for i in TRUTH]))
    (root / "ILSVRC2012_img_val" / VAL[0]).unlink()
    assert find_splits(root)[1].labels.tolist() == [2, 1, 2], "a line is that of the image with its number, not of the next image"
    assert open_split(root / "ILSVRC2012_img_val").classes == WNIDS[1:]
    shutil.rmtree(root / "ILSVRC2012_img_train" / WNIDS[1])
    assert sentence(root, function=find_splits).endswith("but it has n02100735 besides")
    tree(root, "ILSVRC2012_img_val/x.JPEG")
    assert "ground_truth.txt does not tell the class of" in sentence(root / "ILSVRC2012_img_val")


def test_what_is_missing_for_imagenet(tmp_path):
    tell = dict(function=find_splits)
    assert "ILSVRC2012_validation_ground_truth.txt or LOC_val_solution.csv beside it must tell their classes" in sentence(imagenet(tmp_path), **tell)
    write(tmp_path, **truth())
    assert "put the development kit's meta.mat beside it" in sentence(tmp_path, **tell)
    write(tmp_path, synsets="\n".join(WNIDS))  # Caffe's, in order: taken for the IDs it would give wrong classes to almost all
    assert "put the development kit's meta.mat beside it" in sentence(tmp_path, **tell)
    write(tmp_path, map_clsloc="n02119789 1 kit_fox\n")
    assert f"does not tell the class of {tmp_path}/ILSVRC2012_img_val/{VAL[0]}" in sentence(tmp_path, **tell)


# Packed sets

def test_packed_splits(tmp_path):
    from minialex.data.pack import pack
    from minialex.data.packed import Packed
    for split in "train", "val":
        for name in "a", "b":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (200, 100, 50)).save(tmp_path / "set" / split / name / "1.png")
        pack(open_split(tmp_path / "set" / split), tmp_path / "packed" / split, 8)
    train, val = find_splits(tmp_path / "packed")
    assert isinstance(train, Packed) and isinstance(val, Packed) and train.classes == ["a", "b"] and val.labels.tolist() == [0, 1]
    assert isinstance(open_validation(tmp_path / "packed", ["a", "b"]), Packed) and val.fingerprint() == find_splits(tmp_path / "set")[1].fingerprint()
    mixed = find_splits(train=tmp_path / "packed/train", val=tmp_path / "set/val")
    assert mixed[1].labels.tolist() == [0, 1]


# Without labels

def test_unlabelled(tmp_path, monkeypatch):
    tree(tmp_path, "set/b.jpg", "set/a/z.png", "set/a/b/c.jpg", "set/x.txt", "set/.hidden.jpg", "empty/", "plain")
    folder = open_unlabelled(tmp_path / "set")
    assert names(folder) == ["a/b/c.jpg", "a/z.png", "b.jpg"] and folder.classes == [] and str(folder) == "3 images"
    assert folder.labels.tolist() == [-1] * 3 and folder.labels.dtype == np.int32
    write(tmp_path, list="set/b.jpg\n# no\n\nset/my cat.jpg\n", labelled="set/b.jpg 3\nset/my cat.jpg n01\nset/plain")
    assert names(open_unlabelled(tmp_path / "list.txt")) == ["set/b.jpg", "set/my cat.jpg"]
    assert names(open_unlabelled(tmp_path / "labelled.txt")) == ["set/b.jpg", "set/my cat.jpg", "set/plain"]
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    monkeypatch.chdir(tmp_path)
    for path in "set/b.jpg", str(tmp_path / "set/b.jpg"), "gone.jpg", "picture":
        folder = open_unlabelled(path)
        assert list(folder.paths) == [path] and folder.labels.tolist() == [-1] and len(folder.fingerprint()) == 2
    assert "there are no images in" in sentence("empty", function=open_unlabelled)
    assert "nowhere cannot be read: No such file" in sentence("nowhere", function=open_unlabelled)
    assert "plain lists no images" in sentence("plain", function=open_unlabelled)


# Odd files

@pytest.mark.filterwarnings(r"ignore:::PIL\.")
def test_odd_files(odd):
    """Each of them is not listed, or gives a picture, or is refused by name."""
    listed = {name: expected for name, (expected, _) in FILES.items() if expected != "no image"}
    for folder in open_folder(odd.parent), open_unlabelled(odd.parent):
        assert sorted(map(os.path.basename, folder.paths)) == sorted(listed)
    for place, path in enumerate(folder.paths):
        expected, refused = listed[os.path.basename(path)], set()
        for fit in "crop", "squash":
            try:
                pixels = folder.picture(place, 32, fit)
            except UnreadableImage as error:
                refused.add(fit)
                assert error.path == path and error.reason
            else:
                assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and pixels.any(), path
        assert refused in {None: [{"crop", "squash"}], "either": [set(), {"crop", "squash"}]}.get(expected, [set()]), path


# What is left out

def test_files_of_other_kinds_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("minialex.data.listing.REMEDIES", {"heic": "pip install 'minialex[heif]'"})
    for module in "listing", "folder":
        monkeypatch.setattr(f"minialex.data.{module}.EXTENSIONS", {"jpg"})
    root = tree(tmp_path / "set", "a/1.jpg", "a/1.heic", "a/b/2.HEIC", "b/1.jpg", "b/x.mov", "b/y.mov", "b/bare", "b/10.30 at home", "b/old.jpg~",
                "b/notes.txt", "b/1.json", "b/Thumbs.db", "b/.DS_Store", "b/desktop.ini", "b/Icon\r", "b/IMG_1.AAE")
    folder = open_folder(root)
    assert names(folder) == ["a/1.jpg", "b/1.jpg"]
    assert folder.beside.other == {".heic": 2, ".mov": 2, "no ending": 2, ".jpg~": 1}
    told = f"7 other files in {root} were left out (.heic 2: pip install 'minialex[heif]', .mov 2, no ending 2, .jpg~ 1)"
    assert folder.remarks() == [told]
    tree(tmp_path / "phone", "a/1.heic", "b/1.heic")
    assert sentence(tmp_path / "phone").endswith("looked for .jpg (other files: .heic 2: pip install 'minialex[heif]')")
    tree(tmp_path / "mixed", "a/1.jpg", "b/1.heic")
    assert "class folder b of" in sentence(tmp_path / "mixed") and "holds no images (other files: .heic 1" in sentence(tmp_path / "mixed")
    assert open_unlabelled(root / "a").remarks() == [f"2 other files in {root}/a were left out (.heic 2: pip install 'minialex[heif]')"]


def test_folders_of_systems_are_passed_over(tmp_path):
    tree(tmp_path, "a/1.jpg", "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "a/.thumbnails/1.jpg", "b/1.jpg", "b/__MACOSX/1.jpg", "@eaDir/1.jpg",
         "#recycle/1.jpg", "$RECYCLE.BIN/1.jpg", "System Volume Information/1.jpg", "lost+found/")
    folder = open_folder(tmp_path)
    assert folder.classes == ["a", "b"] and names(folder) == ["a/1.jpg", "b/1.jpg"] and not folder.remarks()


@pytest.mark.parametrize("link, to, told", [
    ("a/up", "..", "it leads up to {set}"), ("a/far", "../..", "it leads up to {above}"), ("a/self", ".", "it leads up to {set}/a"),
    ("a/in/back", "../..", "it leads up to {set}"), ("a/other", "../b", "it leads to another class, in {set}/b"),
    ("c/round", "{above}/store", "it leads up to {above}/store"), ("up", ".", "it leads up to {set}"), ("whole", "..", "it leads up to {above}")])
def test_links_that_lead_astray_are_named_and_not_followed(tmp_path, link, to, told):
    """Folders that are links belong to the set, a class folder among them, but for those that bring in what belongs elsewhere."""
    root = tree(tmp_path / "set", "a/1.jpg", "a/in/2.jpg", "b/1.jpg")
    tree(tmp_path / "store", "c/1.jpg", "more/3.jpg")
    (root / "c").symlink_to(tmp_path / "store/c")
    (root / "a/more").symlink_to(tmp_path / "store/more")
    (root / "b/same").symlink_to(root / "b/in")
    (root / "b/in").mkdir()
    tree(root, "b/in/1.jpg")
    expected = names(open_folder(root))
    assert expected == ["a/1.jpg", "a/in/2.jpg", "a/more/3.jpg", "b/1.jpg", "b/in/1.jpg", "b/same/1.jpg", "c/1.jpg"] and not open_folder(root).remarks()
    (root / link).symlink_to(to.format(above=tmp_path))
    folder = open_folder(root)
    assert folder.classes == ["a", "b", "c"] and names(folder) == expected
    assert folder.remarks() == [f"{root / link} was not followed: {told.format(set=root, above=tmp_path)}"]


def test_entries_that_cannot_be_looked_at_are_named(tmp_path, monkeypatch):
    """A link to itself, which the system refuses; one to a folder that may not be entered, acted since root may; a folder that fails."""
    tree(tmp_path, "a/1.jpg", "b/1.jpg", "b/shut/x.jpg")
    for name in "round", "a/round", "a/round.jpg":
        (tmp_path / name).symlink_to(os.path.basename(name))
    (tmp_path / "a/lost").symlink_to("nowhere")
    refuse_folder(monkeypatch, "shut", OSError(5, "Input/output error"))
    folder = open_folder(tmp_path)
    assert folder.classes == ["a", "b"] and names(folder) == ["a/1.jpg", "a/round.jpg", "b/1.jpg"], "decoding names what is called an image"
    told = sorted(folder.remarks())
    assert [sentence.split(":")[0] for sentence in told] == [f"{tmp_path}/a/lost was left out", f"{tmp_path}/a/round was left out",
                                                            f"{tmp_path}/round was left out", f"the folder {tmp_path}/b/shut cannot be read"]
    assert "leads nowhere" in told[0] and "symbolic links" in told[1] and "symbolic links" in told[2] and "Input/output error" in told[3]
    with pytest.raises(UnreadableImage, match="symbolic links"):
        folder.picture(1, 8)
    for i in range(9):
        (tmp_path / f"a/r{i}").symlink_to(f"r{i}")
    assert len(open_folder(tmp_path).remarks()) == 6 and open_folder(tmp_path).remarks()[-1].startswith("8 more entries of")
    tree(tmp_path / "flat", "1.jpg", "x.mov")
    (tmp_path / "flat/round").symlink_to("round")
    (tmp_path / "LOC_val_solution.csv").write_text("1,n01 1 2 3 4\n")
    assert len(open_folder(tmp_path / "flat").remarks()) == 2


def test_images_beside_the_class_folders_are_told(tmp_path):
    folder = open_folder(tree(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg", "README.md"))
    assert folder.remarks() == [f"1 image beside the class folders of {tmp_path} was left out"]
    with pytest.warns(UserWarning, match="1 image beside the class folders"):
        open_data(train=tmp_path, val=tmp_path)


# Headers

@pytest.mark.parametrize("header", ["filename label", "path\tlabel", "image_id  class", '"file name" "label"', "ID Category"])
def test_a_header_of_a_list_is_no_image(tmp_path, header):
    write(tree(tmp_path, "1.jpg", "2.jpg"), list=f"# made by hand\n{header}\n1.jpg a\n2.jpg b\n")
    folder = open_list(tmp_path / "list.txt")
    assert folder.classes == ["a", "b"] and names(folder) == ["1.jpg", "2.jpg"] and folder.labels.tolist() == [0, 1]
    assert names(open_unlabelled(tmp_path / "list.txt")) == ["1.jpg", "2.jpg"]


def test_a_first_line_that_only_looks_like_a_header(tmp_path):
    write(tree(tmp_path, "1.jpg", "image", "file"), list="image label\n1.jpg b\n", bad="Bild Klasse\n1.jpg a\n", one="gone.jpg label\n1.jpg a")
    assert open_list(tmp_path / "list.txt").classes == ["b", "label"], "there is such a file"
    assert sentence(tmp_path / "bad.txt", function=open_list).endswith(
        "bad.txt, line 1: there is no image Bild; if the line is a header, put a # before it")
    assert open_list(tmp_path / "one.txt").classes == ["a", "label"], "an image that is missing is named when it is read"


# Names

def test_names_that_differ_in_unicode_normalisation(tmp_path):
    """macOS stores an accent apart from its letter, Linux as it is typed."""
    one, two = "caf\u00e9", "cafe\u0301"
    tree(tmp_path, f"train/{one}/1.jpg", "train/b/1.jpg", f"val/{two}/1.jpg", "val/b/1.jpg")
    told = ": 'caf\\xe9' and 'cafe\\u0301' differ in Unicode normalisation alone, so rename one of them"
    assert sentence(tmp_path, function=find_splits).endswith(told)
    assert sentence(tmp_path / "val", ["b", one]).endswith(told)
    write(tmp_path, list=f"val/b/1.jpg {two}")
    assert sentence(tmp_path / "list.txt", [one], function=open_list).endswith(told)
    assert "normalisation" not in sentence(tmp_path / "val", ["b", "cafe"])
    swapped = told.replace("'caf\\xe9' and 'cafe\\u0301'", "'cafe\\u0301' and 'caf\\xe9'")
    assert sentence(tmp_path / "train", ["b", two]).endswith(swapped) and swapped != told
