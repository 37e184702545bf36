"""python -m minialex.data: packs images into files that training reads without decoding, and checks such files."""

from .. import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import os
import shutil
import time

from ..command import parser_of, run_command, say, warn
from ..device.base import cores
from ..errors import UserError, shown
from ..progress import on_terminal
from .folder import SPLITS, find_splits, open_split, split_pairs
from .pack import pack
from .packed import expected, faults, is_pack, progress_of, read_index


def sources_of(data, out):
    """[(data source, the folder that it is packed into)] of a set that holds both splits, or of one folder or list."""
    if not is_pack(data) and os.path.isdir(data) and any(all(map(os.path.exists, pair)) for pair in split_pairs(data)):
        found = [(source, os.path.join(out, name)) for source, name in zip(find_splits(data), ("train", "val"))]
        if is_pack(out):
            raise UserError(f"{shown(out)} holds one packed folder, and {shown(data)} has two to be packed: name another folder")
        folders = [source.root for source, _ in found if os.path.realpath(source.root) != os.path.realpath(data)]
    else:
        source = open_split(data)
        if set(source.classes) <= {name for pair in SPLITS for name in pair}:
            find_splits(data)      # says which split is missing
        found, folders = [(source, out)], [data] * os.path.isdir(data)
    for folder in folders:
        inside = os.path.join(os.path.realpath(folder), "")
        if os.path.join(os.path.realpath(out), "").startswith(inside):
            raise UserError(f"{shown(out)} lies in {shown(folder)}, whose images are to be packed: name a folder outside it")
    return found


def count(things, name):
    return f"{len(things):,} {name}{'s' * (len(things) != 1)}"


def pack_all(args):
    found, each = sources_of(args.data, args.out), args.size**2 * 3
    above = os.path.abspath(args.out)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    there = sum(entry.stat().st_size for _, out in found if os.path.isdir(out) for entry in os.scandir(out) if entry.is_file())
    need, free = sum(len(source) for source, _ in found) * each - there, shutil.disk_usage(above).free
    if need > free:
        warn(f"warning: {need / 2**20:,.0f} MB are to be written and {free / 2**20:,.0f} MB are free on the disk of {shown(args.out)}")
    for source, out in found:
        for sentence in source.remarks():
            warn(sentence)
        began = time.perf_counter()
        index, was_complete = pack(source, out, args.size, args.fit, args.workers or cores(), args.shard_mb, warn, on_terminal)
        n, left_out = (sum(amounts) for amounts in zip(*((shard["images"], len(shard["left_out"])) for shard in index["shards"])))
        how = "were packed already" if was_complete else f"packed in {time.perf_counter() - began:,.0f} s"
        say(f"{shown(out)}: {n:,} images in {len(index['classes']):,} classes, {args.size} pixels as {args.fit}, "
            f"{count(index['shards'], 'shard')}, "
            f"{n * each / 2**20:,.0f} MB, {how}" + f"; left out {left_out:,} that cannot be read" * (left_out > 0))
    return 0


def check_all(args):
    roots = [root for root in (args.out, *(os.path.join(args.out, name) for name in ("train", "val"))) if is_pack(root)]
    if not roots:
        raise UserError(f"{shown(args.out)} holds no packed images" if os.path.isdir(args.out) else f"there is no folder {shown(args.out)}")
    bad = total = 0
    for root in roots:
        index = read_index(root)
        files = expected(index)
        wrong = faults(root, files, thorough=True, bar=on_terminal)
        for name, reason in wrong.items():
            say(f"{shown(os.path.join(root, name))} {reason}")
        if not index["files"]:
            wrong[root] = f"is not completely packed ({progress_of(index)})"
            say(f"{shown(root)} {wrong[root]}")
        elif not wrong:
            images = sum(shard["images"] for shard in index["shards"])
            say(f"{shown(root)}: {images:,} images, {count(files, 'file')}, every checksum is right")
        bad, total = bad + len(wrong), total + len(files)
    if bad:
        raise UserError(f"{shown(args.out)} is not as it was packed: copy it anew, or run the command that packed it once more, which makes again "
                        "what is missing or damaged")
    return 0


def main(arguments=None):
    parser = parser_of("data", "Pack images into files that training reads without decoding; check such files.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pack", help="decode once; run again after an interruption, it goes on",
                              description="Decode images once into memory-mapped files, for minialex.train --data OUT. Interrupted at any "
                              "moment, the same command goes on; images that cannot be read are named and left out.")
    one.add_argument("data", metavar="DIR", help="a set with both splits, packed into OUT/train and OUT/val, or one folder or list, packed into OUT")
    one.add_argument("out", metavar="OUT", help="a new folder, or one where the same command was interrupted")
    one.add_argument("--size", type=int, default=256, help="side of the packed pictures in pixels, which training calls --side (default 256)")
    one.add_argument("--fit", choices=["crop", "squash"], default="crop",
                     help="crop: the centre square, antialiased (default); squash: the whole picture, by nearest neighbour as Keras does")
    one.add_argument("--workers", type=int, help="decoding threads (default: one for each core)")
    one.add_argument("--shard-mb", type=int, default=1024, help="size of a file; an interruption loses the one that was being written (default 1024)")
    one.set_defaults(run=pack_all)
    other = commands.add_parser("check", help="compute every checksum",
                                description="Read all of a packed set and name what is missing, truncated or damaged.")
    other.add_argument("out", metavar="OUT", help="what was packed")
    other.set_defaults(run=check_all)
    args = parser.parse_args(arguments)
    return args.run(args)


if __name__ == "__main__":
    run_command(main)
