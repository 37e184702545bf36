"""A folder of one's own photographs: what is left out of it is told and kept."""

import json

from runs import arguments, copy_of, replaced

from minialex import evaluate, predict, train
from minialex.run.session import Session
from minialex.run.settings import OPTIONS, settle


def prepared(out=None, resume=None, **given):
    """(a session ready for its first step, what it has told)"""
    told = []
    with Session(*settle({**dict.fromkeys(OPTIONS), **given}, out, resume), tell=lambda *line: told.append(line)) as session:
        return session, told


def test_what_is_left_out_is_told_and_kept(own_pictures, finished, tmp_path, capsys, plain_report):
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
    assert not [line for line in told if line[0] == "warning"]
