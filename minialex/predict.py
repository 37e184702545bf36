"""python -m minialex.predict RUN PATH...: the likeliest classes of each image, printed or written as CSV."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import argparse
import csv
import io
import os
import re

import numpy as np

from .command import add_device, parser_of, run_command, say, warn
from .data.folder import ImageFolder, open_unlabelled
from .data.imagenet import wnids_of
from .errors import UserError, shown
from .files import require_place, stream_to, write_beside
from .progress import on_terminal, silent
from .run.run import Run

MOST_EXPLAINED = 50

FORMS = """
CSV forms:
  plain   a header and a row for each image: image,class,probability and, with
          --top N, class2,probability2 and so on. The image is its path below
          PATH; if there are several PATHs, its path as it was given. Images
          that cannot be read have no row.
  ilsvrc  as ImageNet's 2012 challenge takes it: a line for each image, in
          sorted order, with the numbers of its five likeliest classes and
          spaces between them; an empty line where an image cannot be read.
          Classes count from 1 in the network's order. If they are WordNet's
          (n01440764), their numbers are the ILSVRC2012_IDs, for which the
          development kit must lie beside the images.
"""


def open_all(paths):
    """The images of some files, folders and lists as one source without labels."""
    if not any(map(os.path.exists, paths)):      # told before anything is compiled; of many, one that is not there is left out like one that is damaged
        raise UserError(f"{shown(paths[0])}: No such file or directory")
    found = [open_unlabelled(path) for path in paths]
    for source in found:
        for sentence in source.remarks():
            warn(sentence)
    if len(found) == 1:
        return found[0]
    images = [image for source in found for image in source.paths]
    return ImageFolder(".", [], images, np.full(len(images), -1, np.int32))


def plain_csv(found, source, classes, top, names_below):
    """bytes of a CSV file (RFC 4180) with a header and a row for each image that could be read."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "class", "probability", *(name for k in range(2, top + 1) for name in (f"class{k}", f"probability{k}"))])
    for place, labels, likely in found:
        path = os.path.relpath(source.paths[place], source.root) if names_below else source.paths[place]
        writer.writerow([path, *(cell for label, p in zip(labels, likely) for cell in (classes[label], f"{p:.6g}"))])
    return text.getvalue().encode("utf-8", "surrogateescape")      # a name that is no text keeps its bytes


def ilsvrc_lines(found, source, numbers):
    """bytes of a text file with a line for each image of the source."""
    lines = [""] * len(source)
    for place, labels, _ in found:
        lines[place] = " ".join(str(numbers[label]) for label in labels)
    return "".join(line + "\n" for line in lines).encode()


def numbers_of(classes, root):
    """What the challenge calls the classes: their ILSVRC2012_IDs if they are WordNet's, else 1, 2, ...

    The IDs do not follow the order of the names, so the development kit must tell them.
    """
    if not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return range(1, len(classes) + 1)
    number = {wnid: number for number, wnid in wnids_of(root, f"--csv-form ilsvrc for {shown(root)}").items()}
    strange = [name for name in classes if name not in number]
    if strange:
        raise UserError(f"--csv-form ilsvrc: the development kit near {shown(root)} knows no class {strange[0]}")
    return [number[name] for name in classes]


def main(arguments=None):
    parser = parser_of("predict", "Say what a trained network sees in images.", epilog=FORMS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of minialex.train, or an ONNX file (FILE.onnx) of an AlexNet from anywhere")
    parser.add_argument("path", nargs="+", help="image files, folders (those in them are taken too, sorted), or text files with a path in each line")
    parser.add_argument("--top", type=int, metavar="N", help="so many classes of each image (default: 5; 1 in a plain CSV file)")
    parser.add_argument("--ten-crop", action="store_true", help="average the probabilities of ten crops, corners and centre, each also mirrored")
    parser.add_argument("--csv", metavar="FILE", help="write to FILE instead of printing; its form is described below")
    parser.add_argument("--csv-form", choices=["plain", "ilsvrc"], help="default plain")
    parser.add_argument("--explain", metavar="OUT.html", help="also write a page that shows for each image what of it counts, what the layers answer "
                        "to, and the training images nearest to it in the last hidden layer")
    parser.add_argument("--data", metavar="DIR", help="with --explain: the run's data, if it has moved")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    parser.add_argument("--input", metavar="FORM", help="how an ONNX file takes pictures, where it does not say: torchvision (default), caffe, or "
                        "mean=R:G:B,scale=R:G:B of pixels of 0 to 255, with bgr where blue comes first")
    parser.add_argument("--classes", metavar="FILE", help="the names of an ONNX file's classes, one in each line, where it does not say them")
    parser.add_argument("--batch", type=int, default=32, help="images in a pass (default 32)")
    add_device(parser)
    args = parser.parse_args(arguments)
    form = args.csv_form or "plain"
    if args.csv is not None:
        require_place("--csv", args.csv)
    elif args.csv_form:
        raise UserError(f"--csv-form {form}: name the file to write too, with --csv FILE")
    if args.explain is not None:
        require_place("--explain", args.explain)
    elif args.data is not None:
        raise UserError("--data goes with --explain, which shows training images: give both, or neither")
    if args.run.lower().endswith(".onnx"):
        from .run.model import Model      # its package need not be installed
        if args.checkpoint:
            raise UserError(f"--checkpoint {args.checkpoint}: an ONNX file has one set of weights, so leave it out")
        if args.explain is not None:
            raise UserError(f"--explain {shown(args.explain)}: the page is of a run folder's network; of an ONNX file there is none")
        run = Model(args.run, args.device, args.threads, form=args.input, names=args.classes)
        if run.told:
            warn(run.told)
    else:
        if args.input is not None or args.classes is not None:
            raise UserError(f"--{'classes' if args.input is None else 'input'} is for ONNX files: a run folder says so itself, so leave it out")
        run = Run(args.run, args.checkpoint, args.device, args.threads)
    classes = run.classes
    most = min(5, len(classes)) if form == "ilsvrc" else len(classes)
    top = args.top if args.top is not None else 1 if args.csv is not None and form == "plain" else min(5, most)
    if not 1 <= top <= most:
        raise UserError(f"--top {top}: " + (f"a line of --csv-form ilsvrc has 1 to {most} classes" if most < len(classes) else
                                            f"the network of {shown(args.run)} knows {len(classes)} classes, so give a number from 1 to {most}"))
    source = open_all(args.path)
    if args.explain is not None and len(source) > MOST_EXPLAINED:
        raise UserError(f"--explain for {len(source):,} images: it takes seconds and a quarter of a megabyte for each, so give at most {MOST_EXPLAINED}")
    numbers = numbers_of(classes, source.root) if form == "ilsvrc" else None
    refused, found, readable, bar = [], [], [], on_terminal if args.csv is not None else silent

    def refuse(sentence):
        refused.append(sentence)
        warn(sentence)

    try:
        with bar(total=len(source), unit="image") as done:
            for place, labels, likely in run.predictions(source, top, args.ten_crop, args.batch, refuse):
                done.update()
                readable.append(source.paths[place])
                if args.csv is not None:
                    found.append((place, labels, likely))
                    continue
                say("\n".join([shown(source.paths[place]), *(f"  {p:7.2%}  {shown(classes[label])}" for label, p in zip(labels, likely))]))
    except UserError:      # the loader gives up where no image can be read, and each has been named by then
        if len(refused) < len(source):
            raise
    if args.csv is not None:
        write_beside(args.csv, plain_csv(found, source, classes, top, len(args.path) == 1) if numbers is None else ilsvrc_lines(found, source, numbers))
        (warn if stream_to(args.csv) == 1 else say)(f"{shown(args.csv)}: {len(found)} images" + f", {len(refused)} unreadable left out" * bool(refused))
    if args.explain is not None and readable:
        run.explain(readable, args.explain, data=args.data, warn=warn, bar=on_terminal)
        (warn if stream_to(args.explain) == 1 else say)(f"explained in {shown(args.explain)}")
    return 2 if refused else 0


if __name__ == "__main__":
    run_command(main)
