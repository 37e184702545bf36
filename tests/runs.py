"""Small runs and what tests ask of them: three colours to tell apart, a command as the shell would run it, two runs compared."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from minialex import train
from minialex.command import run_command
from minialex.run import checkpoint
from minialex.run.folder import RunFolder

TIMES = ("images_per_s", "seconds", "slowest")      # what two equal runs may differ in
COLOURS = {"red": (200, 60, 50), "green": (60, 190, 70), "blue": (50, 70, 200)}


def noisy(colour, random, noise, height=90, width=100):
    return Image.fromarray(np.clip(np.array(colour) + random.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8))


def draw_classes(root, random, train, val, colours=COLOURS, noise=40, width=100, strays={}):
    """Classes told apart by colour, train + val pictures each. strays: {"val/red/00.jpg": the colour that it has instead}"""
    for split, count in (("train", train), ("val", val)):
        for name, colour in colours.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                place = f"{split}/{name}/{i:02}.jpg"
                noisy(strays.get(place, colour), random, noise, width=width).save(root / place)


def arguments(pictures, out, *more):
    return ["--data", str(pictures), "--out", str(out), "--size", "72", "--batch", "8", "--epochs", "2", "--lr", "0.002",
            "--device", "cpu", *more]


def stopped(given, at):
    """Begins or resumes a run, and stops it after that step, saved."""
    begun = train.begin(given)
    step = begun.trainer.step

    def counted(batch):
        step(batch)
        if begun.trainer.state["step"] == at:
            os.kill(os.getpid(), signal.SIGTERM)
    begun.trainer.step = counted
    assert train.train(begun) == 128 + signal.SIGTERM


def load(path):
    """-> (parameters, kept, state): {name: array}, {"velocity name": array} of the optimizer and "totals", and what was saved beside them."""
    tensors, state, _ = checkpoint.read(path)
    parameters = {key.split(" ", 1)[1]: value for key, value in tensors.items() if key.startswith("parameter ")}
    return parameters, {key: value for key, value in tensors.items() if not key.startswith("parameter ")}, state


def same_bits(a, b):
    """Whether two {name: array} are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[n].view(np.uint8), b[n].view(np.uint8)) for n in a)


def command(main, *args):
    """The exit code of a command, run as the shell would."""
    with pytest.raises(SystemExit) as end:
        run_command(lambda: main([str(arg) for arg in args]))
    return end.value.code


def refused(capsys, main, *args):
    """Runs a command that must end with one sentence on stderr and code 2. -> the sentence"""
    capsys.readouterr()
    code = command(main, *args)
    told = capsys.readouterr().err
    assert code == 2 and told.startswith("error: ") and told.count("\n") == 1, told
    return told


def copy_of(run, folder):
    """A copy whose files are links, since all files are replaced and none is changed."""
    return shutil.copytree(run, folder, copy_function=os.link, ignore=shutil.ignore_patterns(".lock"))


def contents(folder):
    """What would tell a changed file, but for the lock."""
    return {path.name: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.name != ".lock"}


def left_behind(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def timeless(run):
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run, undisturbed):
    ours, theirs = load(run / "last.safetensors"), load(undisturbed / "last.safetensors")
    assert same_bits(ours[0], theirs[0]) and same_bits(ours[1], theirs[1])
    assert same_bits(load(run / "best.safetensors")[0], load(undisturbed / "best.safetensors")[0])
    assert timeless(run) == timeless(undisturbed)
    assert not left_behind(run)


def replaced(path, data):
    path.unlink()      # it may be a link to another run's
    path.write_bytes(data)


def assert_all_can_be_read(out):
    for name in {"last.safetensors", "best.safetensors"} & {path.name for path in out.iterdir()}:
        load(out / name)
    if (out / "config.json").exists():
        RunFolder(out).config()
    RunFolder(out).metrics()
