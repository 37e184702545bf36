"""Pictures of the validation set that are in the training set too, as they are or saved anew: what is scored on them is memory.

Two pictures are alike if what is decoded is the same, or if of the differences between neighbours in their 17 x 17 grey thumbnails at most
DIFFER of 256 signs differ ("dHash") and the cosine between all of them is at least ALIKE: in flat pictures the signs say little. Of
photographs a copy that was scaled or compressed anew has a cosine of 0.98 or more, two that have nothing in common hardly ever 0.6.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from ..errors import shown
from ..progress import silent
from .image import UnreadableImage

SIDE = 64             # pixels that are decoded: for a JPEG a fraction of the work
DIFFER, ALIKE = 12, 0.97
AT_ONCE = 256         # validation pictures compared with all others in a product of matrices
MOST = 20_000         # pictures that are looked at: more take minutes


def near_duplicates(train, val, workers=2, bar=silent):
    """[(place in val, place in train)] of validation pictures that are also in training, each with the training picture most like it.

    Both are data sources; a picture that cannot be read is passed over.
    """
    packed = next((source for source in (train, val) if hasattr(source, "size")), None)
    size, fit = (packed.size, packed.fit) if packed else (SIDE, "crop")
    with bar(total=len(train) + len(val), unit="image", desc="looking for near-duplicates") as done:
        digests, marks = zip(*(_looked_at(source, size, fit, workers, done) for source in (train, val)))
    first = {digest: place for place, digest in reversed(list(enumerate(digests[0]))) if digest}
    found = {place: first[digest] for place, digest in enumerate(digests[1]) if digest in first}
    (signs, slopes), (val_signs, val_slopes) = map(_compared_by, marks)
    for start in range(0, len(val), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        alike = val_slopes[rows] @ slopes.T
        alike[(256 - val_signs[rows] @ signs.T) / 2 > DIFFER] = 0
        for row, most in enumerate(alike.argmax(axis=1).tolist()):
            if alike[row, most] >= ALIKE:
                found.setdefault(start + row, most)
    return sorted(found.items())


def _looked_at(source, size, fit, workers, done):
    """-> a digest of each picture, b"" of one that cannot be read, and their thumbnails, uint8 (n, 17, 17)"""
    def look(place):
        try:
            pixels = source.picture(place, size, fit)
        except UnreadableImage:
            return b"", np.zeros((17, 17), np.uint8)
        grey = Image.fromarray(pixels).convert("L").resize((17, 17), Image.Resampling.BOX)
        return hashlib.sha256(pixels).digest(), np.asarray(grey)

    digests, thumbnails = [], np.empty((len(source), 17, 17), np.uint8)
    pool = ThreadPoolExecutor(workers)
    try:
        for place, (digest, thumbnail) in enumerate(pool.map(look, range(len(source)))):
            digests.append(digest)
            thumbnails[place] = thumbnail
            done.update()
    finally:
        pool.shutdown(cancel_futures=True)      # after an interrupt, none is begun any more
    return digests, thumbnails


def _compared_by(thumbnails):
    """-> signs, float32 (n, 256) of -1 and 1, and slopes, float32 (n, 512) of length 1 (0 of a flat picture); products tell how alike they are."""
    grey = thumbnails.astype(np.float32)
    across, down = grey[:, :16, 1:] - grey[:, :16, :-1], grey[:, 1:, :16] - grey[:, :-1, :16]
    slopes = np.concatenate([across.reshape(-1, 256), down.reshape(-1, 256)], axis=1)
    return np.where(slopes[:, :256] > 0, np.float32(1), np.float32(-1)), slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-6)


def listed(pairs, train, val):
    """The text of a file that names them, as `minialex.evaluate --without` takes it: the path of each below the validation folder."""
    lines = [f"# {len(pairs):,} of {len(val):,} validation images are also in training; below the folder of each set:"]
    for place, other in pairs:
        name, twin = (os.path.relpath(source.paths[at], source.root) for source, at in ((val, place), (train, other)))
        lines.append(f"# {shown(name)} is like {shown(twin)} of the training set")
        if "\n" not in name and name == name.strip():      # else no line of a text file can name it
            lines.append(f"./{name}" if name.startswith("#") else name)
    return "".join(line + "\n" for line in lines)
