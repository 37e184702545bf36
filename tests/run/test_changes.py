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
from minialex.run import session
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
