"""What a run may be asked for besides: an early end, a clipped norm, weights of classes, TensorBoard's file, a dry run, the list of recipes."""

import json
import sys

import numpy as np
import pytest
from runs import arguments, assert_same_run, copy_of, left_behind, load, refused, same_bits, stopped

import minialex
from minialex import train
from minialex.data.augment import Input
from minialex.data.folder import open_data
from minialex.data.loader import Loader
from minialex.network import Network
from minialex.progress import on_terminal, silent
from minialex.run import board
from minialex.run.folder import RunFolder
from minialex.run.recipes import RECIPES
from minialex.run.scores import validate
from minialex.run.session import balanced
from minialex.run.settings import NEUTRAL

STILL = "--lr", "0", "--schedule", "constant", "--init", "published", "--epochs", "9"      # nothing is learnt


def test_early_stop_ends_the_run_which_can_go_on_when_told(pictures, tmp_path, capsys, plain_report):
    """And what is said of a run that only guesses is said once, resumed or not, and after the warm-up."""
    out, again = tmp_path / "run", ["--resume", str(tmp_path / "run")]
    stopped(arguments(pictures, out, *STILL, "--early-stop", "2"), 12)      # in the third epoch
    assert train.main(again) == 0
    said = capsys.readouterr().out
    metrics = RunFolder(out).metrics()
    assert len(metrics) == 3 and len({m["val_top1"] for m in metrics}) == 1      # the first is the best, and two come after it
    assert said.count("nothing is learnt yet") == 1 and "0.98 ln(3) = 1.077" in said and "try --init he" in said
    assert said.count("the run ends after 3 of 9") == 1 and "since 33.3% of epoch 1" in said and "done " in said
    assert train.main([*again, "--epochs", "12"]) == 0
    assert "has stopped early" in (said := capsys.readouterr().out) and "--early-stop, or 0 for none" in said and len(RunFolder(out).metrics()) == 3
    assert train.main([*again, "--early-stop", "3"]) == 0
    said = capsys.readouterr().out
    assert len(RunFolder(out).metrics()) == 4 and "nothing is learnt" not in said and "the run ends after 4 of 12" in said
    assert json.loads((out / "config.json").read_text())["options"]["early_stop"] == 3


def test_nothing_is_said_of_guessing_in_the_warm_up(pictures, tmp_path, capsys, plain_report):
    assert train.main(arguments(pictures, tmp_path / "run", *STILL[:2], "--init", "published", "--epochs", "1")) == 0      # one epoch of warm-up
    assert "nothing is learnt" not in capsys.readouterr().out


def test_all_of_it_is_resumed_bit_for_bit(pictures, own_pictures, finished, tmp_path, plain_report):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: its file is not looked at")
    for i in range(7):
        (own_pictures / f"train/blue/{i:02}.jpg").unlink()
    asked = ["--clip-norm", "0.5", "--class-weights", "balanced", "--early-stop", "2", "--log", "tensorboard", "--average", "0.9"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    run = minialex.fit(own_pictures, out=whole, size=72, batch=8, epochs=2, lr=0.002, device="cpu", progress=False, clip_norm=0.5, class_weights="balanced", average=0.9,
                       early_stop=2, log="tensorboard")
    assert {name: run.config["options"][name] for name in NEUTRAL} == {"val_fraction": None, "clip_norm": 0.5, "class_weights": "balanced", "early_stop": 2, "log": "tensorboard", "average": 0.9, "precision": "float32", "freeze": None, "lr_of": None, "parts": 1, "towers": 1}
    stopped(arguments(own_pictures, out, *asked), 6)      # in the second epoch
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, whole)
    for folder in out, whole:
        seen = scalars(folder)
        assert seen == {tag: [(m["epoch"], np.float32(m[key])) for m in RunFolder(folder).metrics()] for tag, key in board.SCALARS.items()}
    for name in "--clip-norm", "--class-weights":      # and each of them does something
        plain = tmp_path / name[2:]
        train.main(arguments(own_pictures, plain, *asked[2 * (name == "--clip-norm"):][:2]))
        assert not same_bits(load(plain / "last.safetensors")[0], load(out / "last.safetensors")[0])


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboards_file_is_taken_up_where_it_ends(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: its file is not looked at")
    metrics = [{"epoch": i + 1, **{key: 1.0 / (i + 1) for key in board.SCALARS.values()}} for i in range(4)]
    right = {tag: [(m["epoch"], np.float32(m[key])) for m in metrics] for tag, key in board.SCALARS.items()}
    for i in range(5):
        board.write(tmp_path, metrics[:i])
        board.write(tmp_path, metrics[:i])      # again: nothing is doubled
    whole = (tmp_path / board.NAME).read_bytes()
    assert scalars(tmp_path) == right and not left_behind(tmp_path)
    for cut in 1, 13, 60, len(whole) - 5:      # a kill while it is written, even the first time
        (tmp_path / board.NAME).write_bytes(whole[:-cut])
        board.write(tmp_path, metrics)
        assert scalars(tmp_path) == right
    (tmp_path / board.NAME).write_bytes(whole[:-9] + b"damaged!!")
    board.write(tmp_path, metrics)
    assert scalars(tmp_path) == right
    board.write(tmp_path, metrics[:2])      # of a run that was set back
    assert scalars(tmp_path) == {tag: values[:2] for tag, values in right.items()}


def test_without_tensorboard_there_is_one_sentence(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    told = refused(capsys, train.main, *arguments(pictures, tmp_path / "run", "--log", "tensorboard"))
    assert "--log tensorboard needs the package tensorboard" in told and "pip install 'minialex[tensorboard]'" in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked, words", [
    (["--clip-norm", "0"], "--clip-norm 0.0: expected a number above 0"), (["--clip-norm", "nan"], "--clip-norm nan"),
    (["--early-stop", "-1"], "--early-stop -1: expected at least 0"), (["--dry-run", "--resume", "somewhere"], "--dry-run cannot be given with --resume")])
def test_mistakes_are_one_sentence(pictures, tmp_path, capsys, asked, words):
    assert words in refused(capsys, train.main, *(asked if "--resume" in asked else arguments(pictures, tmp_path / "run", *asked)))


def test_in_python_they_are_refused_by_name(pictures):
    for name, value, words in ("class_weights", "even", "class_weights even: choose one of none, balanced"), ("early_stop", 1.5, "early_stop 1.5: expected an integer"):
        with pytest.raises(minialex.UserError, match=words):
            minialex.fit(pictures, progress=False, **{name: value})


def test_a_run_from_before_these_options_goes_on_as_it_was(finished, tmp_path, plain_report):
    out = copy_of(finished, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    for name, value in NEUTRAL.items():
        assert config["options"].pop(name) == value      # those of a run that asks for none of them
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps(config))
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, finished)
    assert json.loads((out / "config.json").read_text()) == json.loads((finished / "config.json").read_text())


@pytest.mark.parametrize("labels, classes", [([0] * 7 + [1] * 2 + [2], 3), ([0, 1, 1], 2), ([3, 3, 0, 1], 5)])
def test_balanced_weights_are_scikit_learns(labels, classes):
    from sklearn.utils.class_weight import compute_class_weight
    there, weights = np.unique(labels), balanced(np.array(labels), classes)
    np.testing.assert_allclose(weights[there], compute_class_weight("balanced", classes=there, y=labels), rtol=1e-12)
    assert weights[labels].mean() == pytest.approx(1) and (np.delete(weights, there) == 1).all()


def test_a_dry_run_tries_one_step_and_keeps_nothing(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in [], ["--out", "here"]:
        assert train.main(["--data", str(pictures), "--size", "72", "--batch", "8", "--device", "cpu", "--class-weights", "balanced", *out, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "37 images in 3 classes" in said and "a step of 8 takes" in said and "step     8 images in" in said and "an epoch has 5 steps" in said
        assert "0.949 of class red, 1.03 of class blue" in said and not list(tmp_path.iterdir())


def test_the_recipes_are_listed_with_all_their_values(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--list-recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and max(map(len, lines)) < 150
    names = lines[0].split()
    starts = [lines[0].index(f" {name}") + 1 for name in names] + [200]
    assert names == ["default", *RECIPES]
    for recipe, options in RECIPES.items():
        start, end = (starts[names.index(recipe) + i] for i in (0, 1))
        shown = {line.split()[0]: line[start:end].strip() for line in lines[1:-2] if line[start:end].strip()}
        wanted = {name.replace("_", "-"): str(value) for name, value in options.items() if name != "augment"}
        assert shown == wanted | dict(part.split("=") for part in options["augment"].split(","))


def test_a_validation_has_a_bar_where_there_is_a_terminal(pictures, tmp_path, cpu):
    begun = train.begin(arguments(pictures, tmp_path / "run"))
    begun.folder.release()
    assert begun.trainer.bar is on_terminal
    _, val = open_data(pictures)
    network, told = Network(minialex.nets.build("half", 3, 72), cpu, 8, input=Input(72, 72), training=False), []

    def bar(**about):
        told.append(about)
        return silent(**about)
    validate(network, Loader(val, 72, 8, shuffle=False), bar=bar)
    [about] = told
    assert (about["total"], about["desc"]) == (2, "validation")
