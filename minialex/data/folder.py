"""Folders of images: one folder for each class, in a listing that is the same on every machine."""

import os
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, shown

EXTENSIONS = frozenset("jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm".split())
# A set is looked for as DIR/train + DIR/val, or as DIR/training + DIR/validation.
SPLITS = ("train", "val"), ("training", "validation")


@dataclass(eq=False)
class ImageFolder:
    root: str
    classes: list  # names, sorted; a label is an index into them
    paths: list
    labels: np.ndarray  # int32, one for each path

    def __len__(self):
        return len(self.paths)

    def describe(self):
        return f"{len(self.paths)} images in {len(self.classes)} classes"

    __str__ = describe


def open_folder(dir, classes=None):
    """The images under dir/<class>/, nested folders included. With classes, those of the training set, dir must
    have the same ones."""
    root = os.fspath(dir)
    found = _class_folders(root)
    if not found:
        loose = any(_is_image(entry) for entry in _entries(root))
        raise UserError(f"{shown(root)} has no class folders: "
                        + ("its images must lie in one folder for each class" if loose
                           else "it must hold one folder of images for each class"))
    if classes is not None:
        _same_classes(root, found, classes)
    images = {name: sorted(_images(os.path.join(root, name))) for name in found}
    empty = [name for name in found if not images[name]]
    if len(empty) == len(found):
        raise UserError(f"there are no images in the class folders of {shown(root)}: looked for "
                        + " ".join(sorted("." + extension for extension in EXTENSIONS)))
    if empty:
        one = len(empty) == 1
        raise UserError(f"{'class folder' if one else 'class folders'} {_names(empty)} of {shown(root)} "
                        f"{'holds' if one else 'hold'} no images: fill or remove {'it' if one else 'them'}")
    order = found if classes is None else list(classes)
    labels = np.repeat(np.arange(len(order), dtype=np.int32), [len(images[name]) for name in order])
    return ImageFolder(root, order, [path for name in order for path in images[name]], labels)


def find_splits(data=None, train=None, val=None):
    """(train, val) as ImageFolders, from one folder that holds both or from the two named apart."""
    if data is not None and (train is not None or val is not None):
        raise UserError("give one data folder, or a training and a validation folder, but not both ways at once")
    if data is None and (train is None or val is None):
        raise UserError("give a data folder that holds both splits, or both a training and a validation folder")
    if data is not None:
        train, val = _splits_of(os.fspath(data))
    training = open_folder(train)
    if len(training.classes) < 2:
        raise UserError(f"{shown(training.root)} has only one class folder, {_names(training.classes)}: "
                        "telling classes apart needs two or more")
    return training, open_folder(val, training.classes)


def _splits_of(data):
    there = _class_folders(data)
    for pair in SPLITS:
        if all(name in there for name in pair):
            return [_unwrapped(os.path.join(data, name)) for name in pair]
    pairs = " or ".join(f"{train}/ and {val}/" for train, val in SPLITS)
    raise UserError(f"{shown(data)} does not hold the two splits: looked for {pairs} in it")


def _unwrapped(split):
    """Archives often unpack to training/training/<class>: the inner one, where it is all that the outer one holds."""
    name = os.path.basename(split)
    return os.path.join(split, name) if _class_folders(split) == [name] else split


def _class_folders(root):
    return sorted(entry.name for entry in _entries(root) if entry.is_dir() and entry.name != "__MACOSX")


def _images(folder, above=()):
    """Paths of the images in a folder and in those below it; `above` stops at a link that leads back up."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _images(entry.path, (*above, here))
        elif _is_image(entry):
            yield entry.path


def _is_image(entry):
    stem, dot, extension = entry.name.rpartition(".")
    if not stem or extension.lower() not in EXTENSIONS:
        return False
    # A link that leads nowhere is kept: decoding will name it, where dropping it here would lose it in silence.
    return entry.is_file() or entry.is_symlink() and not os.path.exists(entry.path)


def _entries(folder):
    """What a folder holds, without hidden files and the ._ companions of macOS."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        raise UserError(f"there is no folder {shown(folder)}") from None
    except NotADirectoryError:
        raise UserError(f"{shown(folder)} is not a folder") from None
    except OSError as error:
        raise UserError(f"the folder {shown(folder)} cannot be read: {error.strerror}") from error


def _same_classes(root, found, classes):
    missing = [name for name in classes if name not in found]
    extra = [name for name in found if name not in classes]
    faults = [f"lacks {_names(missing)}"] * bool(missing) + [f"has {_names(extra)} besides"] * bool(extra)
    if faults:
        raise UserError(f"{shown(root)} must have the training set's classes, but it {' and '.join(faults)}")


def _names(names, most=5):
    listed = ", ".join(map(shown, names[:most]))
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
