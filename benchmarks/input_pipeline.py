"""Whether the data keep up with training: images per second of decoding, of the loader, of the input kernel, and of training.

python benchmarks/input_pipeline.py [--data DIR] [--net half] [--images 512] [--workers 1 2] [--rounds 3] [--json FILE]

`decode` turns JPEG files into squares, `loader` also makes batches: cold, that is decoding, from its cache, and from a packed
set (python -m minialex.data pack), which is made first. `crop` is the input kernel, `train` steps on batches in memory, and
from a loader (of the last of --workers) in an epoch that decodes, in one that has the cache, and from the packed set; all of
them draw the training augmentation. Steps in memory and from the packed set alternate, so that both meet the same other
load, and their ratio is the median over pairs of steps. `waits` is the share of the epoch that it waited for data. Medians
over rounds. Files come from the system's cache: a slow disk is not measured; and the first batch is waited for in any epoch,
which is much of a short one. Without --data, drawn pictures of 400 x 300 are written.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from timeit import timeit

import numpy as np
from PIL import Image

from minialex import nets
from minialex.command import run_command
from minialex.data import shapes
from minialex.data.augment import Input
from minialex.data.folder import ImageFolder, find_splits, open_folder
from minialex.data.image import UnreadableImage
from minialex.data.loader import Loader
from minialex.data.pack import pack
from minialex.data.packed import Packed, open_pack
from minialex.device import open_device
from minialex.errors import UserError
from minialex.network import Network

CACHE_MB = Loader.__init__.__kwdefaults__["cache_mb"]
GRAIN = 8      # spread of the sensor noise in drawn pictures, that makes a file about as long as a photograph's


def write_pictures(root, count):
    """`count` pictures of the built-in set as JPEG files of 400 x 300 pixels in root/CLASS."""
    for index in range(count):
        kind, random = shapes.CLASSES[index % len(shapes.CLASSES)], np.random.default_rng(index)
        texture, shape = kind.split("_")
        small = Image.fromarray(shapes.draw(shapes.SHAPES[shape], shapes.TEXTURES[texture], random))
        pixels = np.asarray(small.resize((400, 300), Image.Resampling.BICUBIC)) + random.normal(0, GRAIN, (300, 400, 3))
        (Path(root) / kind).mkdir(exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(Path(root) / kind / f"{index:05}.jpg", quality=90)


def some(folder, count):
    """A folder of at most `count` of the pictures, evenly from all classes."""
    places = np.unique(np.linspace(0, len(folder) - 1, min(count, len(folder))).astype(int))
    return ImageFolder(folder.root, folder.classes, [folder.paths[i] for i in places], folder.labels[places])


def decode_rate(source, input, workers):
    def readable(place):
        try:
            return len(source.picture(place, input.side, input.fit)) > 0
        except UnreadableImage:
            return False
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        count = sum(pool.map(readable, range(len(source))))
        return count / (time.perf_counter() - began)


def epoch(source, number, input, step=None):
    """All batches of a Loader or a list, with a training step on each if given. -> (images/s, share of the time spent waiting)"""
    waited, count, began = getattr(source, "wait_seconds", 0.0), 0, time.perf_counter()
    for batch in source.epoch(number) if isinstance(source, Loader) else source:
        views = input.draw(0, number, batch.index)
        count += len(batch)
        if step and len(batch):
            step(batch, views)
    took = time.perf_counter() - began
    return count / took, (getattr(source, "wait_seconds", 0.0) - waited) / took


def alternate(batches, loader, number, input, step):
    """An epoch of steps on batches in memory and one from a loader, a step of each in turn, first the one and then the other.
    -> (images/s, images/s, share of its time that the second waited, the ratio of its rate to the first's in each pair)"""
    waited, count, seconds, ratios = loader.wait_seconds, [0, 0], [0.0, 0.0], []
    sources = iter(batches), loader.epoch(number)
    for pair in range(min(len(batches), len(loader))):
        took = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            began = time.perf_counter()
            batch = next(sources[which])
            if len(batch):
                step(batch, input.draw(0, number, batch.index))
                count[which] += len(batch)
                took[which] = (time.perf_counter() - began) / len(batch)
            seconds[which] += time.perf_counter() - began
        if all(took) and pair:      # the first batch is waited for
            ratios.append(took[0] / took[1])
    return count[0] / seconds[0], count[1] / seconds[1], (loader.wait_seconds - waited) / seconds[1], ratios


def crop_rate(network, count, plays=20):
    """The input kernel alone, on the `count` pictures of the last step."""
    with network.device.record() as tape:
        network.view(0, 0, count)
    return count * plays / timeit(tape.play, number=plays)


def measure(folder, packed, network, workers, rounds):
    """([{"what", "workers", "images_per_s", "waits"}], medians over rounds; ratios of packed to in memory)"""
    ratios, input, state, found = [], network.layout.input, {"step": 0}, {}

    def loader(source, count):
        return Loader(source, input.side, network.batch, fit=input.fit, workers=count, cache_mb=1 << 40, warn=lambda sentence: None)

    def step(batch, views):
        network.train_step(batch.images, batch.labels, views, state["step"], 1e-3)
        network.device.synchronize()
        state["step"] += 1

    def note(what, count, rate, waits=None):
        found.setdefault((what, count), []).append((rate, waits))

    def feed(count):
        note("decode", count, decode_rate(folder, input, count))
        own = loader(folder, count)
        note("loader, cold", count, epoch(own, 0, input)[0])
        note("loader, cached", count, epoch(own, 1, input)[0])
        note("loader, packed", count, epoch(loader(packed, count), 1, input)[0])

    batches = [batch for batch in loader(folder, workers[-1]).epoch(1) if len(batch)]
    lengths = {len(batch): batch for batch in [*batches, *loader(packed, workers[-1]).epoch(1)]}
    epoch(lengths.values(), 0, input, step)      # records the launches for each length
    for _ in range(rounds):
        for count in workers:
            feed(count)
        step(batches[0], input.draw(0, 0, batches[0].index))
        note("crop", None, crop_rate(network, len(batches[0])))
        memory, rate, waits, pairs = alternate(batches, loader(packed, workers[-1]), 1, input, step)
        note("train, in memory", None, memory)
        note("train, packed", workers[-1], rate, waits)
        ratios += pairs
        own = loader(folder, workers[-1])
        note("train, cold", workers[-1], *epoch(own, 0, input, step))
        note("train, cached", workers[-1], *epoch(own, 1, input, step))
    order = ["train, in memory", "train, cold", "train, cached", "train, packed"]
    rows = []
    for (what, count), values in sorted(found.items(), key=lambda item: order.index(item[0][0]) if item[0][0] in order else -1):
        rates, waits = zip(*values)
        rows.append({"what": what, "workers": count, "images_per_s": statistics.median(rates),
                     "waits": None if waits[0] is None else statistics.median(waits)})
    base = next(row["images_per_s"] for row in rows if row["what"] == "train, in memory")
    return [row | {"of_training": row["images_per_s"] / base} for row in rows], ratios


def verdict(rows):
    cold, cached = (next(row for row in rows if row["what"] == f"train, {how}") for how in ("cold", "cached"))
    if cold["waits"] >= 0.05:
        text = "Training waits for decoding" + " until the pictures are cached" * (cached["waits"] < 0.05)
    else:
        text = "The data keep up" if cold["of_training"] > 0.95 else "Training hardly waits, but decoding takes cores from it"
    told = [f"an epoch {how} reaches {row['of_training']:.0%} of the rate in memory and waits {row['waits']:.1%} of its time"
            for how, row in (("that decodes", cold), ("from the cache", cached))]
    return f"{text}: {'; '.join(told)}."


def packed_verdict(rows, ratios):
    waits = next(row["waits"] for row in rows if row["what"] == "train, packed")
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return (f"Packed: {middle:.3f} of the rate in memory (median of {len(ratios)} pairs of steps, half of them from {low:.3f} to {high:.3f}), "
            f"{waits:.1%} of the time spent waiting.")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="folder with train/ and val/, as for training")
    parser.add_argument("--net", default="half", choices=list(nets.NETS))
    for name, default in (("images", 512), ("batch", 64), ("rounds", 3), ("size", None), ("threads", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, nargs="+", help="decoding threads (default 1 up to what training uses, at most 4)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(arguments)
    if min(args.images, args.batch, args.rounds, *args.workers or [1]) < 1:
        raise UserError("--images, --batch, --rounds and --workers: expected at least 1")
    device, net = open_device("cpu", args.threads, announce=print)[0], nets.build(args.net, size=args.size)
    workers, side = args.workers or list(range(1, min(4, device.threads) + 1)), net.side
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        images.mkdir()
        if not args.data:
            write_pictures(images, args.images)
        whole = find_splits(args.data)[0] if args.data else open_folder(images)
        if isinstance(whole, Packed):
            raise UserError(f"--data {args.data} is packed already: give the images that it was packed from")
        folder, net = some(whole, args.images), nets.build(args.net, len(whole.classes), args.size)
        kb = sum(path.stat().st_size for path in map(Path, folder.paths) if path.exists()) / len(folder) / 1024
        began = time.perf_counter()
        pack(folder, Path(scratch, "packed"), side, workers=workers[-1], warn=lambda sentence: None)
        took, packed = time.perf_counter() - began, open_pack(Path(scratch, "packed"))
        print(f"{len(folder)} pictures of about {kb:.0f} KB, squares of {side}; {net.name} at {net.size}, batch {args.batch}; {device}\n"
              f"packed in {took:.1f} s, {len(packed) * side * side * 3 / 2**20:.0f} MB\n\n"
              f"{'what':16} {'workers':>7} {'images/s':>9} {'of training':>11} {'waits':>6}", flush=True)
        rows, ratios = measure(folder, packed, Network(net, device, args.batch, input=Input(side, net.size)), workers, args.rounds)
    for row in rows:
        print(f"{row['what']:16} {row['workers'] or '':>7} {row['images_per_s']:9.1f} {row['of_training']:11.2f}"
              + ("" if row["waits"] is None else f" {row['waits']:6.1%}"))
    need = len(whole) * side * side * 3 / 2**20
    more = f" The {len(whole)} take {need:,.0f} MB, more than training's cache ({CACHE_MB:,} MB): then all epochs decode, unless they are packed."
    print(f"\n{verdict(rows)}{more * (need > CACHE_MB)}\n{packed_verdict(rows, ratios)}")
    if args.json:
        found = {"net": net.name, "size": net.size, "batch": args.batch, "images": len(folder), "device": str(device),
                 "rounds": args.rounds, "rows": rows, "packed_to_memory": ratios, "verdict": verdict(rows)}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
