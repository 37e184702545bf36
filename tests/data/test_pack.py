"""Packed sets: the pixels of the decoder, whole after any kill, and never a wrong byte without a word."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_files import FILES, photograph
from PIL import Image

from minialex.data import pack as pack_module
from minialex.data import packed as packed_module
from minialex.data.__main__ import main
from minialex.data.folder import ImageFolder, find_splits, open_folder, open_split
from minialex.data.image import UnreadableImage
from minialex.data.loader import Loader
from minialex.data.pack import pack
from minialex.data.packed import open_pack
from minialex.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MB = 2**20
SIZE = 256      # five pictures to a shard of 1 MB


def draw(root, count=23, classes=3):
    """`count` pictures: EXIF orientation, CMYK, 16 bits, palette, transparency; two of them cannot be read."""
    noise = np.random.default_rng(2012)
    turned = Image.Exif()
    turned[0x0112] = 6
    for i in range(count):
        folder = Path(root, f"c{i % classes}")
        folder.mkdir(parents=True, exist_ok=True)
        small = noise.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        picture = Image.fromarray(small).resize((90 + i, 70), Image.Resampling.BICUBIC)
        if i in (6, 17):
            (folder / f"{i:02}.jpg").write_bytes(b"not an image")
        elif i % 6 == 0:
            picture.save(folder / f"{i:02}.jpg", exif=turned)
        elif i % 6 == 1:
            picture.convert("CMYK").save(folder / f"{i:02}.jpg")
        elif i % 6 == 2:
            Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / f"{i:02}.png")
        elif i % 6 == 3:
            picture.convert("P").save(folder / f"{i:02}.gif")
        elif i % 6 == 4:
            picture.putalpha(100)
            picture.save(folder / f"{i:02}.png")
        else:
            picture.save(folder / f"{i:02}.png")
    return str(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return open_folder(draw(tmp_path_factory.mktemp("images") / "set"))


@pytest.fixture(scope="module")
def ready(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "ready"
    pack(folder, out, SIZE, shard_mb=1, warn=lambda sentence: None)
    return out


@pytest.fixture
def packed(ready, tmp_path):
    """A copy of a packed set that a test may spoil, modification times included."""
    return shutil.copytree(ready, tmp_path / "packed")


def contents(out):
    """{file: bytes}, without the record of what was found right, which holds times."""
    return {path.name: path.read_bytes() for path in Path(out).iterdir() if path.name != "verified.json"}


def readable(folder):
    """Places of the pictures that can be read."""
    return [i for i, path in enumerate(folder.paths) if os.path.basename(path)[:2] not in ("06", "17")]


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600
    return sentence


def touch(path):
    """Sets a modification time of its own."""
    about = os.stat(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)
    touch(path)


# Pixels

@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_pixels_are_the_folders(folder, tmp_path, fit):
    told = []
    index, complete = pack(folder, tmp_path / "out", 128, fit, workers=3, shard_mb=1, warn=told.append)
    packed = open_pack(tmp_path / "out")
    places = readable(folder)
    assert not complete and len(index["shards"]) == 2 and len(packed) == len(places) == 21
    for place, origin in enumerate(places):
        np.testing.assert_array_equal(packed.picture(place, 128, fit), folder.picture(origin, 128, fit))
        assert os.path.relpath(packed.paths[place], packed.root) == os.path.relpath(folder.paths[origin], folder.root)
    np.testing.assert_array_equal(packed.labels, folder.labels[places])
    assert packed.labels.dtype == np.int32 and packed.classes == folder.classes and str(packed) == "21 images in 3 classes, packed at 128 pixels"
    assert [sentence.split(":")[0] for sentence in told] == [f"left out {folder.root}/c0/06.jpg", f"left out {folder.root}/c2/17.jpg"]
    assert [name for name, _ in packed.left_out] == ["c0/06.jpg", "c2/17.jpg"]


def test_a_picture_is_ones_own(ready):
    packed = open_pack(ready)
    picture = packed.picture(3, SIZE)
    before = picture.copy()
    picture[:] = 0
    np.testing.assert_array_equal(packed.picture(3, SIZE), before)
    for place in -1, len(packed):
        with pytest.raises(IndexError):
            packed.picture(place, SIZE)


def test_the_loader_gives_the_same_batches(folder, ready):
    packed, sound = open_pack(ready), readable(folder)
    origin = ImageFolder(folder.root, folder.classes, [folder.paths[i] for i in sound], folder.labels[sound])
    assert packed.fingerprint() == origin.fingerprint()
    reference = [batch for epoch in range(2) for batch in Loader(origin, SIZE, 4, seed=3).epoch(epoch)]
    for workers in 1, 3:
        batches = [batch for epoch in range(2) for batch in Loader(packed, SIZE, 4, seed=3, workers=workers, cache_mb=0).epoch(epoch)]
        assert len(batches) == len(reference) == 12
        for one, other in zip(batches, reference):
            for field in "images", "labels", "index":
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    big = next(Loader(packed, SIZE, 21, shuffle=False).epoch(0))      # more rows than a worker copies at a time
    np.testing.assert_array_equal(big.images, np.stack([packed.picture(i, SIZE) for i in range(21)]))


def test_the_loader_keeps_no_cache_and_refuses_another_size(ready):
    packed = open_pack(ready)
    assert Loader(packed, SIZE, 4)._cache is None
    for size, fit in (224, "crop"), (SIZE, "squash"):
        sentence = refusal(Loader, packed, size, 4, fit=fit)
        assert sentence == refusal(packed.picture, 0, size, fit)
        for part in (f"is packed at {SIZE} pixels as crop", f"{size} pixels as {fit} are asked for", f"--size {size} --fit {fit}", f"--side {SIZE} --fit crop"):
            assert part in sentence


def test_unlabelled_and_lists_and_unusual_names(tmp_path):
    names = ["a\nb.png", "bad\udcff.png", "z.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", tmp_path / name)
    source = ImageFolder(str(tmp_path), [], [str(tmp_path / names[0]), str(tmp_path / names[1]), "/elsewhere.png", str(tmp_path / names[2])],
                         np.full(4, -1, np.int32))
    pack(source, tmp_path / "out", 8, warn=lambda sentence: None)
    assert "lacks p, q" in refusal(open_pack, tmp_path / "out", ["p", "q"])
    packed = open_pack(tmp_path / "out")
    assert list(packed.paths) == [str(tmp_path / "out" / name) for name in names] and packed.left_out[0][0] == "/elsewhere.png"
    assert packed.labels.tolist() == [-1] * 3 and packed.classes == []
    assert [packed.picture(i, 8)[0, 0, 0] for i in range(3)] == [0, 1, 2]


# Classes

def test_classes(ready):
    order = ["c2", "c0", "c1"]
    own, given = open_pack(ready), open_pack(ready, order)
    assert given.classes == order and given.labels.dtype == np.int32
    assert [order[label] for label in given.labels] == [own.classes[label] for label in own.labels]
    assert refusal(open_pack, ready, ["c0", "c1", "d"]) == (
        f"{ready} must have the training set's classes, but it lacks d and has c2 besides")


def test_a_class_of_unreadable_images_stays(tmp_path):
    for name in "a", "b", "c":
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / "x.png")
    (tmp_path / "set/b/x.png").write_bytes(b"")
    pack(open_folder(tmp_path / "set"), tmp_path / "out", 8, warn=lambda sentence: None)
    packed = open_pack(tmp_path / "out", ["a", "b", "c"])
    assert packed.classes == ["a", "b", "c"] and packed.labels.tolist() == [0, 2]


def test_an_empty_shard(tmp_path):
    draw(tmp_path / "set", 12)
    source = open_folder(tmp_path / "set")
    for path in source.paths[5:10]:
        Path(path).write_bytes(b"")
    told = []
    pack(source, tmp_path / "out", SIZE, shard_mb=1, warn=told.append)
    packed = open_pack(tmp_path / "out")
    assert len(packed) == 12 - len(told) and os.path.getsize(tmp_path / "out/shard-00001.u8") == 0
    last = readable(source)[-1]
    np.testing.assert_array_equal(packed.picture(len(packed) - 1, SIZE), source.picture(last, SIZE))
    assert main(["check", str(tmp_path / "out")]) == 0


def test_nothing_can_be_read(tmp_path, capsys):
    for name in "a", "b":
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.jpg").write_bytes(b"")
    command = ["pack", str(tmp_path / "set"), str(tmp_path / "out")]
    assert refusal(main, command) == f"none of the 2 images of {tmp_path}/set can be read, the last because of b/x.jpg: it is empty"
    Image.new("RGB", (8, 8)).save(tmp_path / "set/a/x.jpg")
    assert main(command) == 0 and len(open_pack(tmp_path / "out")) == 1      # nothing was left of the first attempt


# Damage

@pytest.mark.parametrize("name", ["shard-00000.u8", "shard-00003.u8", "labels.i32", "names.txt", "starts.i64"])
def test_damage_is_named(packed, name):
    def both():
        """What opening says, and what check prints."""
        opened = refusal(open_pack, packed)
        assert f"{packed} is not as it was packed" in refusal(main, ["check", str(packed)])
        assert opened.startswith(f"{packed / name} ") and "run the command that packed it once more" in opened
        return opened

    whole, path = (packed / name).read_bytes(), packed / name
    path.write_bytes(whole[:-1])
    assert f"is truncated: it has {len(whole) - 1:,} bytes instead of {len(whole):,}" in both()
    path.write_bytes(whole + b"\0")
    assert "is damaged: it has" in both()
    path.write_bytes(whole)
    flip(path)
    assert "its checksum is not the one in the index" in both()
    for at in 0, len(whole) - 1:
        path.write_bytes(whole)
        flip(path, at)
        assert "its checksum is not the one in the index" in both()
    path.unlink()
    assert "is missing" in both()
    path.mkdir()
    assert "is" in both()
    path.rmdir()
    path.write_bytes(whole)
    assert len(open_pack(packed)) == 21 and main(["check", str(packed)]) == 0


def test_check_names_every_damaged_file(packed, capsys):
    flip(packed / "shard-00001.u8")
    (packed / "shard-00002.u8").unlink()
    refusal(main, ["check", str(packed)])
    assert capsys.readouterr().out.splitlines() == [
        f"{packed}/shard-00002.u8 is missing", f"{packed}/shard-00001.u8 is damaged: its checksum is not the one in the index"]
    assert f"{packed}/shard-00002.u8 is missing: " in refusal(open_pack, packed)


def test_checksums_are_computed_where_something_was_touched(packed, monkeypatch):
    read = []
    monkeypatch.setattr(packed_module, "_checksum", lambda path, bar, real=packed_module._checksum: read.append(os.path.basename(path)) or real(path, bar))
    open_pack(packed)
    assert read == []                   # the copy has the times of the original, and the record of packing came along
    touch(packed / "shard-00002.u8")
    open_pack(packed)
    open_pack(packed)
    assert read == ["shard-00002.u8"]
    flip(packed / "shard-00002.u8")
    for _ in range(2):                  # what was found wrong is not noted as right
        refusal(open_pack, packed)
    assert read == ["shard-00002.u8"] * 3
    flip(packed / "shard-00002.u8")
    read.clear()
    for record in b"", b"{", b"[]", b'{"labels.i32": 7}', b"\xff":
        (packed / "verified.json").write_bytes(record)
        open_pack(packed)
    assert sorted(read) == sorted(5 * [name for name in contents(packed) if name != "pack.json"])
    main(["check", str(packed)])
    assert len(read) == 6 * 8


def test_a_set_that_cannot_be_written_opens(packed, monkeypatch):
    (packed / "verified.json").unlink()

    def refuse(path, data):
        raise UserError(f"{path} cannot be written (Read-only file system)")
    monkeypatch.setattr(packed_module, "write_beside", refuse)
    assert len(open_pack(packed)) == 21 and not (packed / "verified.json").exists()


def test_a_damaged_index(packed):
    path = packed / "pack.json"
    whole = path.read_bytes()
    spoilt = [b"", b"{}", b"[1]", b"\xff\xfe", whole[:-20], whole.replace(b'"size": 256', b'"size": 257'), whole.replace(b'"c1"', b'"c7"'),
              whole.replace(b'"images": 5', b'"images": 4', 1)]
    for data in spoilt:
        assert data != whole
        path.write_bytes(data)
        for function, argument in (open_pack, packed), (main, ["check", str(packed)]):
            assert f"{path} is damaged" in refusal(function, argument)
    path.write_bytes(whole.replace(b'"version": 1', b'"version": 2'))
    assert f"{path} is of version 2 of the format, and version 1 is read here" in refusal(open_pack, packed)
    path.unlink()
    assert f"{path} cannot be read" in refusal(open_pack, packed) and not packed_module.is_pack(packed)


def test_too_many_open_files(packed, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")
    packed_set = open_pack(packed)
    monkeypatch.setattr(packed_module.mmap, "mmap", full)
    assert "ulimit -n" in refusal(open_pack, packed) and len(packed_set) == 21


# Interruption

class Stop(Exception):
    pass


def test_an_interrupted_command_goes_on(folder, ready, tmp_path, monkeypatch):
    """Stopped at every picture in turn: finished shards are kept, and the end is the same bytes."""
    out, real, decoded = tmp_path / "out", ImageFolder.picture, []

    def stopping(self, place, *how):
        if place == stop:
            raise Stop
        decoded.append(place)
        return real(self, place, *how)

    monkeypatch.setattr(ImageFolder, "picture", stopping)
    for stop in 0, 3, 5, 12, 14, 22:
        with pytest.raises(Stop):
            pack(folder, out, SIZE, shard_mb=1, warn=lambda sentence: None)
        done = [name for name in contents(out) if name.endswith(".u8")]
        assert len(done) == stop // 5 and all(not name.startswith(".") for name in contents(out))
        if done:
            times = {name: os.stat(out / name).st_mtime_ns for name in done}
            assert f"is not completely packed ({len(done)} of 5 shards)" in refusal(open_pack, out)
            assert "is not as it was packed" in refusal(main, ["check", str(out)])
    stop = None
    decoded.clear()
    assert pack(folder, out, SIZE, shard_mb=1, workers=3, warn=lambda sentence: None)[1] is False
    assert sorted(decoded) == [20, 21, 22] and contents(out) == contents(ready)
    assert all(os.stat(out / name).st_mtime_ns == time for name, time in times.items())
    decoded.clear()
    assert pack(folder, out, SIZE, shard_mb=1)[1] is True and not decoded


def test_packing_again_repairs(folder, ready, packed):
    flip(packed / "shard-00001.u8")
    assert pack(folder, packed, SIZE, shard_mb=1, warn=lambda sentence: None)[1] is False and contents(packed) == contents(ready)
    (packed / "shard-00004.u8").unlink()
    flip(packed / "labels.i32")
    pack(folder, packed, SIZE, shard_mb=1, warn=lambda sentence: None)
    assert len(open_pack(packed)) == 21 and contents(packed) == contents(ready)


def test_an_interrupted_repair(folder, ready, packed, monkeypatch):
    real, stop = ImageFolder.picture, 12

    def stopping(self, place, *how):
        if place == stop:
            raise Stop
        return real(self, place, *how)
    for k in 0, 2:
        (packed / f"shard-{k:05}.u8").unlink()
    monkeypatch.setattr(ImageFolder, "picture", stopping)
    with pytest.raises(Stop):
        pack(folder, packed, SIZE, shard_mb=1, warn=lambda sentence: None)
    assert "is not completely packed (4 of 5 shards)" in refusal(open_pack, packed)
    stop = None
    pack(folder, packed, SIZE, shard_mb=1, warn=lambda sentence: None)
    assert contents(packed) == contents(ready)


def test_workers_do_not_change_a_byte(folder, ready, tmp_path):
    for workers in 2, 5:
        pack(folder, tmp_path / str(workers), SIZE, workers=workers, shard_mb=1, warn=lambda sentence: None)
        assert contents(tmp_path / str(workers)) == contents(ready)


def test_two_at_once(folder, tmp_path):
    with pack_module._writing(tmp_path / "out"):
        assert "another process is packing into" in refusal(pack, folder, tmp_path / "out", SIZE)
    pack(folder, tmp_path / "out", SIZE, warn=lambda sentence: None)


@pytest.mark.parametrize("number, files, said", [
    (errno.ENOSPC, 4, "there is no space left for"), (errno.EDQUOT, 4, "there is no space left for"), (errno.EIO, 4, "cannot be written"),
    (errno.ENOSPC, 5, "pack.json cannot be written (No space left on device)")])
def test_a_full_disk(folder, ready, tmp_path, monkeypatch, number, files, said):
    """At the second shard, or the index behind it."""
    calls, real = [], os.fsync

    def full(file):
        calls.append(file)
        if len(calls) > files:
            raise OSError(number, os.strerror(number))
        real(file)
    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", full)
    assert said in refusal(pack, folder, out, SIZE, shard_mb=1, warn=lambda sentence: None)
    assert 0 < sum(name.endswith(".u8") for name in contents(out)) < 5 and not [name for name in contents(out) if name.startswith(".")]
    monkeypatch.setattr(os, "fsync", real)
    pack(folder, out, SIZE, shard_mb=1, warn=lambda sentence: None)
    assert contents(out) == contents(ready)


@pytest.mark.slow
def test_kill_at_any_time(tmp_path):
    """Killed at random moments before the middle of what an undisturbed command takes, until one gets through. By a timer of the time that the
    process itself has computed, which other programs do not shift, and whose signal ends it like kill -9."""
    draw(tmp_path / "set", 600)
    program = "import runpy, signal, sys; signal.setitimer(signal.ITIMER_PROF, float(sys.argv.pop(1))); runpy.run_module('minialex.data', run_name='__main__')"
    command = [sys.executable, "-c", program, "0", "pack", tmp_path / "set", tmp_path / "undisturbed", "--shard-mb", "2", "--workers", "1"]
    environment, kills, seen, times = {**os.environ, "PYTHONPATH": str(ROOT)}, 0, set(), random.Random(1)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole, command[6] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, tmp_path / "out"
    while True:
        command[3] = str(whole * times.uniform(0.2, 0.4))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != -signal.SIGPROF:
            break
        kills += 1
        seen.add(len(list(tmp_path.glob("out/shard-*"))))
        assert kills < 200
    assert done.returncode == 0 and kills > 1 and len(seen) > 1, (done.returncode, kills, seen)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed") and len(open_pack(tmp_path / "out")) == 598


# The command

def test_the_command(folder, ready, tmp_path, capsys):
    shutil.copytree(folder.root, tmp_path / "data/train")
    shutil.copytree(folder.root, tmp_path / "data/val")
    out = tmp_path / "out"
    command = ["pack", str(tmp_path / "data"), str(out), "--shard-mb", "1", "--workers", "2"]
    assert main(command) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{out}/train: 21 images in 3 classes, 256 pixels as crop, 5 shards, 4 MB, packed in ")
    assert lines[1].startswith(f"{out}/val: ") and lines[1].endswith("left out 2 that cannot be read")
    assert len(told.err.splitlines()) == 4 and told.err.startswith(f"left out {tmp_path}/data/train/c0/06.jpg: it is not an intact image")
    train, val = find_splits(str(out))
    assert type(train).__name__ == type(val).__name__ == "Packed" and (len(train), len(val)) == (21, 21)
    assert {**contents(out / "train"), "pack.json": 0} == {**contents(ready), "pack.json": 0}
    assert main(command) == 0 and capsys.readouterr().out.count("were packed already; left out 2") == 2
    assert main(["check", str(out)]) == 0
    assert capsys.readouterr().out == "".join(f"{out}/{name}: 21 images, 8 files, every checksum is right\n" for name in ("train", "val"))
    flip(out / "val/shard-00000.u8")
    assert f"{out} is not as it was packed" in refusal(main, ["check", str(out)])
    main(["pack", str(tmp_path / "data/val"), str(tmp_path / "single"), "--size", "64", "--fit", "squash"])
    assert open_split(tmp_path / "single").size == 64 and open_split(tmp_path / "single").fit == "squash"


def test_what_it_refuses(folder, ready, packed, tmp_path, monkeypatch):
    root, out = folder.root, str(packed)
    cases = [
        ([root, out, "--shard-mb", "1", "--size", "224"], f"{out} holds images packed with {SIZE} pixels, not 224 pixels: name another folder, or remove it"),
        ([root, out, "--shard-mb", "1", "--fit", "squash"], "packed with fit crop, not fit squash"),
        ([root, out], "packed with 5 images to a shard, not 5461 images to a shard"),
        ([root, root + "/c0/packed"], f"{root}/c0/packed lies in {root}, whose images are to be packed"),
        ([root, root], "name a folder outside it"),
        ([root, str(tmp_path)], f"{tmp_path} is not empty and holds no packed images: name a new or an empty folder"),
        ([str(tmp_path / "nothing"), out], f"there is no folder {tmp_path}/nothing"),
        ([root, out, "--size", "0"], "--size 0: expected at least 1"),
        ([root, out, "--workers", "0"], "--workers 0: expected at least 1"),
        ([root, out, "--shard-mb", "0"], "--shard-mb 0: expected at least 1"),
        ([root, str(packed / "labels.i32" / "x")], "cannot be written"),
    ]
    for arguments, said in cases:
        assert said in refusal(main, ["pack", *arguments]), arguments
    assert contents(packed) == contents(ready)
    other = open_folder(shutil.copytree(root, tmp_path / "other"))
    os.rename(other.paths[1], other.paths[1] + ".png")
    sentence = refusal(main, ["pack", other.root, out, "--shard-mb", "1"])
    assert sentence.startswith(f"{out} holds 23 other images, or images that have since been added, removed, renamed")
    relabelled = ImageFolder(root, folder.classes, folder.paths, folder.labels[::-1].copy())
    assert "given other labels" in refusal(pack, relabelled, out, SIZE, shard_mb=1)
    monkeypatch.setattr(pack_module, "MOST_SHARDS", 4)
    assert "--shard-mb 1 would make 5 shards, and 4 are the most: give --shard-mb 2 or more" in refusal(pack, folder, tmp_path / "new", SIZE, shard_mb=1)
    pack(folder, tmp_path / "new", SIZE, shard_mb=2, warn=lambda sentence: None)
    assert "holds no packed images" in refusal(main, ["check", str(tmp_path)])
    assert "there is no folder" in refusal(main, ["check", str(tmp_path / "nowhere")])


def test_splits_are_refused_where_they_do_not_belong(folder, packed, tmp_path):
    for name in "train", "val":
        shutil.copytree(folder.root, tmp_path / "data" / name)
    data = str(tmp_path / "data")
    assert "holds one packed folder" in refusal(main, ["pack", data, str(packed)])
    assert "data/train is not empty and holds no packed images" in refusal(main, ["pack", data, data])
    assert "lies in" in refusal(main, ["pack", data, f"{data}/val/packed"])
    shutil.rmtree(tmp_path / "data/val")
    assert "only train without val" in refusal(main, ["pack", data, str(tmp_path / "out")]) and not (tmp_path / "out").exists()


def test_a_warning_where_room_is_short(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("", (), {"free": MB}))
    main(["pack", folder.root, str(tmp_path / "out")])
    assert capsys.readouterr().err.startswith("warning: 4 MB are to be written and 1 MB are free on the disk of ")


def test_from_a_shell(folder, packed):
    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", "minialex.data", *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return done.returncode, done.stdout, done.stderr
    assert run("check", str(packed))[0::2] == (0, "")
    flip(packed / "shard-00001.u8")
    code, out, error = run("check", str(packed))
    assert code == 2 and out.startswith(f"{packed}/shard-00001.u8 is damaged") and error.startswith("error: ") and error.count("\n") == 1


# A large set

@pytest.mark.slow
def test_a_large_listing_stays_small(tmp_path, monkeypatch):
    """1.28 million pictures of one pixel: labels and paths as arrays, and no object for each."""
    n = 1_281_167
    source = ImageFolder("/data/train", [f"n{i:08}" for i in range(1000)], None, np.arange(n, dtype=np.int32) % 1000)
    names = pack_module.Paths.of("/data/train", (f"n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(n)))
    source.paths = names
    monkeypatch.setattr(ImageFolder, "__len__", lambda self: n)
    index = {"format": packed_module.FORMAT, "version": 1, "size": 1, "fit": "crop", "classes": source.classes, "listing": source.fingerprint(),
             "per_shard": n, "shards": [{"images": n, "crc32": zlib.crc32(bytes(3 * n)), "left_out": []}], "files": {}}
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-00000.u8").write_bytes(bytes(3 * n))
    pack_module._finish(source, str(out), index)
    tracemalloc.start()
    packed = open_pack(out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(packed) == n and packed.paths[n - 1] == f"{out}/n{(n - 1) % 1000:08}/n{(n - 1) % 1000:08}_{n - 1}.JPEG"
    assert packed.labels[-1] == (n - 1) % 1000 and packed.fingerprint() == source.fingerprint()
    assert peak < 100 * MB and isinstance(packed.labels, np.ndarray), peak


def test_photographs(tmp_path):
    """Larger than they are packed, so that they are decoded at a fraction of their size."""
    for split, count in ("train", 2), ("val", 9):
        for name in "ab":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(photograph(i, 250, 200 + i)).save(tmp_path / "set" / split / name / f"{i}.jpg")
    train, val = find_splits(tmp_path / "set")
    pack(val, tmp_path / "out", 64, workers=2)
    packed = open_pack(tmp_path / "out", train.classes)
    assert len(packed) == len(val) == 18
    for place in range(len(val)):
        np.testing.assert_array_equal(packed.picture(place, 64), val.picture(place, 64))


@pytest.mark.filterwarnings(r"ignore:::PIL\.")
def test_odd_files(odd, tmp_path):
    source, told = open_folder(odd.parent), []
    pack(source, tmp_path / "out", 32, warn=told.append)
    packed, place = open_pack(tmp_path / "out"), 0
    for origin in range(len(source)):
        try:
            np.testing.assert_array_equal(source.picture(origin, 32), packed.picture(place, 32))
            place += 1
        except UnreadableImage as error:
            assert f"left out {error}" in told
    refused = sum(expected is None for expected, _ in FILES.values())
    assert place == len(packed) and len(packed.left_out) == len(told) == len(source) - place >= refused
    assert json.loads((tmp_path / "out/pack.json").read_text())["shards"][0]["images"] == place
