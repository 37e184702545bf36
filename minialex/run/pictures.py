"""The pictures of a report: charts by matplotlib, as SVG for the page and as PNG for curve.png; photographs and grids of pixels by Pillow."""

import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import numpy as np
from PIL import Image

# A backend's name that matplotlib does not know would end its import, and none is needed here. What the user has set stays set.
BACKEND = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
try:
    import matplotlib
finally:
    if BACKEND is not None:
        os.environ["MPLBACKEND"] = BACKEND
if BACKEND:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = BACKEND

from matplotlib.axes import Axes      # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg      # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG      # noqa: E402
from matplotlib.figure import Figure      # noqa: E402
from matplotlib.ticker import MaxNLocator, PercentFormatter      # noqa: E402

TRAIN, VAL, GUIDE, INK, PALE, HAIR = "#3f6fa3", "#c8641b", "#999999", "#222222", "#5c5c5c", "#e6e6e6"
PHASES = {"data": "#c9c9c9", "forward": "#8fb3d6", "backward": TRAIN, "update": VAL, "other": "#e9e9e8"}
# The page's style sheet has these colours under names, by day and by night.
NAMED = {TRAIN: "train", VAL: "val", GUIDE: "guide", INK: "ink", PALE: "pale", HAIR: "hair", PHASES["data"]: "data", PHASES["forward"]: "forward",
         PHASES["other"]: "other"}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.edgecolor": GUIDE, "axes.grid": True,
         "axes.grid.axis": "y", "axes.axisbelow": True, "axes.facecolor": "none", "grid.color": HAIR, "xtick.color": PALE, "ytick.color": PALE, "text.color": INK,
         "axes.labelcolor": PALE, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titlecolor": INK, "lines.linewidth": 1.5, "xtick.bottom": False,
         "ytick.left": False, "ytick.right": False, "svg.fonttype": "none"}
DPI = 144                                   # of a PNG: 1.5 times the 96 of a page's pixel
WIDE, HIGH = 252, 160                       # points of a chart
LEFT, RIGHT, TOP, BOTTOM = 34, 78, 20, 30   # points around its axes: right of them stand the names of the lines
BLUE, ORANGE = (63, 111, 163), (217, 118, 43)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """matplotlib as it comes, whatever its user has set, and our style."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def panel_in(figure: Figure, left: float = 0, bottom: float = 0, wide: float = WIDE, high: float = HIGH, right: float = RIGHT) -> Axes:
    """Axes with room for their names in a rectangle of a figure, all in points."""
    across, up = 72 * figure.get_size_inches()
    return figure.add_axes(((left + LEFT) / across, (bottom + BOTTOM) / up, (wide - LEFT - right) / across, (high - TOP - BOTTOM) / up))


def curve(metrics: list[dict], classes: int) -> bytes:
    """A PNG of loss and accuracy over the epochs, and of the learning rate where it is known."""
    with plain(), matplotlib.rc_context({"font.size": 8}):
        rated = any(m.get("lr") is not None for m in metrics)
        wide, low = 2 * WIDE + 14, 90 * rated
        figure = Figure(figsize=(wide / 72, (HIGH + low) / 72))
        room = 94      # matplotlib's font is wider than a page's
        draw_loss(panel_in(figure, 0, low, right=room), metrics, classes)
        draw_accuracy(panel_in(figure, WIDE + 14, low, right=room), metrics, classes)
        if rated:
            draw_rate(panel_in(figure, 0, 0, wide, low, right=room), metrics)
        return png(figure)


def loss(metrics: list[dict], classes: int, told: str) -> str:
    return svg("loss", told, lambda panel: draw_loss(panel, metrics, classes))


def accuracy(metrics: list[dict], classes: int, told: str) -> str:
    return svg("accuracy", told, lambda panel: draw_accuracy(panel, metrics, classes))


def rate(metrics: list[dict], told: str) -> str:
    return svg("rate", told, lambda panel: draw_rate(panel, metrics))


def time(metrics: list[dict], told: str) -> str:
    return svg("time", told, lambda panel: draw_time(panel, metrics))


def draw_loss(panel, metrics, classes):
    lines = [(name, colour, [m[key] for m in metrics]) for name, key, colour in (("training", "train_loss", TRAIN), ("validation", "val_loss", VAL))]
    guess = math.log(max(classes, 2))
    if guess < 1.1 * max(max(values) for _, _, values in lines):
        lines.append(("guessing", PALE, [guess] * len(metrics)))
    plot(panel, metrics, lines, "loss", "{:.3f}".format)


def draw_accuracy(panel, metrics, classes):
    keys = [("training", "train_top1", TRAIN), ("validation", "val_top1", VAL), ("top-5", "val_top5", VAL)][:3 if classes > 5 else 2]
    panel.set_ylim(0, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    plot(panel, metrics, [(name, colour, [m[key] for m in metrics]) for name, key, colour in keys], "accuracy", lambda value: f"{100 * value:.1f} %")


def draw_rate(panel, metrics):
    rated = [m for m in metrics if m.get("lr") is not None]
    panel.yaxis.set_major_locator(MaxNLocator(4))
    plot(panel, rated, [("", PALE, [m["lr"] for m in rated])], "learning rate at the epoch's end", "{:.2g}".format)


def plot(panel, metrics, lines, title, form):
    """Lines over the epochs from 0 up, each with its name and last value at its end. lines: [(name, colour, values)]; form makes text of a value"""
    epochs, ends = [m["epoch"] for m in metrics], []
    for name, colour, values in lines:
        style = {"top-5": ":", "guessing": "--"}.get(name, "-")
        panel.plot(epochs, values, color=colour, linestyle=style, marker="o", markersize=4 * (name != "guessing"), markevery=[len(values) - 1], clip_on=False)
        ends.append((values[-1], f"{name} {form(values[-1])}".strip(), colour))
    if panel.get_autoscaley_on():
        panel.set_ylim(0, 1.04 * max(max(values) for _, _, values in lines) or 1)
    panel.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1))
    dress(panel, title)
    name_ends(panel, ends)


def dress(panel, title):
    panel.set_title(title)
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    for line in panel.get_ygridlines():
        line.set_clip_on(False)      # which would need a clip path
    panel.tick_params(which="both", length=0)


def name_ends(panel, ends):
    """Writes right of the axes at each height its text, as far apart as letters need. ends: [(height, text, colour)]"""
    low, high = panel.get_ylim()
    step = 12 / (72 * panel.figure.get_size_inches()[1] * panel.get_position().height)
    ends = sorted((min(max((height - low) / (high - low), 0), 1), text, colour) for height, text, colour in ends)
    places = [place for place, _, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + step)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], places[i + 1] - step if i + 1 < len(places) else 1)
    for place, (_, text, colour) in zip(places, ends):
        panel.annotate(text, (1, place), (7, 0), xycoords="axes fraction", textcoords="offset points", va="center", color=colour)


def draw_time(panel, metrics):
    """Milliseconds of a step, split into its phases."""
    known = [m for m in metrics if m.get("seconds")]
    edges, below, ends = np.array([known[0]["epoch"] - 0.5, *(m["epoch"] + 0.5 for m in known)]), np.zeros(len(known)), []
    for phase, colour in PHASES.items():
        height = np.array([1000 * m["seconds"].get(phase, 0) for m in known])
        if height.any():
            panel.stairs(below + height, edges, baseline=below, fill=True, color=colour, linewidth=0, clip_on=False)
            ends.append((below[-1] + height[-1] / 2, f"{phase} {height[-1]:,.{0 if height[-1] >= 10 else 1}f}", INK))
            below = below + height
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(0, 1.04 * below.max() or 1)
    dress(panel, "ms per step")
    name_ends(panel, ends)


def svg(name: str, told: str, draw: Callable[[Axes], None]) -> str:
    """A chart as part of an HTML page, whose colours and font it takes. told: what is seen, for those who do not see it"""
    with plain(), matplotlib.rc_context({"svg.hashsalt": f"minialex {name}"}):      # the same each time, and no id twice on a page
        figure, file = Figure(figsize=(WIDE / 72, HIGH / 72)), io.StringIO()
        figure.patch.set_visible(False)
        draw(panel_in(figure))
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>|<defs>\s*</defs>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*>", f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(told)}">', text[text.index("<svg"):], count=1)
    meant = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in meant else "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)      # matplotlib before 3.11
    text = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-?0 [^\"]*\"", "", text)
    text = re.sub(r'(?<= )(d|x|y)="[^"]*"', lambda place: re.sub(r"(\.\d)\d+", r"\1", place[0]), text)
    text = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{NAMED[found[0]]})" if found[0] in NAMED else found[0], text)
    if "<g " not in text:
        text = re.sub("</?g>", "", text)
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").strip()


def png(drawing: Figure | Image.Image | np.ndarray) -> bytes:
    """The bytes of a matplotlib figure, of a Pillow image or of a uint8 array."""
    if isinstance(drawing, Figure):
        drawing.set_dpi(DPI)
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
        drawing = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(256, dither=Image.Dither.NONE)      # a third of the bytes
    return saved(drawing if isinstance(drawing, Image.Image) else Image.fromarray(drawing), "PNG", compress_level=6)


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def photo(picture: np.ndarray, side: int) -> bytes:
    """A uint8 picture (h, w, 3), at most `side` pixels high and wide: as JPEG, or where its pixels are few as PNG, which keeps each."""
    image = Image.fromarray(picture)
    if max(image.size) <= 64:
        return saved(image, "PNG")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return saved(image, "JPEG", quality=85)


def heat(picture: np.ndarray, warm: np.ndarray, cold: np.ndarray | None = None, side: int = 480) -> bytes:
    """A JPEG of a uint8 picture (s, s, 3), in pale grey, under orange where `warm` is 1 and blue where `cold` is; both of any shape, from 0 to 1."""
    def enlarged(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = Image.fromarray(picture).convert("L").resize((side, side), Image.Resampling.BICUBIC)
    base, warmth = 70 + 0.68 * np.asarray(grey, np.float32)[..., None], 0.85 * enlarged(warm)
    chill = 0.85 * enlarged(cold) if cold is not None else np.zeros_like(warmth)
    mixed = base * (1 - warmth - chill).clip(0, 1) + warmth * np.array(ORANGE, np.float32) + chill * np.array(BLUE, np.float32)
    return saved(Image.fromarray(np.rint(mixed.clip(0, 255)).astype(np.uint8)), "JPEG", quality=82)


def filters(weight: np.ndarray, groups: int = 1) -> bytes:
    """A PNG of first-layer filters (KH, KW, C, F), each over its own range; of nets in `groups` towers, one tower's below the other's. Between them
    nothing is drawn."""
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
    between = np.zeros((16, towers[0].shape[1], 4), np.uint8)
    return png(np.concatenate([part for tower in towers for part in (between, tower)][1:]))


def sheet(tiles, columns, gap):
    """Tiles (n, h, w, 3) uint8 row by row, with an alpha channel that is 0 between them."""
    n, h, w = tiles.shape[:3]
    rows = -(-n // columns)
    page = np.zeros((rows * (h + gap) - gap, columns * (w + gap) - gap, 4), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        page[top:top + h, left:left + w, :3], page[top:top + h, left:left + w, 3] = tile, 255
    return page


def confusion(counts: np.ndarray) -> bytes:
    """A PNG of a confusion matrix of many classes: some pixels a class, or some classes a pixel, which has their largest share. Rows are true
    classes; the root of the share of the row is how opaque it is, blue on the diagonal and orange beside it."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    block = -(-len(share) // 1000)
    if block > 1:
        share = np.pad(share, ((0, -len(share) % block),) * 2)
        share = share.reshape(len(share) // block, block, -1, block).max(axis=(1, 3))
    times = max(1, 1000 // len(share))
    level = np.rint(127 * np.sqrt(share)).astype(np.uint8) + np.uint8(128) * ~np.eye(len(share), dtype=bool)
    image = Image.fromarray(level.repeat(times, axis=0).repeat(times, axis=1))
    image.putpalette(bytes(BLUE) * 128 + bytes(ORANGE) * 128)
    return saved(image, "PNG", transparency=bytes(255 * i // 127 for i in range(128)) * 2, compress_level=6)
