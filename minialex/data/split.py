"""A validation set drawn from a set that has none.

What is drawn for a picture depends on the seed and on its name alone, the path below the set's folder. Of each class those with the
smallest words validate, so that a picture that is added or removed moves at most one other of its class.
"""

import hashlib
import os

import numpy as np

from ..errors import UserError, shown
from ..philox import philox

FRACTION = 0.2      # where nothing is asked for


def draw_split(source, seed, fraction):
    """(train, val), parts of a data source: of each class the fraction of its images, rounded, but at least one on each side where it has two."""
    labels = np.asarray(source.labels)
    counts = np.bincount(labels, minlength=len(source.classes))
    if not (counts > 1).any():
        raise UserError(f"{shown(source.root)} has no class with two images, so that no validation set can be drawn from it")
    take = np.where(counts > 1, np.clip(np.rint(counts * fraction), 1, counts - 1), 0)
    order = np.lexsort((words_of(source, seed), labels))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), bool)
    chosen[order] = rank < take[labels[order]]
    return source.part(np.flatnonzero(~chosen)), source.part(np.flatnonzero(chosen), besides=False)


def words_of(source, seed):
    """A random word for each picture: uint64 (n,)."""
    names, starts = source.paths.names, source.paths.starts.tolist()
    data = names.tobytes().replace(os.sep.encode(), b"/")
    hashed = b"".join(hashlib.sha256(data[start:end - 1]).digest()[:16] for start, end in zip(starts, starts[1:]))
    words = philox(seed, *np.frombuffer(hashed, "<u4").reshape(-1, 4).T).astype(np.uint64)
    return words[:, 0] << np.uint64(32) | words[:, 1]
