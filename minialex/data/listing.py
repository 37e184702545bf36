"""Listings: the paths of a million images in little memory, found in folders or read from text files.

A listing of ImageNet's 1.28 million names takes 55 MB. One that was found in folders is kept in the user's cache.
"""

import hashlib
import io
import json
import os
import re
import time
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError, shown
from ..files import user_cache, write_beside
from .image import EXTENSIONS, REMEDIES

# Folders that systems make: thumbnails of a Synology, resource forks of macOS, waste baskets. Hidden ones are passed over too.
SYSTEM = frozenset({"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"})
# Nobody takes these for pictures or misses them: texts and tables about pictures (also as phones and annotators write them), and what
# systems leave behind (Thumbs.db, desktop.ini). Files of all other endings are counted: they may be pictures that were meant to be there.
BESIDE = frozenset("txt md csv tsv json jsonl xml yaml yml html htm xmp aae ini db log md5 sha256 lnk url".split())
# Words of a list's first line that names its columns.
HEADER = frozenset("file filename file_name filenames files filepath file_path name path paths image images img image_path image_name imagepath imagename "
                   "image_id imageid id label labels label_id class classes class_id classid class_name classname category categories target targets species "
                   "y x".split())
MOST_NAMED = 5        # entries of a listing that are named one by one where they are left out


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


@dataclass
class Beside:
    """What a listing has left out: `other`, {ending: files}, and `amiss`, a sentence for each entry that could not be taken."""
    other: dict[str, int] = field(default_factory=dict)
    amiss: list[str] = field(default_factory=list)

    def count(self, name):
        """Counts a file that is not named as an image."""
        ending = re.fullmatch(r".+\.(\w{1,8}~?)", name, re.DOTALL)      # of "10.30 at home" the dot is none of an ending
        ending = ending[1].lower() if ending else ""
        if ending not in BESIDE and name != "Icon\r":
            key = f".{ending}" if ending else "no ending"
            self.other[key] = self.other.get(key, 0) + 1

    def endings(self):
        """The other files as a sentence has them: .heic 4: pip install 'minialex[heif]', .mov 3"""
        remedies = {ending: f": {REMEDIES[ending[1:]]}" for ending in self.other if ending[1:] in REMEDIES}
        most_first = sorted(self.other.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{ending} {count:,}{remedies.get(ending, '')}" for ending, count in most_first)

    def sentences(self, root):
        count = sum(self.other.values())
        if count:
            yield f"{count:,} other file{'s' * (count > 1)} in {shown(root)} {'were' if count > 1 else 'was'} left out ({self.endings()})"
        yield from self.amiss[:MOST_NAMED]
        if len(self.amiss) > MOST_NAMED:
            yield f"{len(self.amiss) - MOST_NAMED:,} more entries of {shown(root)} were left out for such reasons"


def same_classes(root, found, classes, all=True):
    """A UserError if the classes found in root are not those of the training set; all: none of these may be missing."""
    there, wanted = set(found), set(classes)
    missing = [name for name in classes if all and name not in there]
    extra = [name for name in found if name not in wanted]
    faults = [f"lacks {named(missing)}"] * bool(missing) + [f"has {named(extra)} besides"] * bool(extra)
    if faults:
        raise UserError(f"{shown(root)} must have the training set's classes, but it {' and '.join(faults)}{twins(missing, extra)}")


def twins(missing, extra):
    """What a sentence on classes that are not the same adds where two of them are written alike: Linux and macOS store an accent in two ways."""
    composed = {unicodedata.normalize("NFC", name): name for name in missing}
    for name in extra:
        other = composed.get(unicodedata.normalize("NFC", name))
        if other not in (None, name):
            return f": {ascii(other)} and {ascii(name)} differ in Unicode normalisation alone, so rename one of them"
    return ""


def named(names, most=5):
    """Some names as a sentence has them, of many the first ones."""
    listed = ", ".join(map(shown, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


# What folders hold

def images_in(root, folders):
    """The images in root/<folder> and below for each of the folders, sorted in each. -> (Paths, the number in each folder, Beside)"""
    kept = _kept(root, folders)
    if kept:
        return kept
    began, changed, counts, below, beside = time.time_ns(), {}, [], len(os.path.join(root, "")), Beside()
    real = os.path.realpath(root)

    def names():
        for folder in folders:
            path = os.path.join(root, folder)
            found = sorted(_images(path, (real, os.path.realpath(path)), beside, changed))
            counts.append(len(found))
            yield from (path[below:] for path in found)

    paths = Paths.of(root, names())
    # A folder that changed just now may change again within the same tick of its clock, unseen. What is amiss may mend without a trace.
    if len(paths) >= KEPT_FROM and max(changed.values()) < began - TICK and not beside.amiss:
        _keep(root, folders, paths, counts, beside.other, {folder[below:]: at for folder, at in changed.items()})
    return paths, counts, beside


def _images(folder, way, beside, changed):
    """Paths of the images in a folder and in those below it; `way` has the real paths of the set, of the class and of the folders down
    to this one; `changed` gets the folders' times of change."""
    changed[folder] = _time_of_change(folder)  # before it is read: what changes meanwhile must be seen the next time
    for entry in entries(folder):
        kind = kind_of(entry, beside)
        if kind == "folder":
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(way[-1], entry.name)
            if entry.is_symlink() and (why := _astray(real, way)):
                beside.amiss.append(f"{shown(entry.path)} was not followed: it leads {why}")
                continue
            try:
                yield from _images(entry.path, (*way, real), beside, changed)
            except UserError as error:
                beside.amiss.append(f"{error}, and was left out")
        elif kind == "image":
            yield entry.path
        elif kind == "file":
            beside.count(entry.name)


def _astray(real, way):
    """Why a link that leads to the folder `real` is not followed, or None."""
    if any(_lies_in(step, real) for step in way):
        return f"up to {shown(real)}"
    if _lies_in(real, way[0]) and not _lies_in(real, way[1]):      # the images of one class would become another's
        return f"to another class, in {shown(real)}"
    return None


def _lies_in(path, folder):
    return os.path.join(path, "").startswith(os.path.join(folder, ""))


def kind_of(entry, beside=None):
    """What an entry of a folder is: "folder", "image", "file" or, of a FIFO and the like, "". What cannot be told is "", and amiss."""
    named_so = named_as_image(entry.name)
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "image" if named_so else "file"
        if not entry.is_symlink() or os.path.exists(entry.path):
            return ""
        reason = "it leads nowhere"
    except OSError as error:
        reason = error.strerror
    # A link that leads nowhere is kept: decoding will name it, where dropping it here would lose it in silence.
    if not named_so and beside:
        beside.amiss.append(f"{shown(entry.path)} was left out: {reason}")
    return "image" if named_so else ""


def named_as_image(name):
    stem, _, extension = os.path.basename(name).rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS


def class_folders(root, beside=None):
    """The names of the folders in root, sorted; links that lead up to it are none."""
    beside, real, names, loose = beside or Beside(), os.path.realpath(root), [], 0
    for entry in entries(root):
        kind = kind_of(entry, beside)
        loose += kind == "image"
        if kind == "folder" and entry.is_symlink() and _lies_in(real, above := os.path.realpath(entry.path)):
            beside.amiss.append(f"{shown(entry.path)} was not followed: it leads up to {shown(above)}")
        elif kind == "folder":
            names.append(entry.name)
    if loose and names:
        beside.amiss.append(f"{loose:,} image{'s' * (loose > 1)} beside the class folders of {shown(root)} {'were' if loose > 1 else 'was'} left out")
    return sorted(names)


def entries(folder):
    """What a folder holds, without hidden files, the ._ companions of macOS and the folders of systems."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM]
    except FileNotFoundError:
        raise UserError(f"there is no folder {shown(folder)}") from None
    except NotADirectoryError:
        raise UserError(f"{shown(folder)} is not a folder") from None
    except OSError as error:
        raise UserError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


# Listings that are kept: true as long as no folder has changed, since adding or removing a file changes its folder

KEPT_FROM = 20_000    # images; fewer are listed in no time
TICK = 2_000_000_000  # ns: the coarsest clock of a file system, FAT's
FORM = 2              # goes up whenever a kept listing would be read wrongly


def _kept(root, folders):
    """What images_in gave the last time, if it is still true."""
    try:
        with np.load(_place_of(root)) as kept:
            about = json.loads(kept["about"].tobytes())
            if about["of"] != _what(folders) or any(
                    _time_of_change(os.path.join(root, folder)) != at for folder, at in about["changed"].items()):
                return None
            paths = Paths(root, kept["names"], kept["starts"])
            return paths, about["counts"], Beside(about["other"])
    except Exception:  # not there or damaged, in as many ways as a file can be: it is made anew
        return None


def _keep(root, folders, paths, counts, other, changed):
    about = json.dumps({"of": _what(folders), "counts": counts, "other": other, "changed": changed}).encode()
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
    codes, words, strange = array("i"), {}, None

    def names():
        nonlocal strange
        for number, line in _without_header(path, root):
            name, *label = line.rsplit(None, 1)
            if not codes and label and not named_as_image(name) and not _is_there(name, path, root):
                strange = number, name
            if not label or named_as_image(label[0]):
                raise UserError(f"{shown(path)}, line {number}: expected the path of an image, a space and a label, not {shown(line)}")
            codes.append(words.setdefault(label[0], (len(words), number))[0])
            yield name

    paths = _found(path, Paths.of(root, names()), root)
    if strange and len(paths) > 1:
        raise UserError(f"{shown(path)}, line {strange[0]}: there is no image {shown(strange[1])}; if the line is a header, put a # before it")
    return paths, np.frombuffer(codes, np.int32), words


def read_paths(path):
    """A list with a path in each line; if it is one with labels, they are passed over. -> Paths"""
    def names():
        for _, line in _without_header(path):
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


def _without_header(path, root=None):
    """Its lines, without a first one that names columns and no file: it would become a class called "label"."""
    for place, (number, line) in enumerate(lines_of(path)):
        if place or not HEADER.issuperset(re.split(r"[\s,;\"']+", line.strip("\"'").lower())) or _is_there(line.rsplit(None, 1)[0], path, root):
            yield number, line


def _is_there(name, path, root):
    return any(os.path.lexists(os.path.join(folder, name)) for folder in _places(path, root))


def _places(path, root):
    """The folders that the paths of a list may be relative to."""
    here, name = os.path.dirname(path) or ".", os.path.splitext(os.path.basename(path))[0]
    return [root] if root else [here, os.path.join(here, name), os.path.join(here, f"ILSVRC2012_img_{name}")]


def _found(path, paths, root=None):
    """Paths under the folder that a list's paths are relative to: its own, or as with Caffe's train.txt the train/ beside it."""
    if not len(paths):
        raise UserError(f"{shown(path)} lists no images")
    here = os.path.dirname(path) or "."
    for folder in _places(path, root):
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
