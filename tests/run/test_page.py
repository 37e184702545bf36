"""The report of a run: its pictures pixel by pixel, what it says in words, the page itself, and the page in a browser."""

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from browser import opened
from odd_files import photograph
from PIL import Image

from minialex import report, train
from minialex.data.augment import Input
from minialex.data.loader import Batch
from minialex.errors import UserError
from minialex.run import advice, page, pictures
from minialex.run.folder import RunFolder
from minialex.run.scores import Collector
from minialex.run.settings import OPTIONS, command_of, settle

RANDOM = np.random.default_rng(3)
NAMES = [f"class_{i}" for i in range(10)]
LAYERS = "conv1", "conv2", "fc8"


def config(names=NAMES, **options):
    return {"net": "half", "size": 98, "classes": list(names), "threads": 2,
            "options": {"data": "/somewhere/birds", "train": None, "val": None, "net": "half", "epochs": 9, "batch": 32, "lr": 0.01, **options},
            "machine": {"device": "cpu", "numpy": "2.0"}, "data": {"train": {"images": 300}, "val": {"images": 50}}}


def epoch(number, old=False, layer=None, **changes):
    """Metrics of a healthy epoch of ten classes, but for the changes; `layer` changes those of conv2."""
    metrics = {"epoch": number, "step": 10 * number, "train_loss": 2 / number, "train_top1": 0.5, "val_loss": 2.1 / number, "val_top1": 0.45, "val_top5": 0.9,
               "images_per_s": 500.0}
    if not old:
        metrics |= {"lr": 0.01, "seconds": {"data": 0.001, "forward": 0.02, "backward": 0.04, "update": 0.002}, "slowest": [["conv2 backward", 0.015]],
                    "layers": {name: {"mean": 0.4, "std": 0.7, "zero": 0.5, "dead": 0.0, "ratio": 1e-3} for name in LAYERS}}
        metrics["layers"]["conv2"] |= layer or {}
    return metrics | changes


def everything(classes=10):
    """The optional arguments of page.write."""
    shot = RANDOM.integers(0, 256, (112, 112, 3)).astype(np.uint8)
    five = [(k, 0.5 / 2**k) for k in range(min(5, classes))]
    return {"filters": RANDOM.normal(size=(11, 11, 3, 96)).astype(np.float32), "groups": 2, "seen": np.stack([shot] * 3),
            "labels": np.arange(4, 7), "predictions": [(shot, i % classes, five) for i in range(6)], "mistakes": [(shot, 1, five, "class_1/a.jpg")] * 2, "confusion": RANDOM.integers(0, 3, (classes, classes)) + 20 * np.eye(classes, dtype=int)}


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def blank(picture):
    return len(np.unique(picture @ [1 << 16, 1 << 8, 1])) < 5


@pytest.mark.parametrize("epochs", [1, 100])
def test_the_curve_beside_the_page_has_its_size_and_something_on_it(epochs):
    data = pictures.curve([epoch(i + 1) for i in range(epochs)], 10)
    picture = pixels(data)
    assert not blank(picture) and 1000 < picture.shape[1] < 1100 and picture.shape[0] == 500 and len(data) < 60_000
    assert (np.abs(picture - [255, 255, 255]).max(axis=2) > 60).mean() > 0.005      # ink
    wide = pixels(pictures.curve([epoch(1, train_top1=1.0, val_top1=1.0, val_top5=1.0)], 10))
    assert (wide[:, -4:] == 255).all()      # no name is cut off


def test_the_learning_rate_has_a_panel_of_its_own_where_it_is_known():
    old, new = (pixels(pictures.curve([epoch(i, old) for i in (1, 2, 3)], 10)) for old in (True, False))
    assert new.shape[0] > old.shape[0] + 100


CHARTS = {"loss": lambda m: pictures.loss(m, 10, "told"), "accuracy": lambda m: pictures.accuracy(m, 10, "told"), "rate": lambda m: pictures.rate(m, "told"),
          "time": lambda m: pictures.time(m, "told")}


@pytest.mark.parametrize("name, words", [("loss", ["loss", "epoch", "training 0.500", "validation 0.525"]), ("rate", ["0.01"]),
                                         ("accuracy", ["100%", "training 50.0 %", "validation 45.0 %", "top-5 90.0 %"]),
                                         ("time", ["ms per step", "forward 20", "backward 40", "data 1.0"])])
def test_a_chart_is_small_svg_whose_text_is_text_and_whose_colours_are_the_pages(name, words):
    chart = CHARTS[name]([epoch(i, train_loss=2 / i, val_loss=2.1 / i) for i in (1, 2, 3, 4)])
    shown = Page(chart)
    assert set(words) <= {part.strip() for part in shown.text} and 'role="img" aria-label="told"' in chart
    assert len(chart) < 12_000 and "http" not in chart and "url(" not in chart and "font-family" not in chart and not re.search("#[0-9a-f]{6}", chart)
    assert set(re.findall(r"var\(--([a-z]+)\)", chart)) <= set(re.findall(r"--([a-z]+):", page.CSS))
    assert chart == CHARTS[name]([epoch(i, train_loss=2 / i, val_loss=2.1 / i) for i in (1, 2, 3, 4)])      # the same in each report


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
    for top in 1.0, 0.02:
        chart = pictures.accuracy([epoch(i, train_top1=top - 0.01, val_top1=top - 0.02, val_top5=top) for i in (1, 2)], 10, "")
        heights = sorted(float(re.search(r' y="([\d.]+)"', line)[1]) for line in chart.split("<text")[1:] if " %" in line)
        assert len(heights) == 3 and min(np.diff(heights)) > 11 and heights[-1] < pictures.HIGH - pictures.BOTTOM + 5


def test_guessing_is_marked_where_the_loss_is_near_it():
    assert "guessing 2.303" in pictures.loss([epoch(1, val_loss=2.3)], 10, "") and "guessing" not in pictures.loss([epoch(1, val_loss=1.1, train_loss=1)], 10, "")


def test_the_settings_of_matplotlibs_user_change_no_picture():
    before = CHARTS["loss"]([epoch(1), epoch(2)]), pictures.curve([epoch(1), epoch(2)], 10)
    with matplotlib.rc_context({"text.usetex": True, "svg.fonttype": "path", "axes.facecolor": "red", "font.size": 30, "axes.prop_cycle": "cycler('color', 'r')"}):
        assert (CHARTS["loss"]([epoch(1), epoch(2)]), pictures.curve([epoch(1), epoch(2)], 10)) == before
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("backend", ["nonsense", pytest.param("module://nowhere", marks=pytest.mark.slow)])
def test_a_backend_that_matplotlib_does_not_know_ends_nothing_and_stays_set(tmp_path, backend):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    script = ("import os, sys; from minialex.run import pictures\n"
              "assert pictures.curve([dict(epoch=1, train_loss=1, val_loss=1, train_top1=0, val_top1=0, val_top5=0)], 10)[:4] == b'\\x89PNG'\n"
              "assert 'matplotlib.pyplot' not in sys.modules and pictures.matplotlib.rcParams['text.usetex'] and os.environ['MPLBACKEND'] == sys.argv[1]\n"
              "assert sys.argv[1] == 'nonsense' or pictures.matplotlib.rcParams['backend'] == sys.argv[1]")
    done = subprocess.run([sys.executable, "-c", script, backend], env={**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_layers_have_a_row_each_and_a_line_in_each_cell_that_is_known(tmp_path):
    m = [epoch(1, layer={"dead": None, "ratio": 0.0}), epoch(2)]
    for layer in m[0]["layers"].values():
        layer.pop("ratio")
    del m[1]["layers"]["conv1"]
    html = page.layers_table(m)
    assert len(Page(html).open) == 0 and html.count("<tr>") == 3 and html.count('class="spark"') == 2 * 5
    assert 'aria-label="conv2: zeros stays at 50.0% over 2 epochs."' in html and 'aria-label="conv2: dead channels is 0.0% after epoch 2."' in html
    m[1]["layers"]["fc8"] |= {"mean": 40.0}
    line = re.search(r'aria-label="fc8: mean \|y\| rises from 0.4 to 40 over 2 epochs."><polyline points="0,25.0 100,3.0"/>', page.layers_table(m))
    assert line      # from the lowest to the highest of the column


def test_filters_lie_in_their_place_each_over_its_own_range():
    weight = RANDOM.normal(size=(11, 11, 3, 96)).astype(np.float32)
    pattern = np.zeros((11, 11, 3), np.float32)
    pattern[:, 4:] = 1
    pattern[2, 0] = 0.5
    weight[..., 17] = 7e-3 * pattern - 3        # second row, second column of the upper tower
    weight[..., 48] = pattern[::-1]             # first of the lower tower
    weight[..., 95] = 2.5                       # the last one is flat
    picture = pixels(pictures.filters(weight, groups=2))
    shown = np.rint(255 * pattern).repeat(5, axis=0).repeat(5, axis=1)       # 16 of 11 pixels, five times, with gaps of 4
    assert picture.shape == (2 * (3 * 59 - 4) + 16, 16 * 59 - 4, 3)
    assert np.abs(picture[59:114, 59:114] - shown).max() <= 1
    assert np.abs(picture[189:244, :55] - shown[::-1]).max() <= 1
    assert (picture[-55:, -55:] == 128).all()
    with Image.open(io.BytesIO(pictures.filters(weight, groups=2))) as image:      # seen through between them, by day and by night
        clear = np.asarray(image)[..., 3] == 0
    assert clear[55:59].all() and clear[173:189].all() and not clear[59:114, 59:114].any()


@pytest.mark.parametrize("shape", [(11, 11, 3, 48), (11, 11, 3, 64), (3, 3, 3, 5), (5, 5, 1, 8), (11, 11, 3, 1)])
def test_filters_of_other_nets(shape):
    picture = pixels(pictures.filters(RANDOM.normal(size=shape).astype(np.float32)))
    assert not blank(picture) and picture.shape[1] <= 1060
    if shape[2] == 1:
        assert (picture[..., 0] == picture[..., 2]).all()


def test_predictions_show_the_picture_and_bars_as_long_as_their_probability():
    shot = np.zeros((190, 190, 3), np.uint8)
    shot[:95, :, 0] = 200
    html = page.cards([(shot, 3, [(1, 0.6), (3, 0.3), (2, 0.1)], "class_3/a & b.jpg"), (shot, 1, [(1, 0.6)]), (shot, None, [(1, 0.6)], None)], NAMES, pictures.photo)
    assert not Page(html).open and html.count("<img") == 3
    with Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^\"]+)", html)[1]))) as image:
        seen = np.asarray(image).astype(int)
    assert seen.shape == (190, 190, 3) and np.abs(seen[40, 100] - [200, 0, 0]).max() < 4 and seen[160, 100].max() < 4
    wrong, right, unknown = html.split("<figure>")[1:]
    assert 'alt="class_3/a &amp; b.jpg of class class_3, taken for class_1 with 60%"' in wrong and ">✗ wrong<" in wrong
    assert re.findall(r"<tr( class=true)? style=\"--p:(\d+)%\"", wrong) == [("", "60"), (" class=true", "30"), ("", "10")]
    assert ">✓ right<" in right and "no label" in unknown and "wrong" not in unknown and 'alt="a validation image, taken for' in unknown


def test_pictures_of_few_pixels_keep_each_of_them():
    tiny = RANDOM.integers(0, 256, (30, 30, 3)).astype(np.uint8)
    assert (pixels(pictures.photo(tiny, 224)) == tiny).all() and "class=pixels" in page.image(pictures.photo(tiny, 224), "")
    assert len(pictures.photo(photograph(0, 256, 256), 224)) < 20_000


@pytest.mark.parametrize("name, room, cut", [
    ("short", 5, "short"), ("abcdefghij", 5, "ab…ij"), ("001.Black_footed_Albatross", 12, "001.Bl…tross"), ("日本の犬", 8, "日本の犬"), ("日本の犬種について", 9, "日本…いて"),
    ("Pygmy marmoset", 9, "Pygm…oset"), ("", 5, ""), ("e\u0301" * 4, 4, "e\u0301" * 4), ("x" * 5000, 20, "x" * 10 + "…" + "x" * 9)])
def test_a_long_name_is_cut_in_its_middle(name, room, cut):
    assert page.middle_cut(name, room) == cut and (f'title="{name}"' in page.named(name, room)) == (cut != name)


def test_confusion_of_few_classes_is_a_table_of_numbers():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    html = page.counts_table(counts, ["猫", "a dog with a long pedigree", "c"])
    assert not Page(html).open and re.findall(r"<td[^>]*>(\d*)</td>", html) == ["3", "1", "", "", "", "", "", "2", "2"]
    assert html.count("class=diagonal") + html.count('class="diagonal deep"') == 3 and '--s:0.87">3<' in html and '--s:0.71" title="c, taken for a dog with a long pedigree">2<' in html
    assert html.count('title="a dog with a long pedigree">a dog wit…pedigree<') == 2


def test_confusion_of_many_classes_has_pixels_and_names_on_demand():
    counts = np.zeros((25, 25), int)
    counts[np.arange(25), np.arange(25)] = 3
    counts[4, 9] = 1
    with Image.open(io.BytesIO(pictures.confusion(counts))) as image:
        many = np.asarray(image.convert("RGBA")).astype(int)
    cells = many[20::40, 20::40]
    assert many.shape == (1000, 1000, 4) and cells.shape == (25, 25, 4) and (cells[..., 3] == 0).sum() == 600 - 1
    assert tuple(cells[0, 0]) == (*pictures.BLUE, 255) and tuple(cells[4, 9, :3]) == pictures.ORANGE and cells[4, 9, 3] < cells[4, 4, 3] < 255
    html = page.matrix(counts, [f"n<{i}" for i in range(25)], b"")
    assert not Page(html).open and "<title>n&lt;4, taken for n&lt;9: 1 of 4</title>" in html and "<title>n&lt;0: 3 of 3 right</title>" in html
    large = np.zeros((2500, 2500), int)
    large[2499, 0] = 1
    with Image.open(io.BytesIO(pictures.confusion(large))) as image:
        picture = np.asarray(image.convert("RGBA"))
    assert picture.shape == (834, 834, 4) and picture[833, 0, 3] == 255 and picture[..., 3].sum() == 255


def test_each_class_has_its_recall_and_precision():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    cells = lambda html: [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", html)][5:]
    assert cells(page.each_class(counts, ["1 a", "2 b", "3 c"], True)) == ["1 a", "4", "3", "75.0 %", "100.0 %", "2 b", "0", "0", "–", "0.0 %",
                                                                        "3 c", "4", "2", "50.0 %", "100.0 %"]
    many = page.each_class(counts, ["1 a", "2 b", "3 c"], False)
    assert cells(many)[::5] == ["3 c", "1 a", "2 b"] and many.startswith("<details><summary>All 3 classes")
    assert "<th class=n>class" not in many and many.count("<th class=n>") == 4      # names that begin with a digit are no numbers


@pytest.mark.parametrize("values, told", [
    ([2.1, 0.9, 0.4], "Loss falls from 2.1 to 0.4 over 3 epochs."), ([0.4], "Loss is 0.4 after epoch 1."), ([0.4, 0.41], "Loss stays at 0.4 over 2 epochs."),
    ([1.0, 0.2, 0.6], "Loss falls from 1.0 to 0.6 over 3 epochs, lowest with 0.2 after epoch 2."), ([1.0, 1.5], "Loss rises from 1.0 to 1.5 over 2 epochs.")])
def test_what_is_seen_of_a_chart_is_told(values, told):
    assert page.course("Loss", [{"epoch": i + 1} for i in range(len(values))], values, "{:.1f}".format, min) == told


@pytest.fixture
def no_plots(monkeypatch):
    """Spares the seconds that matplotlib takes, where the page alone is looked at."""
    monkeypatch.setattr(pictures, "curve", lambda *_: pictures.png(np.zeros((3, 3, 3), np.uint8)))
    monkeypatch.setattr(pictures, "svg", lambda name, told, draw: f'<svg aria-label="{escape(told)}"></svg>')


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what a page refers to, its headings, and all its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.headings, self.text, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "style", "onload", "onerror", "action") and not (tag in ("tr", "td", "img", "image", "path", "text", "use") and name == "style")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.text.append(data.replace("\u00a0", " "))


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_whole_report(tmp_path):
    page.write(tmp_path, config(), [epoch(1), epoch(2)], **everything())
    shown, text = page_of(tmp_path), (tmp_path / "report.html").read_text()
    assert shown.headings == ["What stands out", "Learning curves", "Classes", "Confusion", "Predictions", "Surest mistakes", "First-layer filters",
                             "A batch as the net sees it", "Layers", "Time", "Settings"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "filters.png", "report.html"]
    assert len(shown.sources) == 6 + 2 + 1 + 3 and all(source.startswith("data:image/") for source in shown.sources) and text.count('class="chart"') == 4
    assert base64.b64encode((tmp_path / "filters.png").read_bytes()).decode() in text
    assert not {"script", "link", "iframe", "object", "base"} & shown.tags and not re.search(r"url\(|@import|https?:", text)
    numbers = re.findall(r' id="([^"]+)"', text)
    assert len(numbers) == len(set(numbers)) and "prefers-color-scheme: dark" in text
    said = " ".join(shown.text)
    assert "half on birds" in said and "300 training and 50 validation images" in said and "45.0 %" in said and "2 of 9 epochs" in said
    assert "conv2 backward" in said and "15.00" in said and "/somewhere/birds" in said and "two towers" in said and "too little training" not in said
    assert 'aria-label="Validation loss falls from 2.100 to 1.050 over 2 epochs. Training loss falls from 2.000 to 1.000 over 2 epochs."' in text
    assert all(re.search(' alt="[^"]', tag) for tag in re.findall("<img[^>]*>", text)) and 'alt="augmented training image of class class_4"' in text


def test_the_head_says_when_what_by_which_weights_and_what_was_left_out(tmp_path, no_plots):
    def head(config, metrics, **more):
        page.write(tmp_path, config, metrics, **more)
        return " ".join("".join(page_of(tmp_path).text).split("What stands out")[0].split())

    of = config(epochs=9) | {"began": "2026-11-28 04:47"}
    said = head(of, [epoch(1, images_per_s=2.0), epoch(2, images_per_s=3.0)], **everything(), weights="best")
    assert "Begun 2026-11-28 04:47; trained for 4 min 10 s; predictions and filters are those of the best weights, after epoch 1." in said
    assert "python -m minialex.train --data /somewhere/birds --epochs 9 --batch 32" in said and "eft out" not in said
    of["data"] = {"train": {"images": 300, "left_out": {".heic": 4, ".mov": 3, "": 1}}, "val": {"images": 50}}
    said = head(of, [epoch(1, unreadable={"train": 1, "val": 2})], **everything())
    assert ("Left out: 8 other files in the training folders (.heic 4, .mov 3, no ending 1); 1 training image that cannot be read; 2 validation images that "
            "cannot be read.") in said and "of the last weights, after epoch 1" in said
    assert "None was left out." in head(config(), [epoch(1, unreadable={"train": 0, "val": 0})])
    said = head(config() | {"layers": {}}, [epoch(1)])
    assert "Trained for 1 s." in said and "minialex.train" not in said and "Begun" not in said      # a net that no command names


@pytest.mark.parametrize("given", [{}, {"recipe": "keras", "data": "/a b/c", "drop_last": False, "seed": 0}, {"recipe": "small", "data": "/d", "augment": "rotation=10"},
                                   {"data": "/d", "optimizer": "adam", "bias_lr": None}, {"net": "paper", "threads": 3}, {"recipe": "2012", "data": "/d", "bias_decay": 0.0}])
def test_the_command_asks_for_the_options(given):
    options = settle({name: given.get(name) for name in OPTIONS})[0]
    words = shlex.split(command_of(options | {"size": 98, "side": 112}))
    assert words[:3] == ["python", "-m", "minialex.train"] and {"/a b/c", "rotation=10", "adam"} & set(map(str, given.values())) <= set(words)
    asked = train.parse(words[3:])
    again = settle({name: asked[name] for name in OPTIONS})[0]
    assert {**again, "size": 0, "side": 0} == {**options, "size": 0, "side": 0}


def test_a_report_of_an_older_run_leaves_sections_out(tmp_path, no_plots):
    page.write(tmp_path, config(), [epoch(1, old=True)])
    assert page_of(tmp_path).headings == ["What stands out", "Learning curves", "Settings"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "report.html"]
    page.write(tmp_path, config(), [], filters=np.ones((3, 3, 3, 4), np.float32))
    assert page_of(tmp_path).headings == ["First-layer filters", "Settings"]
    page.write(tmp_path, config(), [epoch(1, old=True), epoch(2)])      # a run that was resumed by a newer version
    assert {"Layers", "Time"} <= set(page_of(tmp_path).headings)
    page.write(tmp_path, config(), [epoch(1)], confusion=np.zeros((10, 10), int), predictions=[], mistakes=[], seen=np.zeros((0, 98, 98, 3), np.uint8))
    assert not {"Confusion", "Predictions", "Classes", "Surest mistakes", "A batch as the net sees it"} & set(page_of(tmp_path).headings)


def test_names_and_paths_are_escaped(tmp_path, no_plots):
    evil = ["<script>alert(1)</script>", "a&amp;b", "\"'><img src=http://x/y>", "new\nline\udcff"]
    m = epoch(1, slowest=[["<b>conv</b>", 0.1]], layers={"<i>conv</i>": {"mean": 1.0, "zero": 0.99}})
    settings = config(evil, data="/data/<h2>&\udcff", init="<u>") | {"net": "<s>"}
    page.write(tmp_path, settings, [m], **everything(4))
    shown = page_of(tmp_path)
    assert not {"script", "i", "u", "s"} & shown.tags and len(shown.headings) == 11
    assert all(source.startswith("data:image/") for source in shown.sources) and len(shown.sources) == 12
    names = [*evil, *(f"{evil[0]}{i}" for i in range(20))]
    page.write(tmp_path, config(names), [epoch(1)], confusion=np.ones((24, 24), int))
    shown = page_of(tmp_path)
    assert "script" not in shown.tags and any("a&amp;b" in part for part in shown.text)


@pytest.mark.parametrize("classes", [2, 1000])
def test_any_number_of_classes(tmp_path, no_plots, classes):
    names = [f"n{i:05} {'a rather long name, ' * 9}" for i in range(classes)]
    more = everything(classes)
    more["confusion"][1, 0] = 99
    page.write(tmp_path, config(names), [epoch(1)], **more)
    shown = page_of(tmp_path)
    said = " ".join(shown.text)
    if classes > 20:
        rows = (tmp_path / "report.html").read_text().split("<th>taken for</th>")[1].split("</table>")[0].split("<tr>")[1:]
        assert len(rows) == 20 and f'title="{names[1]}"' in rows[0] and ">99 of " in rows[0]
    else:
        assert "99 of" in said and "among the first five" not in said


def test_most_confused_pairs():
    confusion = np.diag([50, 40, 30])
    confusion[0, 2], confusion[2, 1], confusion[1, 2] = 3, 7, 3
    assert page.confused(confusion) == [(2, 1, 7, 37), (0, 2, 3, 53), (1, 2, 3, 43)]
    assert page.confused(confusion, most=1) == [(2, 1, 7, 37)] and page.confused(np.diag([1, 2])) == []


@pytest.mark.parametrize("metrics, words", [
    ([epoch(1, train_loss=2.31, val_loss=2.30, train_top1=0.1, val_top1=0.11)], ["ln(10) = 2.303", "--lr"]),
    ([epoch(1, train_top1=0.98, val_top1=0.6)], ["98.0 %", "60.0 %", "by heart", "--weight-decay"]),
    ([epoch(1, val_loss=0.5), epoch(2, val_loss=0.6), epoch(3, val_loss=0.9)], ["after epoch 1, 0.500", "risen to 0.900", "fewer epochs"]),
    ([epoch(1, layer={"zero": 0.97})], ["conv2 (97.0 %)", "zero", "--lr"]),
    ([epoch(1, layer={"dead": 0.25})], ["conv2 (25.0 %)", "every image", "--lr"]),
    ([epoch(1, layer={"ratio": 0.3})], ["conv2 (0.3)", "more than a tenth", "smaller --lr"]),
    ([epoch(1, layer={"ratio": 3e-7})], ["conv2 (3.0e-07)", "less than a millionth", "larger --lr"]),
    ([epoch(1, seconds={"data": 0.05, "forward": 0.02, "backward": 0.02, "update": 0.01})], ["50.0 %", "waits", "--threads"]),
])
def test_each_finding_is_one_sentence_with_what_to_try(metrics, words):
    found = advice.findings(config(), metrics)
    assert len(found) == 1 and all(word in found[0] for word in words), found
    assert found[0].count(": try ") == 1 and found[0].endswith(".") and not re.search(r"\. [A-Z]", found[0])


GUESS = {"train_loss": 2.31, "val_loss": 2.30, "train_top1": 0.1, "val_top1": 0.11}
BLOWN = GUESS | {"train_loss": 2.4, "val_loss": 9.0}


@pytest.mark.parametrize("options, metrics, said, unsaid", [
    ({}, [GUESS], ["2.310 in training and 2.300 in validation", "not below 0.98 ln(10) = 2.257", "ln(10) = 2.303", "11.0 %", "nothing is learnt", "larger --lr"], "smaller"),
    ({}, [BLOWN], ["9.000 in validation", "far above ln(10) = 2.303", "nothing is learnt", "smaller --lr or a longer warm-up"], "larger"),
    ({"init": "published"}, [GUESS], ["nothing is learnt", "--init he"], "--lr"),
    ({}, [{}, GUESS], ["what was learnt before is lost", "smaller --lr"], "larger"),
    ({}, [GUESS | {"train_loss": 2.258, "val_loss": 2.258}], ["2.258 in training", "2.257"], "smaller"),      # what the text says is what is tested
    ({}, [GUESS | {"train_loss": 2.256}], None, ""),
    ({}, [GUESS | {"val_top1": 0.16}], None, ""),
    ({"schedule": "cosine,warmup:2"}, [GUESS, GUESS], None, ""),
    ({"schedule": "cosine,warmup:2"}, [GUESS] * 3, ["After epoch 3"], "smaller"),
    ({"schedule": "cosine,warmup:1.5"}, [GUESS, GUESS], None, ""),
])
def test_what_is_said_of_a_run_that_only_guesses_is_what_is_tested(options, metrics, said, unsaid):
    metrics = [epoch(i + 1, **m) for i, m in enumerate(metrics)]
    told, found = advice.unlearnt(config(**options), metrics), advice.findings(config(**options), metrics)
    assert (told is None) == (said is None) and found == [told] * (said is not None)
    assert all(word in told for word in said or ()) and not (unsaid and unsaid in told)


def test_findings_never_contradict_each_other():
    two = config(["cat", "dog"])
    by_heart = epoch(3, train_loss=0.9, val_loss=0.9, train_top1=0.59, val_top1=0.4)
    assert "nothing is learnt" in advice.findings(two, [by_heart])[0] and len(advice.findings(two, [by_heart])) == 1
    assert advice.unlearnt(two, [epoch(1, train_loss=0.9, val_loss=0.9, train_top1=0.74, val_top1=0.5)]) is None      # of two classes that is much
    assert len(advice.findings(config(), [epoch(1, **GUESS), epoch(2, **GUESS), epoch(3, **BLOWN)])) == 1      # neither "fewer epochs"
    for m in epoch(1, **BLOWN, layer={"ratio": 1e-9}), epoch(1, **GUESS, layer={"dead": 0.9, "ratio": 1e-9}), epoch(1, **GUESS, layer={"ratio": 0.5}):
        found = " ".join(advice.findings(config(), [m]))
        assert "smaller --lr" in found and "larger --lr" not in found
    found = " ".join(advice.findings(config(), [epoch(1, **GUESS, layer={"ratio": 1e-9})]))
    assert found.count("larger --lr") == 2 and "smaller" not in found


def test_a_healthy_run_has_no_findings(tmp_path, no_plots):
    assert advice.findings(config(), [epoch(1), epoch(2), epoch(3)]) == []
    assert advice.findings(config(), [epoch(1), epoch(2, layer={"ratio": 1e-9}, lr=1e-6)]) == []      # the schedule's end
    assert advice.findings(config(), [epoch(1, old=True)]) == []
    assert advice.findings(config(), [epoch(1, train_loss=2.31, val_loss=2.30)]) == []      # confident mistakes, and far more hits than by guessing
    m = epoch(1)
    m["layers"]["fc8"]["dead"] = 0.3      # usual in a dense layer, too many in a convolution
    assert advice.findings(config(), [m]) == [] and len(advice.findings(config(), [epoch(1, layer={"dead": 0.3})])) == 1
    for metrics, found in ([epoch(1)], False), ([epoch(1, layer={"zero": 0.99, "ratio": 0.5})], True):
        page.write(tmp_path, config(), metrics)
        text = page_of(tmp_path).text
        assert any("Nothing stands out." in part for part in text) != found and all(f in text for f in advice.findings(config(), metrics))


class Guesses:
    """A network that takes picture i for class guesses[i]; pictures have their number in the first pixel."""

    def __init__(self, guesses, classes, sure):
        self.guesses, self.net, self.sure = np.asarray(guesses), SimpleNamespace(classes=classes), np.broadcast_to(sure, len(guesses))

    def probabilities(self, n):
        likely = np.full((n, self.net.classes), 0.1 / self.net.classes, np.float32)
        likely[np.arange(n), self.guesses[self.now]] = self.sure[self.now]
        return likely


def collected(labels, guesses, classes, size, sure=0.9):
    network = Guesses(guesses, classes, sure)
    paths = [f"/pictures/{label}/{i}.jpg" for i, label in enumerate(labels)]
    collector = Collector(network, SimpleNamespace(labels=np.asarray(labels, np.int32), paths=paths, root="/pictures"))
    for first in range(0, len(labels), size):
        network.now = np.arange(first, min(first + size, len(labels)))
        images = np.zeros((len(network.now), 4, 4, 3), np.uint8)
        images[:, 0, 0, 0] = network.now
        batch = Batch(images, np.asarray(labels, np.int32)[network.now], network.now)
        collector(batch, None, None)
        images[:] = 255       # a loader may use its memory again
    return collector.found()


def test_what_is_collected_does_not_depend_on_the_batches():
    labels, guesses = np.repeat(np.arange(4), 9), RANDOM.integers(0, 4, 36)
    found = collected(labels, guesses, 4, 5)
    counts = np.zeros((4, 4), int)
    for label, guess in zip(labels, guesses):
        counts[label, guess] += 1
    assert (found["confusion"] == counts).all() and counts.sum() == 36
    shown = [(int(picture[0, 0, 0]), true, likely[0][0]) for picture, true, likely, _ in found["predictions"]]
    assert shown == [(i, labels[i], guesses[i]) for i in (0, 1, 2, 9, 10, 11, 18, 19, 27, 28)]      # ten, over the four classes
    assert all(len(likely) == 4 and likely[0][1] == pytest.approx(0.9) for _, _, likely, _ in found["predictions"])
    assert [path for *_, path in found["predictions"]][:4] == ["0/0.jpg", "0/1.jpg", "0/2.jpg", "1/9.jpg"]
    again = collected(labels, guesses, 4, 36)
    assert (again["confusion"] == counts).all()
    for name in "predictions", "mistakes":
        assert [(p[0, 0, 0], t, k, path) for p, t, k, path in again[name]] == [(p[0, 0, 0], t, k, path) for p, t, k, path in found[name]]


def test_the_surest_mistakes_come_first_and_of_equal_ones_the_first_of_the_listing():
    sure = np.array([0.9] * 20 + [0.5, 0.95, 0.8, 0.99, 0.7] + [0.6] * 15, np.float32)
    labels, guesses = np.zeros(40, int), np.array([0] * 20 + [1] * 4 + [0] + [1] * 15)      # number 24 is right, and so are the first
    for size in 1, 7, 40:
        found = collected(labels, guesses, 3, size, sure)["mistakes"]
        assert [int(picture[0, 0, 0]) for picture, *_ in found] == [23, 21, 22, *range(25, 32)]
        assert all(true == 0 and likely[0][0] == 1 for _, true, likely, _ in found) and found[0][2][0][1] == pytest.approx(0.99) and found[0][3] == "0/23.jpg"
    assert collected([0, 1, -1], [0, 1, 1], 3, 2)["mistakes"] == []


def test_collecting_over_many_classes_and_without_labels():
    found = collected(np.arange(100), np.arange(100), 100, 32)
    assert [true for _, true, *_ in found["predictions"]] == list(range(0, 100, 10))
    assert (found["confusion"] == np.eye(100)).all()
    found = collected([-1] * 12, np.zeros(12, int), 3, 5)
    assert found["confusion"].sum() == 0 and [(int(p[0, 0, 0]), true) for p, true, *_ in found["predictions"]] == [(i, None) for i in range(10)]
    assert collected([0, 1], [0, 1], 5000, 2)["confusion"] is None      # 100 MB that nobody looks at


def test_augmented_pictures_are_shown_in_their_own_colours(cpu):
    images = RANDOM.integers(0, 120, (3, 20, 20, 3)).astype(np.uint8)
    input = Input(20, 16, fill="constant", constant=77.0)
    assert (page.augmented(input, images, input.centre(3), cpu) == images[:, 2:18, 2:18]).all()
    views = input.centre(3)
    views[:, 6:15] *= 2      # twice as bright
    views[:, 2] -= 2 + 16    # and below the picture's upper edge
    assert (page.augmented(input, images, views, cpu) == 154).all()
    input, mean = Input(20, 16, mean="image"), np.full((20, 20, 3), (120, 110, 90), np.float32)
    assert (page.augmented(input, images, input.centre(3), cpu, mean) == images[:, 2:18, 2:18]).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs on three colours, and its pictures."""
    root = tmp_path_factory.mktemp("report")
    for split, count in (("train", 12), ("val", 5)):
        for name, colour in (("blue & green", (40, 160, 190)), ("grey", (120, 120, 120)), ("red", (190, 50, 50))):
            (root / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                noise = np.clip(np.array(colour) + RANDOM.normal(0, 30, (80, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noise).save(root / "pictures" / split / name / f"{i}.jpg")
    (root / "pictures/val/red/broken.jpg").write_bytes(b"no picture")
    (root / "pictures/train/red/clip.mov").write_bytes(b"no picture either")
    assert train.main(["--data", str(root / "pictures"), "--out", str(root / "run"), "--size", "72", "--batch", "8", "--epochs", "2", "--lr", "0.002",
                       "--device", "cpu"]) == 0
    return root


def test_the_command_makes_a_report_anew(run, tmp_path, capsys):
    out = run / "run"
    for path in [*out.glob("*.png"), out / "report.html"]:
        path.unlink(missing_ok=True)
    assert report.main([str(out), "--device", "cpu"]) == 0
    shown, said = page_of(out), " ".join(page_of(out).text)
    assert {"Learning curves", "Predictions", "Confusion", "First-layer filters", "A batch as the net sees it"} <= set(shown.headings)
    best = max(m["val_top1"] for m in RunFolder(out).metrics())
    assert all(m["unreadable"] == {"train": 0, "val": 1} for m in RunFolder(out).metrics()) and "Left out: 1 other file in the training folders (.mov 1); 1 validation image that cannot be read." in said
    assert re.search(r"Begun \d{4}-\d\d-\d\d \d\d:\d\d; trained for \d+ s; predictions and filters are those of the best weights, after epoch [12]\.", said)
    assert f"What 15 validation images were taken for; {100 * best:.1f} % rightly" in said and "report.html" in capsys.readouterr().out
    before = (out / "report.html").read_bytes()
    assert report.main([str(out), "--device", "cpu", "--threads", "2"]) == 0 and (out / "report.html").read_bytes() == before


def test_the_command_without_the_data_says_so_and_makes_the_rest(run, tmp_path, capsys):
    moved, out = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(run / "run", out)
    (run / "pictures").rename(moved)
    try:
        assert report.main([str(out), "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        assert str(run / "pictures") in said and "without its data" in said
        headings = page_of(out).headings
        assert "First-layer filters" in headings and "Learning curves" in headings and "Confusion" not in headings
        assert report.main([str(out), "--device", "cpu", "--data", str(moved)]) == 0 and "Confusion" in page_of(out).headings
        with pytest.raises(UserError, match="there is no folder"):
            report.main([str(out), "--device", "cpu", "--data", str(tmp_path / "nowhere")])
        (moved / "train/red").rename(moved / "train/rot")
        (moved / "val/red").rename(moved / "val/rot")
        with pytest.raises(UserError, match="classes of .* are not those of the run"):
            report.main([str(out), "--device", "cpu", "--data", str(moved)])
        (moved / "train/rot").rename(moved / "train/red")
        (moved / "val/rot").rename(moved / "val/red")
    finally:
        moved.rename(run / "pictures")
    with pytest.raises(UserError, match="is not a run folder"):
        report.main([str(tmp_path)])


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(epoch(1)) + "\n{")
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        RunFolder(tmp_path).metrics()


def test_ten_classes_of_photographs_stay_below_a_megabyte(tmp_path):
    shots = [photograph(i, 256, 256) for i in range(24)]
    more = everything() | {"seen": np.stack(shots), "predictions": [(shot, 0, [(k, 0.2) for k in range(5)]) for shot in shots[:10]]}
    page.write(tmp_path, config(), [epoch(i) for i in range(1, 101)], **more)
    assert 200_000 < (tmp_path / "report.html").stat().st_size < 800_000


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 20, 1000])
@pytest.mark.parametrize("width", [360, 453, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(tmp_path, classes, width, dark):
    names = [f"<b>{i}</b> & \"a\" ニホンザル_{'very_long_' * (i % 7)}" for i in range(classes)]
    metrics = [epoch(i, layers={name: epoch(1)["layers"]["conv2"] for name in ("conv1", "a layer of a long name", "x" * 60)}) for i in range(1, 5)]
    page.write(tmp_path, config(names, data=f"/a/<i>b/{'x' * 300}") | {"began": "2026-01-01 00:00"}, metrics, **everything(classes))
    whole = (tmp_path / "report.html").read_text()
    seen, console = opened(whole, tmp_path, width, dark)
    assert console == [] and len(seen["images"]) == 12 and min(seen["images"]) > 50 and seen["room"] == width
    assert seen["width"] <= width and seen["beyond"] == [] and seen["narrow"] == [] and seen["text"] >= 10, seen
    brightness = [sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("paper", "ink")]
    assert (brightness[0] < 100 and brightness[1] > 500) if dark else (brightness[0] == 765 and brightness[1] < 150)
    if classes > 2:
        return
    # What these checks would say of a page that is not right.
    broken = re.sub(r"base64,[^\"]{80}", "base64,AAAA", whole, count=1).replace("</header>", "</header><script>fail()</script><p style='width:9999px'>wide</p>")
    seen, console = opened(broken.replace("prefers-color-scheme: dark", "print"), tmp_path, width, dark)
    assert 0 in seen["images"] and seen["width"] > width and seen["beyond"] and any("fail is not defined" in line for line in console)
    assert not dark or seen["paper"] == "rgb(255, 255, 255)"
