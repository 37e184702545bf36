"""Why a network says what it says: the square against a plain loop, the gradient against changed pixels, neighbours against numpy, and the page."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import opened
from PIL import Image
from runs import command, refused

import minialex
from minialex import predict
from minialex.nets import Net, build
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.run import explain, page, why
from minialex.run.explain import Channel, Explanation, Neighbour, hidden_layer, nearest, occlusion, strongest

RANDOM = np.random.default_rng(8)


@pytest.fixture(autouse=True)
def fewer_places(monkeypatch):
    """Of the square, so that the tests are quick."""
    monkeypatch.setattr(explain, "GRID", 3)


@pytest.fixture(scope="module")
def run(finished):
    return minialex.load(finished, device="cpu")


@pytest.fixture(scope="module")
def files(pictures):
    return [pictures / "val/red/00.jpg", pictures / "val/blue/01.jpg"]


@pytest.fixture(scope="module")
def found(run, files, pictures, tmp_path_factory):
    """(explanations, the page of them)."""
    out = tmp_path_factory.mktemp("why") / "why.html"
    with pytest.warns(UserWarning, match="damaged.jpg"):
        return run.explain(files, out, channels=3, neighbours=4), out.read_text(encoding="utf-8")


def test_the_square_goes_over_the_picture_as_a_plain_loop_has_it(run, files):
    [image] = run.input.prepare(files[:1])
    size, edge, network = run.net.size, run.input.margin // 2, run.network
    ours, likeliest = occlusion(network, image, 1, grid=5, part=0.3)
    assert edge > 0 and ours.dtype == np.float32 and ours.shape == likeliest.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            covered = image.copy()
            for y in range(size):
                for x in range(size):
                    centre = (i + 0.5) * size / 5, (j + 0.5) * size / 5
                    if abs(y + 0.5 - centre[0]) < 0.15 * size + 0.01 and abs(x + 0.5 - centre[1]) < 0.15 * size + 0.01:
                        covered[edge + y, edge + x] = 128
            network.evaluate(covered[None], np.zeros(1, np.int32), run.input.centre(1))
            p = network.probabilities(1)[0]
            np.testing.assert_allclose(ours[i, j], p[1], rtol=1e-4)
            assert likeliest[i, j] == p.argmax()
    assert np.ptp(ours) > 1e-4


def test_an_explanation_is_of_what_is_predicted(run, files, found):
    for file, own, likely in zip(files, found[0], run.predict(files)):
        assert own.path == str(file) and [name for name, _ in own.classes] == [name for name, _ in likely]
        np.testing.assert_allclose([p for _, p in own.classes], [p for _, p in likely], rtol=1e-4)
        [image] = run.input.prepare([file])
        edge = run.input.margin // 2
        np.testing.assert_array_equal(own.picture, image[edge:edge + 72, edge:edge + 72])
        assert own.occlusion.shape == (16, 16) and len(own.covered) == 16 and {name for row in own.covered for name in row} <= set(run.classes)
        ours, likeliest = occlusion(run.network, image, run.classes.index(likely[0][0]))
        np.testing.assert_allclose(own.occlusion, ours, rtol=1e-4)
        assert own.covered == [[run.classes[k] for k in row] for row in likeliest]


def test_the_gradient_is_that_of_the_score_of_each_pixel(run, files, found):
    """All pixels of a colour, a tenth of a grey level lighter and darker; that of single pixels is checked in test_network.py."""
    for file, own in zip(files, found[0]):
        images, label = run.input.prepare([file]), run.classes.index(own.classes[0][0])
        for colour in range(3):
            scores = []
            for step in 0.1, -0.1:
                views = run.input.centre(1)
                views[:, 15 + colour] += step * run.input.scale[colour]
                run.network.evaluate(images, np.zeros(1, np.int32), views)
                scores.append(float(run.network.arrays["activation fc8"][0, label]))
            assert (scores[0] - scores[1]) / 0.2 == pytest.approx(own.gradient[:, :, colour].sum(dtype=float), rel=0.1, abs=3e-6)


def test_neighbours_are_those_that_numpy_finds(run, files, found, pictures):
    train = minialex.open_data(pictures)[0]

    def fc7(image):
        run.network.evaluate(image[None], np.zeros(1, np.int32), run.input.centre(1))
        return run.network.arrays["activation fc7"][0].astype(np.float64)

    readable = [k for k in range(len(train)) if "damaged" not in train.paths[k]]
    features = np.stack([fc7(minialex.picture(train.paths[k], run.input.side)) for k in readable])
    for file, own in zip(files, found[0]):
        distances = np.linalg.norm(features - fc7(minialex.picture(file, run.input.side)), axis=1)
        order = np.argsort(distances)[:4]
        assert [near.path for near in own.neighbours] == [str((train.paths[readable[k]])).removeprefix(f"{train.root}/") for k in order]
        assert [near.name for near in own.neighbours] == [near.path.split("/")[0] for near in own.neighbours]
        np.testing.assert_allclose([near.distance for near in own.neighbours], distances[order], rtol=1e-3)
        assert own.neighbours[0].picture.shape == (72, 72, 3)


def test_of_a_large_set_some_images_at_even_distances_are_looked_at(run, pictures, monkeypatch):
    monkeypatch.setattr(explain, "MOST", 5)
    train = minialex.open_data(pictures)[0]
    features = explain.features_of(run.network, run.input.prepare([train.paths[0]]))
    [near] = nearest(run.network, features, train, 99, warn=lambda sentence: None)
    assert sorted(own.path for own in near) == sorted(train.paths[k].removeprefix(f"{train.root}/") for k in np.linspace(0, len(train) - 1, 5).astype(int)
                                                 if "damaged" not in train.paths[k])
    assert near[0].path == train.paths[0].removeprefix(f"{train.root}/") and near[0].distance < 1e-3 < near[1].distance


def test_the_strongest_channels_of_each_convolution():
    net = build("half", 3, 72)
    active = {name: np.zeros(shape, np.float32) for name, shape in net.outputs.items()}
    active["conv1"][4, 5, 7], active["conv1"][4, 6, 7], active["conv1"][0, 0, 1], active["conv2"][2, 3, 9] = 5, 2, 3, 1
    top = strongest(net, active, 2)
    assert list(top) == ["conv1", "conv2", "conv3", "conv4", "conv5"] and top["conv3"] == []
    assert top["conv1"] == [Channel(7, 5.0, net.receptive_field("conv1", 4, 5), None), Channel(1, 3.0, net.receptive_field("conv1", 0, 0), None)]
    assert (top["conv1"][0].active == active["conv1"][..., 7]).all()
    assert top["conv2"] == [Channel(9, 1.0, net.receptive_field("conv2", 2, 3), None)]
    assert list(strongest(Net({"conv1": Conv(3, 5), "score": Conv(2, 4, relu=False)}, 8), {"conv1": active["conv1"][:4, :4, :3]}, 1)) == ["conv1"]


def test_the_last_hidden_layer():
    assert [hidden_layer(build(name, 10)) for name in ("paper", "caffenet", "owt", "half")] == ["fc7"] * 4
    assert hidden_layer(Net({"fc": Dense(2, relu=False)}, 8)) is None
    assert hidden_layer(Net({"conv1": Conv(3, 5), "score": Conv(2, 4, relu=False)}, 8)) == "conv1"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.words, self.tags, self.alts = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.alts += [dict(attrs).get("alt")] * (tag == "img")

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_no_other_file_and_says_what_was_found(found, files):
    explanations, text = found
    shown = Page(text)
    assert all(source.startswith("data:image/") for source in shown.sources) and "script" not in shown.tags and None not in shown.alts
    said = " ".join(shown.words)
    for own, file in zip(explanations, files):
        assert str(file) in text and own.classes[0][0] in said and all(f"distance {near.distance:#.3g}" in said for near in own.neighbours)
        assert all(f"channel {channel.number}" in said for channels in own.channels.values() for channel in channels)
    assert said.count("Occlusion") == 3 and "The net is right on" in said and "in fc7" in said


def test_names_are_escaped_and_odd_explanations_shown(tmp_path):
    evil, picture = "<script>alert(1)</script>", RANDOM.integers(0, 256, (72, 72, 3)).astype(np.uint8)
    flat = np.full((16, 16), 0.999, np.float32)
    settings = {"net": "<s>", "size": 72, "classes": [evil, "b"], "options": {"data": "/a/<h2>\udcff"}}
    common = {"picture": picture, "classes": [(evil, 0.999), ("b", 0.001)], "gradient": np.zeros((72, 72, 3), np.float32)}
    odd = [Explanation(path="/x/<em>\udcff.jpg", occlusion=flat, covered=[[evil] * 16] * 16,
                       channels={"conv1": [], "conv2": [Channel(3, 1.0, (0, 0, 72, 72), flat)]}, **common),
           Explanation(path=None, occlusion=flat - RANDOM.random((16, 16)).astype(np.float32), covered=[["b"] * 16] * 16, channels={},
                       neighbours=[Neighbour(evil, evil, 1e-6, picture), Neighbour("b/a.jpg", "b", 1.5, picture + np.uint8(1))], **common)]
    why.write(tmp_path / "why.html", settings, [], odd, "fc7", "<b>none</b>")
    text = (tmp_path / "why.html").read_text(encoding="utf-8")
    shown, said = Page(text), " ".join(Page(text).words)
    assert not {"script", "s", "em"} & shown.tags and text.count("<h2>") == 3 and "<b>none</b>." in said
    assert "still says the same" in said and "At 256 of 256 places" in said and said.count("the same picture") == said.count("distance 1.50") == 1 and "99.9" in said


def test_without_the_training_images_the_page_says_so(finished, own_pictures, files, tmp_path, pictures):
    run = minialex.load(shutil.copytree(finished, tmp_path / "run"), device="cpu")
    run.config["options"] = {**run.config["options"], "data": str(tmp_path / "nowhere")}
    with pytest.warns(UserWarning, match="nowhere.*without the run's data .data DIR, if it has moved. no training images"):
        [own] = run.explain(files[0], tmp_path / "why.html", channels=1)
    assert own.neighbours is None and "no longer where they were" in (tmp_path / "why.html").read_text(encoding="utf-8")
    with pytest.raises(minialex.UserError, match="no folder"):
        run.explain(files[0], data=tmp_path / "nowhere")
    with pytest.raises(minialex.UserError, match="nowhere.jpg"):
        run.explain("nowhere.jpg")
    with pytest.raises(minialex.UserError, match="it is a folder"):
        run.explain(files[0], tmp_path)
    assert run.explain([]) == []


def test_the_command_writes_the_page(finished, files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "why.html"
    assert command(predict.main, finished, *files, "--explain", out, "--device", "cpu") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"explained in {out}" and f"{files[0]}" in told.out and out.read_text(encoding="utf-8").count("<h2>") == 3
    assert "--explain" in refused(capsys, predict.main, finished, files[0], "--explain", tmp_path)
    assert "--data goes with --explain" in refused(capsys, predict.main, finished, files[0], "--data", tmp_path)
    monkeypatch.setattr(predict, "MOST_EXPLAINED", 1)
    assert "give at most 1" in refused(capsys, predict.main, finished, *files, "--explain", out)


def test_a_report_sets_its_surest_mistakes_beside_training_images(finished, own_pictures, monkeypatch):
    (own_pictures / "val/red/00.jpg").rename(own_pictures / "val/blue/red.jpg")
    told = {}
    monkeypatch.setattr(page, "write", lambda *args, **found: told.update(found))
    run = minialex.load(finished, device="cpu")
    run.report(own_pictures, warn=lambda sentence: None)
    hidden, compared = told["neighbours"]
    assert hidden == "fc7" and [item for item, _ in compared] == told["mistakes"][:5] and len(compared)
    [near] = [near for (_, _, _, path), near in compared if path == "blue/red.jpg"]
    assert len(near) == 7 and {own.name for own in near} == {"red"} and [own.distance for own in near] == sorted(own.distance for own in near)
    html = page.beside(*compared[0], run.classes, lambda picture, side: b"")
    assert html.count("<figure>") == 8 and "taken for" in html and re.search("distance|<small>\\d", html)


def test_pictures_of_any_kind_are_explained(run):
    image = Image.fromarray(RANDOM.integers(0, 256, (90, 80, 3)).astype(np.uint8))
    [one], [other] = run.explain(image, neighbours=0, channels=0), run.explain(np.asarray(image), neighbours=0)
    assert one.path is other.path is one.neighbours is None and one.classes == other.classes and not any(one.channels.values())
    np.testing.assert_array_equal(one.gradient, other.gradient)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 453, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(run, found, tmp_path, width, dark):
    """Long names and paths, too, lie within the page."""
    long = [replace(own, path="x" * 200, classes=[("very_long_" * 20, p) for _, p in own.classes], covered=[["ニホンザル_" * 20] * 16] * 16,
                    neighbours=[replace(near, name="ニホンザル_" * 20) for near in own.neighbours]) for own in found[0]]
    why.write(tmp_path / "why.html", run.config, run.history, long, "fc7")
    seen, console = opened((tmp_path / "why.html").read_text(encoding="utf-8"), tmp_path, width, dark)
    assert console == [] and len(seen["images"]) == 2 * (3 + 4 + 5 * 3) and min(seen["images"]) >= 5 and seen["room"] == width
    assert seen["width"] <= width and seen["beyond"] == [] and seen["narrow"] == [], seen
    brightness = [sum(map(int, re.findall(r"\d+", seen[name])[:3])) for name in ("paper", "ink")]
    assert (brightness[0] < 100 and brightness[1] > 500) if dark else (brightness[0] == 765 and brightness[1] < 150)


@pytest.mark.slow
def test_nets_without_dense_or_hidden_layers(own_pictures, tmp_path, monkeypatch):
    """Of convolutions alone, which evaluation keeps for a few images at a time, and of one layer, which has no neighbours to tell."""
    (own_pictures / "train/red/damaged.jpg").unlink()
    (own_pictures / "val/red/00.jpg").rename(own_pictures / "val/blue/red.jpg")
    told, image = {}, own_pictures / "val/red/01.jpg"
    monkeypatch.setattr(page, "write", lambda *args, **found: told.update(found))
    towers = {"conv1": Conv(8, 9, stride=3), "conv2": Conv(8, 5, stride=4), "score": Conv(3, 5, relu=False)}
    for layers, hidden in (towers, "conv2"), ({"fc": Dense(3, relu=False)}, None):
        run = minialex.fit(own_pictures, net=Net(layers, 72), out=tmp_path / str(hidden), epochs=1, lr=1e-4, batch=8, device="cpu", progress=False)
        told.clear()
        run.report()
        if hidden:
            assert told["neighbours"][0] == hidden and all(len(near) == 7 for _, near in told["neighbours"][1])
        else:
            assert "neighbours" not in told
        [own] = run.explain(image, tmp_path / "why.html")
        assert (own.neighbours is None) == (hidden is None) and list(own.channels) == ["conv1", "conv2"] * (hidden is not None)
        assert ("the net has no hidden layer" in (tmp_path / "why.html").read_text(encoding="utf-8")) == (hidden is None)
