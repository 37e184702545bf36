"""What a network makes of labelled pictures: scores of a validation, what a report shows of it, and the full account of an evaluation."""

import contextlib
import json
import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ..errors import UserError, shown
from ..ops.softmax import ranks
from ..progress import silent

HANDFUL = 10            # pictures whose predictions a report shows, and surest mistakes
FEW = 20                # classes whose confusion is shown beside their accuracies
MOST_CLASSES = 4096     # beyond which a confusion matrix takes more memory than it tells
LEAST = np.finfo(np.float32).tiny      # a mean probability below it is taken for it, so that its loss stays finite


# In training, after each epoch

def validate(network, loader, stop=None, each=None, bar=silent):
    """Centre-crop scores over a loader. -> {"loss", "top1", "top5", "images", "whole"}, or None if stop() became true.

    "whole" is top-1 over the batches that are full, None where there is none. each(batch, losses, ranks) is called for every batch.
    The scores of a training epoch that the network holds stay as they are.
    """
    totals, team, found = network.arrays["output totals"], network.team, np.zeros((len(loader), 2), np.int64)      # of each batch: images, top-1 hits
    before = network.device.to_numpy(totals)
    totals.fill(0)
    try:
        total = len(loader) * len(team.own)
        with bar(iterable=loader.epoch(0), total=total, unit="batch", desc="validation", delay=1) as batches:      # a short one shows none
            for number, parts in enumerate(zip(*[iter(batches)] * len(team.own))):
                if stop is not None and team.most(stop()):
                    return None
                for part, batch in zip(team.own, parts):
                    if not len(batch):
                        continue
                    network.evaluate(batch.images, batch.labels, network.input.centre(len(batch)), part)
                    losses, ranks = network.results(len(batch))
                    found[number] += len(batch), (ranks < 1).sum()
                    if each:
                        each(batch, losses, ranks)
        loss, top1, top5 = network.scores()
    finally:
        network.device.upload(totals, before)
    found = np.sum(team.of_parts(found), axis=0)
    count, (whole, hits) = int(found[:, 0].sum()), found[found[:, 0] == loader.batch].sum(axis=0).tolist()
    if not count:
        raise UserError(f"no image could be read from {loader.folder.root}")
    return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count, "images": count, "whole": hits / whole if whole else None}


class Collector:
    """What a report shows of a validation, gathered batch by batch: `validate` takes it as `each`.

    source: the data source; its labels, -1 where there is none, decide which pictures are shown.
    """

    def __init__(self, network, source):
        self.network, classes = network, network.net.classes
        self.counts = np.zeros((classes, classes), np.int32) if classes <= MOST_CLASSES else None
        there = np.unique(source.labels)
        chosen = there[np.arange(min(HANDFUL, len(there))) * len(there) // max(1, min(HANDFUL, len(there)))]
        self.wanted = {int(label): HANDFUL // len(chosen) + (i < HANDFUL % len(chosen)) for i, label in enumerate(chosen)}
        self.most, self.kept, self.wrong, self.source = dict(self.wanted), [], [], source

    def __call__(self, batch, losses=None, ranks=None):
        probabilities = self.network.probabilities(len(batch))
        labelled, guesses, sure = batch.labels >= 0, probabilities.argmax(axis=1), probabilities.max(axis=1)
        if self.counts is not None:
            np.add.at(self.counts, (batch.labels[labelled], guesses[labelled]), 1)
        for row in np.flatnonzero(np.isin(batch.labels, [label for label, left in self.wanted.items() if left])):
            label = int(batch.labels[row])
            if self.wanted[label]:
                self.wanted[label] -= 1
                self.kept.append((int(batch.index[row]), self.item(batch, row, probabilities[row])))
        # The surest mistakes so far; of equally sure ones, those that come first in the listing.
        for row in np.flatnonzero(labelled & (guesses != batch.labels)).tolist():
            rank = -float(sure[row]), int(batch.index[row])
            if len(self.wrong) < HANDFUL or rank < self.wrong[-1][0]:
                self.wrong = sorted([*self.wrong, (rank, self.item(batch, row, probabilities[row]))], key=lambda entry: entry[0])[:HANDFUL]

    def merge(self, team, order):
        """Makes of what the ranks have gathered what one would have; order: the places in the listing as they are visited."""
        if len(team.own) == team.parts:
            return
        counts, kept, wrong = zip(*team.of_parts((self.counts, self.kept, self.wrong)))
        if self.counts is not None:
            self.counts = np.sum(counts, axis=0, dtype=self.counts.dtype)
        at, left, self.kept = np.argsort(order), dict(self.most), []
        for place, item in sorted((entry for own in kept for entry in own), key=lambda entry: at[entry[0]]):
            label = -1 if item[1] is None else item[1]
            if left[label]:
                left[label] -= 1
                self.kept.append((place, item))
        self.wrong = sorted((entry for own in wrong for entry in own), key=lambda entry: entry[0])[:HANDFUL]

    def item(self, batch, row, probabilities):
        """Of a picture: (itself, its label or None, [(class, probability), ...] of the likeliest five, its path in the data or None)."""
        label, likely, paths = int(batch.labels[row]), np.argsort(-probabilities, kind="stable")[:5], getattr(self.source, "paths", None)
        path = os.path.relpath(paths[int(batch.index[row])], self.source.root) if paths is not None else None
        return batch.images[row].copy(), label if label >= 0 else None, [(int(k), float(probabilities[k])) for k in likely], path

    def found(self):
        """{"predictions": ..., "mistakes": ..., "confusion": ...} for the report: the first pictures of some classes, in the order of the classes, and
        those that the network takes for a wrong class with the greatest probability."""
        kept = sorted((item for _, item in self.kept), key=lambda item: -1 if item[1] is None else item[1])
        return {"predictions": kept, "mistakes": [item for _, item in self.wrong], "confusion": self.counts}


# Of a trained network

def views_of(input, n, ten):
    """How n pictures are looked at: the views of their centre crops, or of all ten crops."""
    return input.ten(n) if ten else [input.centre(n)]


def probabilities(network, images, labels, views):
    """Of a batch, the mean over its views of the network's softmax (Krizhevsky 2012, section 4.1): float64 (n, classes)."""
    total = 0.0
    for view in views:
        network.evaluate(images, labels, view)
        total = total + network.probabilities(len(images)).astype(np.float64)
    return total / len(views)


def predictions(network, loader, top, ten=False, lock=contextlib.nullcontext()):
    """Yields (place in the listing, labels (top,), probabilities (top,)) of each image that can be read, the likeliest first; the lock is held
    while the network works."""
    for batch in loader.epoch(0):
        n = len(batch)
        if n:
            with lock:
                p = probabilities(network, batch.images, np.zeros(n, np.int32), views_of(network.input, n, ten))
            likely = np.argsort(-p, axis=1, kind="stable")[:, :top]
            for place, row, labels in zip(batch.index, p, likely):
                yield int(place), labels, row[labels]


def losses_and_ranks(p, labels):
    """What the network tells of one view, from probabilities (n, classes): -log of the label's, and how many classes come before it."""
    return -np.log(np.maximum(p[np.arange(len(p)), labels], LEAST)), ranks(p, labels)


def look(network, loader, ten=False, bar=silent):
    """Passes over a loader. -> arrays with an entry for each image that could be read:
    "place" in the listing, "label", "loss", "rank" (0 is a top-1 hit), "predicted" label and its "probability"."""
    found = []
    for batch in bar(iterable=loader.epoch(0), total=len(loader), unit="batch"):
        n = len(batch)
        if not n:
            continue
        p = probabilities(network, batch.images, batch.labels, views_of(network.input, n, ten))
        # Of one view the network gives them from its logits, which tell apart what as a probability rounds to 0 or to 1.
        losses, ranks = losses_and_ranks(p, batch.labels) if ten else network.results(n)
        among = p.copy()      # where the label's probability rounds to the same as another, the rank decides
        among[np.arange(n), batch.labels] = np.where(ranks == 0, 2, -1)
        predicted = among.argmax(axis=1)
        found.append((batch.index, batch.labels, losses, ranks, predicted, p[np.arange(n), predicted]))
    names = "place", "label", "loss", "rank", "predicted", "probability"
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*found))}


def summary(seen, chosen=slice(None)):
    """The scores of what `look` found, or of the images that a bool array chooses. -> {"loss", "top1", "top5", "images"}"""
    loss, rank = seen["loss"][chosen].astype(np.float64), seen["rank"][chosen]
    if not len(loss):
        raise UserError("no image that can be read is left to score")
    return {"loss": float(loss.mean()), "top1": float((rank < 1).mean()), "top5": float((rank < 5).mean()), "images": len(loss)}


@dataclass(eq=False)
class Evaluation:
    """How a trained network does on labelled pictures. `loss`, `top1` and `top5` are means over `images`.

    confusion: int64 (classes, classes), how many images of a row's class were taken for a column's. per_image: a dict for each image,
    its "path" relative to the data, "loss", "rank" (0 is a top-1 hit), "label", "predicted" and the "probability" of what was predicted.
    without: the same scores without the images that were named, how many these are ("left_out") and how many names are those of no
    image ("strangers"); or None.
    """

    loss: float
    top1: float
    top5: float
    images: int
    classes: list[str] = field(repr=False)
    confusion: np.ndarray = field(repr=False)
    per_image: list[dict] = field(repr=False)
    unreadable: int = 0
    views: int = 1
    without: dict | None = None

    @property
    def per_class(self) -> dict[str, dict]:
        """{class: {"images", "top1", "precision", "recall", "f1"}}; top1, None of a class without images, is the recall.

        precision, recall and f1 are 0 where they are undefined, and None of a class that has no image and was never predicted.
        """
        images, taken, correct = (counts.tolist() for counts in (self.confusion.sum(axis=1), self.confusion.sum(axis=0), self.confusion.diagonal()))
        return {name: {"images": n, "top1": hits / n if n else None, "precision": hits / max(p, 1) if n + p else None,
                       "recall": hits / max(n, 1) if n + p else None, "f1": 2 * hits / (n + p) if n + p else None}
                for name, n, p, hits in zip(self.classes, images, taken, correct)}

    @property
    def macro(self) -> dict[str, float]:
        """{"precision", "recall", "f1"}: the means over the classes that have images or were predicted, as scikit-learn has them."""
        there = [of for of in self.per_class.values() if of["f1"] is not None]
        return {name: float(np.mean([of[name] for of in there])) for name in ("precision", "recall", "f1")}

    @property
    def mistakes(self) -> list[dict]:
        """Images whose likeliest class is a wrong one, the most confident first: "path", "label", "predicted", "probability"."""
        wrong = sorted((entry for entry in self.per_image if entry["rank"]), key=lambda entry: -entry["probability"])
        return [{key: entry[key] for key in ("path", "label", "predicted", "probability")} for entry in wrong]

    def _repr_html_(self) -> str:
        few = len(self.classes) <= FEW
        head = "".join(f"<th>{k}</th>" for k in range(len(self.classes))) if few else ""
        rows = "".join(f"<tr><td>{k}</td><td>{escape(shown(name))}</td><td>{of['images']}</td><td>{'' if of['top1'] is None else format(of['top1'], '.1%')}</td>"
                       + "".join(f"<td>{count or ''}</td>" for count in self.confusion[k].tolist() if few) + "</tr>"
                       for k, (name, of) in enumerate(list(self.per_class.items())[:50]))
        return (f"<p>loss {self.loss:.4f}, top-1 {self.top1:.1%}, top-5 {self.top5:.1%} of {self.images:,} images"
                + "; to the right, what each class was taken for" * few + "</p>"
                f"<table><tr><th></th><th>class</th><th>images</th><th>top-1</th>{head}</tr>{rows}</table>")


def evaluation(network, loader, ten=False, without=None, strangers=0, bar=silent):
    """Passes over a loader's labelled images. -> Evaluation. without: bool (n,), images of the source to leave out in a second score."""
    seen, source = look(network, loader, ten, bar), loader.folder
    scores, counts = summary(seen), np.zeros((len(source.classes),) * 2, np.int64)
    np.add.at(counts, (seen["label"], seen["predicted"]), 1)
    paths = (os.path.relpath(source.paths[place], source.root) for place in seen["place"].tolist())
    rows = zip(paths, *(seen[name].tolist() for name in ("loss", "rank", "label", "predicted", "probability")))
    entries = [{"path": path, "loss": loss, "rank": int(rank), "label": source.classes[label], "predicted": source.classes[predicted], "probability": p}
               for path, loss, rank, label, predicted, p in rows]
    unreadable = len(loader.unreadable) + len(getattr(source, "left_out", ()))      # a packed set has left them out before
    rest = None
    if without is not None:
        out = without[seen["place"]]
        rest = {**summary(seen, ~out), "left_out": int(out.sum()), "strangers": strangers}
        for entry, left_out in zip(entries, out.tolist()):
            entry["left_out"] = left_out
    return Evaluation(**scores, classes=source.classes, confusion=counts, per_image=entries, unreadable=unreadable, views=10 if ten else 1, without=rest)


def read_names(path):
    """The paths in a text file, one a line, or the strings in a JSON file's list or lists; lists in lists, such as pairs of
    images that are alike, do not say which of them is meant and do not count."""
    def strings(value):
        if isinstance(value, dict):
            for item in value.values():
                yield from strings(item)
        elif isinstance(value, list):
            yield from (item for item in value if isinstance(item, str))

    try:
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
        if str(path).lower().endswith(".json"):
            return list(strings(json.loads(text)))
    except OSError as error:
        raise UserError(f"--without {shown(path)}: it cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"--without {shown(path)}: it is not the JSON that its name promises ({error})") from None
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def named_in(path, source, data):
    """Which images of a source a file names. -> (bool (n,), how many of its names are those of no image)

    Names are absolute, or relative to the split, to the folder that holds it, or to `data`, the folder that was asked for.
    """
    bases = source.root, os.path.dirname(os.path.abspath(source.root)), data if os.path.isdir(data) else os.path.dirname(data)
    meant = {name: {os.path.abspath(os.path.join(base, name)) for base in bases} for name in read_names(path)}
    images, wanted = [os.path.abspath(image) for image in source.paths], set().union(*meant.values())
    chosen = np.array([image in wanted for image in images])
    if not chosen.any():
        first = os.path.relpath(source.paths[0], source.root)
        raise UserError(f"--without {shown(path)}: none of its {len(meant)} paths is that of an image in {shown(source.root)}: "
                        f"they must be relative to it, as {shown(first)} is")
    if chosen.all():
        raise UserError(f"--without {shown(path)}: it names all {len(chosen)} images in {shown(source.root)}, and none would be left")
    images = set(images)
    return chosen, sum(images.isdisjoint(places) for places in meant.values())
