"""Packing: a data source decoded into the files that packed.py reads. Interrupted at any moment, it goes on where it was."""

import errno
import os
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice

import numpy as np

from ..errors import UserError, shown
from ..files import take_lock, write_beside
from ..progress import silent
from .image import UnreadableImage
from .listing import Paths
from .packed import FORMAT, INDEX, LABELS, NAMES, RECORD, STARTS, VERSION, expected, faults, is_pack, note, read_index, record_of, shard_name, write_index

MOST_SHARDS = 400  # of a set: each is an open file for as long as the set is, and of those a process may usually have 1,024


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
            "per_shard": per, "shards": [None] * count, "files": {}, "other": source.beside.other}
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
        with suppress(PermissionError):      # Windows opens no folder
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
            note(out, record_of(out) | {shard_name(k): [about.st_size, about.st_mtime_ns, checksum]})


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
        note(out, record_of(out) | {name: [about.st_size, about.st_mtime_ns, index["files"][name][1]]})
    write_index(out, index)


def _below(root, path):
    """A path relative to root, as `names.txt` has it; one that does not lie there stays as it is."""
    below = os.path.join(root, "")
    return path[len(below):] if path.startswith(below) else path
