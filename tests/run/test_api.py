"""The Python API as its users call it: fit, load, predict, evaluate, a net of one's own, and what commands do with the same run."""

import gc
import json
import os
import re
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image
from runs import arguments, assert_same_run, copy_of, timeless
from runs import load as read

import minialex
import minialex.run.session
import minialex.run.settings
from minialex import evaluate, predict, train
from minialex.run import advice
from minialex.run.folder import RunFolder

SMALL = {"size": 72, "batch": 8, "epochs": 2, "lr": 0.002, "device": "cpu", "progress": False}      # as runs.arguments


def test_fit_trains_what_the_command_trains(pictures, finished, tmp_path, capsys, plain_report):
    epochs = []
    with pytest.warns(UserWarning) as warned:
        run = minialex.fit(pictures, out=tmp_path / "run", on_epoch=epochs.append, **SMALL)
    assert_same_run(run.folder, finished)
    assert capsys.readouterr() == ("", "")
    texts = [str(warning.message) for warning in warned]
    assert sum("damaged.jpg" in text for text in texts) == 1 and "left out 1 unreadable training images and 0 validation images" in texts
    assert run.folder == tmp_path / "run" and run.classes == ["blue", "green", "red"] and (run.folder / "report.html").exists()
    assert run.history == epochs == RunFolder(run.folder).metrics() and run.history["epoch"] == [1, 2]
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (run.folder, finished))
    assert ours.pop("began") >= theirs.pop("began") and ours == theirs


def test_a_prediction_by_hand_is_that_of_the_command(pictures, finished, capsys):
    """Prepared by the one public function, and looked at by the network itself."""
    run, file = minialex.load(finished, device="cpu"), pictures / "val/red/01.jpg"
    [found] = run.predict([file])
    assert predict.main([str(finished), str(file), "--device", "cpu"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(name, f"{p:.2%}") for name, p in found] == [(name, share) for share, name in said]
    images = run.input.prepare([file])
    assert (images == minialex.picture(file, run.input.side, run.input.fit)).all() and images.dtype == np.uint8
    run.network.evaluate(images, np.zeros(1, np.int32), run.input.centre(1))
    by_hand = run.network.probabilities(1)[0]
    assert [run.classes[k] for k in np.argsort(-by_hand)] == [name for name, _ in found]
    np.testing.assert_allclose(np.sort(by_hand)[::-1], [p for _, p in found], rtol=1e-5)


def test_pictures_of_any_kind(pictures, finished):
    run, path = minialex.load(finished, device="cpu"), str(pictures / "val/red/00.jpg")
    image = Image.open(path)
    array = np.asarray(image)
    found = run.predict([path, image, array, array[..., 0], np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])], top=2)
    assert [len(likely) for likely in found] == [2] * 5 and all(type(p) is float and 0 <= p <= 1 for likely in found for _, p in likely)
    assert [name for name, _ in found[1]] == [name for name, _ in found[2]] and found[0][0][0] == found[1][0][0]
    np.testing.assert_allclose([p for _, p in found[2]], [p for _, p in found[1]], rtol=1e-5)      # a product's rows are rounded by their place
    np.testing.assert_allclose([p for _, p in found[4]], [p for _, p in found[1]], rtol=1e-5)      # all of it opaque
    assert image.mode == "RGB" and image.size == (100, 90)      # untouched
    for single in path, image, array:
        assert len(run.predict(single)) == 1 and len(run.predict(single)[0]) == 3
    assert run.predict([]) == [] and len(run.predict(np.stack([array, array]))) == 2
    assert sum(p for _, p in run.predict(path, ten_crop=True)[0]) == pytest.approx(1)


def test_a_picture_that_was_turned_by_a_camera(finished, pictures, tmp_path):
    """Orientation is that of the file, whether a path or an opened image is given."""
    top = np.zeros((60, 90, 3), np.uint8)
    top[:, :45] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(top).save(tmp_path / "turned.png", exif=exif)
    by_path, by_image = (minialex.picture(item, 30) for item in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")))
    assert (by_path == by_image).all() and by_path[0].mean() > 200 > 50 > by_path[-1].mean()


@pytest.mark.parametrize("item, words", [
    ("nowhere.jpg", "nowhere.jpg: No such file or directory"), (np.zeros((9, 9, 3)), r"an array of float64 \(9, 9, 3\): expected uint8 of shape"),
    (np.zeros((9, 9, 2), np.uint8), r"an array of uint8 \(9, 9, 2\): expected"), (np.zeros((0, 9, 3), np.uint8), "expected uint8")])
def test_pictures_that_cannot_be_used_are_named(pictures, finished, item, words):
    run = minialex.load(finished, device="cpu")
    with pytest.raises(minialex.UserError, match=words):
        run.predict([item, pictures / "val/red/00.jpg"])
    with pytest.raises(minialex.UserError, match=words):
        run.predict([item])


def test_evaluate_gives_what_the_command_gives(pictures, finished, tmp_path, capsys):
    run = minialex.load(finished, device="cpu")
    for ten in False, True:
        found = run.evaluate(pictures, ten_crop=ten)
        assert evaluate.main([str(finished), "--data", str(pictures), "--json", str(tmp_path / "scores.json"), "--device", "cpu", *["--ten-crop"] * ten]) == 0
        told = json.loads((tmp_path / "scores.json").read_text())
        assert {name: told[name] for name in ("loss", "top1", "top5", "images", "views", "unreadable", "per_class", "mistakes", "per_image")} == {
            name: getattr(found, name) for name in ("loss", "top1", "top5", "images", "views", "unreadable", "per_class", "mistakes", "per_image")}
    own = run.evaluate()      # of its own validation set
    assert own.top1 == run.history.best["val_top1"] and own.loss == run.evaluate(pictures).loss
    assert "top-1" in found._repr_html_() and "<td>red</td>" in found._repr_html_() and "confusion" not in repr(found)


def test_best_and_last(pictures, finished):
    best, last = minialex.load(finished, device="cpu"), minialex.load(str(finished), last=True, device="cpu")
    assert best.checkpoint == finished / "best.safetensors" and last.checkpoint == finished / "last.safetensors"
    for run, path in (best, best.checkpoint), (last, last.checkpoint):
        parameters = read(path)[0]
        assert all((value == parameters[name]).all() for name, value in run.network.weights().items())
    assert re.fullmatch(rf"Run {finished}: half, 3 classes, 2 epochs, best validation top-1 [\d.]+%", repr(best))


def test_history(finished):
    history = minialex.load(finished, device="cpu").history
    assert len(history) == 2 and history[-1]["epoch"] == 2 and history["val_loss"] == [m["val_loss"] for m in history]
    assert history.best["val_top1"] == max(history["val_top1"]) and isinstance(history[:1], minialex.History) and len(history[:1]) == 1
    with pytest.raises(KeyError, match="no column 'loss': there are epoch, step, train_loss"):
        history["loss"]
    with pytest.raises(minialex.UserError, match="no epoch yet"):
        minialex.History().best
    lines = repr(history).splitlines()
    assert len(lines) == 3 and lines[0].split()[0] == "epoch" and lines[2].split()[0] == "2"
    assert 'alt="Validation loss ' in history._repr_html_() and " over 2 epochs. Training accuracy" in history._repr_html_()
    assert history._repr_html_().count("<tr>") == 3 and "data:image/png;base64," in history._repr_html_()
    assert repr(minialex.History()) == "no epoch yet" and "no epoch" in minialex.History()._repr_html_()


def test_a_report_of_a_run(finished, tmp_path):
    out = copy_of(finished, tmp_path / "run")
    before = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert minialex.load(out, last=True, device="cpu").report(warn=str) == out / "report.html"
    headings, then = (re.findall("<h2>([^<]*)</h2>", text) for text in ((out / "report.html").read_text(), before))
    assert [heading for heading in headings if heading != "Mistakes and their neighbours"] == then != headings      # for which training does not stop


OWN = {"stem": minialex.Conv(16, 7, stride=4, std=0.02), "pool": minialex.MaxPool(3, 2), "drop": minialex.Dropout(0.1),
       "body": minialex.Conv(24, 3, pad=1), "norm": minialex.LRN(5), "top": minialex.Conv(3, 8, relu=False)}


def test_a_net_of_ones_own_without_a_dense_layer(pictures, tmp_path, capsys):
    """Trained, resumed by the command, loaded, evaluated: config.json has its layers."""
    net = minialex.Net(OWN, size=72, name="all-convolutional")
    assert net.outputs["top"] == (1, 1, 3)
    options = {**SMALL, "size": None, "epochs": 1}
    with pytest.warns(UserWarning):
        run = minialex.fit(pictures, net=net, out=tmp_path / "run", **options)
    assert run.net == net and run.folder.name == "run" and {"stem", "body", "top"} == set(run.history[0]["layers"])
    assert train.main(["--resume", str(run.folder), "--epochs", "2"]) == 0
    with pytest.warns(UserWarning):
        whole = minialex.fit(pictures, net=net, out=tmp_path / "whole", **{**options, "epochs": 2})
    assert [m["step"] for m in timeless(run.folder)] == [m["step"] for m in timeless(whole.folder)] == [5, 10]
    assert evaluate.main([str(run.folder), "--data", str(pictures), "--device", "cpu"]) == 0
    assert predict.main([str(run.folder), str(pictures / "val/red/00.jpg"), "--device", "cpu"]) == 0
    assert "First-layer filters" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("net", [minialex.nets.build("half", 3, 72, fewer=8), minialex.Net({"fc": minialex.Dense(3, relu=False)}, size=16, name="paper")])
def test_a_net_with_the_name_of_a_published_one_is_kept_as_it_is(pictures, tmp_path, net, plain_report):
    with pytest.warns(UserWarning):
        run = minialex.fit(pictures, net=net, out=tmp_path / "run", **{**SMALL, "epochs": 1, "size": None})
    assert minialex.load(run.folder).net == net and "layers" in run.config
    whole = minialex.nets.build("half", 3, 72)
    with minialex.run.session.Session(*minialex.run.settings.settle(
            {**dict.fromkeys(minialex.run.settings.OPTIONS), **SMALL, "progress": None, "data": str(pictures), "net": "half"}, tmp_path / "other"), whole) as session:
        assert "layers" not in session.config


def test_a_dense_net_has_a_report_without_filters(pictures, tmp_path):
    net = minialex.Net({"fc1": minialex.Dense(20), "fc2": minialex.Dense(3, relu=False)}, size=24)
    with pytest.warns(UserWarning):
        run = minialex.fit(pictures, net=net, out=tmp_path / "run", **{**SMALL, "epochs": 1, "size": None})
    assert "Learning curves" in (run.folder / "report.html").read_text() and "First-layer filters" not in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("options, words", [
    ({"lr": -1}, "^lr -1.0: expected 0 or more"), ({"weight_decay": float("nan")}, "^weight_decay nan: expected"), ({"data": "nowhere"}, "nowhere"),
    ({"optimizer": "adam", "momentum": 0.5}, "^momentum is for optimizer sgd"), ({"schedule": "sine"}, "^schedule 'sine'"), ({"net": "vgg"}, "unknown net 'vgg'"),
    ({"net": minialex.Net({"fc": minialex.Dense(4, relu=False)}, size=8), "size": None}, "the net has 4 outputs and .* has 3 classes: give its last layer, fc, 3 outputs"),
    ({"net": minialex.Net({"fc": minialex.Dense(3, relu=False)}, size=8)}, "^size 72: the net given is for pictures of 8 pixels"),
    ({"recipe": "nonsense"}, "recipe nonsense"), ({"init": "nonsense"}, "init nonsense"), ({"optimizer": "rmsprop"}, "optimizer rmsprop"),
    ({"form": "nesterov"}, "form nesterov"), ({"seed": 1.5}, "^seed 1.5: expected an integer"), ({"lr": "0.1"}, "^lr '0.1': expected a number"),
    ({"drop_last": "no"}, "^drop_last 'no': expected True or False"), ({"augment": {"rotation": 10}}, "^augment {'rotation': 10}: expected a text"),
    ({"net": {"fc": minialex.Dense(3)}}, "^net: expected a minialex.Net"), ({"data": np.zeros(3)}, "^data: expected the path of a folder, got ndarray"),
    ({"on_epoch": [print]}, "^on_epoch: expected a function"), ({"stop": True}, "^stop: expected a function"), ({"epochs": True}, "^epochs True: expected an integer"), ({"resume": ""}, "^resume is empty"), ({"data": ""}, "^data is empty"), ({"device": "tpu"}, "unknown device 'tpu'"), ({"fit": "stretch"}, "fit stretch")])
def test_mistakes_name_the_argument(pictures, tmp_path, options, words):
    with pytest.raises(minialex.UserError, match=words):
        minialex.fit(**{"data": pictures, "out": tmp_path / "run", **SMALL, **options})
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_a_sentence_that_holds_a_path(pictures, tmp_path, plain_report):
    numbers = {"seed": np.int64(3), "batch": np.int32(8), "epochs": np.int64(1), "lr": np.float32(0.002), "size": np.uint8(72)}
    with pytest.warns(UserWarning):
        run = minialex.fit(pictures, out=tmp_path / "run", **{**SMALL, **numbers})
    assert run.config["options"]["seed"] == 3 and type(run.config["options"]["lr"]) is float
    with pytest.raises(minialex.UserError, match="/my--set does not exist|/my--set"):
        minialex.fit(tmp_path / "my--set")


def test_the_working_directory_may_change(pictures, tmp_path, monkeypatch, plain_report):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pytest.warns(UserWarning):
        run = minialex.fit(os.path.relpath(pictures), out="run", on_epoch=lambda metrics: os.chdir(tmp_path / "elsewhere"), **SMALL)
    assert len(run.history) == 2 and run.predict(pictures / "val/red/00.jpg") and str(run.folder) == "run"
    assert (tmp_path / "run/last.safetensors").exists() and not (tmp_path / "elsewhere/run").exists()


def test_one_network_is_enough(pictures, tmp_path):
    """After fit the one that was trained is gone, and a larger one for evaluation takes the place of a smaller one."""
    made, init = weakref.WeakSet(), minialex.Network.__init__

    def noted(network, *a, **k):
        gc.collect()      # CPython counts references, but for circles
        made.add(network)
        init(network, *a, **k)
        assert len(made) <= 1
    with pytest.MonkeyPatch.context() as patched, pytest.warns(UserWarning):
        patched.setattr(minialex.Network, "__init__", noted)
        run = minialex.fit(pictures, out=tmp_path / "run", **{**SMALL, "epochs": 1})
        assert not made
        run.predict(pictures / "val/red/00.jpg")
        run.evaluate(pictures)
    assert len(made) == 1


def test_threads_share_a_run(pictures, finished):
    run, found, paths = minialex.load(finished, device="cpu"), {}, sorted((pictures / "val").glob("*/*.jpg"))
    expected = {path: run.predict(path)[0] for path in paths}

    def work(number):
        found[number] = [run.predict(path)[0] for path in paths], run.evaluate(pictures).loss
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    waiting = run.predictions(minialex.open_data(pictures)[1], 1)
    next(waiting)      # one that is not finished holds nobody up
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waiting.close()
    assert len(found) == 4 and len({loss for _, loss in found.values()}) == 1
    for likely, _ in found.values():
        for ours, path in zip(likely, paths):
            assert [name for name, _ in ours] == [name for name, _ in expected[path]]
            np.testing.assert_allclose([p for _, p in ours], [p for _, p in expected[path]], rtol=1e-4)


def test_mistakes_of_a_run_name_the_argument(finished):
    run = minialex.load(finished, device="cpu")
    for words, call in (("^batch 0:", lambda: run.evaluate(batch=0)), ("^without nowhere.txt", lambda: run.evaluate(without="nowhere.txt")),
                        ("^threads 0:", lambda: minialex.load(finished, device="cpu", threads=0).network), ("^unknown device 'tpu'", lambda: minialex.load(finished, device="tpu")),
                        ("^top 0", lambda: run.predict("a.jpg", top=0))):
        with pytest.raises(minialex.UserError, match=words):
            call()
    for name in "../x", "a/b", "", ".", "..", "a\\b", 3, "a\nb":
        with pytest.raises(minialex.UserError, match="without slashes"):
            minialex.Net({"fc": minialex.Dense(3, relu=False)}, size=8, name=name)


def test_two_runs_that_begin_in_the_same_second(pictures, tmp_path, monkeypatch, plain_report):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "-now")
    net, found = minialex.Net({"fc": minialex.Dense(3, relu=False)}, size=16, name="tiny"), []
    threads = [threading.Thread(target=lambda: found.append(minialex.fit(pictures, net=net, epochs=1, device="cpu", progress=False))) for _ in range(3)]
    with pytest.warns(UserWarning):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(run.folder.name for run in found) == ["tiny-now", "tiny-now-2", "tiny-now-3"] == sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert all(len(run.history) == 1 for run in found)


def test_a_run_for_its_folder_and_one_that_is_finished(pictures, finished, tmp_path, plain_report):
    run = minialex.load(copy_of(finished, tmp_path / "run"), device="cpu")
    assert minialex.load(run).folder == run.folder
    with pytest.warns(UserWarning, match="has its 2 epochs already, and nothing is left to train: give more epochs") as warned:
        assert len(minialex.fit(resume=run, progress=False).history) == 2
    assert warned[0].filename == __file__      # the line that called, not the library's
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(minialex.UserError, match="is no longer there"):
        run.history


def test_accuracy_above_chance_is_no_failure_whatever_the_loss():
    bad = {"train_loss": 1.5, "val_loss": 1.6, "train_top1": 0.35, "val_top1": 0.33}
    assert advice.at_chance(bad, 3) and not advice.at_chance(bad | {"train_top1": 0.8}, 3) and not advice.at_chance(bad | {"val_loss": 0.9}, 3)


def test_reprs(pictures):
    train, _ = minialex.open_data(pictures)
    loader = minialex.Loader(train, 64, 8)
    assert repr(train) == f"ImageFolder {pictures / 'train'}: 37 images in 3 classes" and repr(train.paths) == f"37 paths, {train.paths[0]} the first"
    assert repr(loader) == "Loader of 37 images in 3 classes, in 5 batches of 8 at 64x64" and "Batch of " in repr(next(loader.epoch(0)))
    assert repr(minialex.Schedule("cosine", 0.01, 94, 3)) == "Schedule('cosine', 0.01, 94, 3)" and repr(minialex.open_device("numpy")[0]) == "the numpy device"


def test_a_run_that_is_not_there():
    with pytest.raises(minialex.UserError, match="^nowhere is not a run folder"):
        minialex.load("nowhere")


def test_stopped_and_resumed_from_a_thread(pictures, finished, tmp_path, plain_report):
    """Handlers of signals stay as they are, and a thread may train, where none can be set."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    steps, found = iter(range(100)), []

    def work():
        stopped = minialex.fit(pictures, out=tmp_path / "run", stop=lambda: next(steps) == 3, **SMALL)
        found.append(read(stopped.folder / "last.safetensors")[2]["step"])
        minialex.fit(resume=stopped.folder, progress=False)
    with pytest.warns(UserWarning):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [4]
    assert_same_run(tmp_path / "run", finished)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_command_puts_signal_handlers_back(pictures, tmp_path, plain_report):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    begun = train.begin(arguments(pictures, tmp_path / "run"))
    begun.trainer.step = lambda batch: os.kill(os.getpid(), signal.SIGTERM)
    assert train.train(begun) == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_goes_through_and_releases_the_folder(pictures, finished, tmp_path, plain_report):
    def interrupt(metrics):
        raise KeyboardInterrupt
    with pytest.warns(UserWarning), pytest.raises(KeyboardInterrupt):
        minialex.fit(pictures, out=tmp_path / "run", on_epoch=interrupt, **SMALL)
    assert len(minialex.load(tmp_path / "run").history) == 1
    with pytest.warns(UserWarning):
        minialex.fit(resume=tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", finished)


def test_the_loop_by_hand(pictures):
    """As the docs have it."""
    train, val = minialex.open_data(pictures)
    net = minialex.Net(OWN, size=72)
    model = minialex.Network(net, "cpu", batch=8, seed=3)
    loader, step, losses = minialex.Loader(train, model.input.side, 8, warn=str), 0, []
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            views = model.input.draw(3, epoch, batch.index)
            model.train_step(batch.images, batch.labels, views, step, lr=0.01)
            step += 1
        loss, hits, _ = model.scores()
        losses.append(loss / len(train))
    assert step == 10 and losses[1] < losses[0] < 2
    assert set(model.activations()) == {"stem", "pool", "body", "norm", "top"}


def test_public_names():
    assert set(minialex.__all__) <= set(dir(minialex)) and minialex.__version__
    for name in minialex.__all__:
        assert getattr(minialex, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        minialex.nonsense
