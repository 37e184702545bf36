"""python -m minialex.evaluate RUN --data DIR: scores a trained network: loss, top-1 and top-5, class by class, and what it takes for what."""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from .checkpoint import open_network, read_config, write_beside
from .data.augment import Input
from .data.folder import open_validation
from .data.loader import Loader
from .device import open_device
from .errors import UserError, run_command, shown
from .ops.softmax import label_rank
from .train import say

MOST_LISTED = 30        # classes whose accuracies are printed; of more, the WORST
MOST_CONFUSED = 12      # classes whose confusion matrix still fits on a terminal
WORST = 10              # classes, and mistakes, that are printed
LEAST = np.finfo(np.float32).tiny      # a mean probability below it is taken for it, so that its loss stays finite


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


def losses_and_ranks(p, labels):
    """What the network tells of one view, from probabilities (n, classes): -log of the label's, and how many classes come before it."""
    ranks = np.empty(len(p), np.int64)
    label_rank.reference(len(p), p, labels, ranks, p.shape[1])
    return -np.log(np.maximum(p[np.arange(len(p)), labels], LEAST)), ranks


def look(network, loader, input, ten=False):
    """Passes over a loader. -> arrays with an entry for each image that could be read:
    "place" in the listing, "label", "loss", "rank" (0 is a top-1 hit), "predicted" label and its "probability"."""
    from tqdm import tqdm
    found = []
    for batch in tqdm(loader.epoch(0), total=len(loader), disable=None, leave=False, unit="batch"):
        n = len(batch)
        if not n:
            continue
        p = probabilities(network, batch.images, batch.labels, views_of(input, n, ten))
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


def confusion_of(seen, classes):
    """int64 (classes, classes): how many images of a row's class were taken for a column's."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (seen["label"], seen["predicted"]), 1)
    return counts


def entries_of(seen, source):
    """What is told of each image: [{"path" relative to the source's root, "loss", "rank", "label", "predicted", "probability"}]."""
    paths = (os.path.relpath(source.paths[place], source.root) for place in seen["place"].tolist())
    rows = zip(paths, *(seen[name].tolist() for name in ("loss", "rank", "label", "predicted", "probability")))
    return [{"path": path, "loss": loss, "rank": int(rank), "label": source.classes[label], "predicted": source.classes[predicted], "probability": p}
            for path, loss, rank, label, predicted, p in rows]


def mistakes_in(entries):
    """Those whose likeliest class is a wrong one, the most confident first, without loss and rank."""
    wrong = sorted((entry for entry in entries if entry["rank"]), key=lambda entry: -entry["probability"])
    return [{key: entry[key] for key in ("path", "label", "predicted", "probability")} for entry in wrong]


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


def line_of(scores):
    return f"loss {scores['loss']:.4f}   top-1 {scores['top1']:.1%}   top-5 {scores['top5']:.1%}   of {scores['images']} images"


def class_table(classes, counts):
    """Lines of text: images, correct ones and top-1 of each class; of more than MOST_LISTED classes, of those that do worst."""
    images, correct = counts.sum(axis=1), counts.diagonal()
    chosen = np.arange(len(classes))
    if len(classes) > MOST_LISTED:
        there = np.flatnonzero(images)
        chosen = there[np.lexsort((-images[there], correct[there] / images[there]))][:WORST]
        yield f"the {len(chosen)} classes of {len(classes)} that do worst:"
    width = max(5, *(len(shown(classes[k])) for k in chosen))
    yield f"{'class':{width}}  images  correct    top-1"
    for k in chosen:
        share = f"{correct[k] / images[k]:8.1%}" if images[k] else f"{'-':>8}"
        yield f"{shown(classes[k]):{width}}  {images[k]:6}  {correct[k]:7} {share}"


def confusion_table(classes, counts):
    """Lines of text: the confusion matrix, a dot for 0; columns have the numbers of the rows."""
    width, cell = max(6, *(len(shown(name)) for name in classes)), max(2, len(str(counts.max())))
    yield f"{'taken for':>{width + 3}}" + "".join(f" {k:{cell}}" for k in range(len(classes)))
    for k, row in enumerate(counts):
        yield f"{k:2} {shown(classes[k]):{width}}" + "".join(f" {count or '.':>{cell}}" for count in row)


def by_lines(values):
    """JSON text of a dict, with each item of its lists on a line."""
    def text(value):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) and value else json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {text(value)}" for key, value in values.items()) + "\n}\n"


def require_place(option, path):
    """A UserError if a file cannot be written there: before the work, not after it."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UserError(f"{option} {shown(path)}: there is no folder {shown(folder)}")
    if os.path.isdir(path):
        raise UserError(f"{option} {shown(path)}: it is a folder, so name a file in it")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {shown(path)}: the folder {shown(folder)} cannot be written, so name a file in another")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m minialex.evaluate", description="Score a trained network on labelled images: loss, top-1 and top-5, "
                                     "the accuracy of each class, the confusion matrix, and the mistakes it is surest of.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders, a list or a packed set, or a folder in which val/ is such")
    parser.add_argument("--ten-crop", action="store_true", help="average the probabilities of ten crops, corners and centre, each also mirrored "
                        "(default: the centre crop alone)")
    parser.add_argument("--without", metavar="FILE", help="score once more without the images that FILE names: a text file with a path in each line, or a "
                        ".json file with a list of paths or some of them under names; paths are relative to DIR or to the validation folder")
    parser.add_argument("--json", metavar="FILE", help="write all of it to FILE, also for each image loss, rank, true and predicted class")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    parser.add_argument("--batch", type=int, default=64, help="images in a pass (default 64)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "numpy"])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    if args.json is not None:
        require_place("--json", args.json)
    classes = read_config(args.run)["classes"]
    source = open_validation(args.data, classes)
    without, strangers = named_in(args.without, source, args.data) if args.without is not None else (None, 0)
    device, reason = open_device(args.device, args.threads, announce=say)
    network, config, path = open_network(args.run, device, min(args.batch, len(source)), args.checkpoint)
    input = Input.from_config(config)
    say(f"device   {device.name} ({reason}): {device}")
    say(f"data     {source} from {shown(source.root)}")
    say(f"weights  {path}")
    if args.ten_crop and not input.margin:
        say(f"views    2: pictures are decoded at the input's {input.size} pixels, so that the ten crops are one, plain and mirrored")
    loader = Loader(source, input.side, network.batch, fit=input.fit, shuffle=False, cache_mb=0, workers=device.decoders, warn=say)
    seen = look(network, loader, input, args.ten_crop)

    scores, counts, entries = summary(seen), confusion_of(seen, len(classes)), entries_of(seen, source)
    mistakes, correct, images = mistakes_in(entries), counts.diagonal().tolist(), counts.sum(axis=1).tolist()
    unreadable = len(loader.unreadable) + len(getattr(source, "left_out", ()))      # a packed set has left them out before
    told = {**scores, "unreadable": unreadable, "views": 10 if args.ten_crop else 1}
    say(line_of(scores) + ", ten crops of each" * args.ten_crop + f", {unreadable} unreadable left out" * bool(unreadable))
    if without is not None:
        without = without[seen["place"]]
        rest, left_out = summary(seen, ~without), int(without.sum())
        say(f"{line_of(rest)}, {left_out} left out by {shown(args.without)}" + f", of whose paths {strangers} name no image here" * bool(strangers))
        told["without"] = {"file": args.without, "left_out": left_out, **rest}
        for entry, out in zip(entries, without.tolist()):
            entry["left_out"] = out
    say("\n" + "\n".join(class_table(classes, counts)))
    if len(classes) <= MOST_CONFUSED:
        say("\n" + "\n".join(confusion_table(classes, counts)))
    if mistakes:
        say(f"\nthe surest of {len(mistakes)} mistakes:")
    for mistake in mistakes[:WORST]:
        say(f"{mistake['probability']:7.2%}  {shown(mistake['path'])} is {shown(mistake['label'])}, taken for {shown(mistake['predicted'])}")
    if args.json is not None:
        per_class = {name: {"images": n, "top1": hits / n if n else None} for name, n, hits in zip(classes, images, correct)}
        write_beside(args.json, by_lines({**told, "per_class": per_class, "confusion": counts.tolist(), "mistakes": mistakes, "per_image": entries}))
    return 0


if __name__ == "__main__":
    run_command(main)
