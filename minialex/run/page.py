"""The report of a run: report.html, which needs nothing else, and the pictures in it."""

import base64
import math
from html import escape
from pathlib import Path

import numpy as np

from ..errors import shown
from ..files import write_beside
from ..ops.augment import augment_images

SHOWN = 24              # augmented pictures
# What `findings` calls conspicuous.
CHANCE, GAP, RISE, ZEROS, LARGE, SMALL, WAITING = 0.98, 0.15, 1.1, 0.95, 1e-1, 1e-6, 0.2
# A channel of a convolution has many pixels in which to differ from zero; a dense feature has one number for an image, and up to 28 % are
# zero for all 32 images of a batch in a run that reaches 98 %.
DEAD_CONV, DEAD_DENSE = 0.1, 0.4

CSS = """
@page { margin: 18mm }
body { font: 17px/1.5 Charter, "Bitstream Charter", "Iowan Old Style", Palatino, Georgia, "Liberation Serif", serif; color: #222; background: #fff;
       max-width: 44rem; margin: 3rem auto 5rem; padding: 0 1.2rem }
h1 { font-size: 1.75rem; font-weight: normal; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; font-weight: bold; margin: 2.8rem 0 .4rem; break-after: avoid }
p { margin: .4rem 0 .8rem; overflow-wrap: anywhere }
header { border-bottom: 1px solid #bbb; padding-bottom: 1.1rem }
header p { color: #555; margin: .3rem 0 1.2rem }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2.4rem; margin: 0 }
dt { font-size: .8rem; color: #666 }
dd { margin: 0; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums lining-nums }
dd small { font-size: .8rem; color: #666 }
figure { margin: 1rem 0 1.4rem; break-inside: avoid }
img { display: block; max-width: 100%; height: auto; margin: 0 auto }
figcaption, .note { font-size: .84rem; line-height: 1.45; color: #555; margin-top: .6rem }
li { margin: .35rem 0; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: .84rem; line-height: 1.35; margin: .8rem 0 1.2rem; font-variant-numeric: tabular-nums lining-nums }
th { font-weight: normal; text-align: left; color: #666; border-bottom: 1px solid #bbb }
th, td { padding: .18rem 1.4rem .18rem 0; vertical-align: top; overflow-wrap: anywhere }
tr { break-inside: avoid }
td { border-bottom: 1px solid #eee }
.n { text-align: right; white-space: nowrap }
"""


def write(folder, config, metrics, *, filters=None, groups=1, seen=None, predictions=None, confusion=None):
    """Writes report.html and its PNGs into a run's folder; what is None, or missing from older metrics, has no section.

    config: of config.json; metrics: a dict for each epoch, as in metrics.jsonl. filters: the first layer's weight (KH, KW, C, F); groups:
    the towers it is split in. seen: uint8 (n, size, size, 3), pictures as augmented. predictions: [(picture uint8 (s, s, 3), true class or
    None, [(class, probability), ...])] and confusion: integers (classes, classes), row = true, both as `Collector.found` gives them.
    """
    from . import pictures      # here, since matplotlib takes long to import and not every command draws
    names, drawn, parts = [shown(name) for name in config["classes"]], {}, []

    def figure(name, image, caption, title):
        drawn[name] = image
        width, height = (int.from_bytes(image[at:at + 4], "big") for at in (16, 20))      # of a PNG's header
        # Drawn at 1.5 pixels to a page's one, so that print and dense screens have some more.
        return (f'<figure><img src="data:image/png;base64,{base64.b64encode(image).decode()}" alt="{escape(title)}" width="{round(width / 1.5)}" '
                f'height="{round(height / 1.5)}"><figcaption>{escape(caption)}</figcaption></figure>')

    def section(title, sentence, *contents):
        parts.append(f"<section><h2>{escape(title)}</h2><p>{escape(sentence)}</p>{''.join(contents)}</section>")

    if metrics:
        found = findings(config, metrics)
        section("What stands out", "Checked in the last epoch: loss, the gap between training and validation, layers, and time."
                + " Nothing stands out." * (not found), "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>" if found else "")
        section("Learning curves", "Training figures are gathered while the weights still change and on augmented pictures, validation figures "
                "after each epoch on centre crops; early on, validation may therefore do better."
                + " The training loss has smoothed labels, with which it cannot come near zero." * bool(config["options"].get("label_smoothing")),
                figure("curve.png", pictures.curve(metrics, len(names)), "Loss and accuracy after each epoch.", "learning curves"))
    if predictions:
        section("Predictions", "The same few validation images in each report, spread over the classes.",
                figure("predictions.png", pictures.predictions(predictions, names), "Under each image its true class, then what the net thinks "
                       "likeliest; a bar is as long as its probability, and orange where it is the true class.", "predictions"))
    if confusion is not None and confusion.sum():
        numbered = len(names) <= pictures.NUMBERED
        pairs, right = confused(confusion), np.trace(confusion) / confusion.sum()
        often = f" Most often, {names[pairs[0][0]]} is taken for {names[pairs[0][1]]}: {pairs[0][2]} of {pairs[0][3]}." if pairs and numbered else ""
        section("Confusion", f"What {confusion.sum():,} validation images were taken for; {percent(right)} rightly.{often}",
                figure("confusion.png", pictures.confusion(confusion, names), "Rows are true classes, columns predictions. " + (
                    "Numbers are images, and empty cells have none; the shade is the share of the row." if numbered else "Classes are in the order of "
                    "their names from the upper left; the shade is the root of the share of the row, so that few errors can be seen."),
                    "confusion matrix"),
                "" if numbered or not pairs else table(["true class", "taken for", "images", "of"],
                                                       [[names[true], names[taken], str(count), str(of)] for true, taken, count, of in pairs]))
    if filters is not None:
        towers = "; the upper and the lower half belong to the two towers of the net" * (groups == 2)
        section("First-layer filters", "What the first convolution looks for. Filters that have learnt are smooth stripes and blobs; noise means "
                "too little training or too weak a weight decay, flat grey a dead filter.",
                figure("filters.png", pictures.filters(np.asarray(filters, np.float32), groups), f"{filters.shape[3]} filters of "
                       f"{filters.shape[0]} x {filters.shape[1]} pixels, each scaled to its own range{towers}.", "first-layer filters"))
    if seen is not None and len(seen):
        section("A batch as the net sees it", "Training images after cropping and augmentation. A person should still be able to name them.",
                figure("augmented.png", pictures.batch(seen), "Pictures from one training batch.", "augmented training images"))
    if any(m.get("layers") for m in metrics):
        last = next(m for m in reversed(metrics) if m.get("layers"))
        columns = {"mean": "{:.3g}", "std": "{:.3g}", "zero": "{:.1%}", "dead": "{:.1%}", "ratio": "{:.1e}"}
        rows = [[name, *("" if of.get(key) is None else form.format(of[key]) for key, form in columns.items())] for name, of in last["layers"].items()]
        section("Layers", "Healthy layers keep activations of a similar size from bottom to top, have some outputs above zero for every image, and "
                "change by about a thousandth of their weights in a step.",
                figure("layers.png", pictures.layers(metrics), "Each layer over the epochs, from the first (dark) to the last (light); updates fall "
                       "with the learning rate.", "layers over epochs"),
                table(["layer", "mean |y|", "deviation", "zeros", "dead channels", "update / weights"], rows),
                f'<p class="note">After epoch {last["epoch"]}.</p>')
    timed = [m for m in metrics if m.get("seconds")]
    if timed:
        spent, slowest = timed[-1]["seconds"], timed[-1].get("slowest") or []
        total = sum(spent.values())
        shares = ", ".join(f"{name} {percent(of / total if total else 0)}" for name, of in spent.items())
        section("Time", f"A step of epoch {timed[-1]['epoch']} took {1000 * total:,.{0 if total >= 0.1 else 1}f} ms: {shares}. Data is the time in "
                "which a step waited for its pictures, other what the rest of the epoch took.",
                figure("time.png", pictures.time(metrics), "Where the time of a step went.", "time per step"),
                table(["slowest layers", "ms per step"], [[name, f"{1000 * of:,.2f}"] for name, of in slowest]) if slowest else "")
    parts.append("<section><h2>Settings</h2>" + table(["option", "value"], settings(config)) + "</section>")
    for name, image in drawn.items():
        write_beside(Path(folder) / name, image)
    title = f"{config['net']} on {data_name(config)}"
    write_beside(Path(folder) / "report.html", f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
                 f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body>'
                 + header(title, config, metrics) + "\n".join(parts) + "</body></html>\n")


def header(title, config, metrics):
    size, classes, images = config["size"], len(config["classes"]), (config["data"][split]["images"] for split in ("train", "val"))
    about = "{0} × {0} pixels, {1:,} classes, {2:,} training and {3:,} validation images".format(size, classes, *images)
    figures = []
    if metrics:
        best, last = max(metrics, key=lambda m: m["val_top1"]), metrics[-1]
        figures = [("validation accuracy", percent(best["val_top1"]), f"best, epoch {best['epoch']}"),
                   ("after the last epoch", percent(last["val_top1"]), f"{last['epoch']} of {config['options']['epochs']} epochs")]
        figures += [("among the first five", percent(last["val_top5"]), "")] if classes > 5 else []
        figures += [("validation loss", f"{last['val_loss']:.3f}", ""), ("speed", f"{last['images_per_s']:,.0f}", "images/s")]
    return (f"<header><h1>{escape(title)}</h1><p>{about}</p><dl>" + "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in figures) + "</dl></header>\n")


def data_name(config):
    folder = config["options"].get("data") or config["options"].get("train")
    return shown(Path(folder).name) if folder else "the built-in set"


def settings(config):
    rows = [[name.replace("_", "-"), shown(str(value))] for name, value in config["options"].items() if value not in (None, "")]
    return rows + [["threads", str(config["threads"])]] * (config["options"].get("threads") is None) + [
        [name.replace("_", " "), shown(str(value))] for name, value in config["machine"].items() if name != "device" or not config["options"].get("device")]


def table(head, rows):
    """Columns whose entries all begin with a digit are numbers, and stand to the right."""
    right = [all(row[i][:1].isdigit() for row in rows if row[i]) for i in range(len(head))]

    def line(tag, cells):
        return "<tr>" + "".join(f"<{tag}{' class=n' * number}>{escape(cell)}</{tag}>" for cell, number in zip(cells, right)) + "</tr>"
    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"


def percent(part):
    return f"{100 * part:.1f} %"


def confused(confusion, most=20):
    """The most confused pairs: [(true class, taken for, images, images of the true class), ...]"""
    errors = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, errors.shape))
    return [(int(i), int(j), int(errors[i, j]), int(confusion[i].sum())) for i, j in pairs if errors[i, j]]


def at_chance(metrics, classes):
    """Whether an epoch did not do better than guessing: by its losses, and since a confident mistake costs much, by its accuracy too."""
    return (classes > 1 and min(metrics["train_loss"], metrics["val_loss"]) > CHANCE * math.log(classes)
            and max(metrics["train_top1"], metrics["val_top1"]) < 1.5 / classes)


def findings(config, metrics):
    """What stands out in the last epoch and what to try, a sentence each."""
    last, classes, found = metrics[-1], len(config["classes"]), []
    guess, lowest = math.log(max(classes, 2)), min(metrics, key=lambda m: m["val_loss"])
    fading = last.get("lr") is not None and last["lr"] < 0.01 * max(m.get("lr") or 0 for m in metrics)      # updates are small then, as they should be
    spent = last.get("seconds") or {}

    def layers(key, form, conspicuous, what):
        """Adds what is to be said of the layers, if any, whose value of a key is conspicuous(name, value)."""
        those = [(name, of[key]) for name, of in (last.get("layers") or {}).items() if of.get(key) is not None and conspicuous(name, of[key])]
        if those:
            found.append("In " + ", ".join(f"{name} ({form(value)})" for name, value in those) + f", {what}.")

    if at_chance(last, classes):
        found.append(f"The loss stands at ln({classes}) = {guess:.3f} or above, that of guessing, so nothing is learnt yet: try a larger --lr, more "
                     "epochs of warm-up or --init he, and see that the images are in the right folders.")
    if last["train_top1"] - last["val_top1"] > GAP:
        found.append(f"Training accuracy, {percent(last['train_top1'])}, is far above validation accuracy, {percent(last['val_top1'])}, so the net "
                     "learns its images by heart: try more images, more augmentation or a larger --weight-decay.")
    if last["epoch"] - lowest["epoch"] >= 2 and last["val_loss"] > RISE * lowest["val_loss"]:
        found.append(f"The validation loss was lowest after epoch {lowest['epoch']}, {lowest['val_loss']:.3f}, and has risen to "
                     f"{last['val_loss']:.3f}: try fewer epochs, more augmentation or a larger --weight-decay.")
    layers("zero", percent, lambda name, zero: zero > ZEROS, f"more than {percent(ZEROS)} of the outputs are zero, and little can be learnt through "
           "them: try a smaller --lr, a longer warm-up or --init he")
    layers("dead", percent, lambda name, dead: dead > (DEAD_CONV if name.startswith("conv") else DEAD_DENSE), "channels are zero for every image "
           "that was looked at, so no gradient reaches their weights: try a smaller --lr or a longer warm-up in a new run")
    layers("ratio", "{:.2g}".format, lambda name, ratio: ratio > LARGE, "a step changes the weights by more than a tenth of their size: try a smaller "
           "--lr or a longer warm-up")
    layers("ratio", "{:.1e}".format, lambda name, ratio: ratio < SMALL and not fading, "a step changes the weights by less than a millionth of their "
           "size: try a larger --lr, and look for dead layers above")
    if spent.get("data", 0) > WAITING * sum(spent.values()):
        found.append(f"A step waits for its pictures in {percent(spent['data'] / sum(spent.values()))} of its time: try more --threads, or store the "
                     "pictures at a smaller size.")
    return found


def augmented(input, images, views, device, mean_image=None):
    """What a net is shown of decoded pictures (n, side, side, 3) with these views, as pictures again: uint8 (n, size, size, 3)."""
    y = device.to_numpy(augment_images(images, views, input.size, fill=input.fill, constant=input.constant, mean=mean_image, device=device))
    mean = np.asarray(input.mean if mean_image is None else mean_image.mean(axis=(0, 1)))
    return np.clip(np.rint(y / np.asarray(input.scale) + mean), 0, 255).astype(np.uint8)


def first_filters(network):
    """{"filters": ..., "groups": ...} for `write`: the first layer's weight, and in how many towers the net is split; {} where it has no filters."""
    weight = network.device.to_numpy(next(iter(network.parameters.values())))
    return {"filters": weight, "groups": max(getattr(layer, "groups", 1) for layer in network.net.layers.values())} if weight.ndim == 4 else {}
