"""Run folders with files that are damaged, missing, or of something else."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from runs import arguments, assert_same_run, command, contents, copy_of, load, refused, replaced
from safetensors.numpy import load_file, save_file
from test_network import mini, network

from minialex import evaluate, predict, report, train
from minialex.errors import UserError
from minialex.run import checkpoint
from minialex.run.trainer import Trainer


def rewritten(path, change):
    """The bytes of a checkpoint whose tensors and metadata `change` has changed."""
    from safetensors import safe_open
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors, metadata = change(tensors, metadata)
    if metadata:
        metadata = metadata | {"crc32": checkpoint.checksum(tensors, metadata["minialex"], metadata["net"])}
    other = path.with_name("rewritten")
    save_file(tensors, other, metadata)
    data = other.read_bytes()
    other.unlink()
    return data


def flipped(data, place):
    data = bytearray(data)
    data[place] ^= 0x40
    return bytes(data)


DAMAGE = {
    "truncated": lambda path: path.read_bytes()[:len(path.read_bytes()) // 2],
    "last byte missing": lambda path: path.read_bytes()[:-1],
    "empty": lambda path: b"",
    "noise": lambda path: np.random.default_rng(0).bytes(10_000),
    "header": lambda path: flipped(path.read_bytes(), 40),
    "weights": lambda path: flipped(path.read_bytes(), -1_000_001),
    "of something else": lambda path: rewritten(path, lambda tensors, metadata: ({"x": np.zeros(3, np.float32)}, None)),
    "metadata": lambda path: rewritten(path, lambda tensors, metadata: (tensors, metadata | {"minialex": metadata["minialex"][:-9]})),
    "metadata of something else": lambda path: rewritten(path, lambda tensors, metadata: (tensors, metadata | {"minialex": "[1, 2]"})),
    "a tensor missing": lambda path: rewritten(path, lambda tensors, metadata: ({k: v for k, v in tensors.items() if k != "parameter fc8.bias"}, metadata)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(pictures, finished, tmp_path, capsys, damage):
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "last.safetensors", DAMAGE[damage](finished / "last.safetensors"))
    before = contents(out)
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out, "--epochs", "3")
    assert contents(out) == before
    assert f"{out / 'last.safetensors'} " in refused(capsys, evaluate.main, out, "--data", pictures, "--checkpoint", "last", "--device", "cpu")
    assert command(predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu") == 0      # of the best one


def test_a_flipped_bit_anywhere_in_the_header_is_seen(cpu, tmp_path):
    """Its keys come in another order each time, so that any of them may be hit."""
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, network(mini(), cpu, 4), {"epoch": 1})
    whole = path.read_bytes()
    for place in range(8, 8 + int.from_bytes(whole[:8], "little"), 3):
        path.write_bytes(flipped(whole, place))
        with pytest.raises(UserError, match="last.safetensors (is damaged|was not written by minialex)"):
            checkpoint.read(path)


def test_a_folder_in_the_place_of_a_checkpoint(finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "run")
    (out / "last.safetensors").unlink()
    (out / "last.safetensors").mkdir()
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out)


def test_the_best_checkpoint_in_the_place_of_the_last(finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "last.safetensors", (finished / "best.safetensors").read_bytes())
    assert "last.safetensors" in refused(capsys, train.main, "--resume", out)


def test_a_run_that_was_killed_before_it_saved_begins_anew(finished, tmp_path, capsys, plain_report):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    assert command(evaluate.main, out, "--data", "x") == 2
    capsys.readouterr()
    assert train.main(["--resume", str(out)]) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    assert_same_run(out, finished)


def test_a_best_checkpoint_of_a_run_that_was_killed_is_not_taken_for_that_of_a_new_run(pictures, finished, tmp_path, monkeypatch):
    """A kill between the first best checkpoint and the first last one leaves a folder in which a new run may begin."""
    out, step = tmp_path / "run", Trainer.step
    out.mkdir()
    for name in "config.json", "best.safetensors":
        os.link(finished / name, out / name)

    def stepped(run, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        step(run, batch)
    monkeypatch.setattr(Trainer, "step", stepped)
    assert train.main(arguments(pictures, out, "--seed", "1")) == 143
    assert not (out / "best.safetensors").exists() and load(out / "last.safetensors")[2]["step"] == 1
    assert command(evaluate.main, out, "--data", pictures, "--device", "cpu") == 0


def test_a_run_whose_checkpoint_was_lost_does_not_begin_anew(pictures, finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "run")
    (out / "last.safetensors").unlink()
    before = contents(out)
    assert f"{out / 'last.safetensors'} is missing" in refused(capsys, train.main, "--resume", out)
    assert f"{out} holds a run already" in refused(capsys, train.main, *arguments(pictures, out))
    assert contents(out) == before


def without(*keys):
    def change(config):
        inner = config
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return json.dumps(config).encode()
    return change


CONFIGS = {
    "empty": lambda config: b"", "half": lambda config: json.dumps(config).encode()[:200], "no text": lambda config: b"\xff\xfe\x00{",
    "a list": lambda config: b"[]", "null": lambda config: b"null",
    **{f"no {key}": without(key) for key in ("net", "size", "input", "classes", "threads", "options", "machine", "data")},
    "no label_smoothing": without("options", "label_smoothing"), "no data option": without("options", "data"), "no side": without("input", "side"),
    "classes of another kind": lambda config: json.dumps(config | {"classes": 3}).encode(),
    "an input of a later version": lambda config: json.dumps(config | {"input": config["input"] | {"gamma": 2}}).encode(),
    "an unknown net": lambda config: json.dumps(config | {"net": "resnet", "options": config["options"] | {"net": "resnet"}}).encode(),
    "layers of another kind": lambda config: json.dumps(config | {"net": "own", "layers": 5}).encode(),
    "a layer that is none": lambda config: json.dumps(config | {"net": "own", "layers": {"fc": {"op": "Conv9"}}}).encode(),
    "a net of other classes": lambda config: json.dumps(config | {"net": "own", "layers": {"fc": {"op": "Dense", "features": 2, "relu": False}}}).encode(),
    "another size of input": lambda config: json.dumps(config | {"input": config["input"] | {"size": 71}}).encode(),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_damaged_config(pictures, finished, tmp_path, capsys, change):
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "config.json", CONFIGS[change](json.loads((finished / "config.json").read_text())))
    before = contents(out)
    told = [refused(capsys, train.main, "--resume", out)]
    if "option" not in change and "smoothing" not in change:
        told += [refused(capsys, evaluate.main, out, "--data", pictures, "--device", "cpu"),
                 refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu"), refused(capsys, report.main, out, "--device", "cpu")]
    assert all(str(out / "config.json") in sentence or "unknown net 'resnet'" in sentence for sentence in told), told
    assert contents(out) == before


@pytest.fixture(scope="module")
def foreign(pictures, tmp_path_factory):
    """{what: a checkpoint that is not the run's}"""
    folder, found = tmp_path_factory.mktemp("foreign"), {}
    two = shutil.copytree(pictures, folder / "two")
    for split in "train", "val":
        shutil.rmtree(two / split / "red")
    for what, options in (("net", arguments(pictures, folder / "net", "--net", "owt")), ("classes", arguments(two, folder / "classes")),
                          ("optimizer", arguments(pictures, folder / "optimizer", "--optimizer", "adam"))):
        with train.begin(options) as begun:
            begun.begin_folder()
            begun.save()
        found[what] = folder / what / "last.safetensors"
    return found


@pytest.mark.parametrize("what", ["net", "classes", "optimizer"])
def test_a_checkpoint_of_another_run(pictures, finished, foreign, tmp_path, capsys, what):
    out = copy_of(finished, tmp_path / "run")
    for name in "last.safetensors", "best.safetensors":
        (out / name).unlink()
        os.link(foreign[what], out / name)
    before = contents(out)
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out, "--epochs", "3")
    if what != "optimizer":      # of which the weights fit
        assert f"{out / 'best.safetensors'} " in refused(capsys, evaluate.main, out, "--data", pictures, "--device", "cpu")
        assert f"{out / 'best.safetensors'} " in refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu")
        assert f"{out / 'best.safetensors'} " in refused(capsys, report.main, out, "--device", "cpu")
    assert contents(out) == before


def test_sgd_state_in_a_run_with_adam(pictures, finished, foreign, tmp_path, capsys):
    out = copy_of(foreign["optimizer"].parent, tmp_path / "run")
    replaced(out / "last.safetensors", (finished / "last.safetensors").read_bytes())
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out)


def test_nets_whose_arrays_are_alike_are_told_apart(finished, tmp_path):
    """paper and caffenet have parameters of the same names and shapes."""
    from minialex import nets
    from minialex.device import open_device
    from minialex.errors import UserError
    from minialex.network import Network
    device = open_device("cpu")[0]
    paper, caffenet = (Network(nets.build(name, 3, 67, fewer=16), device, 4) for name in ("paper", "caffenet"))
    checkpoint.save(tmp_path / "x.safetensors", paper, {}, optimizer=False)
    for name, array in paper.parameters.items():
        assert caffenet.parameters[name].shape == array.shape
    with pytest.raises(UserError, match="x.safetensors is not of the run.*it is of net paper, not caffenet"):
        checkpoint.restore(tmp_path / "x.safetensors", caffenet)


@pytest.mark.parametrize("damage", ["missing", "noise", "shape"])
def test_a_damaged_mean_image(pictures, tmp_path, capsys, damage):
    out = tmp_path / "run"
    with train.begin(arguments(pictures, out, "--augment", "mean=image")) as begun:
        begun.begin_folder()
        begun.save()
    (out / "mean.npy").unlink()
    if damage == "noise":
        (out / "mean.npy").write_bytes(b"noise")
    if damage == "shape":
        np.save(out / "mean.npy", np.zeros((3, 3, 3), np.float32))
    assert str(out / "mean.npy") in refused(capsys, train.main, "--resume", out)
    assert str(out / "mean.npy") in refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu")
