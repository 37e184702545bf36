"""python -m minialex.evaluate RUN --data DIR: scores a trained network: loss, top-1 and top-5, class by class, and what it takes for what."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import json
import os

import numpy as np

from .command import add_device, parser_of, run_command, say
from .device import in_short
from .errors import shown
from .files import require_place, write_beside
from .progress import on_terminal
from .run.run import Run

MOST_LISTED = 30        # classes whose accuracies are printed; of more, the WORST
MOST_CONFUSED = 12      # classes whose confusion matrix still fits on a terminal
WORST = 10              # classes, and mistakes, that are printed


def line_of(loss, top1, top5, images):
    return f"loss {loss:.4f}   top-1 {top1:.1%}   top-5 {top5:.1%}   of {images} images"


def class_table(found):
    """Lines of text: images, correct ones, top-1 (which is the recall), precision and F1 of each class, and their means; of more than MOST_LISTED
    classes, of those that do worst."""
    classes, counts, scores = found.classes, found.confusion, list(found.per_class.values())
    images, correct = counts.sum(axis=1), counts.diagonal()
    chosen = np.arange(len(classes))
    if len(classes) > MOST_LISTED:
        there = np.flatnonzero(images)
        chosen = there[np.lexsort((-images[there], correct[there] / images[there]))][:WORST]
        yield f"the {len(chosen)} classes of {len(classes)} that do worst:"
    width = max(5, *(len(shown(classes[k])) for k in chosen))

    def cells(*values):
        return "".join(f" {'-':>10}" if value is None else f" {value:10.1%}" for value in values)
    yield f"{'class':{width}}  images  correct      top-1  precision         F1"
    for k in chosen:
        yield f"{shown(classes[k]):{width}}  {images[k]:6}  {correct[k]:7}" + cells(*(scores[k][name] for name in ("top1", "precision", "f1")))
    yield f"{'mean':{width}}  {images.sum():6}  {correct.sum():7}" + cells(*(found.macro[name] for name in ("recall", "precision", "f1")))


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


def main(arguments=None):
    parser = parser_of("evaluate", "Score a trained network on labelled images: loss, top-1 and top-5, accuracy, precision and F1 of each class, the confusion "
                       "matrix, and the mistakes it is surest of.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("--data", metavar="DIR", help="class folders, a list or a packed set, or a folder in which val/ is such (default: the run's own "
                        "validation set)")
    parser.add_argument("--ten-crop", action="store_true", help="average the probabilities of ten crops, corners and centre, each also mirrored "
                        "(default: the centre crop alone)")
    parser.add_argument("--without", metavar="FILE", help="score once more without the images that FILE names: a text file with a path in each line, or a "
                        ".json file with a list of paths or some of them under names; paths are relative to DIR or to the validation folder")
    parser.add_argument("--json", metavar="FILE", help="write all of it to FILE, also for each image loss, rank, true and predicted class")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    parser.add_argument("--batch", type=int, default=64, help="images in a pass (default 64)")
    add_device(parser)
    args = parser.parse_args(arguments)
    if args.json is not None:
        require_place("--json", args.json)
    run = Run(args.run, args.checkpoint, args.device, args.threads, say)

    def began(source):
        say(f"device   {in_short(run.device, run.chosen)}")
        say(f"data     {source} from {shown(source.root)}")
        say(f"weights  {os.path.join(args.run, run.checkpoint.name)}")
        if args.ten_crop and not run.input.margin:
            say(f"views    2: pictures are decoded at the input's {run.input.size} pixels, so that the ten crops are one, plain and mirrored")

    found = run.evaluate(args.data, ten_crop=args.ten_crop, without=args.without, batch=args.batch, warn=say, bar=on_terminal, began=began)
    show(found, args.without)
    if args.json is not None:
        told = {name: getattr(found, name) for name in ("loss", "top1", "top5", "images", "unreadable", "views")}
        if found.without is not None:
            told["without"] = {"file": args.without, **{name: value for name, value in found.without.items() if name != "strangers"}}
        write_beside(args.json, by_lines({**told, "per_class": found.per_class, "macro": found.macro, "confusion": found.confusion.tolist(), "mistakes": found.mistakes,
                                          "per_image": found.per_image}))
    return 0


def show(found, without):
    """Prints an Evaluation; without: the file that named what is left out."""
    classes, counts, mistakes, rest = found.classes, found.confusion, found.mistakes, found.without
    say(line_of(found.loss, found.top1, found.top5, found.images) + ", ten crops of each" * (found.views > 1)
        + f", {found.unreadable} unreadable left out" * bool(found.unreadable))
    if rest is not None:
        say(f"{line_of(*(rest[name] for name in ('loss', 'top1', 'top5', 'images')))}, {rest['left_out']} left out by {shown(without)}"
            + f", of whose paths {rest['strangers']} name no image here" * bool(rest["strangers"]))
    say("\n" + "\n".join(class_table(found)))
    if len(classes) <= MOST_CONFUSED:
        say("\n" + "\n".join(confusion_table(classes, counts)))
    if mistakes:
        say(f"\nthe surest of {len(mistakes)} mistakes:")
    for mistake in mistakes[:WORST]:
        say(f"{mistake['probability']:7.2%}  {shown(mistake['path'])} is {shown(mistake['label'])}, taken for {shown(mistake['predicted'])}")


if __name__ == "__main__":
    run_command(main)
