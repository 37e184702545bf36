"""The two towers of a net, drawn from the net itself, and what each of them has learnt.

python benchmarks/two_towers.py --figure docs/two-towers.png [--net paper]
python benchmarks/two_towers.py --filters docs/two-towers-filters.png RUN [RUN ...]     the first filters of each run's towers, and how colourful they are
python benchmarks/two_towers.py --curves docs/two-towers-curves.png RUN [RUN ...]       loss and top-1 of each run
"""

import argparse
from pathlib import Path

import numpy as np
from plots import save, subplots

from minialex import nets
from minialex.command import run_command, say
from minialex.run.run import Run
from minialex.towers import tower_of

COLOURED = 0.3      # of a filter's power, above which it counts as coloured


def figure(name, path):
    """Figure 2 of Krizhevsky 2012: each tower's outputs as a slab, its height the pixels, its width the channels; lines where the towers meet."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    net = nets.build(name)
    towers = [tower_of(net, tower) for tower in range(2)]
    drawn = Figure((12, 4.6))
    axes = drawn.add_axes((0.01, 0.01, 0.98, 0.98))
    shown = [layer for layer, one in net.layers.items() if layer[:2] in ("co", "po", "fc")]
    met = {layer.removeprefix("to_"): own.channels for layer, own in towers[0].layers.items() if own.exchanges}
    x, places = 1.2, {}
    axes.text(0.35, 0, f"{net.size}\n{net.size}\n3", ha="center", va="center", fontsize=8)
    axes.add_patch(Rectangle((0.55, -0.9), 0.16, 1.8, fc="#eeeeee", ec="black", lw=0.8))
    waiting = None
    for layer in net.layers:
        if layer in met:      # whoever reads it next, dropout or the layer behind
            waiting = layer
        if layer not in shown:
            continue
        for tower, own in enumerate(towers):
            shape = own.outputs[layer]
            height, width = (0.15 + 1.5 * shape[0] / 60, 0.1 + shape[2] / 400) if len(shape) == 3 else (1.5, 0.14)
            y = (1.25, -1.25)[tower]
            axes.add_patch(Rectangle((x, y - height / 2), width, height, fc=("#dbe5f0", "#f6d9bf")[tower], ec="black", lw=0.8))
            axes.text(x + width / 2, y + (height / 2 + 0.12) * (1, -1)[tower], nets.by(shape), ha="center", va=("bottom", "top")[tower], fontsize=7)
            if tower in places:
                before, end = places[tower], y
                axes.plot([before, x], [end, end], color="black", lw=0.8)
                if waiting:
                    axes.plot([before, x], [(-1.25, 1.25)[tower], end], color="#b03024", lw=0.8)
        axes.text(x + width / 2, 0, layer, ha="center", va="center", fontsize=8, rotation=90, color="#5c5c5c")
        places, x, waiting = {0: x + width, 1: x + width}, x + width + 0.75, None
    axes.text(x, 0, f"loss of\n{net.classes:,}", ha="left", va="center", fontsize=8)
    for y in 1.25, -1.25:
        axes.plot([places[0], x], [y, 0.2 * np.sign(y)], color="#b03024", lw=0.8)
    axes.set_xlim(0, x + 1), axes.set_ylim(-2.4, 2.4), axes.axis("off")
    save(drawn, path, 120)


def colour(filters):
    """The part of each filter's power that is in differences between its channels, 0 of a grey one: float (filters,) of (KH, KW, 3, filters)."""
    grey = filters.mean(axis=2, keepdims=True)
    return ((filters - grey) ** 2).sum(axis=(0, 1, 2)) / (filters**2).sum(axis=(0, 1, 2))


def filters(runs, path):
    """Draws the first filters of both towers of each run, the most colourful last, and tells how colourful they are."""
    figure, axes = subplots(len(runs), 2, size=(9, 3.7 * len(runs)), squeeze=False)
    for row, folder in zip(axes, runs):
        weight = next(iter(Run(folder, device="numpy").network.weights().values()))
        count = weight.shape[3] // 2
        for tower, place in enumerate(row):
            own = weight[..., tower * count:(tower + 1) * count]
            part = colour(own)
            own = own[..., np.argsort(part)]
            own = (own - own.min(axis=(0, 1, 2))) / np.ptp(own, axis=(0, 1, 2))
            columns = 8
            tiles = np.ones((-(-count // columns) * 12 + 1, columns * 12 + 1, 3))
            for i in range(count):
                tiles[i // columns * 12 + 1:i // columns * 12 + 12, i % columns * 12 + 1:i % columns * 12 + 12] = own[..., i]
            place.imshow(tiles, interpolation="nearest"), place.axis("off")
            place.set_title(f"{Path(folder).name}, tower {tower}: {(part > COLOURED).sum()} of {count} coloured, mean {part.mean():.2f}", fontsize=9)
            say(f"{folder}, tower {tower}: {(part > COLOURED).sum()} of {count} filters have more than {COLOURED:.0%} of their power in colour, "
                f"{part.mean():.2f} in the mean")
    save(figure, path, 100)


def curves(runs, path):
    figure, axes = subplots(1, 2, size=(10, 3.6))
    for number, folder in enumerate(runs):
        metrics = Run(folder, device="numpy").history
        for place, keys in zip(axes, (("train_loss", "val_loss"), ("train_top1", "val_top1"))):
            for key in keys:
                place.plot(metrics["epoch"], metrics[key], color=f"C{number}", ls=("--", "-")[key.startswith("val")], lw=(2.5, 1.2)[number % 2],
                           label=f"{Path(folder).name}, {key}")
    axes[0].set_title("loss", fontsize=9), axes[1].set_title("top-1", fontsize=9)
    for place in axes:
        place.set_xlabel("epoch"), place.legend(fontsize=7, frameon=False)
    save(figure, path, 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in "figure", "filters", "curves":
        parser.add_argument(f"--{name}", metavar="PNG")
    parser.add_argument("--net", default="paper", choices=list(nets.NETS))
    parser.add_argument("runs", nargs="*", metavar="RUN")
    options = parser.parse_args()
    if options.figure:
        figure(options.net, options.figure)
    if options.filters:
        filters(options.runs, options.filters)
    if options.curves:
        curves(options.runs, options.curves)
    return 0


if __name__ == "__main__":
    run_command(main)
