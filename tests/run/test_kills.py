"""Kills at any moment: nothing that was saved is lost, and a resumed run is the same bit for bit."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import arguments, assert_all_can_be_read, assert_same_run, command, copy_of, load, replaced, timeless

from minialex import train
from minialex.run import trainer
from minialex.run.trainer import Trainer

# A run whose checkpoints come often and whose steps take their time, and which kills itself at the COUNT-th passing of PLACE.
HALTED = """
import os, signal, sys, time
from pathlib import Path
from minialex import train
from minialex.command import run_command
from minialex.run import session
from minialex.run.scores import Collector
from minialex.run.trainer import Trainer
place, count, *arguments = sys.argv[1:]
left, replace, step, look = int(count), os.replace, Trainer.step, Collector.__call__

def passing(name, first=None):
    global left
    left -= name == place
    if name == place and not left:
        if first:
            first()
        os.kill(os.getpid(), signal.SIGKILL)

def replaced(beside, path):
    name = Path(path).name
    passing("in " + name, lambda: os.truncate(beside, os.path.getsize(beside) // 2))
    passing("before " + name)
    replace(beside, path)
    passing("after " + name)

def stepped(run, batch):
    time.sleep(0.05)
    step(run, batch)
    passing("step")

def looked(*a):
    look(*a)
    passing("validation")

session.SAVE_EVERY, os.replace, Trainer.step, Collector.__call__ = 0.2, replaced, stepped, looked
run_command(lambda: train.main(arguments))
"""
ADAM = ("--optimizer", "adam", "--lr", "0.001", "--schedule", "plateau:1", "--augment", "mean=image,pca=eigenvalue,rotation=20,zoom=0.1")
VARIANTS = pytest.mark.parametrize("variant", [(), ADAM], ids=["sgd", "adam"])


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    """{options: a run of four epochs with them}, each trained when it is first asked for."""
    runs = {}

    def of(variant):
        if variant not in runs:
            runs[variant] = tmp_path_factory.mktemp("undisturbed") / "run"
            assert train.main(arguments(pictures, runs[variant], "--epochs", "4", "--batch", "4", *variant)) == 0
        return runs[variant]
    return of


def begin(pictures, out, variant, place="nowhere", count=1):
    """Starts or resumes a run that is to be killed."""
    options = ["--resume", str(out)] if (out / "config.json").exists() else arguments(pictures, out, "--epochs", "4", "--batch", "4", *variant)
    return subprocess.Popen([sys.executable, "-c", HALTED, place, str(count), *options], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@VARIANTS
def test_kills_at_any_moment_change_no_bit(pictures, undisturbed, tmp_path, variant):
    out, random, killed = tmp_path / "run", np.random.default_rng(len(variant)), 0
    for attempt in range(10):
        process = begin(pictures, out, variant)
        if attempt % 5:      # the others may be killed before they have begun
            any(line.startswith("run ") for line in process.stdout)
        time.sleep(random.uniform(0, 2.5))
        process.kill()
        process.stdout.close()
        killed += process.wait() == -signal.SIGKILL
        if out.exists():
            assert_all_can_be_read(out)
    assert killed >= 2      # the first two: the run takes two seconds at least
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, undisturbed(variant))


# In the order of a run; each start is killed at the next of them.
PLACES = [("in config.json", 1), ("before config.json", 1), ("step", 1), ("in last.safetensors", 1), ("before last.safetensors", 2), ("after last.safetensors", 1),
          ("validation", 2), ("in best.safetensors", 1), ("after best.safetensors", 1), ("before metrics.jsonl", 1), ("after metrics.jsonl", 1),
          ("in report.html", 1), ("after curve.png", 1), ("validation", 3), ("after report.html", 1)]


@pytest.mark.slow
@VARIANTS
def test_kills_between_any_two_files_change_no_bit(pictures, undisturbed, tmp_path, variant):
    out = tmp_path / "run"
    for place, count in [("in mean.npy", 1), ("after mean.npy", 1)] * bool(variant) + PLACES:
        process = begin(pictures, out, variant, place, count)
        told = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, (place, told)
        assert_all_can_be_read(out)
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, undisturbed(variant))


@pytest.mark.parametrize("place", ["before report.html", "after report.html", "whole", "removed"])
def test_a_report_that_a_kill_prevented_is_written_on_resuming(pictures, finished, tmp_path, capsys, place):
    """Whole, and only if it is missing."""
    out, whole = copy_of(finished, tmp_path / "run"), (finished / "report.html").read_text()
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    if place == "before report.html":
        replaced(out / "report.html", b"that of the epoch before")
    if place in ("before report.html", "after report.html"):
        replaced(out / "metrics.jsonl", lines[0])
    if place == "removed":
        (out / "report.html").unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert (out / "metrics.jsonl").read_bytes() == b"".join(lines)
    sections = re.findall("<h2>[^<]*</h2>", whole)
    assert len(sections) in (10, 11) and re.findall("<h2>[^<]*</h2>", (out / "report.html").read_text()) == sections
    assert (out / "report.html").read_text() == whole


def test_what_kills_left_half_written_is_removed_and_nothing_else(finished, tmp_path):
    out = copy_of(finished, tmp_path / "run")
    ours = [".last.safetensors.123", ".best.safetensors.4", ".config.json.5", ".metrics.jsonl.99999", ".report.html.7", ".curve.png.8", ".mean.npy.9"]
    others = [".last.safetensors.bak", ".notes.txt.123", ".hidden", "x.config.json.5", "last.safetensors.1"]
    for name in ours + others:
        (out / name).write_text("x")
    with contextlib.closing(open(out / ".lock", "w")) as other:
        import fcntl
        fcntl.flock(other, fcntl.LOCK_EX)
        assert command(train.main, "--resume", out) == 2
        assert all((out / name).exists() for name in ours + others)      # the run that holds the lock may be writing them
    assert train.main(["--resume", str(out)]) == 0
    assert [name for name in ours + others if (out / name).exists()] == others


def test_a_signal_during_the_last_step_of_an_epoch_or_its_validation_loses_no_metrics(pictures, finished, tmp_path, monkeypatch, plain_report):
    for place in "step", "validation":
        out, step, look = tmp_path / place, Trainer.step, trainer.validate

        def stepped(run, batch):
            step(run, batch)
            if place == "step" and run.state["batch"] == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        def looked(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return look(*args)
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "step", stepped)
            if place == "validation":
                patched.setattr(trainer, "validate", looked)
            assert train.main(arguments(pictures, out)) == 128 + signal.SIGTERM
        assert load(out / "last.safetensors")[2]["step"] == 5
        assert train.main(["--resume", str(out)]) == 0
        assert_same_run(out, finished)


def test_losses_do_not_depend_on_when_they_are_read(pictures, tmp_path, plain_report, monkeypatch):
    """Read at each step and at the end of the epoch, on top of a sum so large that a loss added to it is rounded, as it is in a long epoch."""
    found = []
    for every in (0, 1e9):
        monkeypatch.setattr(trainer, "READ_EVERY", every)
        begun = train.begin(arguments(pictures, tmp_path / str(every), "--epochs", "1"))
        begun.trainer.network.arrays["output totals"][0] += 1e12
        assert train.train(begun) == 0
        found.append(timeless(tmp_path / str(every)))
    assert found[0] == found[1]
