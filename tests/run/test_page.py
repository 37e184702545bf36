"""The report of a run: its pictures pixel by pixel, what it says in words, the page itself, and the page in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from odd_files import photograph
from PIL import Image

from minialex import report, train
from minialex.data.augment import Input
from minialex.data.loader import Batch
from minialex.errors import UserError
from minialex.run import page, pictures
from minialex.run.folder import RunFolder
from minialex.run.scores import Collector

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
            "predictions": [(shot, i % classes, five) for i in range(6)], "confusion": RANDOM.integers(0, 3, (classes, classes)) + 20 * np.eye(classes, dtype=int)}


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def blank(picture):
    return len(np.unique(picture @ [1 << 16, 1 << 8, 1])) < 5


@pytest.mark.parametrize("epochs", [1, 100])
@pytest.mark.parametrize("draw, height", [(lambda m: pictures.curve(m, 10), 520), (pictures.layers, 740), (pictures.time, 360)])
def test_plots_have_their_size_and_something_on_them(epochs, draw, height):
    data = draw([epoch(i + 1) for i in range(epochs)])
    picture = pixels(data)
    assert not blank(picture) and 1000 < picture.shape[1] < 1100 and abs(picture.shape[0] - height) < 40 and len(data) < 120_000
    assert (np.abs(picture - [255, 255, 255]).max(axis=2) > 60).mean() > 0.005      # ink


def test_the_learning_rate_has_a_panel_of_its_own_where_it_is_known():
    old, new = (pixels(pictures.curve([epoch(i, old) for i in (1, 2, 3)], 10)) for old in (True, False))
    assert new.shape[0] > old.shape[0] + 100


def test_layers_of_which_little_is_known():
    m = [epoch(1, layer={"dead": None, "ratio": 0.0}), epoch(2)]
    for layer in m[0]["layers"].values():
        layer.pop("ratio")
    del m[1]["layers"]["conv1"]
    assert not blank(pixels(pictures.layers(m)))


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
    assert (picture[-55:, -55:] == 128).all() and (picture[55:59] == 255).all() and (picture[173:189] == 255).all()


@pytest.mark.parametrize("shape", [(11, 11, 3, 48), (11, 11, 3, 64), (3, 3, 3, 5), (5, 5, 1, 8), (11, 11, 3, 1)])
def test_filters_of_other_nets(shape):
    picture = pixels(pictures.filters(RANDOM.normal(size=shape).astype(np.float32)))
    assert not blank(picture) and picture.shape[1] <= 1060
    if shape[2] == 1:
        assert (picture[..., 0] == picture[..., 2]).all()


def test_predictions_show_the_picture_and_bars_as_long_as_their_probability():
    shot = np.zeros((190, 190, 3), np.uint8)
    shot[:95, :, 0] = 200
    items = [(shot, 3, [(1, 0.6), (3, 0.3), (2, 0.1)])] * 7
    picture = pixels(pictures.predictions(items, NAMES))
    assert picture.shape[1] == 5 * 190 + 4 * 20 and (picture[40, 100] == [200, 0, 0]).all() and (picture[160, 100] == 0).all()
    for line, (share, colour) in enumerate([(0.6, pictures.WRONG), (0.3, pictures.RIGHT), (0.1, pictures.WRONG)]):
        row = picture[190 + 36 + line * 26 + 1, :190]        # above the letters
        right = (row == [int(colour[i:i + 2], 16) for i in (1, 3, 5)]).all(axis=1)
        assert abs(right.sum() - share * 190) <= 1 and right[0]
    second = picture[picture.shape[0] // 2 + 10:]
    assert (second[40, 100] == [200, 0, 0]).all() and (second[40, 600] == 255).all()      # five in the first row, two in the second


@pytest.mark.filterwarnings("ignore:Glyph")      # a box stands for it
@pytest.mark.parametrize("name", ["x" * 5000, "", "$x_1$ 猫 \u202e", "wide " * 9])
def test_names_of_any_length_fit_under_a_picture(name):
    items = [(np.full((30, 30, 3), 9, np.uint8), None if not name else 0, [(0, 1.0), (1, 0.0)])]
    picture = pixels(pictures.predictions(items, [name, "b"]))
    assert picture.shape[1] == 190 and not blank(picture)
    assert not blank(pixels(pictures.confusion(np.array([[3, 1], [0, 2]]), [name, "b"])))


def test_confusion_of_few_classes_has_numbers_and_of_many_a_pixel_each():
    few, other = (pixels(pictures.confusion(n * np.eye(20, dtype=int), ["a"] * 20)) for n in (20, 30))
    assert few.shape == other.shape and (np.abs(few - other).max(axis=2) > 60).any()      # the same shades, other numbers
    counts = np.zeros((25, 25), int)
    counts[np.arange(25), np.arange(25)] = 3
    counts[4, 9] = 1
    many = pixels(pictures.confusion(counts, ["a"] * 25))
    cells = many[20::40, 20::40].sum(axis=2)
    assert many.shape == (1000, 1000, 3) and cells.shape == (25, 25)
    assert (cells == cells[0, 1]).sum() == 600 - 1 and cells[0, 0] < cells[4, 4] < cells[4, 9] < cells[0, 1]
    large = np.zeros((2500, 2500), int)
    large[2499, 0] = 1
    picture = pixels(pictures.confusion(large, ["a"] * 2500))
    assert picture.shape == (834, 834, 3) and picture[833, 0, 0] < 20 and picture[0, 0, 0] > 240


def test_a_batch_is_a_grid_of_its_pictures():
    seen = np.stack([np.full((98, 98, 3), 8 * i, np.uint8) for i in range(24)])
    picture = pixels(pictures.batch(seen))
    assert picture.shape == (3 * 130 - 6, 8 * 130 - 6, 3) and (picture[60::130, 60::130, 0] == 8 * np.arange(24).reshape(3, 8)).all()
    assert pixels(pictures.batch(seen[:2])).shape == (124, 254, 3)


@pytest.fixture
def no_plots(monkeypatch):
    """Spares the seconds that matplotlib takes, where the page alone is looked at."""
    for name in ("curve", "layers", "time"):
        monkeypatch.setattr(pictures, name, lambda *_: pictures.png(np.zeros((3, 3, 3), np.uint8)))


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
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "style", "onload", "onerror", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_whole_report(tmp_path):
    page.write(tmp_path, config(), [epoch(1), epoch(2)], **everything())
    shown, text = page_of(tmp_path), (tmp_path / "report.html").read_text()
    assert shown.headings == ["What stands out", "Learning curves", "Predictions", "Confusion", "First-layer filters", "A batch as the net sees it", "Layers",
                             "Time", "Settings"]
    names = ["curve.png", "predictions.png", "confusion.png", "filters.png", "augmented.png", "layers.png", "time.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "report.html"])
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(s.removeprefix(prefix), validate=True) for s in shown.sources] == [(tmp_path / name).read_bytes() for name in names]
    assert not {"script", "link", "iframe", "object", "base"} & shown.tags and not re.search(r"url\(|@import|https?:", text)
    said = " ".join(shown.text)
    assert "half on birds" in said and "300 training and 50 validation images" in said and "45.0 %" in said and "2 of 9 epochs" in said
    assert "conv2 backward" in said and "15.00" in said and "/somewhere/birds" in said and "two towers" in said


def test_a_report_of_an_older_run_leaves_sections_out(tmp_path, no_plots):
    page.write(tmp_path, config(), [epoch(1, old=True)])
    assert page_of(tmp_path).headings == ["What stands out", "Learning curves", "Settings"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "report.html"]
    page.write(tmp_path, config(), [], filters=np.ones((3, 3, 3, 4), np.float32))
    assert page_of(tmp_path).headings == ["First-layer filters", "Settings"]
    page.write(tmp_path, config(), [epoch(1, old=True), epoch(2)])      # a run that was resumed by a newer version
    assert {"Layers", "Time"} <= set(page_of(tmp_path).headings)
    page.write(tmp_path, config(), [epoch(1)], confusion=np.zeros((10, 10), int), predictions=[], seen=np.zeros((0, 98, 98, 3), np.uint8))
    assert not {"Confusion", "Predictions", "A batch as the net sees it"} & set(page_of(tmp_path).headings)


def test_names_and_paths_are_escaped(tmp_path, no_plots):
    evil = ["<script>alert(1)</script>", "a&amp;b", "\"'><img src=http://x/y>", "new\nline\udcff"]
    m = epoch(1, slowest=[["<b>conv</b>", 0.1]], layers={"<i>conv</i>": {"mean": 1.0, "zero": 0.99}})
    settings = config(evil, data="/data/<h2>&\udcff", schedule="<u>") | {"net": "<s>"}
    page.write(tmp_path, settings, [m], **everything(4))
    shown = page_of(tmp_path)
    assert not {"script", "b", "i", "u", "s"} & shown.tags and len(shown.headings) == 9
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources) and len(shown.sources) == 7
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
        assert len(rows) == 20 and names[1].strip() in rows[0] and ">99<" in rows[0]
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
    found = page.findings(config(), metrics)
    assert len(found) == 1 and all(word in found[0] for word in words), found
    assert found[0].count(": try ") == 1 and found[0].endswith(".") and not re.search(r"\. [A-Z]", found[0])


def test_a_healthy_run_has_no_findings(tmp_path, no_plots):
    assert page.findings(config(), [epoch(1), epoch(2), epoch(3)]) == []
    assert page.findings(config(), [epoch(1), epoch(2, layer={"ratio": 1e-9}, lr=1e-6)]) == []      # the schedule's end
    assert page.findings(config(), [epoch(1, old=True)]) == []
    assert page.findings(config(), [epoch(1, train_loss=2.31, val_loss=2.30)]) == []      # confident mistakes, and far more hits than by guessing
    m = epoch(1)
    m["layers"]["fc8"]["dead"] = 0.3      # usual in a dense layer, too many in a convolution
    assert page.findings(config(), [m]) == [] and len(page.findings(config(), [epoch(1, layer={"dead": 0.3})])) == 1
    for metrics, found in ([epoch(1)], False), ([epoch(1, layer={"zero": 0.99, "ratio": 0.5})], True):
        page.write(tmp_path, config(), metrics)
        text = page_of(tmp_path).text
        assert any("Nothing stands out." in part for part in text) != found and all(f in text for f in page.findings(config(), metrics))


class Guesses:
    """A network that takes picture i for class guesses[i]; pictures have their number in the first pixel."""

    def __init__(self, guesses, classes):
        self.guesses, self.net = np.asarray(guesses), SimpleNamespace(classes=classes)

    def probabilities(self, n):
        likely = np.full((n, self.net.classes), 0.1 / self.net.classes, np.float32)
        likely[np.arange(n), self.guesses[self.now]] = 0.9
        return likely


def collected(labels, guesses, classes, size):
    network = Guesses(guesses, classes)
    collector = Collector(network, SimpleNamespace(labels=np.asarray(labels, np.int32)))
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
    shown = [(int(picture[0, 0, 0]), true, likely[0][0]) for picture, true, likely in found["predictions"]]
    assert shown == [(i, labels[i], guesses[i]) for i in (0, 1, 2, 9, 10, 11, 18, 19, 27, 28)]      # ten, over the four classes
    assert all(len(likely) == 4 and likely[0][1] == pytest.approx(0.9) for _, _, likely in found["predictions"])
    again = collected(labels, guesses, 4, 36)
    assert (again["confusion"] == counts).all()
    assert [(p[0, 0, 0], t, k) for p, t, k in again["predictions"]] == [(p[0, 0, 0], t, k) for p, t, k in found["predictions"]]


def test_collecting_over_many_classes_and_without_labels():
    found = collected(np.arange(100), np.arange(100), 100, 32)
    assert [true for _, true, _ in found["predictions"]] == list(range(0, 100, 10))
    assert (found["confusion"] == np.eye(100)).all()
    found = collected([-1] * 12, np.zeros(12, int), 3, 5)
    assert found["confusion"].sum() == 0 and [(int(p[0, 0, 0]), true) for p, true, _ in found["predictions"]] == [(i, None) for i in range(10)]
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


def test_ten_classes_of_photographs_stay_below_three_megabytes(tmp_path):
    shots = [photograph(i, 256, 256) for i in range(24)]
    more = everything() | {"seen": np.stack(shots), "predictions": [(shot, 0, [(k, 0.2) for k in range(5)]) for shot in shots[:10]]}
    page.write(tmp_path, config(), [epoch(i) for i in range(1, 101)], **more)
    assert 1_000_000 < (tmp_path / "report.html").stat().st_size < 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 1000])
def test_a_browser_shows_it(tmp_path, classes):
    browser = shutil.which("chromium")
    if not browser:
        pytest.skip("no chromium here (apt-get install chromium)")
    names = [f"<b>{i}</b> & \"a\"" for i in range(classes)]
    page.write(tmp_path, config(names, data="/a/<i>b"), [epoch(i) for i in range(1, 5)], **everything(classes))
    shown = (tmp_path / "report.html").read_text()

    def opened(text):
        """(widths of the images as loaded, lines of the console) of a shown that also tells them."""
        script = "<script>addEventListener('load', () => document.body.dataset.widths = [...document.images].map(i => i.naturalWidth).join())</script>"
        (tmp_path / "opened.html").write_text(text.replace("</body>", script + "</body>"))
        done = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
                               "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'opened.html'}"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        widths = re.search(r'data-widths="([\d,]*)"', done.stdout)
        assert widths, done.stdout[-2000:]
        return list(map(int, widths[1].split(","))), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    assert opened(shown) == ([int.from_bytes(base64.b64decode(data[:100])[16:20], "big") for data in re.findall(r"base64,([^\"]+)", shown)], [])
    broken = re.sub(r"base64,[^\"]{80}", "base64,AAAA", shown, count=1).replace("</header>", "</header><script>fail()</script>")
    widths, console = opened(broken)      # what the check would say of a shown that is not right
    assert widths[0] == 0 and len(widths) == 7 and any("fail is not defined" in line for line in console)
    shot = tmp_path / "page.png"
    subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars",
                    "--window-size=400,900", f"--screenshot={shot}", f"file://{tmp_path / 'report.html'}"], check=True, capture_output=True, timeout=120)
    assert not blank(pixels(shot.read_bytes()))
