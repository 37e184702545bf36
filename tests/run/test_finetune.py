"""Training that begins with weights of another run or of a file: what is taken, what is drawn anew, what stays, and that resuming repeats it."""

import json
import shutil

import numpy as np
import pytest
from runs import arguments, assert_same_run, load, refused, stopped

import minialex
from minialex import evaluate, train
from minialex.run import weights
from minialex.run.folder import RunFolder
from minialex.run.settings import NEUTRAL

ASKED = "--epochs", "1", "--freeze", "conv1,conv2", "--lr-of", "fc8=10,fc7=0.5", "--average", "0.9"


@pytest.fixture
def two_classes(own_pictures):
    """The pictures without one class."""
    for split in "train", "val":
        shutil.rmtree(own_pictures / split / "green")
    return own_pictures


def beginning(pictures, out, init, *more):
    return [word for word in arguments(pictures, out, "--init", str(init), *more) if word not in ("--size", "72")]


def test_a_run_begins_with_anothers_weights_and_resumes_bit_for_bit(finished, two_classes, tmp_path, capsys, plain_report):
    out, again = tmp_path / "run", tmp_path / "again"
    assert train.main(beginning(two_classes, out, finished, *ASKED)) == 0
    said = capsys.readouterr().out
    assert f"init     weights of {finished}; fc8 is drawn anew, for 2 classes instead of 3" in said and "; frozen: conv1, conv2" in said
    config, first, last = RunFolder(out).config(), load(finished / "best.safetensors")[0], load(out / "last.safetensors")[0]
    assert (config["net"], config["size"], config["classes"]) == ("half", 72, ["blue", "red"]) and "layers" not in config      # as it was, though the default is another
    assert {name: config["options"][name] for name in ("init", "freeze", "lr_of")} == {"init": str(finished), "freeze": "conv1,conv2", "lr_of": "fc8=10,fc7=0.5"}
    for name, value in last.items():
        layer = name.split(".")[0]
        assert (layer == "fc8" or np.array_equal(value, first[name])) == (layer in ("conv1", "conv2", "fc8")), name
    assert last["fc8.weight"].shape == (2048, 2)
    stopped(beginning(two_classes, again, finished, *ASKED), 2)
    assert train.main(["--resume", str(again)]) == 0
    assert_same_run(again, out)
    assert evaluate.main([str(out), "--device", "cpu"]) == 0 and "layers" not in RunFolder(again).config()


def test_the_first_weights_are_those_of_the_run(finished, pictures, own_pictures, tmp_path, capsys, plain_report):
    """With the same classes its classifier too, so that a learning rate of 0 leaves its accuracy; with classes of other names that is drawn anew."""
    with pytest.warns(UserWarning, match="nothing is learnt yet"):
        run = minialex.fit(pictures, init=finished, lr=0.0, epochs=1, batch=8, device="cpu", progress=False, out=tmp_path / "run", schedule="constant")
    best = minialex.load(finished, device="cpu")
    assert all(np.array_equal(run.network.weights()[name], value) for name, value in best.network.weights().items())
    assert run.history["val_loss"][0] == pytest.approx(best.history.best["val_loss"], rel=1e-4)
    (own_pictures / "train/blue").rename(own_pictures / "train/azure"), (own_pictures / "val/blue").rename(own_pictures / "val/azure")
    capsys.readouterr()
    assert train.main([*beginning(own_pictures, tmp_path / "other", finished), "--dry-run"]) == 0
    assert "; fc8 is drawn anew, since the classes have other names" in capsys.readouterr().out


def test_a_files_weights_bring_their_net_mean_and_scale(pictures, tmp_path, capsys):
    """Converted or not; options beside them win."""
    net = minialex.nets.build("owt", 5, 72, fewer=16)
    random = np.random.default_rng(0)
    values = {name: (0.1 * random.standard_normal(shape)).astype(np.float32) for name, shape in net.parameters().items()}
    mean = np.random.default_rng(0).uniform(90, 130, (80, 80, 3)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    minialex.convert({name: weights.outside(value, net.inputs[name.split(".")[0]]) for name, value in values.items()}, tmp_path / "kept", net=net, mean=tmp_path / "mean.npy")
    words = ["--data", str(pictures), "--init", str(tmp_path / "kept"), "--device", "cpu", "--batch", "8"]
    session = train.begin([*words, "--dry-run"])
    assert session.config["net"] == "owt" and session.config["layers"]["fc6"]["features"] == 256 and session.config["size"] == 72
    assert session.input.side == 80 and session.input.scale == (1 / 58.395, 1 / 57.12, 1 / 57.375) and np.allclose(session.input.mean, mean.mean((0, 1)), atol=1e-3)
    network = session.trainer.network
    assert all(np.array_equal(network.device.to_numpy(network.parameters[name]), value) for name, value in values.items() if not name.startswith("fc8."))
    assert train.begin([*words, "--dry-run", "--augment", "mean=1:2:3,flip=none"]).input.mean == (1, 2, 3)
    told = refused(capsys, train.main, *words, "--size", "104", "--out", tmp_path / "x")
    assert "its weights, of owt at 72x72, are not those of owt at 104x104: its fc6.weight has shape" in told and not (tmp_path / "x").exists()
    assert "has the weights of owt; leave --net out" in refused(capsys, train.main, *words, "--net", "half")
    assert "owt has no layer conv9 with weights" in refused(capsys, train.main, *words, "--freeze", "conv9")


@pytest.mark.parametrize("asked, words", [
    (["--init", "nowhere"], "--init nowhere: choose he, published, 2012-code, or name a run folder or a file of weights; there is none of this name"),
    (["--recipe", "finetune"], "--recipe finetune begins with the weights of a run or a file: name it with --init RUN or --init FILE"),
    (["--lr-of", "fc8"], "--lr-of fc8: expected LAYER=FACTOR, such as fc8=10"), (["--lr-of", "fc8=-1"], "--lr-of fc8=-1: expected"), (["--lr-of", "fc8=nan"], "--lr-of fc8=nan: expected"),
    (["--freeze", "fc8", "--lr-of", "fc8=2"], "--freeze fc8 and --lr-of fc8=2: a frozen layer has no learning rate, so leave one out")])
def test_mistakes_are_one_sentence(pictures, tmp_path, capsys, asked, words):
    assert words in refused(capsys, train.main, *arguments(pictures, tmp_path / "run", *asked)) and not (tmp_path / "run").exists()
