"""Packed data: pictures decoded once into memory-mapped files, so that training copies pixels instead of decoding. pack.py makes it.

A packed set is a folder of
    shard-00000.u8, ...  pixels, uint8 (n, size, size, 3). A shard has the pictures of a fixed stretch of the listing, less
                         those that cannot be read, so what it holds does not depend on how often packing was interrupted
    labels.i32           int32 (n,), little-endian, -1 where unlabelled
    names.txt            the paths in the folder that was packed, a newline behind each
    starts.i64           int64 (n + 1,), little-endian: where each name begins in names.txt
    pack.json            the index: what is packed, and a CRC-32 of every file and of itself; as long as packing has not
                         finished, of the shards that are finished
    verified.json        size, modification time and CRC-32 of the files whose checksums have been found right on this disk
Every file is written beside its place and renamed.
"""

import copy
import errno
import json
import mmap
import os
import zlib
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np

from ..errors import UserError, shown
from ..files import write_beside
from ..progress import silent
from .listing import Beside, Paths, same_classes

INDEX, RECORD, LABELS, NAMES, STARTS = "pack.json", "verified.json", "labels.i32", "names.txt", "starts.i64"
FORMAT, VERSION = "minialex packed images", 1
READERS = 4  # threads that compute checksums
AGAIN = "copy it anew, or run the command that packed it once more: it makes again what is missing or damaged"


class Packed:
    """An opened packed set, a data source as ImageFolder is. `paths` are those of the pictures that were packed, as if they
    lay in `root`; `left_out` is [(path, reason)] of those that could not be read, `beside` what else lay in the folders."""

    def __init__(self, root, index):
        self.root, self.classes, self.size, self.fit = root, list(index["classes"]), index["size"], index["fit"]
        self.beside, self._chosen = Beside(index.get("other", {})), None
        self.left_out = [(name, reason) for shard in index["shards"] for _, name, reason in shard["left_out"]]
        self._starts = list(accumulate((shard["images"] for shard in index["shards"]), initial=0))
        self.labels = self._mapped(LABELS, "<i4")[1]
        self.paths = Paths(root, self._mapped(NAMES, "u1")[1], self._mapped(STARTS, "<i8")[1])
        self._shards = [self._mapped(shard_name(k), "u1", (-1, self.size, self.size, 3)) for k in range(len(index["shards"]))]

    def _mapped(self, name, dtype, shape=-1):
        """(map, array) of a file, read-only; mmap refuses empty ones."""
        path = os.path.join(self.root, name)
        try:
            with open(path, "rb") as file:
                if not os.fstat(file.fileno()).st_size:
                    return None, np.empty(0, dtype)
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            more = f": it has {len(self._starts) - 1} shards, so raise the limit (ulimit -n)" * (error.errno == errno.EMFILE)
            raise UserError(f"{shown(path)} cannot be opened ({error.strerror}){more}") from None
        return pages, np.frombuffer(pages, dtype).reshape(shape)

    def __len__(self):
        return len(self.labels)

    def __repr__(self):
        return f"Packed {shown(self.root)}: {self}"

    def __str__(self):
        return f"{len(self)} images in {len(self.classes)} classes, packed at {self.size} pixels"

    def fingerprint(self):
        """As ImageFolder's: the same for the folder that was packed, if none of its images was left out."""
        return {"images": len(self), "sha256": self.paths.sha256()}

    def part(self, places, besides=True):
        """As ImageFolder's."""
        one = copy.copy(self)
        one._chosen, one.labels, one.paths = places, self.labels[places], self.paths.stretches([(place, place + 1) for place in places.tolist()])
        if not besides:
            one.beside, one.left_out = Beside(), []
        return one

    def remarks(self):
        """Sentences on what was left out of it."""
        return list(self.beside.sentences(self.root))

    def require(self, size, fit):
        """A UserError unless the pictures were packed so."""
        if (size, fit) != (self.size, self.fit):
            raise UserError(f"{shown(self.root)} is packed at {self.size} pixels as {self.fit}, but {size} pixels as {fit} are asked for: pack the "
                            f"images with --size {size} --fit {fit} into another folder, or ask for --side {self.size} --fit {self.fit}")

    def picture(self, place, size, fit="crop"):
        """One picture as uint8 (size, size, 3), which must be the packed size and fit."""
        self.require(size, fit)
        pixels = np.empty((size, size, 3), np.uint8)
        self.copy([place], pixels[None])
        return pixels

    def copy(self, places, out):
        """Copies the pictures in these places into `out`, uint8 (len(places), size, size, 3)."""
        found = []
        for place in places:
            if not 0 <= place < len(self):
                raise IndexError(f"there is no picture {place} among {len(self)}")
            if self._chosen is not None:
                place = self._chosen[place]
            shard = bisect_right(self._starts, place) - 1
            pages, pixels = self._shards[shard]
            within = int(place) - self._starts[shard]
            found.append(pixels[within])
            # All are asked of the disk before the first is copied, each at its full length: page faults alone would read
            # it in pieces, one after the other, and others' pixels around them (2.2 times the bytes, at 256 pixels).
            start = within * self.size * self.size * 3
            begin = start // mmap.PAGESIZE * mmap.PAGESIZE
            if hasattr(mmap, "MADV_WILLNEED"):
                pages.madvise(mmap.MADV_WILLNEED, begin, start + self.size * self.size * 3 - begin)
        for row, pixels in enumerate(found):
            out[row] = pixels


def is_pack(path):
    """Whether a folder holds a packed set, finished or not."""
    return os.path.isfile(os.path.join(path, INDEX))


def open_pack(path, classes=None, bar=silent):
    """The packed set in a folder. With classes, those of the training set, it must have the same ones.

    The size of every file is checked, and the checksum of those that are not known to be as they were when it was last right.
    """
    root = os.fspath(path)
    index = read_index(root)
    if not index["files"]:
        raise UserError(f"{shown(root)} is not completely packed ({progress_of(index)}): run the command that packs it once more, and it goes on")
    wrong = faults(root, expected(index), bar=bar)
    if wrong:
        name, reason = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more files of it are not as they should be)" * (len(wrong) > 1)
        raise UserError(f"{shown(os.path.join(root, name))} {reason}{more}: {AGAIN}")
    packed = Packed(root, index)
    if classes is not None and packed.classes != list(classes):
        same_classes(root, packed.classes, classes)
        number = {name: label for label, name in enumerate(classes)}
        to = np.array([number[name] for name in packed.classes] + [-1], np.int32)      # the last is what label -1 takes
        packed.classes, packed.labels = list(classes), to[packed.labels]
    return packed


def shard_name(number):
    return f"shard-{number:05}.u8"


def expected(index):
    """{file: (bytes, CRC-32)} of what is finished."""
    each = index["size"] ** 2 * 3
    shards = {shard_name(k): (shard["images"] * each, shard["crc32"]) for k, shard in enumerate(index["shards"]) if shard}
    return shards | {name: tuple(about) for name, about in index["files"].items()}


def progress_of(index):
    return f"{sum(map(bool, index['shards']))} of {len(index['shards'])} shards"


def read_index(root):
    """The index of a packed set; a UserError where it is damaged or of another version."""
    path = os.path.join(root, INDEX)
    damaged = f"{shown(path)} is damaged, and without it the shards cannot be used: copy it anew, or remove {shown(root)} and pack the images again"
    try:
        with open(path, "rb") as file:
            index = json.loads(file.read())
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}): is {shown(root)} a folder of packed images?") from None
    except ValueError:      # neither JSON nor text
        raise UserError(damaged) from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(damaged)
    if index.get("version") != VERSION:
        raise UserError(f"{shown(path)} is of version {index.get('version')} of the format, and version {VERSION} is read here: "
                        f"use the minialex that packed it, or remove {shown(root)} and pack the images again")
    checksum = index.pop("crc32", None)
    if checksum != zlib.crc32(json.dumps(index).encode()):
        raise UserError(damaged)
    return index


def write_index(root, index):
    checksum = zlib.crc32(json.dumps(index).encode())
    write_beside(os.path.join(root, INDEX), json.dumps(index | {"crc32": checksum}, indent=1) + "\n")


# Checksums

def faults(root, files, thorough=False, bar=silent):
    """{file: what is wrong with it} for files {file: (bytes, CRC-32)} of a packed set.

    Read are those that have not been found right before or have been touched since, and none if a size is wrong; thorough: all.
    """
    wrong, known, before = {}, {}, record_of(root)
    for name, (size, checksum) in files.items():
        try:
            about = os.stat(os.path.join(root, name))
        except OSError as error:
            wrong[name] = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            continue
        if about.st_size != size:
            wrong[name] = f"{'is truncated: it' if about.st_size < size else 'is damaged: it'} has {about.st_size:,} bytes instead of {size:,}"
        else:
            known[name] = [size, about.st_mtime_ns, checksum]
    to_read = [name for name in known if thorough or before.get(name) != known[name]]
    if wrong and not thorough:
        return wrong
    with bar(total=sum(known[name][0] for name in to_read), unit="B", unit_scale=True,
             desc=f"checksums of {shown(root)}") as done, ThreadPoolExecutor(READERS) as pool:
        for name, found in zip(to_read, pool.map(lambda name: _checksum(os.path.join(root, name), done), to_read)):
            if found != known[name][2]:
                wrong[name] = found if isinstance(found, str) else "is damaged: its checksum is not the one in the index"
                del known[name]
    note(root, known)
    return wrong


def _checksum(path, done):
    """The CRC-32 of a file, or why it cannot be read."""
    checksum, room = 0, memoryview(bytearray(1 << 22))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(room):
                checksum = zlib.crc32(room[:count], checksum)
                done.update(count)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return checksum


def record_of(root):
    """{file: [bytes, modification time in ns, CRC-32]} of files whose checksums were right."""
    try:
        with open(os.path.join(root, RECORD), "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError):
        record = None
    return record if isinstance(record, dict) else {}


def note(root, record):
    """Keeps the record, where it is new; where the folder cannot be written, checksums are computed again each time."""
    if record != record_of(root):
        try:
            write_beside(os.path.join(root, RECORD), json.dumps(record, indent=1) + "\n")
        except UserError:
            pass
