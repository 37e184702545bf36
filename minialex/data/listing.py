"""Listings: the paths of a million images in little memory, found in folders or read from text files.

A listing of ImageNet's 1.28 million names takes 55 MB. One that was found in folders is kept in the user's cache.
"""

import hashlib
import io
import json
import os
import time
from array import array
from collections.abc import Sequence

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

    def __repr__(self):
        return f"{len(self):,} paths, {self[0]} the first" if len(self) else "no paths"

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
        for number, line in lines_of(path):
            name, *label = line.rsplit(None, 1)
            if not label or named_as_image(label[0]):
                raise UserError(f"{shown(path)}, line {number}: expected the path of an image, a space and a label, not {shown(line)}")
            codes.append(words.setdefault(label[0], (len(words), number))[0])
            yield name

    return _found(path, Paths.of(root, names()), root), np.frombuffer(codes, np.int32), words


def read_paths(path):
    """A list with a path in each line; if it is one with labels, they are passed over. -> Paths"""
    def names():
        for _, line in lines_of(path):
            name, *label = line.rsplit(None, 1)
            yield name if label and not named_as_image(line) and named_as_image(name) else line

    return _found(path, Paths.of(None, names()))


def lines_of(path):
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
            for number, line in lines_of(path):
                name = line.split()[0] if first_word else line
                if name in names:
                    raise UserError(f"{shown(path)}, line {number}: a second class is called {shown(name)}, as in line {names[name]}")
                names[name] = number
            return list(names), path
    return None, None


def is_number(word):
    return word.isascii() and word.isdigit()
