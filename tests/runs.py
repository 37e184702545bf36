"""Small runs and what tests ask of them: three colours to tell apart, a command as the shell would run it, two runs compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minialex import train
from minialex.command import run_command
from minialex.run import checkpoint
from minialex.run.folder import RunFolder
from minialex.team import mpiexec

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


# Several ranks

def no_mpi():
    """Why no mpiexec can be run here, or None. The MPI library is looked for beside mpi4py too, which may be installed elsewhere than this Python's own prefix."""
    try:
        import mpi4py
    except ImportError:
        return "mpi4py is not installed"
    if mpiexec() is None:
        return "there is no mpiexec"
    beside = Path(mpi4py.__file__).parents[3] / "libmpi.so.12"
    if not (Path(sys.prefix) / "lib" / beside.name).exists() and beside.exists():
        os.environ.setdefault("MPI4PY_LIBMPI", str(beside))
    return None


def begun(ranks, *arguments, **more):
    """A process: mpiexec of Python with these arguments, in so many ranks."""
    return subprocess.Popen([mpiexec(), "-n", str(ranks), sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ended(process, seconds=60):
    """-> (exit code, standard output, standard error) of a process that ends by itself; else it is killed, and the test fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def told_by_report(folder, config, metrics, *, predictions, mistakes, confusion, **shown):
    """In place of page.write: a line of told.txt for each report, that has what a validation has gathered for it."""
    seen = [[(path, label, likely, zlib.crc32(picture)) for picture, label, likely, path in items] for items in (predictions, mistakes)]
    with open(folder / "told.txt", "a") as file:
        file.write(f"{metrics[-1]['epoch']} {seen} {confusion.tolist()}\n")
    (folder / "report.html").write_text("drawn elsewhere\n" * 100)
