"""Batches of pictures, decoded ahead by threads (Pillow decodes without the GIL), so that a step need not wait.

What a batch holds depends on the listing, the seed and the epoch alone, never on the number of threads, on what is
cached, or on where an epoch was entered.
"""

import atexit
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..philox import below, philox
from .image import UnreadableImage, square

# Dropout draws with the same key, the seed, and has the number of its layer in this word of the counter.
# Layers count from 0, so what the data draws is numbered from the other end.
ORDER, CROP = 0xFFFFFFFF, 0xFFFFFFFE
LEAST_AHEAD = 3  # batches filled before they are asked for: one ready, one being filled, one to even things out


@dataclass(eq=False)
class Batch:
    images: np.ndarray  # uint8 (n, size, size, 3)
    labels: np.ndarray  # int32 (n,)
    index: np.ndarray  # int64 (n,), places in the sorted listing

    def __len__(self):
        return len(self.index)


class Loader:
    """Batches of a folder's pictures at size x size.

    A file that cannot be read is left out of its batch, which may thus be empty, told once through `warn`, and kept
    with its reason in `unreadable`. `wait_seconds` is the time that was spent waiting for data.
    """

    def __init__(self, folder, size, batch, *, seed=0, shuffle=True, workers=2, cache_mb=1024, warn=None):
        for name, value in ("size", size), ("batch", batch), ("workers", workers):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 <= seed < 1 << 64:
            raise UserError(f"seed must be from 0 to 2**64 - 1, not {seed}")
        self.folder, self.size, self.batch = folder, size, batch
        self.seed, self.shuffle, self.workers = seed, shuffle, workers
        self.warn = warn or _to_stderr
        self.unreadable = {}  # path -> reason
        self.wait_seconds = 0.0
        count = len(folder.paths)
        self._refused = {}  # place in the listing -> UnreadableImage
        # All or nothing: under reshuffling, half a cache would save at most half of the decoding.
        fits = count * size * size * 3 <= cache_mb * 2**20
        self._cache = np.empty((count, size, size, 3), np.uint8) if fits else None
        self._cached = np.zeros(count, bool)

    def __len__(self):
        return -(-len(self.folder.paths) // self.batch)

    def order(self, epoch):
        """The places in the listing in the order in which this epoch visits them, int64."""
        places = np.arange(len(self.folder.paths))
        if not self.shuffle:
            return places
        # Sorting by drawn words, since numpy does not promise that its own permutation stays the same.
        words = _draw(self.seed, epoch, places, ORDER).astype(np.uint64)
        return np.argsort(words[:, 0] << np.uint64(32) | words[:, 1], kind="stable")

    def epoch(self, epoch, start=0):
        """Iterates over the batches of an epoch, from batch number `start` on."""
        if not 0 <= start <= len(self):
            raise UserError(f"an epoch of {len(self)} batches cannot be entered at batch {start}")
        order = self.order(epoch)
        return self._batches([order[b * self.batch:(b + 1) * self.batch] for b in range(start, len(self))])

    def _batches(self, indices):
        ahead = _Ahead(indices, self.size, self._fetch, self.workers)
        # An iterator may be alive and unfinished when the program ends; a thread cut off inside Pillow may crash it.
        atexit.register(ahead.stop)
        try:
            for _ in indices:
                began = time.perf_counter()
                filled = ahead.take()
                self.wait_seconds += time.perf_counter() - began
                yield self._batch(filled)
        finally:
            ahead.stop()
            atexit.unregister(ahead.stop)

    def _fetch(self, place, out):
        """Puts one picture into its row of a batch. Returns the error, if there is one; called by the workers."""
        if place in self._refused:
            return self._refused[place]
        if self._cached[place]:
            out[...] = self._cache[place]
            return None
        try:
            out[...] = square(self.folder.paths[place], self.size)
        except UnreadableImage as error:
            return error
        if self._cache is not None:
            self._cache[place] = out
            self._cached[place] = True  # last: another thread may look
        return None

    def _batch(self, filled):
        images, index = filled.images, filled.index
        # Told here rather than by the workers: in the order of the batch, and in the consumer's thread.
        for row in sorted(filled.errors):
            error, place = filled.errors[row], int(index[row])
            if place not in self._refused:
                self._refused[place] = error
                self.unreadable[error.path] = error.reason
                self.warn(f"skipped {error}")
        if len(self._refused) == len(self.folder.paths):
            raise UserError(f"none of the {len(self.folder.paths)} images can be read, the last because of {error}")
        if filled.errors:
            good = np.setdiff1d(np.arange(len(index)), list(filled.errors))
            images, index = images[good], index[good]
        return Batch(images, self.folder.labels[index], index)


class _Filling:
    """A batch that workers are filling, each row by one of them."""

    def __init__(self, index, size):
        self.index, self.images = index, np.empty((len(index), size, size, 3), np.uint8)
        self.errors = {}  # row -> UnreadableImage
        self.begun = 0
        self.left = len(index)


class _Ahead:
    """Threads that fill batches in order, and rest when enough of them wait to be taken."""

    def __init__(self, indices, size, fetch, workers):
        self.to_come, self.filling = deque(indices), deque()
        self.size, self.fetch = size, fetch
        self.most = max(LEAST_AHEAD, 1 + 2 * workers // max(1, len(indices[0]) if indices else 1))
        self.changed = threading.Condition()
        self.stopped, self.error = False, None
        # Daemons: Python joins all others before it calls what atexit has, and would wait for the whole epoch.
        self.threads = [threading.Thread(target=self._work, name=f"decode-{i}", daemon=True) for i in range(workers)]
        for thread in self.threads:
            thread.start()

    def take(self):
        """The next batch, waiting until it is full."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or self.filling and not self.filling[0].left)
            if self.error:
                raise self.error
            self.changed.notify_all()
            return self.filling.popleft()

    def stop(self):
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()

    def _work(self):
        try:
            while claim := self._claim():
                batch, row = claim
                error = self.fetch(int(batch.index[row]), batch.images[row])
                with self.changed:
                    if error:
                        batch.errors[row] = error
                    batch.left -= 1
                    if not batch.left:
                        self.changed.notify_all()
        except BaseException as error:  # raised again by take(), in the consumer's thread
            with self.changed:
                self.error, self.stopped = error, True
                self.changed.notify_all()

    def _claim(self):
        """A row to fill, as (batch, row), or None when there is nothing left to do."""
        with self.changed:
            while not self.stopped:
                if self.filling and self.filling[-1].begun < len(self.filling[-1].index):
                    batch = self.filling[-1]
                    batch.begun += 1
                    return batch, batch.begun - 1
                if not self.to_come:
                    return None
                if len(self.filling) < self.most:
                    self.filling.append(_Filling(self.to_come.popleft(), self.size))
                else:
                    self.changed.wait()
            return None


def crops(seed, epoch, index, margin):
    """A random crop for each picture: int32 (n, 3) of (top, left, flip), with top and left in 0 .. margin."""
    words = _draw(seed, epoch, index, CROP)
    flip = words[:, 2] < 1 << 31  # word < p * 2**32
    return np.stack([below(words[:, 0], margin + 1), below(words[:, 1], margin + 1), flip], axis=1).astype(np.int32)


def centre(n, margin):
    """The centre crop, unflipped, for n pictures, in the form of crops()."""
    return np.tile(np.array([margin // 2, margin // 2, 0], np.int32), (n, 1))


def _draw(seed, epoch, index, purpose):
    index = np.asarray(index, np.int64)
    return philox(seed, index & 0xFFFFFFFF, index >> 32, purpose, epoch)


def _to_stderr(sentence):
    print(sentence, file=sys.stderr, flush=True)
