"""The pictures of a report, each as the bytes of a PNG: curves by matplotlib, grids of pixels by Pillow."""

import io
import math
import os
import warnings

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter
from PIL import Image, ImageDraw, ImageFont

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.grid": True,
         "axes.axisbelow": True, "grid.color": "#e4e4e4", "xtick.color": "#555555", "ytick.color": "#555555", "axes.labelcolor": "#333333",
         "axes.titlesize": 9, "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.4}
TRAIN, VAL, GUIDE = "#3f6fa3", "#d9762b", "#999999"
PHASES = {"data": "#c9c9c9", "forward": "#8fb3d6", "backward": "#3f6fa3", "update": "#d9762b", "other": "#e9e9e9"}
DPI = 144       # 1.5 times the 96 of a page's pixel
WIDTH = 7.3     # inches of a figure as wide as the page's text
NUMBERED = 20   # most classes whose confusion is written in numbers
TILE, COLUMNS = 124, 8                  # of a batch: pixels a picture, pictures a row
CELL, BAR = 190, 26                     # of predictions: pixels a picture is wide, a line is high
RIGHT, WRONG, INK, PALE = "#efb184", "#c6d8ea", "#222222", "#777777"

# A class name may have characters that the font lacks: a box stands for them, and that is said here once rather than each epoch.
warnings.filterwarnings("ignore", message=r"Glyph .* missing from")


def curve(metrics, classes):
    """Loss and accuracy over the epochs, and the learning rate where it is known."""
    rated = [m for m in metrics if m.get("lr") is not None]
    with matplotlib.rc_context(STYLE):
        rows = [["loss", "accuracy"], ["rate", "rate"]][:1 + bool(rated)]
        figure = Figure(figsize=(WIDTH, 2.7 + 0.9 * bool(rated)), layout="constrained")
        panels = figure.subplot_mosaic(rows, height_ratios=[3.2, 1][:len(rows)])
        for name, lines in (("loss", ("train_loss", "val_loss")), ("accuracy", ("train_top1", "val_top1", "val_top5"))):
            for key, colour, style in zip(lines, (TRAIN, VAL, VAL), ("-", "-", ":")):
                if key != "val_top5" or classes > 5:
                    label = key.replace("train", "training").replace("val", "validation").replace("_loss", "").replace("_top", " top-")
                    plot(panels[name], metrics, [m[key] for m in metrics], colour, style, label)
            panels[name].set_title(name)
            panels[name].legend()
        guess = math.log(max(classes, 2))
        if guess < 1.1 * max(m[key] for m in metrics for key in ("train_loss", "val_loss")):
            remark(panels["loss"], f"ln {classes}, guessing", guess)
        panels["loss"].set_ylim(bottom=0)
        panels["accuracy"].set_ylim(0, 1.02)
        panels["accuracy"].yaxis.set_major_formatter(PercentFormatter(1.0))
        if rated:
            plot(panels["rate"], rated, [m["lr"] for m in rated], "#555555", "-", None)
            panels["rate"].set_title("learning rate at the epoch's end")
            panels["rate"].set_ylim(bottom=0)
        for name in ["rate"] if rated else ["loss", "accuracy"]:
            panels[name].set_xlabel("epoch")
        return png(figure)


def plot(panel, metrics, values, colour, style, label):
    epochs = [m["epoch"] for m in metrics]
    dots = len(epochs) == 1 or len(epochs) < 40 and style == "-"
    panel.plot(epochs, values, color=colour, linestyle=style, marker="." * dots, fillstyle="full" if style == "-" else "none", label=label)
    panel.xaxis.set_major_locator(whole())
    if epochs:
        panel.set_xlim(epochs[0] - 0.02 * len(epochs) - 0.1, max(epochs[-1] + 0.02 * len(epochs), epochs[0] + 1) + 0.1)


def whole():
    """Ticks at whole epochs only."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def remark(panel, text, height):
    """A dashed line across a panel, and what it means."""
    panel.axhline(height, color=GUIDE, linewidth=0.8, linestyle="--")
    panel.annotate(text, (0.5, height), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points", ha="center", fontsize=7.5,
                   color="#666666", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5})


def layers(metrics):
    """Activations, zeros, dead channels and the ratio of update to weights, of each layer over the epochs."""
    known = [m for m in metrics if m.get("layers")]
    names = list(known[-1]["layers"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        size, zero, dead, ratio = figure.subplots(2, 2).flat
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
        for name, colour in zip(names, colours):
            for panel, key, style in ((size, "mean", "-"), (size, "std", ":"), (zero, "zero", "-"), (dead, "dead", "-"), (ratio, "ratio", "-")):
                at = [m for m in known if m["layers"].get(name, {}).get(key) is not None]
                plot(panel, at, [m["layers"][name][key] for m in at], colour, style, name if panel is zero else None)
        for panel, title in ((size, "mean |y| (line) and standard deviation (dots)"), (zero, "zeros among the outputs"),
                             (dead, "channels zero for every image"), (ratio, "update / weights, in one step")):
            panel.set_title(title)
        for panel in (size, ratio):
            if any((line.get_ydata() > 0).any() for line in panel.lines):
                panel.set_yscale("log")
        if size.get_yscale() == "log":
            size.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            size.yaxis.set_major_formatter("{x:g}")
            size.yaxis.set_minor_formatter("")
        for panel in (zero, dead):
            panel.set_ylim(-0.02, 1.02)
            panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        if ratio.lines:
            remark(ratio, "a thousandth", 1e-3)
        for panel in (dead, ratio):
            panel.set_xlabel("epoch")
        figure.legend(*zero.get_legend_handles_labels(), loc="outside lower center", ncols=min(8, len(names)))
        return png(figure)


def time(metrics):
    """Milliseconds of a step, split into its phases: a bar for each epoch."""
    known = [m for m in metrics if m.get("seconds")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        panel = figure.subplots()
        epochs, below = [m["epoch"] for m in known], np.zeros(len(known))
        for phase, colour in PHASES.items():
            height = np.array([1000 * m["seconds"].get(phase, 0) for m in known])
            panel.bar(epochs, height, bottom=below, color=colour, width=0.7 if len(known) < 40 else 1.0, label=phase)
            below += height
        panel.set_xlim(epochs[0] - 0.6, max(epochs[-1], epochs[0] + 7) + 0.6)      # one bar alone does not fill the page
        panel.xaxis.set_major_locator(whole())
        panel.grid(axis="x", visible=False)
        panel.set_xlabel("epoch")
        panel.set_ylabel("ms per step")
        figure.legend(loc="outside right upper", reverse=True)
        return png(figure)


def png(drawing):
    """The bytes of a matplotlib figure, without its white edges, of a Pillow image or of a uint8 array."""
    file = io.BytesIO()
    if isinstance(drawing, Figure):
        drawing.set_dpi(DPI)
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        ink = (pixels < 255).any(axis=2)
        (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis=axis))[[0, -1]] for axis in (1, 0))
        drawing = Image.fromarray(np.ascontiguousarray(pixels[max(0, top - 6):bottom + 7, max(0, left - 6):right + 7]))
        drawing = drawing.quantize(256, dither=Image.Dither.NONE)      # a third of the bytes
    elif isinstance(drawing, np.ndarray):
        drawing = Image.fromarray(drawing)
    drawing.save(file, "PNG", compress_level=6)
    return file.getvalue()


def sheet(tiles, columns, gap):
    """Tiles (n, h, w, 3) uint8 row by row on white."""
    n, h, w = tiles.shape[:3]
    rows = -(-n // columns)
    page = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[top:top + h, left:left + w] = tile
    return page


def filters(weight, groups=1):
    """First-layer filters (KH, KW, C, F), each over its own range; of nets in `groups` towers, one tower's below the other's."""
    low, high = weight.min(axis=(0, 1, 2)), weight.max(axis=(0, 1, 2))
    flat = high <= low
    pixels = np.where(flat, 128, 255 * (weight - low) / np.where(flat, 1, high - low))
    tiles = np.rint(pixels).astype(np.uint8).transpose(3, 0, 1, 2)
    tiles = np.repeat(tiles, 3, axis=3) if tiles.shape[3] == 1 else tiles[..., :3]
    each = len(tiles) // groups
    columns = 16 if each % 16 == 0 else math.ceil(math.sqrt(2 * each))
    times = max(1, (1040 // columns - 4) // tiles.shape[2])
    tiles = tiles.repeat(times, axis=1).repeat(times, axis=2)
    towers = [sheet(tiles[g * each:(g + 1) * each], columns, 4) for g in range(groups)]
    between = np.full((16, towers[0].shape[1], 3), 255, np.uint8)
    return png(np.concatenate([part for tower in towers for part in (between, tower)][1:]))


def batch(images):
    """Pictures of a batch, uint8 (n, size, size, 3)."""
    tiles = np.stack([scaled(image, TILE) for image in images])
    return png(sheet(tiles, min(COLUMNS, len(tiles)), 6))


def scaled(image, side):
    """A picture at side x side; one of few pixels keeps them visible."""
    how = Image.Resampling.NEAREST if image.shape[0] * 2 <= side else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((side, side), how))


def predictions(items, names):
    """Pictures with their true class under them and a bar for each of the likeliest classes (Krizhevsky 2012, figure 4).

    items: (picture uint8 (s, s, 3), true class or None, [(class, probability), ...]).
    """
    file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font, small = ImageFont.truetype(file, 16), ImageFont.truetype(file, 14)
    columns, gap = min(5, len(items)), 20
    height = CELL + 6 + 30 + BAR * max(len(likely) for _, _, likely in items)
    page = Image.new("RGB", (columns * (CELL + gap) - gap, -(-len(items) // columns) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, true, likely) in enumerate(items):
        left, top = i % columns * (CELL + gap), i // columns * (height + gap)
        page.paste(Image.fromarray(scaled(picture, CELL)), (left, top))
        label = "(no label)" if true is None else fitted(names[true], font, CELL)
        draw.text((left + CELL // 2, top + CELL + 20), label, INK if true is not None else PALE, font, anchor="mm")
        for line, (label, probability) in enumerate(likely):
            at = top + CELL + 36 + line * BAR
            draw.rectangle((left, at, left + round((CELL - 1) * min(max(probability, 0), 1)), at + BAR - 6), RIGHT if label == true else WRONG)
            draw.text((left + CELL - 4, at + BAR // 2 - 3), f"{probability:.0%}", INK, small, anchor="rm")
            draw.text((left + 5, at + BAR // 2 - 3), fitted(names[label], small, CELL - 60), INK, small, anchor="lm")
    return png(page)


def fitted(text, font, width):
    """The text, or as much of its start as is at most so many pixels wide."""
    if font.getlength(text[:200]) <= width and len(text) <= 200:
        return text
    most = next(n for n in range(min(len(text), 200), -1, -1) if font.getlength(text[:n] + "…") <= width or n == 0)
    return text[:most] + "…"


def confusion(counts, names):
    """Rows are true classes, columns what they were taken for; shaded by the share of the row, by its root without numbers."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(counts) > NUMBERED:
        return png(shaded(share))
    n, names = len(counts), [name if len(name) <= 22 else name[:21] + "…" for name in names]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        inches = n * min(0.52, 5.2 / n)
        wide, high = inches + 5.4, inches + 2.6      # room for the longest labels; what is not used is cut off
        figure = Figure(figsize=(wide, high))
        panel = figure.add_axes((3.1 / wide, 0.1 / high, inches / wide, inches / high))
        panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.argwhere(counts):
            panel.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8 if n <= 12 else 6.5, color="white" if share[i, j] > 0.55 else INK)
        panel.set_xticks(range(n), names, rotation=40, ha="left", rotation_mode="anchor", parse_math=False)
        panel.set_yticks(range(n), names, parse_math=False)
        panel.xaxis.tick_top()
        panel.xaxis.set_label_position("top")
        panel.tick_params(length=0)
        panel.set_xlabel("taken for")
        panel.set_ylabel("true class")
        panel.spines[:].set(visible=True, color="#bbbbbb")
        return png(figure)


def shaded(share):
    """A matrix of many classes without labels: some pixels a class, or some classes a pixel, which has their largest share."""
    n, block = len(share), -(-len(share) // 1000)
    if block > 1:
        share = np.pad(share, ((0, -n % block),) * 2)
        share = share.reshape(len(share) // block, block, -1, block).max(axis=(1, 3))
    times = max(1, 1000 // len(share))
    image = Image.fromarray(np.rint(255 * np.sqrt(share)).astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1))
    image.putpalette(np.rint(255 * matplotlib.colormaps["Blues"](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
    return image
