"""The ground truth of ImageNet's validation images, which lie in one flat folder."""

import csv
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError, shown
from .listing import is_number, lines_of

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
        rows = csv.reader(line for _, line in lines_of(path))
        truth = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
        keys = [os.path.splitext(name)[0] for name in names]
    else:
        # Line i belongs to the image that has the number i in its name, whether or not the others are there.
        truth = {number: line.split()[0] for number, line in lines_of(path)}
        if all(map(is_number, truth.values())):
            wnids = wnids_of(root, path)
            truth = {number: wnids.get(int(word)) for number, word in truth.items()}
        numbers = [re.search(r"_(\d{8})\.\w+$", name) for name in names]
        keys = [number and int(number[1]) for number in numbers]
    for name, key in zip(names, keys):
        if truth.get(key) is None:
            raise UserError(f"{shown(path)} does not tell the class of {shown(os.path.join(root, name))}")
    return [truth[key] for key in keys]


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
        lines = [(line.split() + [""])[:2] for _, line in lines_of(path)]
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
