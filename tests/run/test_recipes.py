"""The recipes: what each asks for, how options given beside them win, and a short run of each kind."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from runs import draw_classes, load, same_bits

from minialex import evaluate, nets, train
from minialex.data.augment import Input
from minialex.errors import UserError
from minialex.optim import SGD, Adam, Schedule
from minialex.run import settings
from minialex.run.folder import RunFolder
from minialex.run.recipes import RECIPES
from minialex.run.settings import DEFAULTS, OPTIONS, optimizer_of, settle


def settled(*arguments):
    given = train.parse(["--data", "somewhere", *arguments])
    return settle({name: given[name] for name in OPTIONS}, given["out"], given["resume"])[0]


def input_of(options):
    return settings.input_of(options, nets.build(options["net"], 10, options["size"]), None)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "finetune"])
def test_every_recipe_is_whole_and_its_options_are_those_of_the_command(name):
    recipe, options = RECIPES[name], settled("--recipe", name)
    assert set(recipe) <= set(DEFAULTS) and all(options[key] == value for key, value in recipe.items() if key != "side")
    way = input_of(options)
    assert (way.size, way.side) == (recipe["size"], recipe["side"])
    assert way.to_measure or way.draw(0, 0, range(3)).shape == (3, 18)
    assert 0 < Schedule(options["schedule"], options["lr"], 10, options["epochs"])(0) <= options["lr"]
    assert optimizer_of(options).slots and nets.build(options["net"], 3).initial(options["init"], 0)["fc8.bias"].shape == (3,)


def test_fine_tuning_takes_its_net_from_the_weights():
    options = settled("--recipe", "finetune", "--init", __file__)
    assert set(RECIPES["finetune"]) <= set(DEFAULTS) and (options["net"], options["size"], options["init"]) == (None, None, __file__)
    assert settings.rates_of(options) == {"fc8": 10} and optimizer_of(options) == SGD(0.9, 5e-4, "2012") and options["lr"] == 0.003
    begun = Input(250, 227, mean=(1, 2, 3), scale=(1, 1, 1), flip="none")
    way = settings.input_of(options, nets.build("paper", 10), None, begun)
    assert (way.side, way.mean, way.scale, way.crop, way.flip) == (250, (1, 2, 3), (1, 1, 1), "resized", "h")
    assert settings.input_of(options, nets.build("paper", 10, 114), None, begun).side == 130      # at another size


def test_what_the_sources_say():
    keras = settled("--recipe", "keras")
    assert optimizer_of(keras) == Adam(0.9, 0.999, 1e-7) and (keras["lr"], keras["batch"], keras["epochs"], keras["seed"]) == (0.001, 32, 10, 7)
    assert input_of(keras) == Input(224, 224, "squash", mean=(0, 0, 0), scale=(1 / 255,) * 3, crop="centre", flip="hv", rotation=40, shift=(0.2, 0.2),
                                    shear=0.2, zoom=(0.8, 1.2), fill="nearest")
    paper, code = settled("--recipe", "2012"), settled("--recipe", "2012-code")
    assert optimizer_of(paper) == SGD(0.9, 5e-4, "2012", bias_lr=1, bias_decay=1) and (paper["batch"], paper["epochs"], paper["lr"]) == (128, 90, 0.01)
    assert optimizer_of(code) == SGD(0.9, 5e-4, "2012", bias_lr=2, bias_decay=0) and code["epochs"] == 91
    assert (input_of(paper).pca, input_of(code).pca, input_of(paper).mean, input_of(paper).side) == ("eigenvalue", "std", "image", 256)
    weights = {init: nets.build("paper", 10).initial(init, 0) for init in ("published", "2012-code")}
    assert weights["2012-code"]["conv4.weight"].std() == pytest.approx(0.03, rel=0.01) and weights["published"]["conv4.weight"].std() == pytest.approx(0.01, rel=0.01)
    for init in weights:
        assert (weights[init]["conv4.bias"] == 1).all() and (weights[init]["conv3.bias"] == 0).all() and weights[init]["fc6.weight"].std() == pytest.approx(0.01, rel=0.01)
    vision = input_of(settled("--recipe", "torchvision"))
    grey = np.array([0.485, 0.456, 0.406]) * 255
    np.testing.assert_allclose((grey - vision.mean) * vision.scale, 0, atol=1e-6)
    np.testing.assert_allclose((grey + 255 * np.array([0.229, 0.224, 0.225]) - vision.mean) * vision.scale, 1)


def test_options_beside_a_recipe_win():
    options = settled("--recipe", "keras", "--epochs", "3", "--optimizer", "sgd", "--augment", "rotation=5,flip=none", "--size", "112")
    assert (options["epochs"], options["optimizer"], options["lr"], options["size"]) == (3, "sgd", 0.001, 112)
    way = input_of(options)
    assert (way.rotation, way.flip, way.zoom, way.fit, way.side) == (5, "none", (0.8, 1.2), "squash", 112)
    assert input_of(settled("--recipe", "2012", "--size", "114")).side == round(114 * 256 / 227)
    assert input_of(settled("--recipe", "2012", "--size", "114", "--side", "120")).side == 120
    other = settled("--recipe", "small", "--net", "owt")
    assert (other["net"], other["size"], input_of(other).side) == ("owt", None, 256)      # the recipe's sizes were for its own net
    packed = SimpleNamespace(size=250, fit="crop")
    assert settings.input_of(settled("--recipe", "2012"), nets.build("paper", 10), packed).side == 250
    assert settled("--recipe", "2012", "--net", "half", "--size", "112")["size"] == 112 and not settled("--recipe", "keras", "--no-drop-last")["drop_last"]
    assert keras_has_none_of_sgds(options) is False and keras_has_none_of_sgds(settled("--recipe", "keras"))
    with pytest.raises(UserError, match="--momentum is for --optimizer sgd, Adam has no such thing here: leave it out"):
        settled("--recipe", "keras", "--momentum", "0.3")
    with pytest.raises(UserError, match="--init 2012-code is not for half"):
        nets.build("half", 3).initial("2012-code", 0)


def keras_has_none_of_sgds(options):
    return all(options[name] is None for name in ("momentum", "weight_decay", "form", "bias_lr", "bias_decay"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes told apart by colour: 13 + 7 pictures each, wider than high."""
    root = tmp_path_factory.mktemp("pictures")
    draw_classes(root, np.random.default_rng(6), 13, 7, width=120)
    return root


def test_the_keras_recipe_counts_steps_and_validation_as_keras_does(pictures, tmp_path, capsys, plain_report):
    out = tmp_path / "run"
    command = ["--recipe", "keras", "--data", str(pictures), "--size", "64", "--batch", "8", "--epochs", "2", "--out", str(out), "--device", "cpu"]
    assert train.main(command) == 0
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [4, 8]      # 39 // 8
    assert all(round(m["val_top1_whole_batches"] * 16, 6) % 1 == 0 and round(m["val_top1"] * 21, 6) % 1 == 0 for m in metrics)      # 21 // 8 * 8 images
    assert "as Keras counts" in capsys.readouterr().out
    kept = load(out / "last.safetensors")[1]
    assert {name.split()[0] for name in kept} == {"velocity", "square", "totals"} and (kept["square conv1.weight"] >= 0).all()
    assert RunFolder(out).config()["input"]["fit"] == "squash" and evaluate.main([str(out), "--data", str(pictures)]) == 0
    with pytest.raises(UserError, match="--batch 64: the 39 images of .* do not fill one, and --drop-last leaves out what is less"):
        train.main([*command[:-4], "--out", str(tmp_path / "other"), "--batch", "64"])


@pytest.mark.parametrize("recipe", [pytest.param("2012", marks=pytest.mark.slow), "2012-code"])
def test_a_mean_image_and_measured_colours_stay_with_the_run(pictures, tmp_path, recipe, capsys, plain_report):
    out = tmp_path / "run"
    options = ["--size", "67", "--batch", "16", "--device", "cpu", "--init", "he", "--lr", "0.0005", "--augment", "scale=1/58"]
    assert train.main(["--recipe", recipe, "--data", str(pictures), "--out", str(out), "--epochs", "2", *options]) == 0
    config, mean = RunFolder(out).config(), np.load(out / "mean.npy")
    side = config["input"]["side"]
    assert side == 76 and mean.shape == (side, side, 3) and np.abs(mean.mean((0, 1)) - config["input"]["colours"]["mean"]).max() < 0.01
    straight = load(out / "last.safetensors")
    again = tmp_path / "again"
    assert train.main(["--recipe", recipe, "--data", str(pictures), "--out", str(again), "--epochs", "1", *options]) == 0
    assert train.main(["--resume", str(again), "--epochs", "2"]) == 0
    assert all(same_bits(a, b) for a, b in zip(straight[:2], load(again / "last.safetensors")[:2]))
    capsys.readouterr()
    assert evaluate.main([str(out), "--data", str(pictures), "--json", str(tmp_path / "scores.json"), "--checkpoint", "last", "--device", "cpu"]) == 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((tmp_path / "scores.json").read_text())["loss"] == pytest.approx(last["val_loss"], rel=1e-5)
    (out / "mean.npy").unlink()
    with pytest.raises(UserError, match="mean.npy, the mean image that the net's input needs, cannot be read"):
        evaluate.main([str(out), "--data", str(pictures)])
