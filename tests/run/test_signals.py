"""Two runs in a folder, Ctrl-C and SIGTERM, closed pipes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import arguments, assert_same_run, command, contents, copy_of, load, refused

from minialex import train
from minialex.run import session
from minialex.run.trainer import Trainer


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

    def slowly(*args):
        copy_of(finished, out)
        return opened(*args)
    monkeypatch.setattr(session, "open_data", slowly)
    assert f"{out} holds a run already" in refused(capsys, train.main, *arguments(pictures, out))
    assert contents(out) == contents(finished)


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


def test_a_closed_pipe_ends_a_run_without_a_traceback(pictures, tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run", "--epochs", "400")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("device")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
