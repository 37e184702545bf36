"""The loader: the same batches however they are made, unreadable files named once, and threads that always end."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minialex.data.folder import ImageFolder, open_folder
from minialex.data.image import square, squash
from minialex.data.loader import Loader
from minialex.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 pictures of 3 classes, each of a colour of its own."""
    root = tmp_path_factory.mktemp("set")
    for i in range(23):
        (root / f"c{i % 3}").mkdir(exist_ok=True)
        Image.new("RGB", (20 + i, 24), (i * 10, 255 - i * 10, 7)).save(root / f"c{i % 3}/{i:02}.png")
    return open_folder(root)


def spoil(folder, *places):
    """The same listing, with files in these places that do not exist."""
    paths = [f"/spoilt/{i}.png" if i in places else path for i, path in enumerate(folder.paths)]
    return ImageFolder(folder.root, folder.classes, paths, folder.labels)


def counted(monkeypatch, calls):
    """Notes in `calls` the place of every picture that is decoded."""
    picture = ImageFolder.picture
    monkeypatch.setattr(ImageFolder, "picture", lambda self, place, *how: calls.append(place) or picture(self, place, *how))


def no_decoding_threads():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        np.array_equal(getattr(one, field), getattr(other, field))
        for one, other in zip(batches, others) for field in ("images", "labels", "index"))


def test_listing_order(folder):
    loader = Loader(folder, 16, 5, shuffle=False)
    batches = list(loader.epoch(3))
    assert len(loader) == len(batches) == 5 and [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert np.concatenate([batch.index for batch in batches]).tolist() == list(range(23))
    for batch in batches:
        assert batch.images.dtype == np.uint8 and batch.images.flags.c_contiguous
        assert batch.labels.dtype == np.int32 and batch.index.dtype == np.int64
        np.testing.assert_array_equal(batch.labels, folder.labels[batch.index])
        for image, place in zip(batch.images, batch.index):
            np.testing.assert_array_equal(image, square(folder.paths[place], 16))
    assert loader.wait_seconds > 0 and no_decoding_threads()


def test_order_depends_on_seed_and_epoch_alone(folder):
    orders = {(seed, epoch): tuple(Loader(folder, 8, 4, seed=seed).order(epoch))
              for seed in (0, 1, 2**64 - 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 6
    assert all(sorted(order) == list(range(23)) for order in orders.values())
    assert orders[0, 1] == tuple(Loader(folder, 16, 7, seed=0, workers=5, cache_mb=0).order(1))
    # Written down, so that a change of numpy or of ours that would break a resumed run is noticed.
    assert orders[0, 0][:8] == FIRST


FIRST = (3, 14, 8, 9, 6, 17, 10, 19)


def test_same_batches_with_any_workers_and_cache(folder):
    def batches(**options):
        loader = Loader(folder, 16, 5, seed=4, **options)
        return [batch for epoch in range(3) for batch in loader.epoch(epoch)]

    reference = batches(workers=1, cache_mb=0)
    assert same(reference, batches(workers=7, cache_mb=0))
    assert same(reference, batches(workers=1))
    assert same(reference, batches(workers=4))


def test_resume_in_the_middle_of_an_epoch(folder):
    whole = list(Loader(folder, 16, 5).epoch(2))
    for start in range(6):
        assert same(whole[start:], Loader(folder, 16, 5).epoch(2, start))
    with pytest.raises(UserError, match="batch 6"):
        Loader(folder, 16, 5).epoch(2, 6)


def test_cached_epochs_decode_nothing(folder, monkeypatch):
    calls = []
    counted(monkeypatch, calls)
    loader = Loader(folder, 16, 5)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert len(calls) == 23
    calls.clear()
    loader = Loader(folder, 224, 5, cache_mb=3)  # 23 pictures take 3.3 MiB
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert len(calls) == 46


def test_a_batch_is_the_consumers_own(folder):
    loader = Loader(folder, 16, 5, shuffle=False)
    for batch in loader.epoch(0):
        batch.images[:] = 0
    assert next(loader.epoch(1)).images.any()


def test_decoding_runs_ahead_but_not_away(folder, monkeypatch):
    calls = []
    counted(monkeypatch, calls)
    batches = Loader(folder, 16, 2, workers=2).epoch(0)
    next(batches)
    deadline = time.monotonic() + 300
    while len(calls) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)        # for more than there should be
    batches.close()
    assert len(calls) == 8  # the batch that was taken, and three more
    assert no_decoding_threads()


def test_unreadable_files_are_left_out_named_once_and_counted(folder):
    told = []
    loader = Loader(spoil(folder, 1, 3, 22), 16, 5, shuffle=False, warn=told.append)
    sizes = [[len(batch) for batch in loader.epoch(epoch)] for epoch in range(2)]
    assert sizes == [[3, 5, 5, 5, 2]] * 2
    assert list(loader.unreadable.items()) == [(f"/spoilt/{i}.png", "No such file or directory") for i in (1, 3, 22)]
    assert told == [f"skipped /spoilt/{i}.png: No such file or directory" for i in (1, 3, 22)]
    first = next(loader.epoch(0))
    assert first.index.tolist() == [0, 2, 4] and first.labels.tolist() == folder.labels[[0, 2, 4]].tolist()
    for image, place in zip(first.images, first.index):
        np.testing.assert_array_equal(image, square(folder.paths[place], 16))


def test_unreadable_files_are_a_warning(folder, capsys):
    with pytest.warns(UserWarning, match="^skipped /spoilt/8.png: No such file or directory$"):
        list(Loader(spoil(folder, 8), 16, 5).epoch(0))
    assert capsys.readouterr() == ("", "")


def test_a_batch_may_be_empty_and_keeps_its_number(folder):
    loader = Loader(spoil(folder, *range(5, 10)), 16, 5, shuffle=False, warn=lambda sentence: None)
    batches = list(loader.epoch(0))
    assert [len(batch) for batch in batches] == [5, 0, 5, 5, 3]
    assert batches[1].images.shape == (0, 16, 16, 3) and batches[1].labels.shape == (0,)
    assert same(batches[2:], loader.epoch(0, 2))


@pytest.mark.parametrize("cache_mb", [0, 1024])
def test_an_image_deleted_during_an_epoch_is_left_out(folder, tmp_path, cache_mb):
    shutil.copytree(folder.root, tmp_path / "set")
    own, told = open_folder(tmp_path / "set"), []
    loader = Loader(own, 16, 2, shuffle=False, workers=1, cache_mb=cache_mb, warn=told.append)
    batches = loader.epoch(0)
    first, last = next(batches), len(own) - 1       # the last is not decoded yet: at most four batches are
    os.unlink(own.paths[last])
    os.unlink(own.paths[0])                         # this one is, and stays where pictures are kept
    seen = np.concatenate([first.index, *(batch.index for batch in batches)])
    assert seen.tolist() == list(range(last)) and told == [f"skipped {own.paths[last]}: No such file or directory"]
    again = np.concatenate([batch.index for batch in loader.epoch(1)])
    assert again.tolist() == list(range(0 if cache_mb else 1, last))
    assert list(loader.unreadable) == [own.paths[last]] + [own.paths[0]] * (not cache_mb)


def test_fit(folder):
    for fit, decoded in ("crop", square), ("squash", squash):
        loader = Loader(folder, 16, 23, shuffle=False, fit=fit)
        for epoch in range(2):      # decoded, then from the cache
            for image, path in zip(next(loader.epoch(epoch)).images, folder.paths):
                np.testing.assert_array_equal(image, decoded(path, 16))


def test_nothing_can_be_read(folder):
    loader = Loader(spoil(folder, *range(23)), 16, 5, warn=lambda sentence: None)
    with pytest.raises(UserError, match="none of the 23 images can be read"):
        list(loader.epoch(0))
    with pytest.raises(UserError, match="none of the 23 images"):
        next(loader.epoch(1))
    assert no_decoding_threads()


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), MemoryError(), SystemExit()])
def test_an_exception_in_a_worker_surfaces(folder, monkeypatch, fault):
    def faulty(self, place, size, fit):
        raise fault

    monkeypatch.setattr(ImageFolder, "picture", faulty)
    with pytest.raises(type(fault)):
        list(Loader(folder, 16, 5).epoch(0))
    assert no_decoding_threads()


def test_leaving_early_stops_the_workers(folder):
    loader = Loader(folder, 16, 2, workers=3)
    for _ in loader.epoch(0):
        break
    assert no_decoding_threads()
    with pytest.raises(KeyError):
        for _ in loader.epoch(0):
            raise KeyError
    assert no_decoding_threads()
    loader.epoch(0)  # never begun
    assert no_decoding_threads()
    for one, other in zip(loader.epoch(0), loader.epoch(0)):  # two at once
        assert same([one], [other])


def child(folder, program):
    return subprocess.Popen([sys.executable, "-c", program, folder.root], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


SLOW = """
import sys, time
from minialex.data import loader
from minialex.data.folder import ImageFolder, open_folder
def picture(self, *arguments, real=ImageFolder.picture):
    time.sleep(0.05)
    return real(self, *arguments)
ImageFolder.picture = picture
batches = loader.Loader(open_folder(sys.argv[1]), 16, 4, workers=3).epoch(0)
"""


def test_a_program_ends_with_an_iterator_open(folder):
    process = child(folder, SLOW + "kept = next(batches)")
    assert process.communicate(timeout=300) == ("", "") and process.returncode == 0


def test_ctrl_c_while_waiting(folder):
    program = """
import signal, sys, threading
from minialex.data import loader
from minialex.data.folder import ImageFolder, open_folder
signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell starts what runs in the background with it ignored
ahead, taking, sent = [], threading.Event(), []
def take(self, real=loader._Ahead.take):
    with self.changed:      # which only the wait inside lets go
        ahead.append(self)
        taking.set()
        return real(self)
def picture(self, *arguments, real=ImageFolder.picture):
    taking.wait()
    with ahead[0].changed:
        sent or sent.append(signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    return real(self, *arguments)
loader._Ahead.take, ImageFolder.picture = take, picture
batches = loader.Loader(open_folder(sys.argv[1]), 16, 4, workers=3).epoch(0)
try:
    next(batches)
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name.startswith("decode")])
"""
    process = child(folder, program)
    assert process.communicate(timeout=300) == ("[]\n", "") and process.returncode == 0


@pytest.mark.parametrize("options", [dict(batch=0), dict(size=0), dict(workers=0), dict(seed=-1), dict(seed=2**64)])
def test_arguments_out_of_range(folder, options):
    with pytest.raises(UserError, match=next(iter(options))):
        Loader(folder, **{"size": 16, "batch": 4, **options})
