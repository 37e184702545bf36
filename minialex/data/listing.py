"""Listings: the paths of a million images in little memory, found in folders or read from text files.

A listing of ImageNet's 1.28 million names takes 55 MB. One that was found in folders is kept in the user's cache.
"""

import csv
import hashlib
import io
import json
import os
import re
import struct
import time
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, shown
from ..files import user_cache, write_beside

EXTENSIONS = frozenset("jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm".split())


class Paths(Sequence):
    """A sequence of str in two arrays: `names`, uint8, has each path relative to root and a newline behind it, and
    `starts`, int64 (n + 1,), where each begins. A path that is absolute stays so."""

    def __init__(self, root, names, starts):
        self.root, self.names, self.starts = root, names, starts

    @classmethod
    def of(cls, root, names):
        blob, starts = bytearray(), array("q", [0])
        for name in names:
            blob += os.fsencode(name) + b"\n"
            starts.append(len(blob))
        return cls(root, np.frombuffer(blob, np.uint8), np.frombuffer(starts, np.int64))

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"there is no path {place} among {len(self)}")
        place %= len(self)
        return os.path.join(self.root, os.fsdecode(self.names[self.starts[place]:self.starts[place + 1] - 1].tobytes()))

    def stretches(self, ranges):
        """The paths of some ranges (first, last + 1), one range after the other."""
        names = [self.names[self.starts[first]:self.starts[last]] for first, last in ranges]
        lengths = [np.diff(self.starts[first:last + 1]) for first, last in ranges]
        return Paths(self.root, np.concatenate(names), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))

    def sha256(self):
        """Of the paths relative to root, joined by newlines."""
        return hashlib.sha256(self.names[:-1]).hexdigest()


def same_classes(root, found, classes, all=True):
    """A UserError if the classes found in root are not those of the training set; all: none of these may be missing."""
    there, wanted = set(found), set(classes)
    missing = [name for name in classes if all and name not in there]
    extra = [name for name in found if name not in wanted]
    faults = [f"lacks {named(missing)}"] * bool(missing) + [f"has {named(extra)} besides"] * bool(extra)
    if faults:
        raise UserError(f"{shown(root)} must have the training set's classes, but it {' and '.join(faults)}")


def named(names, most=5):
    """Some names as a sentence has them, of many the first ones."""
    listed = ", ".join(map(shown, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


# What folders hold

def images_in(root, folders):
    """The images in root/<folder> and below for each of the folders, sorted in each. -> (Paths, the number in each folder)"""
    kept = _kept(root, folders)
    if kept:
        return kept
    began, changed, counts, below = time.time_ns(), {}, [], len(os.path.join(root, ""))

    def names():
        for folder in folders:
            found = sorted(_images(os.path.join(root, folder), changed))
            counts.append(len(found))
            yield from (path[below:] for path in found)

    paths = Paths.of(root, names())
    # A folder that changed just now may change again within the same tick of its clock, unseen.
    if len(paths) >= KEPT_FROM and max(changed.values()) < began - TICK:
        _keep(root, folders, paths, counts, {folder[below:]: at for folder, at in changed.items()})
    return paths, counts


def _images(folder, changed, above=()):
    """Paths of the images in a folder and in those below it; `changed` gets the folders' times of change; `above` stops
    at a link that leads back up."""
    here = os.path.realpath(folder)
    if here in above:
        return
    changed[folder] = _time_of_change(folder)  # before it is read: what changes meanwhile must be seen the next time
    for entry in entries(folder):
        if entry.is_dir():
            yield from _images(entry.path, changed, (*above, here))
        elif is_image(entry):
            yield entry.path


def named_as_image(name):
    stem, _, extension = os.path.basename(name).rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS


def is_image(entry):
    # A link that leads nowhere is kept: decoding will name it, where dropping it here would lose it in silence.
    return named_as_image(entry.name) and (entry.is_file() or entry.is_symlink() and not os.path.exists(entry.path))


def entries(folder):
    """What a folder holds, without hidden files and the ._ companions of macOS."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except FileNotFoundError:
        raise UserError(f"there is no folder {shown(folder)}") from None
    except NotADirectoryError:
        raise UserError(f"{shown(folder)} is not a folder") from None
    except OSError as error:
        raise UserError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


# Listings that are kept: true as long as no folder has changed, since adding or removing a file changes its folder

KEPT_FROM = 20_000    # images; fewer are listed in no time
TICK = 2_000_000_000  # ns: the coarsest clock of a file system, FAT's
FORM = 1              # goes up whenever a kept listing would be read wrongly


def _kept(root, folders):
    """What images_in gave the last time, if it is still true."""
    try:
        with np.load(_place_of(root)) as kept:
            about = json.loads(kept["about"].tobytes())
            if about["of"] != _what(folders) or any(
                    _time_of_change(os.path.join(root, folder)) != at for folder, at in about["changed"].items()):
                return None
            paths = Paths(root, kept["names"], kept["starts"])
            return paths, about["counts"]
    except Exception:  # not there or damaged, in as many ways as a file can be: it is made anew
        return None


def _keep(root, folders, paths, counts, changed):
    about = json.dumps({"of": _what(folders), "counts": counts, "changed": changed}).encode()
    data = io.BytesIO()
    np.savez(data, about=np.frombuffer(about, np.uint8), names=paths.names, starts=paths.starts)
    try:
        place = _place_of(root)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_beside(place, data.getbuffer())
    except (OSError, RuntimeError, UserError):  # it would only have saved time
        pass


def _what(folders):
    return [FORM, sorted(EXTENSIONS), folders]


def _place_of(root):
    return user_cache() / "listings" / (hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:24] + ".npz")


def _time_of_change(folder):
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


# What text files list

def read_list(path, root=None):
    """A list with a path and a label in each line. -> (Paths, codes, words)

    The images' labels are the words that `codes`, int32 (n,), stand for; `words` is {label: (code, line that has it first)}.
    """
    codes, words = array("i"), {}

    def names():
        for number, line in _lines(path):
            name, *label = line.rsplit(None, 1)
            if not label or named_as_image(label[0]):
                raise UserError(f"{shown(path)}, line {number}: expected the path of an image, a space and a label, not {shown(line)}")
            codes.append(words.setdefault(label[0], (len(words), number))[0])
            yield name

    return _found(path, Paths.of(root, names()), root), np.frombuffer(codes, np.int32), words


def read_paths(path):
    """A list with a path in each line; if it is one with labels, they are passed over. -> Paths"""
    def names():
        for _, line in _lines(path):
            name, *label = line.rsplit(None, 1)
            yield name if label and not named_as_image(line) and named_as_image(name) else line

    return _found(path, Paths.of(None, names()))


def _lines(path):
    """(number, text) of the lines of a text file that are neither blank nor comments."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(f"{shown(path)}, line {number}: it is not text in UTF-8")
                line = line.strip()
                if line and not line.startswith("#"):
                    yield number, line
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error


def _found(path, paths, root=None):
    """Paths under the folder that a list's paths are relative to: its own, or as with Caffe's train.txt the train/ beside it."""
    if not len(paths):
        raise UserError(f"{shown(path)} lists no images")
    here, name = os.path.dirname(path) or ".", os.path.splitext(os.path.basename(path))[0]
    for folder in [root] if root else [here, os.path.join(here, name), os.path.join(here, f"ILSVRC2012_img_{name}")]:
        there = Paths(folder, paths.names, paths.starts)
        if any(map(os.path.lexists, there[:10])):
            return there
    first = os.path.join(root or here, Paths("", paths.names, paths.starts)[0])
    raise UserError(f"the images that {shown(path)} lists are not there, {shown(first)} for one: "
                    f"its paths must be absolute or begin in {shown(root or here)}")


def names_of_numbers(folder):
    """What the labels 0, 1, ... are called, by a file in this folder. -> (names, file), or (None, None) without one"""
    for name, first_word in ("classes.txt", False), ("synsets.txt", True), ("synset_words.txt", True):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            names = {}
            for number, line in _lines(path):
                name = line.split()[0] if first_word else line
                if name in names:
                    raise UserError(f"{shown(path)}, line {number}: a second class is called {shown(name)}, as in line {names[name]}")
                names[name] = number
            return list(names), path
    return None, None


# The ground truth of ImageNet's validation images, which lie in one flat folder

# Where it may be: from the images' folder up to Kaggle's, four levels above, and in the development kit unpacked there.
NEAR = "", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "devkit/data"
TRUTHS = ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "ILSVRC2014_clsloc_validation_ground_truth.txt",
          "imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
SYNSETS = "meta.mat", "map_clsloc.txt", "synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt"


def read_truth(root, names):
    """The class of each image, from the nearest file that knows. -> [class, ...], or None if there is no such file"""
    path = next(_near(root, TRUTHS), None)
    if path is None:
        return None
    if path.endswith(".csv"):
        rows = csv.reader(line for _, line in _lines(path))
        truth = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
        keys = [os.path.splitext(name)[0] for name in names]
    else:
        # Line i belongs to the image that has the number i in its name, whether or not the others are there.
        truth = {number: line.split()[0] for number, line in _lines(path)}
        if all(map(is_number, truth.values())):
            wnids = wnids_of(root, path)
            truth = {number: wnids.get(int(word)) for number, word in truth.items()}
        numbers = [re.search(r"_(\d{8})\.\w+$", name) for name in names]
        keys = [number and int(number[1]) for number in numbers]
    for name, key in zip(names, keys):
        if truth.get(key) is None:
            raise UserError(f"{shown(path)} does not tell the class of {shown(os.path.join(root, name))}")
    return [truth[key] for key in keys]


def is_number(word):
    return word.isascii() and word.isdigit()


def _near(root, names):
    folder = os.path.abspath(root)
    for _ in range(5):
        for near in NEAR:
            for name in names:
                path = os.path.join(folder, near, name)
                if os.path.isfile(path):
                    yield path
        folder = os.path.dirname(folder)


def wnids_of(root, truth):
    """{ILSVRC2012_ID: wnid}. The IDs do not follow the order of the wnids, so a sorted list of these does not tell them."""
    for path in _near(root, SYNSETS):
        if path.endswith(".mat"):
            return _meta_mat(path)
        lines = [(line.split() + [""])[:2] for _, line in _lines(path)]
        if all(is_number(second) for _, second in lines):
            return {int(second): first for first, second in lines}
        if all(is_number(first) for first, _ in lines):
            return {int(first): second for first, second in lines}
        wnids = [first for first, _ in lines]
        if wnids != sorted(wnids):
            return dict(enumerate(wnids, 1))
    raise UserError(f"{shown(truth)} gives the classes as ILSVRC2012_IDs: put the development kit's meta.mat beside it, or "
                    "a map_clsloc.txt with a wnid and its ID in each line")


def _meta_mat(path):
    """{ILSVRC2012_ID: wnid} from a MATLAB file of level 5, described in MathWorks' "MAT-File Format": its struct array `synsets`."""
    types = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8", 16: "u1"}

    def elements(data):
        at = 0
        while at < len(data):
            kind, size = struct.unpack_from("<II", data, at)
            if kind >> 16:  # up to four bytes lie in the tag itself
                yield kind & 0xFFFF, data[at + 4:at + 4 + (kind >> 16)]
                at += 8
                continue
            part = data[at + 8:at + 8 + size]
            yield from elements(zlib.decompress(part)) if kind == 15 else [(kind, part)]
            at += 8 + (size if kind == 15 else -(-size // 8) * 8)

    def values(matrix):
        kind, data = list(elements(matrix))[3]  # behind its flags, dimensions and name
        return np.frombuffer(data, types[kind]).tolist()

    try:
        data = Path(path).read_bytes()
        _, _, _, (_, width), (_, fields), *members = elements(next(elements(data[128:]))[1])
        width = int.from_bytes(width, "little")
        fields = [fields[i:i + width].rstrip(b"\0") for i in range(0, len(fields), width)]
        ids, wnids = ([matrix for _, matrix in members[fields.index(name)::len(fields)]] for name in (b"ILSVRC2012_ID", b"WNID"))
        return {int(values(i)[0]): "".join(map(chr, values(wnid))) for i, wnid in zip(ids, wnids)}
    except Exception as error:  # whatever goes wrong in a damaged or foreign file
        raise UserError(f"{shown(path)} cannot be read as the development kit's ({type(error).__name__}: {error})") from error
