"""Pictures that are added, removed or renamed between runs and while one is under way."""

import json
import os
import shutil
import signal
from functools import partial

import pytest
from runs import arguments, contents, copy_of, load, refused, replaced, timeless

import minialex
from minialex import UserError, evaluate, train
from minialex.data.loader import Loader
from minialex.device import open_device
from minialex.run import checkpoint, session
from minialex.run.folder import RunFolder, net_of
from minialex.run.trainer import Trainer


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_images_that_change_between_runs(finished, own_pictures, tmp_path, capsys, plain_report, change):
    out, image = copy_of(finished, tmp_path / "run"), own_pictures / "train/red/03.jpg"
    {"added": lambda: os.link(image, image.with_name("30.jpg")), "removed": image.unlink, "renamed": lambda: image.rename(image.with_name("3.jpg"))}[change]()
    assert train.main(["--resume", str(out), "--data", str(own_pictures), "--epochs", "3"]) == 0
    assert "warning: the image files are not those that the run was started with" in capsys.readouterr().out
    assert len(timeless(out)) == 3


def test_most_images_removed_while_a_run_rests(own_pictures, tmp_path, capsys, monkeypatch, plain_report):
    out, step = tmp_path / "run", Trainer.step

    def stepped(run, batch):
        step(run, batch)
        if run.state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stepped)
        assert train.main(arguments(own_pictures, out)) == 143
    for image in own_pictures.glob("train/*/*[1-9].jpg"):
        image.unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert "warning: the image files are not" in capsys.readouterr().out and len(timeless(out)) == 2


def test_a_class_that_is_added_is_refused(finished, own_pictures, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)
    for split in "train", "val":
        shutil.copytree(own_pictures / split / "red", own_pictures / split / "crimson")
    assert f"the classes of {own_pictures} are not those of the run in {out}" in refused(capsys, train.main, "--resume", out, "--data", own_pictures)
    assert contents(out) == before


def test_a_class_whose_name_is_stored_in_another_way(finished, own_pictures, tmp_path, capsys):
    """As a disk of macOS gives an accent back: apart from its letter."""
    out = copy_of(finished, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    config["classes"][2] = "ré"
    replaced(out / "config.json", json.dumps(config).encode())
    for split in "train", "val":
        (own_pictures / split / "red").rename(own_pictures / split / "re\u0301")
    twins = "'r\\xe9' and 're\\u0301' differ in Unicode normalisation alone, so rename one of them"
    assert twins in refused(capsys, train.main, "--resume", out, "--data", own_pictures)
    assert twins in refused(capsys, evaluate.main, out, "--data", own_pictures)
    with pytest.raises(UserError, match="normalisation alone"):
        minialex.load(out, device="cpu").report(own_pictures)


def test_data_that_is_gone(finished, own_pictures, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)
    shutil.rmtree(own_pictures)
    assert f"there is no folder {own_pictures}" in refused(capsys, train.main, "--resume", out, "--data", own_pictures)
    assert contents(out) == before


@pytest.mark.parametrize("which, cached, ends", [("train/red/0[0-3].jpg", True, True), ("train/red/*.jpg", True, True), ("train/*/*.jpg", True, True),
                                                 ("train/*/*.jpg", False, False), ("val/*/*.jpg", True, False)])
def test_images_that_are_deleted_during_an_epoch(own_pictures, tmp_path, capsys, monkeypatch, plain_report, which, cached, ends):
    out, step = tmp_path / "run", Trainer.step

    def stepped(run, batch):
        step(run, batch)
        if run.state["step"] == 2:
            for image in own_pictures.glob(which):
                image.unlink()
    monkeypatch.setattr(Trainer, "step", stepped)
    monkeypatch.setattr(session, "SAVE_EVERY", 0)
    monkeypatch.setattr(session, "Loader", partial(Loader, cache_mb=1024 if cached else 0))
    options = arguments(own_pictures, out, "--batch", "4")
    if ends:
        assert train.main(options) == 0
        assert len(timeless(out)) == 2 and (which.count("*") < 2 or "skipped" in capsys.readouterr().out)
    else:
        assert "images can be read" in refused(capsys, train.main, *options)
        assert load(out / "last.safetensors")[2]["step"] >= 1


def test_more_epochs_on_a_cosine_are_told_with_both_rates(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    for epochs, told in (2, False), (20, True):
        out = copy_of(finished, tmp_path / str(epochs))
        train.main(["--resume", str(out), "--epochs", str(epochs)])
        lines = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
        assert lines == ["warning: --epochs 20 instead of 2 moves the schedule cosine,warmup:1: the learning rate was 0.00019 in the last step, "
                         "and is 0.002 in the next"] * told


@pytest.mark.parametrize("given, used", [(None, 2), (64, 64)])
def test_a_run_of_many_threads_on_a_machine_of_few_cores(finished, tmp_path, capsys, monkeypatch, given, used):
    """It takes the cores that there are and says so, unless it is told to keep its threads; with as many cores it keeps them without a word."""
    config = RunFolder(finished).config()
    for there, had, expected in (2, 64, used), (64, 2, given or 2):
        out = copy_of(finished, tmp_path / str(there))
        replaced(out / "config.json", json.dumps(config | {"threads": had}).encode())
        opened = []

        def opening(name, threads, announce):
            opened.append(threads or there)
            device = open_device("numpy")[0]
            device.threads = opened[-1]
            return device, "here"
        monkeypatch.setattr(session, "cores", lambda: there)
        monkeypatch.setattr(session, "open_device", opening)
        monkeypatch.setattr(session.Session, "load", lambda *a: None)
        train.begin(["--resume", str(out), *(["--threads", str(given)] if given else [])])
        told = f"started with {had} threads, now there are {expected}: it continues, but not bit for bit; --threads {had} keeps to them"
        assert opened == [expected] and (told in capsys.readouterr().out) == (had != expected)


def test_equal_content_gives_equal_bytes(finished):
    """Those that safetensors' own writer gives, whose order changes from call to call."""
    from safetensors.numpy import load_file, save
    arrays, about = load_file(finished / "last.safetensors"), {name: name for name in "abcdefgh"}
    arrays = {name: array for name, array in arrays.items() if array.size < 10000}
    ours = checkpoint.to_bytes(arrays, about)
    assert "totals" in arrays and checkpoint.to_bytes(dict(reversed(arrays.items())), about) == ours
    assert sorted(ours) == sorted(save(arrays, about)) and len({save(arrays, about) for _ in range(5)}) > 1


def test_a_run_of_paper_from_before_its_norm_had_towers_keeps_it(finished):
    config = json.loads((finished / "config.json").read_text()) | {"net": "paper", "size": 67}
    for version, groups in (("0.1.0", 1), ("0.2.0", 2)):
        net = net_of(config | {"machine": {**config["machine"], "minialex": version}})
        assert [net.layers[name].groups for name in ("norm1", "norm2")] == [groups] * 2 and net.name == "paper"
