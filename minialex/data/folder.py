"""Sets of images as they lie on a disk: class folders, lists, ImageNet as it is handed out, or images without labels.

A set is two splits, which find_splits() knows by their names (SPLITS), or draws where there is only one; open_split() tells what each of them is.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from ..errors import UserError, shown
from ..progress import Bar, silent
from .image import EXTENSIONS, picture
from .imagenet import read_truth
from .listing import (Beside, Paths, class_folders, entries, images_in, is_number, kind_of, named, named_as_image, names_of_numbers, read_list, read_paths,
                      same_classes, twins)
from .packed import is_pack, open_pack
from .shapes import default_set
from .split import FRACTION, draw_split

# The two splits of a set: folders, packed folders, or lists.
SPLITS = (*product(("train", "training"), ("val", "validation", "valid", "test")),
          ("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("train.txt", "val.txt"))
# Where they lie in a set's folder; the others are how Kaggle hands out ImageNet.
INSIDE = "", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"
HOW = "give the two as --train X --val Y, or as --data one folder of class folders, from which --val-fraction F draws the validation set"


@dataclass(eq=False, repr=False)
class ImageFolder:
    root: str  # what the paths are relative to
    classes: list  # names; a label is an index into them
    paths: Sequence  # of str, in an order that is the same on every machine
    labels: np.ndarray  # int32, one for each path; -1 where there are no classes
    beside: Beside = field(default_factory=Beside)  # what its folders hold besides

    def __len__(self):
        return len(self.paths)

    def picture(self, place, size, fit="crop"):
        """uint8 (size, size, 3): the centre square ("crop") or the whole picture ("squash"). Raises UnreadableImage."""
        return picture(self.paths[place], size, fit)

    def fingerprint(self):
        """What tells two listings apart: the sha256 is that of the paths relative to root, joined by newlines."""
        paths = self.paths
        if not isinstance(paths, Paths):
            paths = Paths.of(self.root, (os.path.relpath(path, self.root) for path in paths))
        return {"images": len(paths), "sha256": paths.sha256()}

    def part(self, places, besides=True):
        """The images in these places alone, as a set; besides: with what else its folders hold."""
        return replace(self, paths=self.paths.stretches([(place, place + 1) for place in places.tolist()]), labels=self.labels[places],
                       beside=self.beside if besides else Beside())

    def remarks(self):
        """Sentences on what was left out of it."""
        return list(self.beside.sentences(self.root))

    def describe(self):
        return f"{len(self.paths)} images" + f" in {len(self.classes)} classes" * bool(self.classes)

    __str__ = describe

    def __repr__(self):
        return f"ImageFolder {shown(self.root)}: {self}"


def find_splits(data=None, train=None, val=None, bar=silent, *, seed=0, val_fraction=None):
    """(train, val) as data sources, from one folder that holds both, from the two named apart, or drawn from one set."""
    fraction = drawn_fraction(data, train, val, val_fraction)
    if fraction is not None:
        whole = open_split(data, bar=bar)
        _require_two(whole.classes, data)
        return draw_split(whole, seed, fraction)
    train, val = (os.fspath(train), os.fspath(val)) if data is None else _splits_of(os.fspath(data))
    # Looked at first: listing a large set only to refuse it would take a while.
    if os.path.isdir(train) and os.path.isdir(val) and (found := class_folders(train)) and (others := class_folders(val)):
        same_classes(val, others, found)
    training = open_split(train, bar=bar)
    _require_two(training.classes, train)
    return training, open_split(val, training.classes, bar)


def _require_two(classes, path):
    if len(classes) < 2:
        raise UserError(f"{shown(path)} has only one class, {named(classes)}: telling classes apart needs two or more")


def drawn_fraction(data=None, train=None, val=None, asked=None, kept=None):
    """The part of each class that is drawn for validation, `asked` or the usual one; None where the splits are there. kept: that of a run
    that goes on, whose data may by now have splits."""
    if data is not None and (train is not None or val is not None):
        raise UserError("give one data folder, or a training and a validation folder, but not both ways at once")
    if data is None and (train is None or val is None):
        raise UserError(f"give a data folder that holds both splits, or both a training and a validation folder: {HOW}")
    if data is None:
        there = val
    else:
        data = os.fspath(data)
        splits = _splits_of(data)
        if not splits and not _is_whole(data):
            raise UserError(f"{shown(data)} does not hold the two splits, {_found_instead(data)}: {HOW}")
        if not splits:
            return asked if asked is not None else kept or FRACTION
        there = splits[1]
    if asked is not None:
        raise UserError(f"--val-fraction {asked:g}: there is a validation set, {shown(there)}, so that none is drawn; leave it out, or give as "
                        "--data the training set alone")
    return None


def open_data(data: str | os.PathLike | None = None, train: str | os.PathLike | None = None, val: str | os.PathLike | None = None,
              bar: Bar = silent, *, seed: int = 0, val_fraction: float | None = None, warn: Callable[[str], Any] | None = None) -> tuple[Any, Any]:
    """(train, val) as data sources: find_splits() of what is given, or the built-in set, which is drawn when it is first asked for.

    Of a set without a validation set, seed and file names draw val_fraction of each class for it, 0.2 unless given.
    What lies in their folders and was left out is told through `warn`, a Python warning unless given.
    """
    if data is None and train is None and val is None:
        data = default_set(bar)
    found = find_splits(data, train, val, bar, seed=seed, val_fraction=val_fraction)
    for source in found:
        for sentence in source.remarks():
            (warn or warnings.warn)(sentence)
    return found


def open_validation(data, classes, bar=silent):
    """The validation part of a set that holds one, else `data` itself as a split."""
    there = [val for _, val in split_pairs(os.fspath(data)) if os.path.exists(val) and os.path.basename(val) not in classes]
    return open_split(_unwrapped(there[0]) if there else data, classes, bar)


def open_split(path, classes=None, bar=silent):
    """A packed set, a list, or a folder of images. With `classes`, those of the training set, its labels are indices into them."""
    path = os.fspath(path)
    if is_pack(path):
        return open_pack(path, classes, bar)
    return open_list(path, classes) if os.path.isfile(path) else open_folder(path, classes)


def open_folder(dir, classes=None):
    """The images under dir/<class>/, nested folders included. With classes, dir must have the same ones.

    Without class folders dir may hold images whose classes a file beside it tells: a list of its name, or ImageNet's
    ground truth.
    """
    root = os.fspath(dir)
    above = Beside()
    found = class_folders(root, above)
    if not found:
        return _open_flat(root, classes)
    if classes is not None:
        same_classes(root, found, classes)
    paths, counts, beside = images_in(root, found)
    beside.amiss[:0] = above.amiss
    empty = [name for name, count in zip(found, counts) if not count]
    if len(empty) == len(found):
        raise UserError(f"there are no images in the class folders of {shown(root)}: looked for {_extensions()}{_but(beside)}")
    if empty:
        one = len(empty) == 1
        raise UserError(f"{'class folder' if one else 'class folders'} {named(empty)} of {shown(root)} "
                        f"{'holds' if one else 'hold'} no images{_but(beside)}: fill or remove {'it' if one else 'them'}")
    order = found if classes is None else list(classes)
    if order != found:  # a checkpoint's order is kept
        last = dict(zip(found, np.cumsum(counts).tolist()))
        count = dict(zip(found, counts))
        paths, counts = paths.stretches([(last[name] - count[name], last[name]) for name in order]), [count[name] for name in order]
    return ImageFolder(root, order, paths, np.repeat(np.arange(len(order), dtype=np.int32), counts), beside)


def _open_flat(root, classes):
    """Images that lie in root itself."""
    beside, names = Beside(), []
    for entry in entries(root):
        kind = kind_of(entry, beside)
        if kind == "image":
            names.append(entry.name)
        elif kind == "file":
            beside.count(entry.name)
    names.sort()
    if not names:
        archives = [entry.name for entry in entries(root) if entry.name.endswith(".tar")]
        raise UserError(f"{shown(root)} has no class folders: " + (
            f"unpack {named(archives, 2)} into a folder of that name each" if archives
            else "it must hold one folder of images for each class"))
    above, own = os.path.split(os.path.abspath(root))
    lists = [os.path.join(folder, name + ".txt") for folder in (above, root) for name in (own, own.removeprefix("ILSVRC2012_img_"))]
    for path in filter(os.path.isfile, lists):
        return open_list(path, classes, root)
    truth = read_truth(root, names)
    if truth is None:
        raise UserError(f"{shown(root)} has no class folders: its images must lie in one folder for each class, or {shown(lists[1])}, "
                        "ILSVRC2012_validation_ground_truth.txt or LOC_val_solution.csv beside it must tell their classes")
    there = sorted(set(truth))
    if classes is not None:
        same_classes(root, there, classes, all=False)
    label = {name: i for i, name in enumerate(there if classes is None else classes)}
    return ImageFolder(root, list(label), Paths.of(root, names), np.array([label[name] for name in truth], np.int32), beside)


def open_list(path, classes=None, root=None):
    """The images of a text file with a path and a label in each line, in its order. Paths are relative to root, or to the file's folder.

    Labels are names, or numbers that classes.txt, synsets.txt or synset_words.txt beside the list gives names to (the first line
    to 0). Without these a number is a name itself, unless the training set has other names: then it counts these, as Caffe does.
    """
    path = os.fspath(path)
    paths, codes, words = read_list(path, root)
    numbers = all(map(is_number, words))
    known = None if classes is None else set(classes)
    called, source = names_of_numbers(os.path.dirname(path)) if numbers else (None, None)
    if numbers and not called and known and known.isdisjoint(words):
        called, source = classes, "the training set"
    names = {}  # of the classes, by the words in the list
    for word, (_, line) in words.items():
        if called and int(word) >= len(called):
            raise UserError(f"{shown(path)}, line {line}: label {word} is beyond the classes of {shown(source)}, 0 to {len(called) - 1}")
        names[word] = called[int(word)] if called else word
        if known is not None and names[word] not in known:
            raise UserError(f"{shown(path)}, line {line}: the training set has no class {shown(names[word])}{twins(classes, [names[word]])}")
    if classes is None:
        classes = dict.fromkeys(names[word] for word in sorted(words, key=int if numbers else None))
    label = {name: i for i, name in enumerate(classes)}
    return ImageFolder(paths.root, list(label), paths, np.array([label[names[word]] for word in words], np.int32)[codes])


def open_unlabelled(path):
    """Images without labels: one file, those of a list, or those in a folder and below it, sorted."""
    path = os.fspath(path)
    if os.path.isdir(path):
        root, (paths, _, beside) = path, images_in(path, [""])
        if not len(paths):
            raise UserError(f"there are no images in {shown(path)}: looked for {_extensions()}{_but(beside)}")
        return ImageFolder(root, [], paths, np.full(len(paths), -1, np.int32), beside)
    if named_as_image(path) or not _is_text(path):
        root = os.path.dirname(path)
        paths = Paths.of(root, [os.path.basename(path)])
    else:
        paths = read_paths(path)
        root = paths.root
    return ImageFolder(root or ".", [], paths, np.full(len(paths), -1, np.int32))


def _is_text(path):
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(4096)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error


def split_pairs(data):
    for inside in INSIDE:
        for pair in SPLITS:
            yield [os.path.join(data, inside, name) for name in pair]


def _splits_of(data):
    """The two splits that a folder holds, or None."""
    for pair in split_pairs(data):
        if all(map(os.path.exists, pair)):
            return [_unwrapped(split) for split in pair]
    return None


def _is_whole(data):
    """Whether it is a set without splits: a list, a packed set, or class folders, of which none is called as a split is."""
    if is_pack(data) or os.path.isfile(data) and data.endswith(".txt"):
        return True
    folders = class_folders(data)
    return len(folders) > 1 and not any(name in pair for name in folders for pair in SPLITS)


def _found_instead(data):
    there = {entry.name for entry in entries(data)}
    archives = [f"{name}.tar" for pair in SPLITS for name in pair if f"{name}.tar" in there]
    half = [pair for pair in SPLITS if there & set(pair)]
    if archives:
        return f"but {named(archives)} (unpack each into a folder of that name)"
    if half:
        return "only " + " without ".join(sorted(half[0], key=lambda name: name not in there))
    folders = class_folders(data)
    if len(folders) == 1:
        return f"but the one folder {shown(folders[0])}"
    return "nor class folders"


def _unwrapped(split):
    """Archives often unpack to training/training/<class>: the inner one, where it is all that the outer one holds."""
    name = os.path.basename(split)
    return os.path.join(split, name) if os.path.isdir(split) and class_folders(split) == [name] else split


def _but(beside):
    """What a sentence on missing images adds: the files that lie there instead."""
    return f" (other files: {beside.endings()})" if beside.other else ""


def _extensions():
    return " ".join(sorted("." + extension for extension in EXTENSIONS))
