"""Compact paths, and listings that are kept only as long as they are true."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minialex.data import listing
from minialex.data.folder import open_folder, open_unlabelled
from minialex.data.listing import Paths

ROOT = Path(__file__).resolve().parents[2]
ODD = ["a/x.jpg", "a/new\nline.jpg", "b/é.jpg", "b/\udcff.jpg", "b/ .jpg", "/elsewhere/y.jpg"]


def test_paths_are_a_sequence_of_str():
    paths, expected = Paths.of("/set", ODD), [os.path.join("/set", name) for name in ODD]
    assert list(paths) == expected and len(paths) == 6 and paths[5] == "/elsewhere/y.jpg"
    assert [paths[i] for i in range(-6, 6)] == expected * 2 and paths[np.int64(3)] == expected[3]
    assert paths[1:4] == expected[1:4] and paths[::-2] == expected[::-2] and expected[2] in paths
    for place in 6, -7:
        with pytest.raises(IndexError):
            paths[place]
    assert list(Paths.of("/set", [])) == []
    assert list(Paths.of("", ["x.jpg"])) == ["x.jpg"]


def test_stretches():
    paths = Paths.of("r", ["0", "11", "222", "3333", "4"])
    assert list(paths.stretches([(3, 5), (2, 2), (0, 2)])) == ["r/3333", "r/4", "r/0", "r/11"]
    assert list(paths.stretches([(2, 2)])) == []


def test_sha256():
    assert Paths.of("/set", ODD).sha256() == hashlib.sha256(os.fsencode("\n".join(ODD))).hexdigest()
    assert Paths.of("/set", []).sha256() == hashlib.sha256(b"").hexdigest()


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A set that is kept from its first image on, in folders that changed a minute ago; -> (its root, the cache's folder)."""
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "KEPT_FROM", 1)
    for name in "set/a/2.jpg", "set/a/1.jpg", "set/a/deep/er/3.jpg", "set/b/new\nline.jpg", "set/b/\udcff.jpg", "set/b/film.mov":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    settle(tmp_path / "set")
    return tmp_path / "set", tmp_path / "cache/listings"


def settle(root):
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 60,) * 2)


def reads(monkeypatch, function):
    """(what the function gives, how many folders it has read)"""
    count = []

    def scandir(path, real=os.scandir):
        count.append(path)
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        return function(), len(count)


def test_kept_listing(kept, monkeypatch):
    root, cache = kept
    first, read = reads(monkeypatch, lambda: open_folder(root))
    assert read == 5 and len(list(cache.iterdir())) == 1
    monkeypatch.chdir(root.parent)
    for name in root, "set", "set/":  # one listing, however its folder is named
        again, read = reads(monkeypatch, lambda: open_folder(name))
        assert read == 1, "only the root, for the names of its classes"
        assert [os.path.abspath(path) for path in again.paths] == list(first.paths)
        assert again.beside.other == first.beside.other == {".mov": 1}
        assert again.fingerprint() == first.fingerprint() and again.labels.tolist() == [0, 0, 0, 1, 1] and again.labels.dtype == np.int32
    turned = open_folder(root, ["b", "a"])
    assert list(turned.paths) == first.paths[3:] + first.paths[:3] and turned.labels.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("change", [
    lambda root: (root / "a/new.jpg").touch(), lambda root: (root / "a/deep/er/new.jpg").touch(), lambda root: (root / "a/2.jpg").unlink(),
    lambda root: (root / "a/1.jpg").rename(root / "a/0.jpg"), lambda root: (root / "b/sub").mkdir(),
    lambda root: [(root / "c").mkdir(), (root / "c/x.jpg").touch()],
    lambda root: (root / "a/deep").rename(root.parent / "gone")])
def test_a_changed_folder_is_listed_anew(kept, change):
    root, cache = kept
    open_folder(root)
    change(root)
    folder, (file,) = open_folder(root), cache.iterdir()
    file.unlink()
    assert list(folder.paths) == list(open_folder(root).paths)
    assert sorted(folder.paths) == sorted(str(path) for path in root.rglob("*.jpg"))


def test_unlabelled_folder_is_kept_too(kept, monkeypatch):
    root, cache = kept
    first = open_unlabelled(root)
    again, read = reads(monkeypatch, lambda: open_unlabelled(root))
    assert read == 0 and list(again.paths) == list(first.paths)
    (root / "b/x.jpg").touch()
    assert len(open_unlabelled(root)) == len(first) + 1
    settle(root)
    assert open_folder(root).classes == ["a", "b"], "the listing of the same folder as a tree is not taken for that of its classes"


def test_a_listing_with_something_amiss_is_not_kept(kept):
    """A link may come to lead somewhere without a change of the folder it lies in."""
    root, cache = kept
    (root / "a/lost").symlink_to(root.parent / "elsewhere")
    settle(root)
    assert len(open_folder(root)) == 5 and not cache.exists()
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere/x.jpg").touch()
    assert len(open_folder(root)) == 6


def test_a_folder_that_changed_just_now_is_not_kept(kept):
    root, cache = kept
    os.utime(root / "a/deep", (time.time() + 60,) * 2)      # however long it is until it is listed
    open_folder(root)
    assert not cache.exists()


def test_small_sets_are_not_kept(kept, monkeypatch):
    root, cache = kept
    monkeypatch.setattr(listing, "KEPT_FROM", 6)
    open_folder(root)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "half", "bytes", "form", "pickle"])
def test_damaged_listing_is_made_anew(kept, damage, monkeypatch):
    root, cache = kept
    first, (file,) = open_folder(root), cache.iterdir()
    whole = file.read_bytes()
    if damage == "bytes":
        at = whole.index(b"a/1.jpg")
        file.write_bytes(whole[:at] + b"a/9" + whole[at + 3:])
    elif damage == "form":
        monkeypatch.setattr(listing, "FORM", listing.FORM + 1)
    else:
        file.write_bytes({"empty": b"", "half": whole[:len(whole) // 2], "pickle": b"\x80\x04N."}[damage])
    again, read = reads(monkeypatch, lambda: open_folder(root))
    assert read == 5 and list(again.paths) == list(first.paths)
    assert reads(monkeypatch, lambda: open_folder(root))[1] == 1, "and kept again"


def test_cache_that_cannot_be_written_is_no_error(kept, monkeypatch):
    root, cache = kept
    cache.parent.write_text("a file where the folder should be")
    assert len(open_folder(root)) == 5
    monkeypatch.delenv("MINIALEX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(open_folder(root)) == 5


PROGRAM = """
import json, os, sys
from minialex.data import folder, image, listing
def mb(line):
    return int(open("/proc/self/status").read().split(line + ":")[1].split()[0]) / 2**10
read, scandir = [], os.scandir
os.scandir = lambda path: read.append(path) or scandir(path)
before = mb("VmRSS")
found = folder.open_folder(sys.argv[1])
held, peak = mb("VmRSS") - before, mb("VmHWM") - before
json.dump({"images": len(found), "read": len(read), "mb": held, "peak_mb": peak, "sha256": found.fingerprint()["sha256"],
           "last": found.paths[-1], "labels": found.labels[[0, -1]].tolist()}, sys.stdout)
"""


def opened(root, cache):
    """What opening a folder takes in a process of its own: how many folders it reads, and MB beyond what was there after the imports."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc here to tell the memory of a process")
    run = subprocess.run([sys.executable, "-c", PROGRAM, root], env={**os.environ, "MINIALEX_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
                         capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("full", ["the disk", "the folder"])
def test_a_listing_that_cannot_be_kept_is_no_error(tmp_path, monkeypatch, full):
    if full == "the disk":
        monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    else:
        monkeypatch.setenv("MINIALEX_CACHE", "/proc/cache")
    monkeypatch.setattr(listing, "KEPT_FROM", 1)
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/x.jpg").touch()
    os.utime(tmp_path / "set/a", ns=(1, 1))      # long ago, so that it would be kept
    paths, counts, _ = listing.images_in(str(tmp_path / "set"), ["a"])
    assert list(paths) == [str(tmp_path / "set/a/x.jpg")] and counts == [1] and not list(tmp_path.glob("cache/listings/*"))


def test_listing_of_imagenets_size(tmp_path, monkeypatch):
    """The kept listing of 1.28 million images in 1,000 folders, whose files are not made: the folders are as it says."""
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path / "cache"))
    root, classes, each = tmp_path / "set", [f"n{i:08}" for i in range(1000)], 1281
    for name in classes:
        (root / name).mkdir(parents=True)
    paths = Paths.of(root, (f"{name}/{name}_{i}.JPEG" for name in classes for i in range(each)))
    listing._keep(str(root), classes, paths, [each] * 1000, {}, {name: (root / name).stat().st_mtime_ns for name in classes})
    took = opened(root, tmp_path / "cache")
    assert took["images"] == 1_281_000 and took["sha256"] == paths.sha256() and took["labels"] == [0, 999]
    assert took["last"] == str(root / classes[-1] / f"{classes[-1]}_1280.JPEG")
    assert took["read"] == 1 and took["mb"] < 200 and took["peak_mb"] < 200, took      # the root alone, for the names of its classes


@pytest.mark.slow
def test_listing_of_100_000_files(tmp_path):
    root = tmp_path / "set"
    for c in range(100):
        (root / f"c{c:02}").mkdir(parents=True)
        for i in range(1000):
            os.close(os.open(root / f"c{c:02}/{i:04}.jpg", os.O_CREAT | os.O_WRONLY))
    settle(root)
    first, again = opened(root, tmp_path / "cache"), opened(root, tmp_path / "cache")
    assert list((tmp_path / "cache/listings").iterdir()) and again["images"] == first["images"] == 100_000
    assert again["sha256"] == first["sha256"] and (first["read"], again["read"]) == (101, 1)
    (root / "c50/new.jpg").touch()
    assert opened(root, tmp_path / "cache")["images"] == 100_001
