"""Options and data that make no sense: one sentence and code 2."""

import json
import shlex
import shutil

import pytest
from runs import arguments, command, copy_of, refused, timeless

from minialex import train
from minialex.data import __main__ as data_command


@pytest.mark.parametrize("options, words", [
    (["--threads", "0"], "--threads 0: expected at least 1"),
    (["--batch", "0"], "--batch 0: expected at least 1"),
    (["--batch", "64", "--drop-last"], "--batch 64: the 37 images of {pictures}/train do not fill one"),
    (["--side", "60"], "--side 60: pictures must be decoded at no less than the input's 72 pixels"),
    (["--label-smoothing", "1"], "--label-smoothing 1.0: expected 0 up to below 1"),
    (["--lr", "nan"], "--lr nan: expected a number"),
    (["--momentum", "1"], "--momentum 1.0"),
    (["--init", "2012-code"], "--init 2012-code is not for half: choose he or published"),
    (["--augment", "blur=3"], "--augment blur=3: the keys are"),
    (["--augment", "rotation=x"], "--augment rotation=x: expected a number"),
    (["--augment", "nonsense"], "--augment nonsense: the keys are"),
    (["--augment", "crop=left"], "--augment crop=left: expected random, resized or centre"),
    (["--schedule", "plateau:0"], "--schedule 'plateau:0': expected"),
    (["--schedule", "step"], "--schedule 'step': expected"),
    (["--schedule", "cosine,warmup:x"], "--schedule 'cosine,warmup:x': expected"),
    (["--schedule", "multistep:10:5"], "--schedule 'multistep:10:5': expected"),
    (["--schedule", "multistep:5:5"], "--schedule 'multistep:5:5': expected"),
    (["--schedule", "cosine,warmup:3"], "--schedule cosine,warmup:3: its warm-up is longer than the run's 2 epochs"),
    (["--workspace-mb", "nan"], "--workspace-mb nan: expected a number"),
    (["--workspace-mb", "-1"], "--workspace-mb -1.0: expected megabytes, more than 0"),
    (["--data", "{data}/packed"], "{data}/packed/train is packed at 80 pixels as crop, but 82 pixels as crop are asked for"),
    (["--data", "{data}/packed", "--fit", "squash", "--side", "80"], "80 pixels as squash are asked for"),
    (["--data", "{data}/empty"], "{data}/empty does not hold the two splits"),
    (["--data", "{data}/neither"], "{data}/neither does not hold the two splits"),
    (["--data", "{data}/one"], "{data}/one/train has only one class, red"),
    (["--data", "{data}/hollow"], "class folder pink of {data}/hollow/train holds no images"),
    (["--data", "{data}/list"], "{data}/list/train.txt, line 2: expected the path of an image, a space and a label"),
    (["--data", "{data}/file"], "{data}/file is not a folder"),
    (["--train", "{pictures}/train"], "both a training and a validation folder"),
    (["--resume", "{finished}"], "--out cannot be given with --resume"),
    (["--data", ""], "--data is empty"),
    (["--out", "{finished}"], "{finished} holds a run already: continue it with --resume {finished}"),
])
def test_mistakes(pictures, finished, places, tmp_path, capsys, options, words):
    names = {"pictures": pictures, "finished": finished, "data": places}
    options = [option.format(**names) for option in options]
    base = arguments(pictures, tmp_path / "run")
    if options[0] in ("--data", "--train"):
        base = base[2:]
    if options[0] == "--data" and "packed" in options[1] and "--side" not in options:
        options += ["--side", "82"]
    assert words.format(**names) in refused(capsys, train.main, *base, *options)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def places(pictures, finished, tmp_path_factory):
    """Data sets that are not as they should be."""
    root = tmp_path_factory.mktemp("places")
    assert data_command.main(["pack", str(pictures), str(root / "packed"), "--size", "80"]) == 0
    (root / "empty").mkdir()
    (root / "neither/red").mkdir(parents=True)
    shutil.copytree(pictures, root / "one")
    shutil.copytree(pictures, root / "hollow")
    for split in "train", "val":
        for name in "green", "blue":
            shutil.rmtree(root / "one" / split / name)
        (root / "hollow" / split / "pink").mkdir()
    (root / "list").mkdir()
    for split in "train", "val":
        (root / "list" / f"{split}.txt").write_text(f"{pictures}/{split}/red/00.jpg red\n{pictures}/{split}/blue/00.jpg\n")
    (root / "file").write_text("x")
    shutil.copytree(finished, root / "unsaved", ignore=shutil.ignore_patterns("*.safetensors", ".lock"))
    return root


def test_a_packed_set_is_taken_at_its_own_size(places, tmp_path, plain_report):
    assert train.main([*arguments(places / "packed", tmp_path / "run", "--epochs", "1")]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["input"]["side"] == 80


def test_a_batch_larger_than_the_set_is_the_whole_set(pictures, tmp_path, plain_report):
    assert train.main(arguments(pictures, tmp_path / "run", "--batch", "64")) == 0
    assert [epoch["step"] for epoch in timeless(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("name, options", [
    ("train", ["--data", "nowhere"]), ("train", ["--train", "{pictures}/train", "--val", "nowhere"]), ("train", ["--out", "{data}/file/run"]),
    ("train", ["--resume", "{finished}", "--data", "nowhere"]), ("evaluate", ["nowhere"]), ("evaluate", ["{finished}", "--data", "nowhere"]),
    ("evaluate", ["{data}/unsaved", "--data", "{pictures}"]), ("predict", ["{data}/unsaved", "{pictures}/val"]), ("predict", ["{finished}", "nowhere.jpg"]),
    ("report", ["{finished}", "--data", "nowhere"]), ("report", ["{data}/unsaved"])])
def test_a_wrong_path_is_told_before_anything_is_compiled(pictures, finished, places, capsys, monkeypatch, name, options):
    """No device is opened before it."""
    import minialex.run.run as run_module
    from minialex import evaluate, predict, report
    from minialex.run import session
    for module in session, run_module:
        monkeypatch.setattr(module, "open_device", lambda *a, **k: pytest.fail("a device was opened"))
    given = [option.format(pictures=pictures, finished=finished, data=places) for option in options]
    told = refused(capsys, {"train": train, "evaluate": evaluate, "predict": predict, "report": report}[name].main, *given)
    assert any(word in told for word in ("nowhere", f"{places}/file/run", "last.safetensors")), told


@pytest.mark.parametrize("options", [["--recipe", "nonsense"], ["--net", "resnet"], ["--epochs", "many"], ["--out"]])
def test_what_argparse_refuses(capsys, options):
    assert command(train.main, *options) == 2
    told = capsys.readouterr().err
    assert "usage: python -m minialex.train" in told and "error: argument" in told


def test_a_command_that_a_sentence_names_can_be_pasted(finished, tmp_path, capsys):
    out = copy_of(finished, tmp_path / "it's a run")
    quoted = shlex.split(refused(capsys, train.main, "--out", out).split("continue it with ")[1].split(", or")[0])
    assert quoted == ["--resume", str(out)]
