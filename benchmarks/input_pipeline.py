"""Whether the data keep up with training: images per second of decoding, of the loader, of the input kernel, and of training.

python benchmarks/input_pipeline.py [--data DIR] [--net half] [--images 512] [--workers 1 2] [--rounds 3] [--json FILE]

`decode` turns JPEG files into squares, `loader` also makes batches and draws crops: cold, that is decoding, and from its cache.
`crop` is the input kernel. `train` steps on batches in memory, then from a loader (of the last of --workers) in an epoch that
decodes and in one that has the cache; `waits` is the share of the epoch that it waited for data. Medians over rounds.
Files come from the system's cache: a slow disk is not measured; and the first batch is waited for in any epoch, which is much
of a short one. Without --data, drawn pictures of 400 x 300 are written.
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
from minialex.data import shapes
from minialex.data.folder import ImageFolder, find_splits, open_folder
from minialex.data.image import UnreadableImage, square
from minialex.data.loader import Loader, crops
from minialex.device import open_device
from minialex.errors import UserError, run_command
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


def decode_rate(paths, side, workers):
    def readable(path):
        try:
            return len(square(path, side)) > 0
        except UnreadableImage:
            return False
    with ThreadPoolExecutor(workers) as pool:
        began = time.perf_counter()
        count = sum(pool.map(readable, paths))
        return count / (time.perf_counter() - began)


def epoch(source, number, margin, step=None):
    """All batches of a Loader or a list, with a training step on each if given. -> (images/s, share of the time spent waiting)"""
    waited, count, began = getattr(source, "wait_seconds", 0.0), 0, time.perf_counter()
    for batch in source.epoch(number) if isinstance(source, Loader) else source:
        places = crops(0, number, batch.index, margin)
        count += len(batch)
        if step and len(batch):
            step(batch, places)
    took = time.perf_counter() - began
    return count / took, (getattr(source, "wait_seconds", 0.0) - waited) / took


def crop_rate(network, count, plays=20):
    """The input kernel alone, on the `count` pictures of the last step."""
    with network.device.record() as tape:
        network.crop(0, 0, count)
    return count * plays / timeit(tape.play, number=plays)


def measure(folder, network, workers, rounds):
    """[{"what", "workers", "images_per_s", "waits"}], medians over rounds."""
    side, margin, state, found = network.layout.side, network.layout.side - network.net.size, {"step": 0}, {}

    def loader(count):
        return Loader(folder, side, network.batch, workers=count, cache_mb=1 << 40, warn=lambda sentence: None)

    def step(batch, places):
        network.train_step(batch.images, batch.labels, places, state["step"], 1e-3)
        state["step"] += 1

    def note(what, count, rate, waits=None):
        found.setdefault((what, count), []).append((rate, waits))
    batches = [batch for batch in loader(workers[-1]).epoch(0) if len(batch)]
    epoch({len(batch): batch for batch in batches}.values(), 0, margin, step)      # records the launches for each length
    for _ in range(rounds):
        for count in workers:
            note("decode", count, decode_rate(folder.paths, side, count))
            own = loader(count)
            note("loader, cold", count, epoch(own, 0, margin)[0])
            note("loader, cached", count, epoch(own, 1, margin)[0])
        step(batches[0], crops(0, 0, batches[0].index, margin))
        note("crop", None, crop_rate(network, len(batches[0])))
        own = loader(workers[-1])
        note("train, in memory", None, epoch(batches, 0, margin, step)[0])
        note("train, cold", workers[-1], *epoch(own, 0, margin, step))
        note("train, cached", workers[-1], *epoch(own, 1, margin, step))
    rows = []
    for (what, count), values in sorted(found.items(), key=lambda item: item[0][0].split(",")[0] == "train"):
        rates, waits = zip(*values)
        rows.append({"what": what, "workers": count, "images_per_s": statistics.median(rates),
                     "waits": None if waits[0] is None else statistics.median(waits)})
    base = next(row["images_per_s"] for row in rows if row["what"] == "train, in memory")
    return [row | {"of_training": row["images_per_s"] / base} for row in rows]


def verdict(rows):
    cold, cached = (next(row for row in rows if row["what"] == f"train, {how}") for how in ("cold", "cached"))
    if cold["waits"] >= 0.05:
        text = "Training waits for decoding" + " until the pictures are cached" * (cached["waits"] < 0.05)
    else:
        text = "The data keep up" if cold["of_training"] > 0.95 else "Training hardly waits, but decoding takes cores from it"
    told = [f"an epoch {how} reaches {row['of_training']:.0%} of the rate in memory and waits {row['waits']:.1%} of its time"
            for how, row in (("that decodes", cold), ("from the cache", cached))]
    return f"{text}: {'; '.join(told)}."


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
        if not args.data:
            write_pictures(scratch, args.images)
        whole = find_splits(args.data)[0] if args.data else open_folder(scratch)
        folder, net = some(whole, args.images), nets.build(args.net, len(whole.classes), args.size)
        kb = sum(path.stat().st_size for path in map(Path, folder.paths) if path.exists()) / len(folder) / 1024
        print(f"{len(folder)} pictures of about {kb:.0f} KB, squares of {side}; {net.name} at {net.size}, batch {args.batch}; "
              f"{device}\n\n{'what':16} {'workers':>7} {'images/s':>9} {'of training':>11} {'waits':>6}", flush=True)
        rows = measure(folder, Network(net, device, args.batch, side=side), workers, args.rounds)
    for row in rows:
        print(f"{row['what']:16} {row['workers'] or '':>7} {row['images_per_s']:9.1f} {row['of_training']:11.2f}"
              + ("" if row["waits"] is None else f" {row['waits']:6.1%}"))
    need = len(whole) * side * side * 3 / 2**20
    more = f" The {len(whole)} take {need:,.0f} MB, more than training's cache ({CACHE_MB:,} MB): then all epochs decode."
    print(f"\n{verdict(rows)}{more * (need > CACHE_MB)}")
    if args.json:
        found = {"net": net.name, "size": net.size, "batch": args.batch, "images": len(folder), "device": str(device),
                 "rounds": args.rounds, "rows": rows, "verdict": verdict(rows)}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
