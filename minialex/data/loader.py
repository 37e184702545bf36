"""Batches of pictures, decoded or copied ahead by threads (neither needs the GIL), so that a step need not wait.

What a batch holds depends on the listing, the seed and the epoch alone, never on the number of threads, on what is
cached, or on where an epoch was entered.
"""

import atexit
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .augment import ORDER, draw
from .image import UnreadableImage
from .packed import Packed

CACHE_MB = 1024  # of decoded pictures
LEAST_AHEAD = 3  # batches filled before they are asked for: one ready, one being filled, one to even things out
PACKED_RUN = 16  # packed pictures copied at a time: a copy takes so little that claiming each would cost as much


@dataclass(eq=False)
class Batch:
    images: np.ndarray  # uint8 (n, size, size, 3)
    labels: np.ndarray  # int32 (n,)
    index: np.ndarray  # int64 (n,), places in the sorted listing

    def __len__(self):
        return len(self.index)

    def __repr__(self):
        return f"Batch of {len(self)} images of {self.images.shape[1]}x{self.images.shape[2]}"


class Loader:
    """Batches of a data source's pictures at size x size: their centre squares, or with fit="squash" the whole of each.

    Pictures of a folder are kept once decoded if all fit into `cache_mb`; packed ones are copied from their memory map,
    which is cache enough. A file that cannot be read is left out of its batch, which may thus be empty, told once through
    `warn` (a Python warning unless given), and kept with its reason in `unreadable`. `cache_bytes` is what the decoded pictures come to take; drop_last leaves
    out what does not fill a batch; room(shape) gives the uint8 array that a batch is decoded into, such as `device.pictures`. `wait_seconds` is the time that was spent waiting for data.

    edges: where the parts of a batch begin, and the last one ends, of which `own` are wanted: then each of these is a Batch, which may be empty.
    """

    def __init__(self, folder: Any, size: int, batch: int, *, fit: str = "crop", seed: int = 0, shuffle: bool = True, drop_last: bool = False,
                 workers: int = 2, cache_mb: float = CACHE_MB, warn: Callable[[str], Any] | None = None,
                 room: Callable[[tuple[int, ...]], np.ndarray] | None = None, edges: Sequence[int] = (), own: range = range(1)) -> None:
        for name, value in ("size", size), ("batch", batch), ("workers", workers):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if not 0 <= seed < 1 << 64:
            raise UserError(f"seed must be from 0 to 2**64 - 1, not {seed}")
        self.folder, self.size, self.batch, self.fit = folder, size, batch, fit
        self.seed, self.shuffle, self.drop_last, self.workers = seed, shuffle, drop_last, workers
        self.warn, self.edges, self.own = warn or warnings.warn, edges or (0, batch), own
        self.room = room or (lambda shape: np.empty(shape, np.uint8))
        self.unreadable: dict[Any, str] = {}  # path -> reason
        self.wait_seconds = 0.0
        self._packed = isinstance(folder, Packed)
        if self._packed:
            folder.require(size, fit)
        count = len(folder)
        self._refused: dict[int, UnreadableImage] = {}  # place in the listing -> UnreadableImage
        # All or nothing: under reshuffling, half a cache would save at most half of the decoding.
        fits = not self._packed and count * size * size * 3 <= cache_mb * 2**20
        self._cache = np.empty((count, size, size, 3), np.uint8) if fits else None
        self._cached = np.zeros(count, bool)
        self.cache_bytes = 0 if self._cache is None else self._cache.nbytes

    def __repr__(self):
        return f"Loader of {self.folder}, in {len(self)} batches of {self.batch} at {self.size}x{self.size}"

    def __len__(self):
        return len(self.folder) // self.batch if self.drop_last else -(-len(self.folder) // self.batch)

    def order(self, epoch: int) -> np.ndarray:
        """The places in the listing in the order in which this epoch visits them, int64."""
        places = np.arange(len(self.folder))
        if not self.shuffle:
            return places
        # Sorting by drawn words, since numpy does not promise that its own permutation stays the same.
        words = draw(self.seed, epoch, places, ORDER).astype(np.uint64)
        return np.argsort(words[:, 0] << np.uint64(32) | words[:, 1], kind="stable")

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Iterates over the batches of an epoch, from batch number `start` on."""
        if not 0 <= start <= len(self):
            raise UserError(f"an epoch of {len(self)} batches cannot be entered at batch {start}")
        order = self.order(epoch)
        return self._batches([order[b * self.batch + self.edges[p]:b * self.batch + self.edges[p + 1]] for b in range(start, len(self)) for p in self.own])

    def _batches(self, indices):
        ahead = _Ahead(indices, self._filling, self._fetch, self.workers, PACKED_RUN if self._packed else 1, LEAST_AHEAD * len(self.own))
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

    def _filling(self, index):
        shape = len(index), self.size, self.size, 3
        return _Filling(index, self.room(shape) if len(index) else np.empty(shape, np.uint8))

    def _fetch(self, index, out):
        """Puts the pictures in these places into their rows of a batch. Returns {row: error}; called by the workers."""
        if self._packed:
            self.folder.copy(index, out)
            return {}
        errors = {row: self._decode(int(place), out[row]) for row, place in enumerate(index)}
        return {row: error for row, error in errors.items() if error}

    def _decode(self, place, out):
        """Puts one picture into its row of a batch. Returns the error, if there is one."""
        if place in self._refused:
            return self._refused[place]
        if self._cached[place]:
            out[...] = self._cache[place]
            return None
        try:
            out[...] = self.folder.picture(place, self.size, self.fit)
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
        if len(self._refused) == len(self.folder):
            raise UserError(f"none of the {len(self.folder)} images can be read, the last because of {error}")
        if filled.errors:
            good = np.setdiff1d(np.arange(len(index)), list(filled.errors))
            images, index = images[good], index[good]
        return Batch(images, self.folder.labels[index], index)


class _Filling:
    """A batch that workers are filling, each row or run of rows by one of them."""

    def __init__(self, index, images):
        self.index, self.images = index, images
        self.errors = {}  # row -> UnreadableImage
        self.begun = 0
        self.left = len(index)


class _Ahead:
    """Threads that fill batches in order, and rest when enough of them wait to be taken."""

    def __init__(self, indices, filling, fetch, workers, run, least):
        self.to_come, self.filling = deque(indices), deque()
        self.new, self.fetch, self.run = filling, fetch, run
        self.most = max(least, 1 + 2 * workers // max(1, len(indices[0]) if indices else 1))
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
                batch, rows = claim
                errors = self.fetch(batch.index[rows], batch.images[rows])
                with self.changed:
                    batch.errors |= {rows.start + row: error for row, error in errors.items()}
                    batch.left -= rows.stop - rows.start
                    if not batch.left:
                        self.changed.notify_all()
        except BaseException as error:  # raised again by take(), in the consumer's thread
            with self.changed:
                self.error, self.stopped = error, True
                self.changed.notify_all()

    def _claim(self):
        """`run` rows to fill, as (batch, slice), or None when there is nothing left to do."""
        with self.changed:
            while not self.stopped:
                if self.filling and self.filling[-1].begun < len(self.filling[-1].index):
                    batch = self.filling[-1]
                    first, batch.begun = batch.begun, min(batch.begun + self.run, len(batch.index))
                    return batch, slice(first, batch.begun)
                if not self.to_come:
                    return None
                if len(self.filling) < self.most:
                    self.filling.append(self.new(self.to_come.popleft()))
                    if not self.filling[-1].left:      # an empty part, which nobody will fill
                        self.changed.notify_all()
                else:
                    self.changed.wait()
            return None
