"""The built-in set: its files, that it repeats, that it is never half there, and that weak classifiers fail on it."""

import contextlib
import hashlib
import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from minialex.data import shapes
from minialex.errors import UserError


def watching(call):
    """A progress bar that calls call(done, total) whenever it moves."""
    @contextlib.contextmanager
    def bar(total, **about):
        done = itertools.count(1)
        yield SimpleNamespace(update=lambda: call(next(done), total))
    return bar


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The default set, cut to 100 and 30 pictures a class to save time."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    shapes.make(root, train=100, val=30)
    return root


def load(folder, side=None):
    pictures, labels = [], []
    for label, name in enumerate(shapes.CLASSES):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.resize((side, side), Image.BOX) if side else picture))
                labels.append(label)
    return np.stack(pictures), np.array(labels)


def digests(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*") if path.is_file()}


def test_layout_and_size(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == ["train", "val"]
    for split, count in ("train", 100), ("val", 30):
        assert sorted(path.name for path in (drawn / split).iterdir()) == sorted(shapes.CLASSES)
        pictures, labels = load(drawn / split)
        assert pictures.shape == (10 * count, shapes.SIDE, shapes.SIDE, 3) and pictures.dtype == np.uint8
        assert np.bincount(labels).tolist() == [count] * 10


def test_neither_shape_nor_texture_decides():
    pairs = [name.split("_") for name in shapes.CLASSES]
    assert len(set(shapes.CLASSES)) == 10
    for side in 0, 1:
        for value in {pair[side] for pair in pairs}:
            assert len({pair[1 - side] for pair in pairs if pair[side] == value}) >= 2, value


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_a_mirrored_shape_is_the_same_shape(name):
    # A mirror image seen in a mirror along the shape's own axis, x: the flip alone leaves only a turn.
    shape = shapes.SHAPES[name]
    np.testing.assert_allclose(shape(shapes.X, -shapes.Y), shape(shapes.X, shapes.Y), atol=1e-5)


def test_same_seed_same_files(tmp_path):
    for name, seed in ("one", 5), ("two", 5), ("other", 6):
        shapes.make(tmp_path / name, train=2, val=1, seed=seed)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) == 30
    assert not set(one.values()) & set(other.values())


def test_a_picture_does_not_depend_on_how_many_others_there_are(tmp_path):
    shapes.make(tmp_path / "few", train=1, val=1)
    shapes.make(tmp_path / "more", train=2, val=2)
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    assert few.items() <= more.items()


def test_no_picture_is_close_to_another(drawn):
    small = np.concatenate([load(drawn / split, 16)[0] for split in ("train", "val")]).reshape(1300, -1).astype(float)
    square = (small ** 2).sum(1)
    distance = np.maximum(square[:, None] + square - 2 * small @ small.T, 0) / small.shape[1]
    np.fill_diagonal(distance, np.inf)
    assert np.sqrt(distance.min()) > 8  # grey levels, root mean square


def test_interrupted_leaves_nothing(tmp_path):
    def interrupt(done, total):
        assert not (tmp_path / "set").exists()
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shapes.make(tmp_path / "set", train=1, val=1, bar=watching(interrupt))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_picture(tmp_path):
    seen = []
    shapes.make(tmp_path / "set", train=1, val=1, bar=watching(lambda *args: seen.append(args)))
    assert seen == [(done, 20) for done in range(1, 21)]


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        shapes.make(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def small_make(monkeypatch):
    """default_set() with one picture a class and split."""
    make, calls = shapes.make, []

    def small(root, *, bar):
        calls.append(root)
        make(root, train=1, val=1, bar=bar)

    monkeypatch.setattr(shapes, "make", small)
    return calls


def test_default_set_is_made_once(tmp_path, monkeypatch, small_make):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    first = shapes.default_set()
    assert first == tmp_path / f"shapes-v{shapes.VERSION}"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert shapes.default_set() == first and len(small_make) == 1
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_default_set_is_in_the_users_cache(tmp_path, monkeypatch, small_make):
    monkeypatch.delenv("MINIALEX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert shapes.default_set().parent == tmp_path / "xdg" / "minialex"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert shapes.default_set().parent == tmp_path / "home" / ".cache" / "minialex"


def test_default_set_when_another_process_is_first(tmp_path, monkeypatch):
    make = shapes.make
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))

    def other_is_first(done, total):
        if done == total:
            make(tmp_path / f"shapes-v{shapes.VERSION}", train=1, val=1)

    monkeypatch.setattr(shapes, "make", lambda root, bar: make(root, train=1, val=1, bar=bar))
    root = shapes.default_set(bar=watching(other_is_first))
    assert [path.name for path in tmp_path.iterdir()] == [root.name] and len(digests(root)) == 20


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MINIALEX_CACHE"):
        shapes.default_set()


# Weak classifiers. On the whole set, 300 and 50 pictures a class, they reach 19 % (linear, pixels), 19 % (linear,
# colours) and 28 % (nearest neighbour); chance is 10 %.

def linear(features, data):
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        pytest.skip("scikit-learn is not installed (pip install minialex[test]): no linear classifier to measure with")
    (x, labels), (xv, labels_v) = data
    x, xv = features(x), features(xv)
    best = 0
    for strength in 1e-3, 1e-1:  # strongly and hardly regularised
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: the accuracy no longer moves
            fitted = LogisticRegression(C=strength, max_iter=60).fit(x, labels)
        best = max(best, fitted.score(xv, labels_v))
    return best


@pytest.mark.parametrize("side", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_linear_classifier_on_pixels_fails(drawn, side):
    data = load(drawn / "train", side), load(drawn / "val", side)
    accuracy = linear(lambda x: x.reshape(len(x), -1) / 255, data)
    print(f"linear on {side} x {side} pixels: {accuracy:.1%}")
    assert accuracy < 0.4


def test_linear_classifier_on_colours_fails(drawn):
    def histogram(x):
        bins = (x // 64 @ [16, 4, 1]).reshape(len(x), -1)
        counts = np.stack([np.bincount(row, minlength=64) for row in bins])
        return np.sqrt(counts / bins.shape[1]) * 8  # of unit variance, roughly

    accuracy = linear(histogram, (load(drawn / "train"), load(drawn / "val")))
    print(f"linear on a colour histogram: {accuracy:.1%}")
    assert accuracy < 0.4


def test_nearest_neighbour_on_pixels_fails(drawn):
    (x, labels), (xv, labels_v) = ((p.reshape(len(p), -1).astype(float), y)
                                   for p, y in (load(drawn / "train", 32), load(drawn / "val", 32)))
    nearest = ((x ** 2).sum(1) - 2 * xv @ x.T).argmin(1)
    accuracy = (labels[nearest] == labels_v).mean()
    print(f"nearest neighbour on 32 x 32 pixels: {accuracy:.1%}")
    assert accuracy < 0.4
