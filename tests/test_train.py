"""Training as its users run it: a small folder of pictures, the files a run leaves, interruptions, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from runs import arguments, copy_of, load, same_bits, stopped, timeless

from minialex import describe, evaluate, predict, train
from minialex.errors import UserError
from minialex.run import page, session, trainer


def test_what_a_run_leaves(finished):
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert [m["step"] for m in metrics] == [5, 10]
    for m in metrics:
        assert set(m) == {"epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "images_per_s", "lr", "layers", "seconds", "slowest",
                          "unreadable"} and m["unreadable"] == {"train": 1, "val": 0}
        assert 0 <= m["val_top1"] <= m["val_top5"] <= 1 and m["images_per_s"] > 0
        assert set(m["layers"]) == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"} and set(m["seconds"]) == {"data", "forward", "backward", "update", "other"}
        for layer in m["layers"].values():
            assert layer["mean"] > 0 and layer["std"] > 0 and 0 <= layer["dead"] <= layer["zero"] < 1 and 1e-7 < layer["ratio"] < 1
        assert all(0 <= seconds < np.inf for seconds in m["seconds"].values()) and len(m["slowest"]) == 8
        assert min(m["seconds"][part] for part in ("forward", "backward", "update")) > 0      # sums of many launches: no clock is as coarse
    assert [m["lr"] for m in metrics] == pytest.approx([0.002 * 5 / 6, 0], abs=2e-4)      # the end of warm-up, and of the cosine
    config = json.loads((finished / "config.json").read_text())
    assert config["classes"] == ["blue", "green", "red"] and config["size"] == 72 and config["data"]["train"]["images"] == 37
    with Image.open(finished / "curve.png") as curve:
        assert curve.size[0] > 600 and len(set(curve.convert("L").tobytes())) > 50
    assert sorted(p.name for p in finished.iterdir()) == [
        ".lock", "best.safetensors", "config.json", "curve.png", "filters.png", "last.safetensors", "metrics.jsonl", "report.html"]
    said = (finished / "report.html").read_text()
    assert "Left out: 1 training image that cannot be read." in said and "of the last weights, after epoch 2" in said


def test_first_lines_say_where_and_on_what(pictures, tmp_path, capsys):
    assert train.main(arguments(pictures, tmp_path / "run", "--epochs", "1")) == 0
    out = capsys.readouterr().out
    assert "device   cpu (asked for)" in out
    assert f"train    37 images in 3 classes from {pictures / 'train'}" in out
    assert f"val      12 images in 3 classes from {pictures / 'val'}" in out
    assert out.count("damaged.jpg") == 1 and "left out 1 unreadable training images" in out


def test_resuming_in_the_middle_of_an_epoch_changes_no_bit(pictures, finished, tmp_path, plain_report):
    out = tmp_path / "interrupted"
    for stop_at in (2, 7):      # in the first epoch, and in the second
        stopped(arguments(pictures, out) if stop_at == 2 else ["--resume", str(out)], stop_at)
        assert load(out / "last.safetensors")[2]["step"] == stop_at
    assert train.main(["--resume", str(out)]) == 0
    ours, theirs = load(out / "last.safetensors"), load(finished / "last.safetensors")
    assert same_bits(ours[0], theirs[0]) and same_bits(ours[1], theirs[1])
    speedless = [[{k: v for k, v in json.loads(line).items() if k not in ("images_per_s", "seconds", "slowest")} for line in (folder / "metrics.jsonl").read_text().splitlines()]
                 for folder in (out, finished)]
    assert speedless[0] == speedless[1]


def test_a_signal_during_validation_and_a_kill_before_the_metrics(pictures, finished, tmp_path, monkeypatch, plain_report):
    out, whole = tmp_path / "run", trainer.validate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "validate", interrupted)
        assert train.main(arguments(pictures, out)) == 128 + signal.SIGTERM
    assert load(out / "last.safetensors")[2]["batch"] == 5 and not (out / "metrics.jsonl").exists()
    assert train.main(["--resume", str(out)]) == 0
    assert same_bits(load(out / "last.safetensors")[0], load(finished / "last.safetensors")[0])
    written = (out / "metrics.jsonl").read_text()
    assert all(json.loads(line)["images_per_s"] > 1 for line in written.splitlines())
    (out / "metrics.jsonl").unlink()
    assert train.main(["--resume", str(out)]) == 0 and (out / "metrics.jsonl").read_text() == written


def test_a_long_epoch_is_saved_before_its_validation(pictures, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(session, "SAVE_EVERY", 0)
    monkeypatch.setattr(trainer, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments(pictures, tmp_path / "run"))
    state = load(tmp_path / "run/last.safetensors")[2]
    assert (state["batch"], state["step"], state["epoch"]) == (5, 5, 0)


def test_two_runs_are_the_same_and_seeds_differ(pictures, finished, tmp_path, plain_report):
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        train.main(arguments(pictures, out, "--seed", str(seed)))
        assert same_bits(load(out / "last.safetensors")[0], load(finished / "last.safetensors")[0]) == same


def test_resume_warns_of_a_difference_and_refuses_options(pictures, finished, tmp_path, capsys, plain_report):
    with pytest.raises(UserError, match="--lr cannot be given with --resume"):
        train.main(["--resume", str(finished), "--lr", "0.1"])
    assert train.main(["--resume", str(copy_of(finished, tmp_path / "run")), "--threads", "1"]) == 0
    assert "threads" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path):
    with pytest.raises(UserError, match=r"not finite at step \d+ \(epoch \d\): try a smaller --lr"):
        train.main(arguments(pictures, tmp_path / "run", "--lr", "1e9", "--schedule", "constant"))


def test_a_network_that_diverged_never_replaces_a_checkpoint(pictures, tmp_path, monkeypatch, plain_report):
    monkeypatch.setattr(session, "SAVE_EVERY", 0)
    begun = train.begin(arguments(pictures, tmp_path / "run"))
    step = begun.trainer.step

    def stepped(batch):
        step(batch)
        if begun.trainer.state["step"] == 2:
            begun.trainer.network.parameters["fc8.bias"][0] = np.nan
    begun.trainer.step = stepped
    with pytest.raises(UserError, match="network is not finite at step 2.*its last checkpoint is from before"):
        train.train(begun)
    assert load(tmp_path / "run/last.safetensors")[2]["step"] == 1


def test_a_report_that_fails_is_told_of_once_and_ends_no_training(pictures, finished, tmp_path, capsys, monkeypatch):
    def fail(*args, **more):
        raise RuntimeError("no font")
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        patch.setattr(page, "write", fail)
        assert train.main(arguments(pictures, out)) == 0
    told = capsys.readouterr().out
    assert told.count("warning: the report could not be written (RuntimeError: no font), and training goes on without") == told.count("could not") == 1
    assert f"python -m minialex.report '{out}' writes it" in told and "epoch   2" in told and not (out / "report.html").exists()
    assert timeless(out) == timeless(finished) and load(out / "last.safetensors")[2]["step"] == 10
    assert train.main(["--resume", str(out)]) == 0 and "1 training image that cannot be read" in (out / "report.html").read_text()      # what is missing is made


def test_evaluate_and_predict(pictures, finished, tmp_path, capsys):
    scores = tmp_path / "scores.json"
    assert evaluate.main([str(finished), "--data", str(pictures), "--json", str(scores), "--device", "cpu"]) == 0
    capsys.readouterr()
    told, last = json.loads(scores.read_text()), json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    best = max((json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()), key=lambda m: m["val_top1"])
    assert told["images"] == len(told["per_image"]) == 12 and told["top1"] == best["val_top1"]
    assert told["loss"] == pytest.approx(best["val_loss"], rel=1e-5) and last["epoch"] == 2

    good, bad = str(pictures / "val/red/00.jpg"), str(pictures / "train/red/damaged.jpg")
    assert predict.main([str(finished), good, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == good and len(lines) == 4
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.1)
    assert predict.main([str(finished), bad, "--device", "cpu"]) == 2
    assert "damaged.jpg" in capsys.readouterr().err


def test_describe(capsys):
    assert describe.main(["half", "--classes", "10", "--batch", "32", "--threads", "2"]) == 0
    out = capsys.readouterr().out
    assert "14,601,930" in out and "309,164,304" in out and "55 x 55 x 48" in out
    *parts, total = [float(line.split()[-2].replace(",", "")) for line in out.splitlines() if line.endswith(" MB")]
    assert sum(parts) == pytest.approx(total, abs=0.1 * len(parts)) and total > 150      # every array has a line


@pytest.mark.parametrize("command, words", [
    (["minialex.train", "--data", "nowhere"], ["nowhere"]),
    (["minialex.train", "--net", "paper", "--size", "30", "--data", "{pictures}", "--device", "cpu"], ["paper at 30x30", "runs out of pixels", "--size"]),
    (["minialex.train", "--batch", "0"], ["--batch 0"]),
    (["minialex.train", "--data", "{pictures}", "--size", "72", "--workspace-mb", "0.01", "--device", "cpu"], ["conv1", "MB", "--workspace-mb"]),
    (["minialex.train", "--data", "{pictures}", "--size", "72", "--device", "cpu", "--schedule", "sine"], ["--schedule 'sine'"]),
    (["minialex.train", "--resume", "nowhere"], ["nowhere is not a run folder"]),
    (["minialex.evaluate", "nowhere", "--data", "{pictures}"], ["nowhere is not a run folder"]),
    (["minialex.predict", "nowhere", "x.jpg"], ["nowhere is not a run folder"]),
    (["minialex.train", "--data", "{pictures}", "--size", "72", "--device", "cpu", "--threads", "-1"], ["--threads -1"]),
    (["minialex.predict", "{finished}", "x.jpg", "--threads", "-1"], ["--threads -1"]),
    (["minialex.train", "--resume", "{finished}", "--epochs", "-3"], ["--epochs -3"]),
    (["minialex.train", "--seed", "18446744073709551616"], ["--seed 18446744073709551616"]),
    (["minialex.train", "--data", "{pictures}", "--size", "72", "--device", "cpu", "--out", "{pictures}/train/blue/labels.csv"], ["labels.csv", "--out"]),
    (["minialex.evaluate", "{finished}", "--data", "{pictures}", "--json", "nodir/x.json"], ["--json nodir/x.json"]),
    (["minialex.describe", "resnet"], ["unknown net 'resnet'"]),
])
def test_a_mistake_is_one_sentence_and_code_2(pictures, finished, tmp_path, command, words):
    command = [part.format(pictures=pictures, finished=finished) for part in command]
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "runs").exists()


def test_cuda_without_a_gpu_is_refused_with_the_reason():
    from minialex.device import cuda
    if not cuda.why_not():
        pytest.skip("there is a working GPU here")
    done = subprocess.run([sys.executable, "-m", "minialex.train", "--device", "cuda"], capture_output=True, text=True)
    assert done.returncode == 2 and cuda.why_not() in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(pictures, tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, out, "--epochs", "400")], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch   2"):
            break
    time.sleep(0.3)
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait() == 128 + number and f"--resume {out}" in rest
    step = load(out / "last.safetensors")[2]["step"]
    assert f"stopped  at step {step}" in rest and step >= 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_run_learns_from_cold_caches(tmp_path, seed):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "minialex.train", "--seed", str(seed), "--out", str(tmp_path / "run")], capture_output=True,
                          text=True, env={**os.environ, "MINIALEX_CACHE": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    print(f"seed {seed}: validation top-1 {last['val_top1']:.1%} after {time.monotonic() - began:.0f} s")
    assert last["val_top1"] >= 0.9
    filters = load(tmp_path / "run/last.safetensors")[0]["conv1.weight"]      # of noise, neighbours would have nothing in common: 0.00
    assert np.median(likeness_of_neighbours(filters)) > 0.4


def likeness_of_neighbours(filters):
    """The correlation of each filter's pixels with the ones below and beside them, of (KH, KW, C, F)."""
    f = filters - filters.mean(axis=(0, 1))
    pairs = (f[1:], f[:-1]), (f[:, 1:], f[:, :-1])
    return np.mean([2 * (a * b).sum(axis=(0, 1, 2)) / (a * a + b * b).sum(axis=(0, 1, 2)) for a, b in pairs], axis=0)


@pytest.mark.slow
def test_with_shuffled_training_labels_validation_stays_at_chance(tmp_path):
    begun = train.begin(["--epochs", "4", "--out", str(tmp_path / "run")])
    np.random.default_rng(0).shuffle(begun.trainer.train.folder.labels)
    assert train.train(begun) == 0
    assert all(0.04 < m["val_top1"] < 0.17 for m in begun.trainer.metrics), begun.trainer.metrics
