"""Two runs in a folder, Ctrl-C, SIGTERM and SIGHUP, closed pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import arguments, assert_same_run, command, contents, copy_of, load, refused

from minialex import __main__, train
from minialex.errors import UserError
from minialex.run import session
from minialex.run.folder import RunFolder
from minialex.run.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, out, "--epochs", "400")], stdout=subprocess.PIPE, text=True)
    assert any(line.startswith("run ") for line in process.stdout)
    told = [refused(capsys, train.main, *arguments(pictures, out)), refused(capsys, train.main, "--resume", out)]
    assert all(f"another run is writing to {out} now" in sentence for sentence in told), told
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 143 and f"stopped  at step {load(out / 'last.safetensors')[2]['step']}, saved" in rest
    assert json.loads((out / "config.json").read_text())["options"]["epochs"] == 400


def test_a_run_that_ended_while_another_came_up_is_not_overwritten(pictures, finished, tmp_path, capsys, monkeypatch):
    out, opened = tmp_path / "run", session.open_data

    def slowly(*args, **more):
        copy_of(finished, out)
        return opened(*args, **more)
    monkeypatch.setattr(session, "open_data", slowly)
    assert f"{out} holds a run already" in refused(capsys, train.main, *arguments(pictures, out))
    assert contents(out) == contents(finished)


def test_runs_that_begin_in_one_second_have_a_folder_each(tmp_path):
    def taken(name):
        for _ in range(20):
            folder = RunFolder(tmp_path / "runs/half", numbered=True)
            folder.take()
            (folder.path / "owner").open("x").write(str(os.getpid()))
        (tmp_path / name).touch()
    children = []
    for number in range(6):
        children.append(os.fork())
        if not children[-1]:
            try:
                while not (tmp_path / "go").exists():      # all at once
                    pass
                taken(f"child {number}")
            finally:
                os._exit(0)
    (tmp_path / "go").touch()
    for child in children:
        os.waitpid(child, 0)
    assert len(list(tmp_path.glob("child *"))) == 6 and sorted(os.listdir(tmp_path / "runs")) == sorted(["half", *(f"half-{n}" for n in range(2, 121))])


def test_a_second_ctrl_c_ends_at_once(pictures, tmp_path, capsys, monkeypatch):
    def stepped(run, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    monkeypatch.setattr(Trainer, "step", stepped)
    assert command(train.main, *arguments(pictures, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "" and not (tmp_path / "run/last.safetensors").exists()


SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background jobs ignore it
from minialex import train
from minialex.command import run_command
from minialex.run import session

def signalled(*a, **k):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    raise AssertionError("it goes on")
setattr(session, sys.argv[1], signalled)
run_command(lambda: train.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("place, name, code", [("open_device", "SIGTERM", -15), ("measure", "SIGTERM", -15), ("measure", "SIGINT", 130)])
def test_a_signal_before_anything_was_saved(pictures, tmp_path, capsys, place, name, code):
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", SIGNALLED, place, name, *arguments(pictures, out, "--augment", "mean=image")], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and not done.stderr and not out.exists()
    assert f"{out} is not a run folder" in refused(capsys, train.main, "--resume", out)


def test_a_signal_in_the_first_step_saves(pictures, finished, tmp_path, capsys, monkeypatch, plain_report):
    out, step = tmp_path / "run", Trainer.step

    def stepped(run, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        step(run, batch)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", stepped)
        assert train.main(arguments(pictures, out)) == 143
    assert f"stopped  at step 1, saved; continue with: python -m minialex.train --resume {out}" in capsys.readouterr().out
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_a_signal_while_kernels_are_compiled_leaves_a_cache_that_works(pictures, tmp_path):
    run = [sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run", "--epochs", "1")]
    process = subprocess.Popen(run, env=os.environ | {"MINIALEX_CACHE": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("compiling")
    while process.poll() is None and not list(tmp_path.glob("compiled/*.so")):      # the first of them
        time.sleep(0.01)
    process.terminate()
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGTERM and not (tmp_path / "run").exists()
    done = subprocess.run(run, env=os.environ | {"MINIALEX_CACHE": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run/report.html").exists(), done.stderr


def test_a_reader_who_goes_ends_a_run_that_is_saved(pictures, tmp_path):
    """As `head` does. The code is not that of a run that is done."""
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run", "--epochs", "400")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("memory ") for line in process.stdout)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE
    assert load(tmp_path / "run/last.safetensors")[2]["step"] >= 1


def test_an_output_that_nobody_takes_ends_a_run_saved(pictures, tmp_path, capsys, monkeypatch, plain_report):
    out = tmp_path / "run"

    def said(text):
        if text.startswith("epoch"):
            raise UserError("standard output cannot be written (No space left on device)")
    monkeypatch.setattr(train, "say", said)
    told = refused(capsys, train.main, *arguments(pictures, out))
    assert f"No space left on device); {out} is saved up to step 6" in told and load(out / "last.safetensors")[2]["step"] == 6


def test_a_hangup_is_a_signal_like_the_others_unless_it_is_ignored(pictures, tmp_path, monkeypatch, plain_report):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.Interrupts() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.seen()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        monkeypatch.setattr(Trainer, "step", lambda *a: os.kill(os.getpid(), signal.SIGHUP))
        assert train.main(arguments(pictures, tmp_path / "run")) == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "run/last.safetensors").exists()


WAITING = """
import sys, threading, time
from minialex import interrupts
interrupts.OURS = True
from minialex import train
from minialex.command import run_command
from minialex.data.loader import Loader
Loader._decode = lambda *a: time.sleep(600)
run_command(lambda: train.main(sys.argv[1:]))
"""


def uninterrupted(*command, **more):
    """A process that takes Ctrl-C, also where this one, in a shell's background, does not."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **more)


def test_ctrl_c_while_threads_are_waited_for_ends_at_once(pictures, tmp_path):
    """The first asks for an end after the step, the second does not wait for it, and the third not for the threads that decode."""
    process = uninterrupted(sys.executable, "-c", WAITING, *arguments(pictures, tmp_path / "run"))
    assert any(line.startswith("run ") for line in process.stdout)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.returncode == -signal.SIGINT and process.stderr.read() == ""


@pytest.mark.parametrize("name", [*__main__.COMMANDS, "the script"])
def test_ctrl_c_during_the_imports(tmp_path, name):
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    (tmp_path / "minialex").write_text("from minialex.__main__ import entry\nentry()\n")
    more = [str(tmp_path / "minialex"), "train"] if name == "the script" else ["-m", f"minialex.{name}"]
    process = uninterrupted(sys.executable, *more, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    # The script listens before it imports its command.
    assert process.communicate() == ("", "") and process.returncode == (130 if name == "the script" else -signal.SIGINT)
