"""The report of a run: report.html, which needs nothing else, and curve.png and filters.png beside it."""

import base64
import math
import re
import unicodedata
from html import escape
from pathlib import Path

import numpy as np

from ..errors import shown
from ..files import write_beside
from ..ops.augment import augment_images
from .advice import findings, percent
from .settings import command_of

SHOWN = 24              # augmented pictures
COMPARED, NEAR = 5, 7   # mistakes beside training images, and how many of these
NUMBERED = 20           # most classes whose confusion is written in numbers
POINTED = 400           # cells of a larger confusion that say what they are
PNG = b"\x89PNG"
NAME = 120              # letters of a class name that are shown where there is room

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --pale: #5c5c5c; --rule: #bbb; --hair: #e6e6e6; --guide: #999; --train: #3f6fa3; --val: #c8641b;
        --data: #c9c9c9; --forward: #8fb3d6; --other: #e9e9e8; --band: #f4f4f1; --right: #25713d; --wrong: #b03024; --bar: #dbe5f0; --hit: #f6d9bf }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #16181a; --ink: #dddcd8; --pale: #a5a4a0; --rule: #55585c; --hair: #303337; --guide: #777; --train: #80aede; --val: #eb9a5c;
          --data: #5f6468; --forward: #44678c; --other: #35393d; --band: #212427; --right: #7cc796; --wrong: #f08d83; --bar: #2a3c50; --hit: #5b3c22 }
}
@page { margin: 18mm }
* { box-sizing: border-box }
body { font: 17px/1.5 Charter, "Bitstream Charter", "Iowan Old Style", Palatino, Georgia, "Liberation Serif", serif; color: var(--ink);
       background: var(--paper); max-width: 46rem; margin: 3rem auto 5rem; padding: 0 1.2rem; -webkit-text-size-adjust: 100% }
h1 { font-size: 1.75rem; font-weight: normal; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; font-weight: bold; margin: 2.8rem 0 .4rem; break-after: avoid }
p { margin: .4rem 0 .8rem; overflow-wrap: anywhere }
header { border-bottom: 1px solid var(--rule); padding-bottom: 1.1rem }
header p { color: var(--pale); margin: .3rem 0 }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.1rem 0 }
dt { font-size: .8rem; color: var(--pale) }
dd { margin: 0; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums lining-nums }
dd small { display: block; font-size: .8rem; line-height: 1.3; color: var(--pale) }
code { font: .8rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere }
figure { margin: 1rem 0 1.4rem; break-inside: avoid }
img { display: block; max-width: 100%; height: auto }
.pixels { image-rendering: pixelated }
figcaption, .note, summary { font-size: .84rem; line-height: 1.45; color: var(--pale) }
figcaption, .note { margin-top: .6rem }
summary { cursor: pointer }
li { margin: .35rem 0; overflow-wrap: anywhere }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18.5rem, 100%), 1fr)); gap: 1rem 1.2rem; align-items: start }
.charts figcaption { margin-top: .3rem }
.chart { display: block; width: 100%; max-width: 25rem; height: auto; overflow: visible; font-variant-numeric: tabular-nums lining-nums }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums lining-nums }
th { font-weight: normal; text-align: left }
thead th { color: var(--pale); border-bottom: 1px solid var(--rule); vertical-align: bottom }
th, td { padding: .2rem 1.4rem .2rem 0; vertical-align: top }
th:last-child, td:last-child { padding-right: 0 }
tbody th, tbody td { border-bottom: 1px solid var(--hair) }
tr { break-inside: avoid }
tbody th, .long { overflow-wrap: anywhere; min-width: 7rem }
.n { text-align: right }
td.n { white-space: nowrap }
.right { color: var(--right) }
.wrong { color: var(--wrong) }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); gap: 1.5rem 1rem }
.cards figure { margin: 0; min-width: 0 }
.cards img { width: 100%; border-radius: 2px }
.cards figcaption { margin: .35rem 0 .3rem; line-height: 1.3; overflow-wrap: anywhere }
.cards b { font-weight: normal; color: var(--ink); margin-right: .4em }
.cards small { display: block; font-size: .72rem; overflow: hidden }
.cards small span, .cards figcaption > span { white-space: nowrap }
.cards table { width: 100%; font-size: .76rem }
.cards tr { display: flex; gap: .4em; margin-bottom: 2px; background: linear-gradient(90deg, var(--bar) var(--p), transparent var(--p)) }
.cards tr.true { background: linear-gradient(90deg, var(--hit) var(--p), transparent var(--p)); font-weight: bold }
.cards th, .cards td { border: 0; padding: .1rem .3rem; min-width: 0 }
.cards th { flex: 1; font-weight: inherit; overflow: hidden; white-space: nowrap }
.batch { grid-template-columns: repeat(auto-fill, minmax(4.4rem, 1fr)); gap: .7rem .6rem }
.batch figcaption { font-size: .72rem }
.beside { grid-template-columns: repeat(8, minmax(0, 1fr)); margin-bottom: 1.2rem; break-inside: avoid }
.beside figure:first-child { position: relative }
.beside figure:first-child::after { content: ""; position: absolute; top: 0; bottom: 0; right: -.32rem; border-right: 1px solid var(--rule) }
.counts th, .counts td { padding: 0; border: 1px solid var(--hair) }
.counts td { width: 1.9rem; min-width: 1.6rem; height: 1.6rem; text-align: center; vertical-align: middle; background: rgba(217, 118, 43, var(--s, 0)) }
.counts td.diagonal { background: rgba(63, 111, 163, var(--s, 0)); font-weight: bold; outline: 1px solid var(--guide); outline-offset: -1px }
.counts td.deep { color: #fff }
.counts tbody th { padding: 0 .5rem 0 0; border: 0; min-width: 0; text-align: right; vertical-align: middle; white-space: nowrap; position: sticky; left: 0;
                   background: var(--paper) }
.counts thead th { border: 0; color: var(--ink) }
.counts thead th span { display: inline-block; writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg); white-space: nowrap; margin: 0 .2rem .4rem;
                        line-height: 1.2rem }
.counts thead td { background: none; color: var(--pale); border: 0; min-width: 0; white-space: nowrap; padding: 0 .5rem .3rem 0; text-align: right; vertical-align: bottom; font-size: .76rem; line-height: 1.2 }
.matrix { display: block; width: 100%; max-width: 40rem; height: auto; border: 1px solid var(--rule) }
.matrix rect { fill: transparent }
.matrix rect:hover { stroke: var(--ink); stroke-width: .2% }
.layers { width: 100%; table-layout: fixed }
.layers th, .layers td { padding-right: .8rem }
.layers tbody th { width: 22%; min-width: 0 }
.spark { display: block; width: 100%; max-width: 7rem; height: auto; overflow: visible; margin: .15rem 0 .15rem auto; background: var(--band) }
.spark polyline { stroke: var(--train); stroke-width: 2.2; fill: none }
.spark circle { fill: var(--train) }
@media (max-width: 33rem) {
  body { margin-top: 1.6rem; padding: 0 1rem }
  dl { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem }
  .scroll th, .scroll td { padding-right: .7rem }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .batch { grid-template-columns: repeat(4, minmax(0, 1fr)) }
  .beside figure:first-child::after { border: 0 }
  .counts { font-size: .74rem }
  .scroll .counts th, .scroll .counts td { padding-right: 0 }
  .scroll .counts tbody th { padding-right: .3rem }
  .counts td { width: 1.28rem; min-width: 1.28rem }
  .counts thead th span { margin: 0 0 .3rem }
  .layers, .layers thead, .layers tbody { display: block }
  .layers tr { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 0 .6rem; border-bottom: 1px solid var(--hair); padding-bottom: .3rem }
  .layers th, .layers td { border: 0; padding-right: 0; font-size: .76rem }
  .layers tr > :first-child { grid-column: 1 / -1; width: auto; font-size: .84rem; padding-top: .4rem }
}
"""


def write(folder, config, metrics, *, filters=None, groups=1, seen=None, labels=None, predictions=None, mistakes=None, confusion=None, neighbours=None, weights="last"):
    """Writes report.html and its PNGs into a run's folder; what is None, or missing from older metrics, has no section.

    config: of config.json; metrics: a dict for each epoch, as in metrics.jsonl. filters: the first layer's weight (KH, KW, C, F); groups:
    the towers it is split in. seen: uint8 (n, size, size, 3), pictures as augmented, and labels (n,) their classes. predictions and mistakes:
    [(picture uint8 (s, s, 3), true class or None, [(class, probability), ...], path), ...] and confusion: integers (classes, classes), row = true,
    as `Collector.found` gives them. neighbours: (name of the last hidden layer, [(one of the mistakes, its Neighbours), ...]). weights: "best" or "last", of which all this is.
    """
    from . import pictures      # here, since matplotlib takes long to import and not every command draws
    names, drawn, parts = [shown(name) for name in config["classes"]], {}, []

    def section(title, sentence, *contents):
        parts.append(f"<section><h2>{escape(title)}</h2><p>{escape(sentence)}</p>{''.join(contents)}</section>")

    if metrics:
        found = findings(config, metrics)
        section("What stands out", "Checked in the last epoch: loss, the gap between training and validation, layers, and time."
                + " Nothing stands out." * (not found), "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>" if found else "")
        drawn["curve.png"] = pictures.curve(metrics, len(names))
        rated = [m for m in metrics if m.get("lr") is not None]
        rate = pictures.rate(metrics, course("The learning rate", rated, [m["lr"] for m in rated], "{:.2g}".format)) if rated else ""
        section("Learning curves", "Training figures are gathered while the weights still change and on augmented pictures, validation figures "
                "after each epoch on centre crops; early on, validation may therefore do better."
                + " The training loss has smoothed labels, with which it cannot come near zero." * bool(config["options"].get("label_smoothing")),
                charts(pictures.loss(metrics, len(names), seen_in_curves(metrics, "loss")),
                       pictures.accuracy(metrics, len(names), seen_in_curves(metrics, "accuracy")), rate,
                       "<figcaption>At the end of each line, its value after the last epoch.</figcaption>"))
    if confusion is not None and confusion.sum():
        pairs, right = confused(confusion), np.trace(confusion) / confusion.sum()
        often = f" Most often, {names[pairs[0][0]]} is taken for {names[pairs[0][1]]}: {pairs[0][2]} of {pairs[0][3]}." if pairs else ""
        numbered = len(names) <= NUMBERED
        section("Classes", "How many validation images each class has and how many of them are recognised: their share (recall), and the share of "
                "what is taken for the class that belongs to it (precision).", each_class(confusion, names, numbered))
        section("Confusion", f"What {confusion.sum():,} validation images were taken for; {percent(right)} rightly.{often}",
                counts_table(confusion, names) if numbered else matrix(confusion, names, pictures.confusion(confusion)),
                "" if numbered or not pairs else table(["true class", "taken for", "images"], [
                    [named(names[true]), named(names[taken]), f"{count:,} of {of:,}"] for true, taken, count, of in pairs]))
    if predictions:
        section("Predictions", "The same few validation images in each report, spread over the classes. Under each its true class, then what the net thinks "
                "likeliest; a bar is as long as its probability, and the true class is bold and orange.",
                cards(predictions, names, pictures.photo))
    if mistakes:
        section("Surest mistakes", "Of all validation images that are taken for a wrong class, those of which the net is surest. It is worth a look "
                "whether their labels are right.", cards(mistakes, names, pictures.photo))
    if neighbours:
        hidden, compared = neighbours
        section("Mistakes and their neighbours", f"The surest mistakes, each beside the training images that are nearest to it in {hidden}, the last hidden "
                "layer, by Euclidean distance (Krizhevsky 2012, figure 4). Green is the right class, red the one that the net says.",
                "".join(beside(item, near, names, pictures.photo) for item, near in compared))
    if filters is not None:
        drawn["filters.png"] = pictures.filters(np.asarray(filters, np.float32), groups)
        towers = "; the upper and the lower half belong to the two towers of the net" * (groups == 2)
        size = f"{filters.shape[3]} filters of {filters.shape[0]} x {filters.shape[1]} pixels"
        section("First-layer filters", "What the first convolution looks for. Filters begin as noise and become smooth stripes and blobs as far as the "
                "task asks for it; some noise may stay, also in a net that does well. Flat grey is a dead filter.",
                f'<figure><img src="data:image/png;base64,{base64.b64encode(drawn["filters.png"]).decode()}" alt="{size} of the first convolution" '
                f'style="margin: 0 auto"><figcaption>{size}, each scaled to its own range{towers}.</figcaption></figure>')
    if seen is not None and len(seen):
        told = [names[label] if 0 <= label < len(names) else "" for label in labels] if labels is not None else [""] * len(seen)
        section("A batch as the net sees it", "Training images after cropping and augmentation. A person should still be able to name them.",
                '<div class="cards batch">' + "".join(
                    f"<figure>{image(pictures.photo(picture, 160), 'augmented training image' + f' of class {name}' * bool(name))}"
                    + f"<figcaption>{named(name, 12)}</figcaption>" * bool(name) + "</figure>" for picture, name in zip(seen, told)) + "</div>")
    if any(m.get("layers") for m in metrics):
        section("Layers", "Healthy layers keep activations of a similar size from bottom to top, have some outputs above zero for every image, and "
                "change by about a thousandth of their weights in a step; updates fall with the learning rate.", layers_table(metrics))
    timed = [m for m in metrics if m.get("seconds")]
    if timed:
        spent, slowest = timed[-1]["seconds"], timed[-1].get("slowest") or []
        total = sum(spent.values())
        shares = ", ".join(f"{name} {percent(of / total if total else 0)}" for name, of in spent.items())
        section("Time", f"A step of epoch {timed[-1]['epoch']} took {1000 * total:,.{0 if total >= 0.1 else 1}f} ms: {shares}. Data is the time in "
                "which a step waited for its pictures, other what the rest of the epoch took.",
                charts(pictures.time(metrics, course("A step", timed, [1000 * sum(m["seconds"].values()) for m in timed], "{:,.1f} ms".format)),
                       table(["slowest layers", "ms per step"], [[escape(name), f"{1000 * of:,.2f}"] for name, of in slowest]) if slowest else ""))
    parts.append("<section><h2>Settings</h2>" + table(["option", "value"], settings(config), values=True) + "</section>")
    for name, data in drawn.items():
        write_beside(Path(folder) / name, data)
    title = f"{config['net']} on {data_name(config)}"
    what = " and ".join(word for word, there in (("predictions", predictions or confusion is not None), ("filters", filters is not None)) if there)
    whole = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
             f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><style>{CSS}</style></head>\n'
             f"<body>{header(title, config, metrics, what, weights)}{chr(10).join(parts)}</body></html>\n")
    write_beside(Path(folder) / "report.html", re.sub(r"(?<=\d) %", "\u00a0%", whole))      # no line ends before a percent sign


# What is above the sections

def header(title, config, metrics, what, weights):
    size, classes, images = config["size"], len(config["classes"]), (config["data"][split]["images"] for split in ("train", "val"))
    about = "{0} × {0} pixels, {1:,} classes, {2:,} training and {3:,} validation images.".format(size, classes, *images)
    figures, lines = [], [f"Begun {config['began']}"] if config.get("began") else []
    if metrics:
        best, last = max(metrics, key=lambda m: m["val_top1"]), metrics[-1]
        figures = [("validation accuracy", percent(best["val_top1"]), f"best, epoch {best['epoch']}"),
                   ("after the last epoch", percent(last["val_top1"]), f"{last['epoch']} of {config['options']['epochs']} epochs")]
        figures += [("among the first five", percent(last["val_top5"]), "")] if classes > 5 else []
        figures += [("validation loss", f"{last['val_loss']:.3f}", ""), ("speed", f"{last['images_per_s']:,.0f}", "images/s")]
        lines.append(f"{'t' if lines else 'T'}rained for {duration(config, metrics)}")
        if what:
            epoch = best["epoch"] if weights == "best" else last["epoch"]
            lines.append(f"{what} are those of the {weights} weights, after epoch {epoch}")
    command = "" if "layers" in config else command_of(config["options"]).encode(errors="backslashreplace").decode()      # a path's bytes may be no text
    lines = [f"<p>{'; '.join(lines)}.</p>" * bool(lines), f"<p><code>{escape(command)}</code></p>" * bool(command)]
    return (f"<header><h1>{escape(title)}</h1><p>{about} {escape(left_out(config, metrics))}</p><dl>" + "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in figures) + "</dl>"
        + "".join(lines) + "</header>\n")


def duration(config, metrics):
    """How long the steps of a run took, without validation and what else lies between them."""
    seconds = round(sum(config["data"]["train"]["images"] / m["images_per_s"] for m in metrics if m["images_per_s"]))
    minutes, hours = seconds // 60, seconds // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def left_out(config, metrics):
    """A sentence on the images that had no part in the run; empty where that is not known."""
    said = []
    for split, word in ("train", "training"), ("val", "validation"):
        kinds = config["data"][split].get("left_out") or {}
        if kinds:
            count = sum(kinds.values())
            said.append(f"{count:,} other file{'s' * (count > 1)} in the {word} folders ("
                        + ", ".join(f"{shown(ending) or 'no ending'} {count:,}" for ending, count in kinds.items()) + ")")
        unread = (metrics[-1].get("unreadable") or {}).get(split) if metrics else None
        if unread:
            said.append(f"{unread:,} {word} image{'s' * (unread > 1)} that cannot be read")
    known = bool(metrics) and "unreadable" in metrics[-1]
    return f"Left out: {'; '.join(said)}." if said else "None was left out." if known else ""


def data_name(config):
    folder = config["options"].get("data") or config["options"].get("train")
    return shown(Path(folder).name) if folder else "the built-in set"


def settings(config):
    rows = [[name.replace("_", "-"), shown(str(value))] for name, value in config["options"].items() if value not in (None, "")]
    rows += [["threads", str(config["threads"])]] * (config["options"].get("threads") is None) + [
        [name.replace("_", " "), shown(str(value))] for name, value in config["machine"].items() if name != "device" or not config["options"].get("device")]
    return [[escape(cell) for cell in row] for row in rows]


# Its parts as HTML

def charts(*parts):
    """Figures side by side where there is room for them."""
    return '<figure class="charts">' + "".join(f"<div>{part}</div>" if part[:4] == "<svg" else part for part in parts) + "</figure>"


def image(data, alt):
    """Of a JPEG's or PNG's bytes; a PNG is small, and enlarged pixel by pixel."""
    return f'<img src="{inlined(data)}" alt="{escape(alt)}"{" class=pixels" * (data[:4] == PNG)} loading="lazy">'


def inlined(data):
    """The address of a JPEG's or PNG's bytes, which holds them."""
    return f'data:image/{"png" if data[:4] == PNG else "jpeg"};base64,{base64.b64encode(data).decode()}'


def named(name, room=NAME):
    """A name as HTML; of one that takes more than `room` letters the middle is left out, and the whole is its title."""
    cut = middle_cut(name, room)
    return f"<span>{escape(name)}</span>" if cut == name else f'<span title="{escape(name)}">{escape(cut)}</span>'


def middle_cut(text, room):
    """A text without so much of its middle that it takes `room` letters; one of Chinese, Japanese and Korean takes two."""
    def fitting(letters, room):
        took = 0
        for i, letter in enumerate(letters):
            took += 1 + (unicodedata.east_asian_width(letter) in "WF") - (unicodedata.combining(letter) > 0)
            if took > room:
                return i
        return len(letters)
    if fitting(text[:2 * room + 1], room) == len(text):
        return text
    head, tail = fitting(text, room // 2), fitting(text[:-room - 1:-1], (room - 1) // 2)
    return f"{text[:head].rstrip()}…{text[len(text) - tail:].lstrip()}"


def table(head, rows, values=False):
    """Of cells that are HTML. Columns whose entries all begin with a digit are numbers, and stand to the right, unless they are the values of settings."""
    right = [i > 0 and not values and all(row[i][:1].isdigit() or row[i] == "–" for row in rows if row[i]) for i in range(len(head))]

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag if i else 'th'}{' class=n' * number}{' class=long' * (values and i > 0)}>{cell}</{tag if i else 'th'}>"
                                for i, (cell, number) in enumerate(zip(cells, right))) + "</tr>"
    return (f'<div class="scroll"><table><thead>{line(map(escape, head), "th")}</thead><tbody>' + "".join(line(row, "td") for row in rows)
            + "</tbody></table></div>")


def course(what, metrics, values, form, best=None):
    """A sentence on how a value goes over the epochs. best: min or max, which of them to mention besides"""
    first, last, n = form(values[0]), form(values[-1]), len(values)
    if n == 1:
        return f"{what} is {last} after epoch {metrics[0]['epoch']}."
    goes = "stays at" if first == last else f"{'falls' if values[-1] < values[0] else 'rises'} from {first} to"
    top = best(values) if best else values[-1]
    besides = f", {'lowest' if best is min else 'highest'} with {form(top)} after epoch {metrics[values.index(top)]['epoch']}"
    return f"{what} {goes} {last} over {n} epochs" + besides * (form(top) not in (first, last)) + "."


def seen_in_curves(metrics, *which):
    """Sentences on the loss and the accuracy, or one of them, in validation and in training."""
    what = {"loss": ("loss", "{:.3f}".format, min), "accuracy": ("top1", percent, max)}
    return " ".join(course(f"{split} {word}", metrics, [m[f"{short}_{what[word][0]}"] for m in metrics], *what[word][1:])
                    for word in which or what for split, short in (("Validation", "val"), ("Training", "train")))


def cards(items, names, photo):
    """Pictures with their true class and the likeliest classes."""
    shown_items = []
    for picture, true, likely, *path in items:
        path = shown(path[0]) if path and path[0] else ""
        took, right = names[likely[0][0]], likely[0][0] == true
        mark = "" if true is None else '<span class="right">✓ right</span>' if right else '<span class="wrong">✗ wrong</span>'
        label = "<b>no label</b>" if true is None else f"<b>{named(names[true], 30)}</b>"
        alt = f"{path or 'a validation image'}{f' of class {names[true]}' if true is not None else ''}, taken for {took} with {likely[0][1]:.0%}"
        rows = "".join(f'<tr{" class=true" * (label == true)} style="--p:{100 * min(max(p, 0), 1):.0f}%"><th>{named(names[label], 16)}</th>'
                       f'<td class=n>{100 * p:.0f} %</td></tr>' for label, p in likely)
        shown_items.append(f"<figure>{image(photo(picture, 224), alt)}<figcaption>{label}{mark}{f'<small>{named(path, 22)}</small>' * bool(path)}</figcaption>"
                           f"<table><tbody>{rows}</tbody></table></figure>")
    return f'<div class="cards">{"".join(shown_items)}</div>'


def beside(item, near, names, photo):
    """A picture that is taken for a wrong class, and its nearest training images."""
    picture, true, likely, path = item
    said, right, told = names[likely[0][0]], names[true], shown(path) if path else "a validation image"
    first = (f"<figure>{image(photo(picture, 160), f'{told} of class {right}, taken for {said}')}<figcaption><span class=right>{named(right, 12)}</span>"
             f"<small>taken for {named(said, 12)}</small></figcaption></figure>")
    return f'<div class="cards batch beside">{first}' + "".join(
        f"<figure>{image(photo(of.picture, 160), f'training image {shown(of.path)}')}<figcaption>"
        f'<span{" class=wrong" * (shown(of.name) == said)}{" class=right" * (shown(of.name) == right)}>{named(shown(of.name), 12)}</span>'
        f"<small>{of.distance:#.3g}</small></figcaption></figure>" for of in near) + "</div>"


def each_class(confusion, names, few):
    """A table of the classes; of many the worst come first, and it is shown on demand."""
    images, taken, right = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    recall = right / np.maximum(images, 1)
    order = range(len(names)) if few else np.lexsort((np.arange(len(names)), recall, images == 0)).tolist()
    rows = [[named(names[k]), f"{images[k]:,}", f"{right[k]:,}", percent(recall[k]) if images[k] else "–", percent(right[k] / taken[k]) if taken[k] else "–"]
            for k in order]
    whole = table(["class", "images", "right", "recall", "precision"], rows)
    return whole if few else f"<details><summary>All {len(names):,} classes, the least recognised first</summary>{whole}</details>"


def counts_table(confusion, names):
    """A confusion matrix of few classes in numbers."""
    shades, rows = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)).tolist(), []
    for i, counts in enumerate(confusion.tolist()):
        cells = []
        for j, count in enumerate(counts):
            shade = f' style="--s:{shades[i][j]:.2f}"' * (count > 0)
            kind = ' class="diagonal deep"' if i == j and shades[i][j] > 0.6 else " class=diagonal" * (i == j)
            told = f' title="{escape(names[i])}, taken for {escape(names[j])}"' * (count > 0 and i != j)
            cells.append(f"<td{kind}{shade}{told}>{count or ''}</td>")
        rows.append(f"<tr><th>{named(names[i], 18)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{named(name, 18)}</th>" for name in names)
    return ('<div class="scroll"><table class="counts"><thead><tr><td>taken for →<br>true class ↓</td>' + head + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
            '<p class="note">Numbers are images, and empty cells have none. On the diagonal, bold and blue, they are right; beside it, orange, wrong. '
            "The shade is the root of the share of the row.</p>")


def matrix(confusion, names, data):
    """A confusion matrix of many classes as a picture, whose rows and most frequent mistakes have their names when pointed at."""
    n, images = len(names), confusion.sum(axis=1)
    rows = [f'<rect y="{i}" width="{n}" height="1"><title>{escape(name)}: {confusion[i, i]:,} of {images[i]:,} right</title></rect>' for i, name in enumerate(names)]
    cells = [f'<rect x="{j}" y="{i}" width="1" height="1"><title>{escape(names[i])}, taken for {escape(names[j])}: {count:,} of {of:,}</title></rect>'
             for i, j, count, of in confused(confusion, POINTED)]
    told = f"confusion matrix of {n:,} classes, {percent(np.trace(confusion) / confusion.sum())} of its images on the diagonal"
    return (f'<figure><svg class="matrix" viewBox="0 0 {n} {n}" role="img" aria-label="{told}"><image width="{n}" height="{n}" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(data).decode()}"/>{"".join(rows if n <= 1000 else [])}{"".join(cells)}</svg>'
            "<figcaption>Rows are true classes, columns predictions, both in the order of their names from the upper left. On the diagonal, blue, they are right; "
            "beside it, orange, wrong. The shade is the root of the share of the row, so that few errors can be seen. Pointed at, a row has its name, and "
            "a frequent mistake both; the most frequent are these:</figcaption></figure>")


def layers_table(metrics):
    """What the last epoch says of each layer, over a line that runs over all epochs, on one scale for the column."""
    known = [m for m in metrics if m.get("layers")]
    last, span = known[-1], (known[0]["epoch"], max(known[-1]["epoch"], known[0]["epoch"] + 1))
    columns = [("mean", "mean |y|", "{:.3g}", True), ("std", "deviation", "{:.3g}", True), ("zero", "zeros", "{:.1%}", False),
               ("dead", "dead channels", "{:.1%}", False), ("ratio", "update / weights", "{:.1e}", True)]
    scales, heads = {}, []
    for key, title, form, logarithmic in columns:
        values = [of[key] for m in known for of in m["layers"].values() if of.get(key) is not None and (of[key] > 0 or not logarithmic)]
        scales[key] = low, high = (min(values, default=1), max(values, default=1)) if logarithmic else (0, 1)
        heads.append(f"<th class=n>{title}</th>")
    rows = []
    for name, now in last["layers"].items():
        cells = []
        for key, title, form, logarithmic in columns:
            points = [(m["epoch"], m["layers"][name][key]) for m in known if m["layers"].get(name, {}).get(key) is not None]
            line = spark(points, span, scales[key], logarithmic, course(f"{name}: {title}", [{"epoch": e} for e, _ in points], [v for _, v in points], form.format)) if points else ""
            cells.append(f"<td class=n>{'' if now.get(key) is None else form.format(now[key])}{line}</td>")
        rows.append(f"<tr><th>{named(name, 36)}</th>{''.join(cells)}</tr>")
    ranges = ", ".join(f"{title} from {form.format(scales[key][0])} to {form.format(scales[key][1])}" for key, title, form, logarithmic in columns
                       if logarithmic and scales[key][0] < scales[key][1])
    return (f'<table class="layers"><thead><tr><th>layer</th>{"".join(heads)}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
            f'<p class="note">Numbers are of epoch {last["epoch"]}; under each, a line over the epochs, in a band that is the same for its column: zeros and dead '
            f"channels from 0 to 100 %{', logarithmic ' * bool(ranges)}{ranges}.</p>")


def spark(points, span, scale, logarithmic, told):
    """A small line of [(epoch, value), ...] as SVG."""
    low, high = scale
    def height(value):
        if low == high:
            return 0.5
        return math.log(max(value, low) / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
    places = [(100 * (epoch - span[0]) / (span[1] - span[0]), 25 - 22 * height(value)) for epoch, value in points]
    x, y = places[-1]
    return (f'<svg class="spark" viewBox="0 0 100 28" role="img" aria-label="{escape(told)}">'
            f'<polyline points="{" ".join(f"{x:.0f},{y:.1f}" for x, y in places)}"/><circle cx="{x:.0f}" cy="{y:.1f}" r="3"/></svg>')


def confused(confusion, most=20):
    """The most confused pairs: [(true class, taken for, images, images of the true class), ...]"""
    errors = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, errors.shape))
    return [(int(i), int(j), int(errors[i, j]), int(confusion[i].sum())) for i, j in pairs if errors[i, j]]


def augmented(input, images, views, device, mean_image=None):
    """What a net is shown of decoded pictures (n, side, side, 3) with these views, as pictures again: uint8 (n, size, size, 3)."""
    y = device.to_numpy(augment_images(images, views, input.size, fill=input.fill, constant=input.constant, mean=mean_image, device=device))
    mean = np.asarray(input.mean if mean_image is None else mean_image.mean(axis=(0, 1)))
    return np.clip(np.rint(y / np.asarray(input.scale) + mean), 0, 255).astype(np.uint8)


def first_filters(network):
    """{"filters": ..., "groups": ...} for `write`: the first layer's weight, and in how many towers the net is split; {} where it has no filters."""
    weight = network.whole(next(iter(network.parameters.values())))
    return {"filters": weight, "groups": max(getattr(layer, "groups", 1) for layer in network.net_of_all.layers.values())} if weight.ndim == 4 else {}
