"""A folder of one's own photographs: what is left out of it is told and kept."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import arguments, copy_of, refused, replaced

import minialex
from minialex import evaluate, predict, train
from minialex.data import __main__ as data_command
from minialex.data.folder import open_data
from minialex.run.session import Session
from minialex.run.settings import OPTIONS, settle


def prepared(out=None, resume=None, **given):
    """(a session ready for its first step, what it has told)"""
    told = []
    with Session(*settle({**dict.fromkeys(OPTIONS), **given}, out, resume), tell=lambda *line: told.append(line)) as session:
        return session, told


def test_what_is_left_out_is_told_and_kept(own_pictures, tmp_path, capsys, plain_report):
    for name in "train/red/a.mov", "train/blue/b", "val/red/c.mov":
        (own_pictures / name).touch()
    (own_pictures / "train/red/up").symlink_to("..")
    out = tmp_path / "run"
    assert train.main([*arguments(own_pictures, out), "--epochs", "1"]) == 0
    told = capsys.readouterr().out
    lines = [f"2 other files in {own_pictures}/train were left out (.mov 1, no ending 1)",
             f"{own_pictures}/train/red/up was not followed: it leads up to {own_pictures}/train",
             f"1 other file in {own_pictures}/val was left out (.mov 1)"]
    assert [line for line in told.splitlines() if "other file" in line or "followed" in line] == lines
    config = json.loads((out / "config.json").read_text())
    assert {split: about["left_out"] for split, about in config["data"].items()} == {"train": {".mov": 1, "no ending": 1}, "val": {".mov": 1}}
    assert evaluate.main([str(out)]) == 0 and lines[2] in capsys.readouterr().out
    assert predict.main([str(out), str(own_pictures / "val")]) == 0, "what is no image is none that cannot be read"
    assert lines[2] in capsys.readouterr().err


def test_a_run_from_before_that_was_kept_goes_on(finished, own_pictures, tmp_path):
    out = copy_of(finished, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    for about in config["data"].values():
        del about["left_out"]
    replaced(out / "config.json", json.dumps(config).encode())
    (own_pictures / "train/red/new.mov").touch()
    _, told = prepared(resume=str(out), data=str(own_pictures), epochs=3)
    assert not [line for line in told if line[0] == "warning" and "moves the schedule" not in line[1]]


@pytest.fixture(scope="module")
def own(pictures, tmp_path_factory):
    """(class folders without splits, a run of one epoch on a quarter of them drawn, what it told)"""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(pictures / "train", root / "set", copy_function=os.link)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minialex.train.say", told.append)
        patch.setattr("minialex.run.page.write", lambda folder, *a, **k: (folder / "report.html").touch())
        assert train.main([*arguments(root / "set", root / "run"), "--epochs", "1", "--val-fraction", "0.25", "--seed", "3"]) == 0
    return root / "set", root / "run", told


def test_a_set_without_splits_is_drawn_from(own, tmp_path, capsys, plain_report):
    data, out, told = own
    first = [line for line in told if line.startswith(("train ", "val ", "split "))]
    assert first == ["split    --val-fraction 0.25: 9 of 37 images are drawn for validation, by seed 3 and their names, from each class",
                     f"train    28 images in 3 classes from {data}", f"val      9 images in 3 classes from {data}"]
    config = json.loads((out / "config.json").read_text())
    assert config["options"]["val_fraction"] == 0.25 and (config["data"]["train"]["images"], config["data"]["val"]["images"]) == (28, 9)
    _, val = open_data(data, seed=3, val_fraction=0.25)
    assert config["data"]["val"]["sha256"] == val.fingerprint()["sha256"]
    # The same pictures are scored, whatever the run is asked, and none that it was trained on.
    run = minialex.load(out)
    expected = [os.path.relpath(path, data) for path in val.paths]
    assert [image["path"] for image in run.evaluate().per_image] == expected
    with pytest.warns(UserWarning, match="is what the run was trained on: scored are the images that were drawn from it for validation"):
        assert [image["path"] for image in run.evaluate(data).per_image] == expected
    assert [split.fingerprint() for split in run.data()] == [split.fingerprint() for split in open_data(data, seed=3, val_fraction=0.25)]
    assert evaluate.main([str(out), "--json", str(tmp_path / "scores.json")]) == 0 and "of 9 images" in capsys.readouterr().out
    warned = []
    run.report(warn=warned.append)
    assert all("damaged.jpg" in sentence for sentence in warned)
    # Resumed, also from where the set has moved to, and packed.
    shutil.copytree(data, tmp_path / "moved", copy_function=os.link)
    for place in None, tmp_path / "moved":
        session, told = prepared(resume=str(out), data=None if place is None else str(place), epochs=2)
        assert session.options["val_fraction"] == 0.25 and session.config["data"] == config["data"]
        assert not [line for line in told if line[0] == "warning"]


def test_a_packed_set_is_drawn_from_alike(own, tmp_path, capsys):
    data, out, _ = own
    assert data_command.main(["pack", str(data), str(tmp_path / "packed"), "--size", "82"]) == 0
    options = {"size": 72, "side": 82, "device": "cpu", "seed": 3, "val_fraction": 0.25, "batch": 8}
    one, _ = prepared(str(tmp_path / "one"), data=str(data), **options)
    other, _ = prepared(str(tmp_path / "other"), data=str(tmp_path / "packed"), **options)
    assert one.config["data"]["val"] == other.config["data"]["val"]
    first, second = (next(iter(session.trainer.val.epoch(0))) for session in (one, other))
    np.testing.assert_array_equal(first.images, second.images)
    assert first.labels.tolist() == second.labels.tolist()


def test_the_usual_fraction_is_drawn_unasked(own, tmp_path):
    session, told = prepared(str(tmp_path / "run"), data=str(own[0]), size=72, device="cpu")
    assert session.options["val_fraction"] == 0.2 and any(line[0] == "split" and "--val-fraction 0.2: 7 of 37" in line[1] for line in told)
    for name in "red", "blue":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2 if name == "red" else 1):
            os.link(own[0] / name / f"0{i}.jpg", tmp_path / f"set/{name}/{i}.jpg")
    _, told = prepared(str(tmp_path / "other"), data=str(tmp_path / "set"), size=72, device="cpu", batch=1)
    assert any(line[0] == "split" and line[1].endswith("from each class but 1 that has one image") for line in told)


def test_a_run_that_was_drawn_for_goes_on_with_splits(own, pictures, tmp_path, plain_report):
    """The pictures have been sorted into train/ and val/ since."""
    out = copy_of(own[1], tmp_path / "run")
    session, told = prepared(resume=str(out), data=str(pictures), epochs=2)
    assert session.options["val_fraction"] is None and any("the image files are not those" in text for _, text in told)
    warned = []
    minialex.load(out).report(pictures, warn=warned.append)
    assert all("damaged.jpg" in sentence for sentence in warned)
    assert minialex.load(out).evaluate(pictures).images == 12


@pytest.mark.parametrize("options, words", [
    (["--data", "{own}", "--val-fraction", "0"], "--val-fraction 0.0: expected more than 0 and less than 1"),
    (["--data", "{own}", "--val-fraction", "1"], "--val-fraction 1.0: expected more than 0 and less than 1"),
    (["--data", "{pictures}", "--val-fraction", "0.5"], "--val-fraction 0.5: there is a validation set, {pictures}/val"),
    (["--train", "{own}", "--val-fraction", "0.5"], "give the two as --train X --val Y"),
    (["--val-fraction", "0.5"], "give a data folder"),
    (["--resume", "{run}", "--val-fraction", "0.5"], "--val-fraction cannot be given with --resume"),
])
def test_what_cannot_be_drawn(own, pictures, capsys, options, words):
    names = {"own": own[0], "run": own[1], "pictures": pictures}
    assert words.format(**names) in refused(capsys, train.main, *(option.format(**names) for option in options))


# Near-duplicates

def test_validation_images_that_are_in_training_are_told_and_named(own_pictures, tmp_path, capsys, plain_report):
    for name in "red/00.jpg", "blue/01.jpg":      # the second saved anew, and under a name that the run's folder has to bear
        with Image.open(own_pictures / "train" / name) as picture:
            picture.save(own_pictures / "val" / name.replace("0", "é"), quality=95)
    (own_pictures / "val/red/éé.jpg").write_bytes((own_pictures / "train/red/00.jpg").read_bytes())
    out = tmp_path / "run"
    assert train.main([*arguments(own_pictures, out), "--epochs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [place for place, line in enumerate(lines) if "2 of 14 validation images are also in training (near-duplicates.txt" in line]
    assert len(told) == 1 and told[0] < [line.startswith("epoch") for line in lines].index(True)
    named = [line for line in (out / "near-duplicates.txt").read_text().splitlines() if not line.startswith("#")]
    assert named == ["blue/é1.jpg", "red/éé.jpg"]
    assert evaluate.main([str(out), "--without", str(out / "near-duplicates.txt")]) == 0
    assert "of 12 images, 2 left out by" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["data"]["val"]["near_duplicates"] == 2
    session, told = prepared(resume=str(out), epochs=2)
    assert session.config["data"] == config["data"] and not [line for line in told if "duplicates" in line[1]]


def test_a_set_without_them_has_no_such_file(own, tmp_path, monkeypatch):
    data, run, _ = own
    assert json.loads((run / "config.json").read_text())["data"]["val"]["near_duplicates"] == 0 and not (run / "near-duplicates.txt").exists()
    monkeypatch.setattr("minialex.data.duplicates.MOST", 20)
    session, told = prepared(str(tmp_path / "run"), data=str(data), size=72, device="cpu")
    assert session.config["data"]["val"]["near_duplicates"] is None
    assert ("val", "of more than 20 images it is not looked whether some are also in training") in told


def test_the_built_in_set_is_not_searched(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("minialex.data.folder.default_set", lambda bar: str(pictures))
    monkeypatch.setattr("minialex.data.duplicates.near_duplicates", None)
    session, _ = prepared(str(tmp_path / "run"), size=72, device="cpu")
    assert session.config["data"]["val"]["near_duplicates"] is None and len(session.trainer.train.folder) == 37


def test_from_python(own, tmp_path, plain_report):
    data, out, _ = own
    options = dict(size=72, batch=8, epochs=1, lr=0.002, device="cpu", seed=3, progress=False)
    with pytest.warns(UserWarning):
        run = minialex.fit(data, val_fraction=0.25, out=tmp_path / "run", **options)
    assert run.config["data"] == json.loads((out / "config.json").read_text())["data"]
    with pytest.raises(minialex.UserError, match="^val_fraction 1.5: expected more than 0 and less than 1"):
        minialex.fit(data, val_fraction=1.5)
