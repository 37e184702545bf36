"""The page of `Run.explain`: why a network takes pictures for what it does, as one HTML file in the report's style."""

import re
from html import escape

import numpy as np

from ..errors import shown
from ..files import write_beside
from . import page
from .advice import percent

CSS = page.CSS + """
body { max-width: 64rem }
section > p { max-width: 46rem }
section.why { border-bottom: 1px solid var(--rule); padding-bottom: 2rem }
h2 { font-size: 1.45rem; font-weight: normal; line-height: 1.25; overflow-wrap: anywhere }
h2 small { font-size: 1rem; color: var(--pale); margin-left: .4em }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; break-after: avoid }
h3 small { font-weight: normal; font-size: .84rem; color: var(--pale); margin-left: .4em }
.trio { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.4rem; margin-top: .9rem }
.cards.trio img { width: 100%; aspect-ratio: 1; object-fit: cover }
.trio table { margin-top: .5rem }
.cards.trio figcaption > span { white-space: normal }
.scale { display: flex; gap: .5em; align-items: center; font-size: .76rem; color: var(--pale); margin-top: .5rem;
         font-variant-numeric: tabular-nums lining-nums }
.scale span { white-space: nowrap }
.scale i { flex: 1; height: .55rem; border-radius: 2px }
.near { grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .9rem }
.near figcaption { font-size: .76rem }
.layer { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: 0 1.4rem; align-items: start; padding: .8rem 0;
         border-top: 1px solid var(--hair); break-inside: avoid }
.layer svg { display: block; width: 100%; height: auto; border-radius: 2px; margin-top: .35rem }
.layer rect { fill: none; stroke: #fff; stroke-opacity: .75; vector-effect: non-scaling-stroke; stroke-width: 1 }
.layer rect.first { stroke: #ff8a2b; stroke-opacity: 1; stroke-width: 2.5 }
.layer p { margin: 0; line-height: 1.25; font-size: .92rem }
.layer p small { display: block; font-size: .76rem; color: var(--pale) }
.layer .cards img { aspect-ratio: 1; object-fit: contain; background: var(--band) }
.layer .near figure:first-child img { outline: 2.5px solid #ff8a2b }
@media (max-width: 33rem) {
  .trio { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem }
  .trio figure:first-child { grid-column: 1 / -1 }
  .near { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem .6rem }
  .layer { grid-template-columns: minmax(0, 1fr) }
  .layer svg { max-width: 9rem }
  .layer .cards { margin-top: .7rem }
}
"""

METHOD = [
    ("Occlusion", "a grey square, a fifth of the picture wide and high, is laid over 16 × 16 places, and the net is asked each time. A place has the colour of "
     "what becomes of the probability when the square's centre is there: orange where it falls, blue where it rises (Zeiler and Fergus 2013, section 4.2)."),
    ("Gradient", "how fast the class's score, the number before the softmax, changes with each pixel: the largest of its three colours, without regard to sign "
     "(Simonyan, Vedaldi and Zisserman 2013, section 3)."),
    ("Nearest training images", "those whose values in the last hidden layer have the smallest Euclidean distance from the picture's (Krizhevsky, Sutskever "
     "and Hinton 2012, figure 4, right)."),
    ("Strongest channels", "of each convolution those with the largest value anywhere in the picture, and the pixels that this value depends on, its "
     "receptive field."),
]


def write(path, config, metrics, explanations, hidden=None, lacking=""):
    """Writes the page. config: of config.json; metrics: a dict for each epoch; hidden: the name of the last hidden layer; lacking: why no neighbours
    are known."""
    from . import pictures      # here, since matplotlib takes long to import and not every command draws
    title, best = f"{config['net']} on {page.data_name(config)}: why", max(metrics, key=lambda m: m["val_top1"], default=None)
    about = f"{len(explanations)} picture{'s' * (len(explanations) != 1)} at {config['size']} × {config['size']} pixels, {len(config['classes']):,} classes."
    if best:
        about += f" The net is right on {percent(best['val_top1'])} of its validation images, after epoch {best['epoch']}."
    parts = [explained(found, hidden, lacking, pictures) for found in explanations]
    method = "".join(f"<p><b>{escape(name)}:</b> {escape(text)}</p>" for name, text in METHOD)
    whole = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
             f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><style>{CSS}</style></head>\n'
             f"<body><header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>\n{chr(10).join(parts)}\n"
             f"<section><h2>How this is found</h2>{method}</section></body></html>\n")
    write_beside(path, re.sub(r"(?<=\d) %", "\u00a0%", whole))      # no line ends before a percent sign


def explained(found, hidden, lacking, pictures):
    """The section of one Explanation."""
    (name, p), path = found.classes[0], shown(found.path) if found.path else ""
    rows = "".join(f'<tr{" class=true" * (i == 0)} style="--p:{100 * of:.0f}%"><th>{page.named(shown(other), 24)}</th><td class=n>{share(of)}</td></tr>'
                   for i, (other, of) in enumerate(found.classes))
    trio = [f"<figure>{page.image(pictures.photo(found.picture, 480), f'the picture, taken for {shown(name)} with {share(p)}')}"
            f"<table><tbody>{rows}</tbody></table></figure>", occlusion(found, pictures), gradient(found, pictures)]
    parts = [f"<h2>{page.named(shown(name))} <small>{share(p)}</small></h2>" + f"<p class=note>{page.named(path)}</p>" * bool(path),
             f'<div class="cards trio">{"".join(trio)}</div>']
    if found.neighbours:
        alike = sum(near.name == name for near in found.neighbours)
        parts.append(f"<h3>Nearest training images <small>by distance in {escape(hidden)}; {alike} of {len(found.neighbours)} are of class "
                     f"{page.named(shown(name), 40)}</small></h3>" + neighbours(found, name, pictures))
    elif lacking:
        parts.append(f"<h3>Nearest training images</h3><p class=note>None are shown: {escape(lacking)}.</p>")
    if found.channels:
        parts.append("<h3>Strongest channels <small>and the part of the picture that each sees; where that is more than half of it, where each is active</small></h3>"
                     + layers(found, pictures))
    return f'<section class="why">{"".join(parts)}</section>'


def occlusion(found, pictures):
    """What becomes of the likeliest class's probability under a grey square, over the picture."""
    name, p = found.classes[0]
    low, high = float(found.occlusion.min()), float(found.occlusion.max())
    fall, rise = p - low, high - p
    largest = max(fall, rise, 0.02)      # or rounding would be made a colour
    change = (p - found.occlusion) / largest
    others = [other for row in found.covered for other in row if other != name]
    instead = max(dict.fromkeys(others), key=others.count) if others else None
    told = f"With a grey square over a part of it, the probability lies from {share(low)} to {share(high)}. "
    told += (f"At {len(others)} of {found.occlusion.size} places the net then says something else, most often {page.named(shown(instead), 30)}." if instead else
             "Wherever the square is, the net still says the same.")
    ends = scale([(share(low), pictures.ORANGE, fall / largest)] * (share(low) != share(p)) + [(share(p), pictures.ORANGE, 0)]
                 + [(share(high), pictures.BLUE, rise / largest)] * (share(high) != share(p)))
    alt = f"where a grey square changes the probability of {shown(name)}: from {share(p)} to {share(low)} at the least"
    return (f"<figure>{page.image(pictures.heat(found.picture, change.clip(0, 1), (-change).clip(0, 1)), alt)}{ends}"
            f"<figcaption><b>Occlusion</b> {told}</figcaption></figure>")


def gradient(found, pictures):
    """How much each pixel changes the likeliest class's score."""
    name, _ = found.classes[0]
    steep = np.abs(found.gradient).max(axis=2)
    top = float(np.percentile(steep, 99.5))
    alt = f"how much each pixel changes the score of {shown(name)}"
    return (f"<figure>{page.image(pictures.heat(found.picture, (steep / (top or 1)).clip(0, 1)), alt)}"
            f"{scale([('0', pictures.ORANGE, 0), (f'{top:.2g}', pictures.ORANGE, 1)])}"
            f"<figcaption><b>Gradient</b> How much the score of {page.named(shown(name), 30)} changes with each pixel, for one of 255 grey levels.</figcaption>"
            "</figure>")


def scale(ends):
    """A band of colours between values. ends: [(text, RGB of what lies left or right of it, how much of that colour it has), ...]"""
    parts = []
    for i, (text, colour, much) in enumerate(ends):
        if i:
            before, one = ends[i - 1][2], max((ends[i - 1], ends[i]), key=lambda end: end[2])[1]
            parts.append('<i style="background: linear-gradient(90deg, ' + ", ".join(f"rgba{(*one, round(float(a), 2))}" for a in (before, much)) + ')"></i>')
        parts.append(f"<span>{text}</span>")
    return f"<div class=scale>{''.join(parts)}</div>"


def neighbours(found, name, pictures):
    """Training images with their class and distance, of which rounding leaves something where the picture is itself one of them."""
    return '<div class="cards near">' + "".join(
        f"<figure>{page.image(pictures.photo(of.picture, 224), f'training image {shown(of.path)}')}<figcaption>"
        f'<span class="{"right" if of.name == name else "wrong"}">{page.named(shown(of.name), 18)}</span>'
        f"<small>{'the same picture' if np.array_equal(of.picture, found.picture) else f'distance {of.distance:#.3g}'}</small></figcaption></figure>" for of in found.neighbours) + "</div>"


def layers(found, pictures):
    """Of each convolution where its strongest channels look, and what is there."""
    parts, size = [], len(found.picture)
    for layer, channels in found.channels.items():
        if not channels:
            continue
        boxes = "".join(f'<rect class="{"other" if i else "first"}" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
                        for i, (top, left, bottom, right) in reversed(list(enumerate(channel.sees for channel in channels))))
        top, left, bottom, right = max((channel.sees for channel in channels), key=lambda sees: (sees[2] - sees[0]) * (sees[3] - sees[1]))
        large = 2 * (bottom - top) * (right - left) > size ** 2
        crops = "".join(f"<figure>{looking(found.picture, layer, of, large, pictures)}<figcaption>channel {of.number}<small>{of.value:.3g}</small></figcaption></figure>"
                        for of in channels)
        where = active(found.picture, channels[0], pictures, 240)
        parts.append(f'<div class="layer"><div><p>{page.named(layer, 24)}<small>up to {bottom - top} × {right - left} pixels</small></p>'
                     f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="where the strongest channels of {escape(layer)} look">'
                     f'<image width="{size}" height="{size}" href="{page.inlined(where)}"/>{boxes}</svg></div><div class="cards near">{crops}</div></div>')
    return "".join(parts)


def active(picture, channel, pictures, side):
    """A JPEG of where a channel is active, over the picture."""
    return pictures.heat(picture, channel.active / channel.value, side=side)


def looking(picture, layer, channel, large, pictures):
    """The pixels of a channel's receptive field, of which one that lies in the padding alone has none; or, where fields are large,
    where the channel is active."""
    top, left, bottom, right = channel.sees
    if large:
        return page.image(active(picture, channel, pictures, 160), f"where channel {channel.number} of {layer} is active")
    seen = picture[top:bottom, left:right] if top < bottom and left < right else np.full((1, 1, 3), 128, np.uint8)
    return page.image(pictures.photo(seen, 160), f"what channel {channel.number} of {layer} sees")


def share(p):
    """A probability in percent, with a digit behind the point where the whole number would be 0 or 100."""
    return f"{100 * p:.1f} %" if not 0.01 <= p < 0.995 else f"{100 * p:.0f} %"
