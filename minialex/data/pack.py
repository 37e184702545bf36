"""Packed data: pictures decoded once into memory-mapped files, so that training copies pixels instead of decoding.

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

import errno
import json
import mmap
import os
import zlib
from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, islice

import numpy as np

from ..errors import UserError, shown
from ..files import take_lock, write_beside
from ..progress import silent
from .image import UnreadableImage
from .listing import Paths, same_classes

INDEX, RECORD, LABELS, NAMES, STARTS = "pack.json", "verified.json", "labels.i32", "names.txt", "starts.i64"
FORMAT, VERSION = "minialex packed images", 1
MOST_SHARDS = 400  # of a set: each is an open file for as long as the set is, and of those a process may usually have 1,024
READERS = 4  # threads that compute checksums
AGAIN = "copy it anew, or run the command that packed it once more: it makes again what is missing or damaged"


class Packed:
    """An opened packed set, a data source as ImageFolder is. `paths` are those of the pictures that were packed, as if they
    lay in `root`; `left_out` is [(path, reason)] of those that could not be read."""

    def __init__(self, root, index):
        self.root, self.classes, self.size, self.fit = root, list(index["classes"]), index["size"], index["fit"]
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

    def __str__(self):
        return f"{len(self)} images in {len(self.classes)} classes, packed at {self.size} pixels"

    def fingerprint(self):
        """As ImageFolder's: the same for the folder that was packed, if none of its images was left out."""
        return {"images": len(self), "sha256": self.paths.sha256()}

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
    wrong, known, before = {}, {}, _record(root)
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
    _note(root, known)
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


def _record(root):
    """{file: [bytes, modification time in ns, CRC-32]} of files whose checksums were right."""
    try:
        with open(os.path.join(root, RECORD), "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError):
        record = None
    return record if isinstance(record, dict) else {}


def _note(root, record):
    """Keeps the record, where it is new; where the folder cannot be written, checksums are computed again each time."""
    if record != _record(root):
        try:
            write_beside(os.path.join(root, RECORD), json.dumps(record, indent=1) + "\n")
        except UserError:
            pass


# Packing

def pack(source, out, size, fit="crop", workers=1, shard_mb=1024, warn=lambda sentence: None, bar=silent):
    """Packs a data source into the folder `out`, or goes on where that was interrupted. -> (index, whether it was complete already)

    An image that cannot be read is told through `warn` and left out.
    """
    out = os.fspath(out)
    for name, value in ("--size", size), ("--workers", workers), ("--shard-mb", shard_mb):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    per = max(1, shard_mb * 2**20 // (size * size * 3))
    count = -(-len(source) // per)
    if count > MOST_SHARDS:
        enough = -(-len(source) // MOST_SHARDS) * size * size * 3 // 2**20 + 1
        raise UserError(f"--shard-mb {shard_mb} would make {count:,} shards, and {MOST_SHARDS} are the most: give --shard-mb {enough} or more")
    listing = source.fingerprint() | {"labels": zlib.crc32(np.asarray(source.labels, "<i4").tobytes())}
    plan = {"format": FORMAT, "version": VERSION, "size": size, "fit": fit, "classes": list(source.classes), "listing": listing,
            "per_shard": per, "shards": [None] * count, "files": {}}
    with _writing(out):
        index = _begun(out, plan)
        wrong = faults(out, expected(index), bar=bar)
        if index["files"] and not wrong:
            return index, True
        for name in wrong:
            if name.startswith("shard-"):
                index["shards"][int(name[6:11])] = None
        index["files"] = {}
        _shards(source, out, index, workers, warn, bar)
        if not any(shard["images"] for shard in index["shards"]):
            _, name, reason = index["shards"][-1]["left_out"][-1]
            last = f"{shown(name)}: {reason}"
            for name in (INDEX, RECORD, *map(shard_name, range(count))):      # else the same command would find them finished
                if os.path.exists(os.path.join(out, name)):
                    os.unlink(os.path.join(out, name))
            raise UserError(f"none of the {len(source)} images of {shown(source.root)} can be read, the last because of {last}")
        _finish(source, out, index)
    return index, False


@contextmanager
def _writing(out):
    """The folder is there and nobody else packs into it; what the system refuses becomes a UserError."""
    folder = None
    try:
        os.makedirs(out, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
        take_lock(folder, f"another process is packing into {shown(out)}: wait for it, or name another folder")
        _tidy(out)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"there is no space left for {shown(out)} ({error.strerror}): make room and run the same command again, "
                            "the finished shards are kept") from error
        raise UserError(f"{shown(out)} cannot be written ({error.strerror}): name a folder that can") from error
    finally:
        if folder is not None:
            os.close(folder)


def _tidy(out):
    """Removes what a kill has left half written."""
    for name in os.listdir(out):
        if name.startswith(tuple(f".{own}" for own in (INDEX, RECORD, LABELS, NAMES, STARTS, "shard-"))):
            os.unlink(os.path.join(out, name))


def _begun(out, plan):
    """The index of what an interrupted command has left in `out`, or the plan, written there, where nothing was begun."""
    if not is_pack(out):
        if os.listdir(out):
            raise UserError(f"{shown(out)} is not empty and holds no packed images: name a new or an empty folder")
        write_index(out, plan)
        return plan
    index = read_index(out)
    for what, asked in (("size", "{} pixels"), ("fit", "fit {}"), ("per_shard", "{} images to a shard")):
        if index[what] != plan[what]:
            raise UserError(f"{shown(out)} holds images packed with {asked.format(index[what])}, not {asked.format(plan[what])}: "
                            "name another folder, or remove it")
    if index["classes"] != plan["classes"] or index["listing"] != plan["listing"]:
        raise UserError(f"{shown(out)} holds {index['listing']['images']} other images, or images that have since been added, removed, renamed "
                        "or given other labels: name another folder, or remove it")
    return index


def _shards(source, out, index, workers, warn, bar):
    """Makes the shards that are missing, one after the other; the images are decoded ahead by threads."""
    size, fit, per, n = index["size"], index["fit"], index["per_shard"], len(source)
    missing = [k for k, shard in enumerate(index["shards"]) if not shard]
    places = {k: range(k * per, min((k + 1) * per, n)) for k in missing}

    def decode(place):
        try:
            return source.picture(place, size, fit)
        except UnreadableImage as error:
            return error

    left = sum(map(len, places.values()))
    with (bar(total=n, initial=n - left, unit="image", desc=f"packing {shown(out)}") as done,
          ThreadPoolExecutor(workers) as pool):
        decoded = _in_order(pool, decode, (place for k in missing for place in places[k]), 16 + 4 * workers)
        for k in missing:
            path, beside = os.path.join(out, shard_name(k)), os.path.join(out, f".{shard_name(k)}")
            images, checksum, left_out = 0, 0, []
            try:
                with open(beside, "wb") as file:
                    for place, pixels in zip(places[k], islice(decoded, len(places[k]))):
                        if isinstance(pixels, UnreadableImage):
                            warn(f"left out {pixels}")
                            left_out.append([place, _below(source.root, os.fspath(pixels.path)), pixels.reason])
                        else:
                            file.write(pixels)
                            images, checksum = images + 1, zlib.crc32(pixels, checksum)
                        done.update()
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, path)
            finally:      # a part of a shard would keep a full disk full
                if os.path.exists(beside):
                    os.unlink(beside)
            index["shards"][k] = {"images": images, "crc32": checksum, "left_out": left_out}
            write_index(out, index)
            about = os.stat(path)
            _note(out, _record(out) | {shard_name(k): [about.st_size, about.st_mtime_ns, checksum]})


def _in_order(pool, function, arguments, most):
    """Like pool.map, with at most `most` results waiting."""
    waiting = deque(pool.submit(function, argument) for argument in islice(arguments, most))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, argument) for argument in islice(arguments, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _finish(source, out, index):
    """Writes labels and names of what is in the shards, and the index that makes the set complete."""
    kept = np.ones(len(source), bool)
    kept[[place for shard in index["shards"] for place, _, _ in shard["left_out"]]] = False
    names = Paths.of(out, (_below(source.root, path) for path, keep in zip(source.paths, kept) if keep))
    for name, array in (LABELS, np.asarray(source.labels)[kept].astype("<i4")), (NAMES, names.names), (STARTS, names.starts.astype("<i8")):
        path, data = os.path.join(out, name), array.tobytes()
        write_beside(path, data)
        index["files"][name] = [len(data), zlib.crc32(data)]
        about = os.stat(path)
        _note(out, _record(out) | {name: [about.st_size, about.st_mtime_ns, index["files"][name][1]]})
    write_index(out, index)


def _below(root, path):
    """A path relative to root, as `names.txt` has it; one that does not lie there stays as it is."""
    below = os.path.join(root, "")
    return path[len(below):] if path.startswith(below) else path
