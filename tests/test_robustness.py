"""What happens around a run: kills, full disks, damaged files, changed data, second runs, closed pipes. Nothing that was saved is lost."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_network import mini, network
from test_train import arguments, finished, pictures  # noqa: F401: fixtures

from minialex import checkpoint, evaluate, predict, report, train
from minialex.checkpoint import load, same_bits, write_beside
from minialex.data import __main__ as data_command
from minialex.data.loader import Loader
from minialex.errors import UserError, run_command

TIMES = ("images_per_s", "seconds", "slowest")      # what two equal runs may differ in


@pytest.fixture(autouse=True)
def own_signals():
    """Runs take over Ctrl-C and SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def plain_report(monkeypatch):
    """Reports without their pictures, whose drawing takes longer than the training here."""
    monkeypatch.setattr(report, "write", lambda folder, *a, **k: write_beside(folder / "report.html", "drawn elsewhere\n" * 100))


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
    return shutil.copytree(run, folder, copy_function=os.link)


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


# Kills

# A run whose checkpoints come often and whose steps take their time, and which kills itself at the COUNT-th passing of PLACE.
HALTED = """
import os, signal, sys, time
from pathlib import Path
from minialex import checkpoint, errors, report, train
place, count, *arguments = sys.argv[1:]
left, replace, step, look = int(count), os.replace, train.Run.step, report.Collector.__call__

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

train.SAVE_EVERY, os.replace, train.Run.step, report.Collector.__call__ = 0.2, replaced, stepped, looked
errors.run_command(lambda: train.main(arguments))
"""
ADAM = ("--optimizer", "adam", "--lr", "0.001", "--schedule", "plateau:1", "--augment", "mean=image,pca=eigenvalue,rotation=20,zoom=0.1")
VARIANTS = pytest.mark.parametrize("variant", [(), ADAM], ids=["sgd", "adam"])


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):  # noqa: F811
    """{options: a run of four epochs with them}, each trained when it is first asked for."""
    runs = {}

    def of(variant):
        if variant not in runs:
            runs[variant] = tmp_path_factory.mktemp("undisturbed") / "run"
            assert train.main(arguments(pictures, runs[variant], "--epochs", "4", "--batch", "4", *variant)) == 0
        return runs[variant]
    return of


def begin(pictures, out, variant, place="nowhere", count=1):  # noqa: F811
    """Starts or resumes a run that is to be killed."""
    options = ["--resume", str(out)] if (out / "config.json").exists() else arguments(pictures, out, "--epochs", "4", "--batch", "4", *variant)
    return subprocess.Popen([sys.executable, "-c", HALTED, place, str(count), *options], stdout=subprocess.PIPE, text=True)


def assert_all_can_be_read(out):
    for name in {"last.safetensors", "best.safetensors"} & {path.name for path in out.iterdir()}:
        load(out / name)
    if (out / "config.json").exists():
        checkpoint.read_config(out)
    report.read_metrics(out)


@pytest.mark.slow
@VARIANTS
def test_kills_at_any_moment_change_no_bit(pictures, undisturbed, tmp_path, variant):  # noqa: F811
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
    assert killed >= 5
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, undisturbed(variant))


# In the order of a run; each start is killed at the next of them.
PLACES = [("in config.json", 1), ("before config.json", 1), ("step", 1), ("in last.safetensors", 1), ("before last.safetensors", 2), ("after last.safetensors", 1),
          ("validation", 2), ("in best.safetensors", 1), ("after best.safetensors", 1), ("before metrics.jsonl", 1), ("after metrics.jsonl", 1),
          ("in report.html", 1), ("after curve.png", 1), ("validation", 3), ("after report.html", 1)]


@pytest.mark.slow
@VARIANTS
def test_kills_between_any_two_files_change_no_bit(pictures, undisturbed, tmp_path, variant):  # noqa: F811
    out = tmp_path / "run"
    for place, count in [("in mean.npy", 1), ("after mean.npy", 1)] * bool(variant) + PLACES:
        process = begin(pictures, out, variant, place, count)
        told = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, (place, told)
        assert_all_can_be_read(out)
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, undisturbed(variant))


@pytest.mark.parametrize("place", ["before report.html", "after report.html", "whole", "removed"])
def test_a_report_that_a_kill_prevented_is_written_on_resuming(pictures, finished, tmp_path, capsys, place):  # noqa: F811
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
    assert len(sections) == 9 and re.findall("<h2>[^<]*</h2>", (out / "report.html").read_text()) == sections
    assert (out / "report.html").read_text() == whole


def test_what_kills_left_half_written_is_removed_and_nothing_else(finished, tmp_path):  # noqa: F811
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


def test_a_signal_during_the_last_step_of_an_epoch_or_its_validation_loses_no_metrics(pictures, finished, tmp_path, monkeypatch, plain_report):  # noqa: F811
    for place in "step", "validation":
        out, step, look = tmp_path / place, train.Run.step, train.evaluate

        def stepped(run, batch):
            step(run, batch)
            if place == "step" and run.state["batch"] == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        def looked(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return look(*args)
        with monkeypatch.context() as patched:
            patched.setattr(train.Run, "step", stepped)
            if place == "validation":
                patched.setattr(train, "evaluate", looked)
            assert train.main(arguments(pictures, out)) == 128 + signal.SIGTERM
        assert load(out / "last.safetensors")[2]["step"] == 5
        assert train.main(["--resume", str(out)]) == 0
        assert_same_run(out, finished)


def test_losses_do_not_depend_on_when_they_are_read(pictures, tmp_path, plain_report, monkeypatch):  # noqa: F811
    """Read at each step and at the end of the epoch, on top of a sum so large that a loss added to it is rounded, as it is in a long epoch."""
    found = []
    for every in (0, 1e9):
        monkeypatch.setattr(train, "READ_EVERY", every)
        run = train.Run(arguments(pictures, tmp_path / str(every), "--epochs", "1"))
        run.network.arrays["output totals"][0] += 1e12
        assert run.go() == 0
        found.append(timeless(tmp_path / str(every)))
    assert found[0] == found[1]


# Disks that are full or cannot be written

@pytest.fixture
def limited(monkeypatch):
    """limited(name, time): when a file of that name is written for that time, the system takes no more than some bytes of it."""
    import resource
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def until(name, times):
        left = [times]

        def opened(path, mode="r", **more):
            left[0] -= str(path).endswith(f".{name}.{os.getpid()}")
            if not left[0]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
            return open(path, mode, **more)
        monkeypatch.setattr(checkpoint, "open", opened, raising=False)

    def lifted():
        monkeypatch.setattr(checkpoint, "open", open, raising=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    until.lifted = lifted
    yield until
    lifted()


@pytest.mark.parametrize("name, times, step", [
    ("config.json", 1, None), ("best.safetensors", 1, None), ("last.safetensors", 1, None), ("last.safetensors", 2, 5), ("metrics.jsonl", 1, 5),
    ("metrics.jsonl", 2, 10), ("report.html", 1, 5)])
def test_a_full_disk_ends_a_run_and_loses_nothing(pictures, finished, tmp_path, capsys, limited, plain_report, name, times, step):  # noqa: F811
    out = tmp_path / "run"
    limited(name, times)
    assert f"{out / name} cannot be written (File too large)" in refused(capsys, train.main, *arguments(pictures, out))
    assert not left_behind(out)
    assert (load(out / "last.safetensors")[2]["step"] if (out / "last.safetensors").exists() else None) == step
    assert_all_can_be_read(out)
    limited.lifted()
    assert train.main(["--resume", str(out)] if name != "config.json" else arguments(pictures, out)) == 0
    assert_same_run(out, finished)


def test_a_disk_without_room_for_a_file(finished, tmp_path, capsys, monkeypatch):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    assert "config.json cannot be written (No space left on device): free space" in refused(capsys, train.main, "--resume", out, "--epochs", 3)
    assert contents(out) == before


def test_standard_output_on_a_full_disk(pictures, tmp_path):  # noqa: F811
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run")], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard output cannot be written (No space left on device)" in done.stderr, done.stderr


@pytest.mark.parametrize("out", ["/proc/minialex", "/proc/self/status/run", "{file}", "{file}/run"])
def test_a_run_folder_that_cannot_be_made(pictures, tmp_path, capsys, out):  # noqa: F811
    (tmp_path / "file").write_text("x")
    out = out.format(file=tmp_path / "file")
    told = refused(capsys, train.main, *arguments(pictures, out))
    assert f"the run folder {out} cannot be made" in told and "--out" in told and (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("how", ["permissions", "system"])
def test_a_run_folder_that_cannot_be_written(finished, tmp_path, capsys, monkeypatch, how):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)
    if how == "permissions":
        if os.geteuid() == 0:
            pytest.skip("permissions do not bind root")
        (out / ".lock").unlink()
        out.chmod(0o555)
    else:
        def opened(path, mode="r", **more):
            if set(mode) & set("wa+x"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return open(path, mode, **more)
        monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    told = refused(capsys, train.main, "--resume", out)
    assert f"the run folder {out} cannot be written" in told and contents(out) == before
    out.chmod(0o755)


def test_a_run_folder_that_is_removed_meanwhile(pictures, tmp_path, capsys, monkeypatch):  # noqa: F811
    out, look = tmp_path / "run", train.evaluate

    def looked(*args):
        shutil.rmtree(out)
        return look(*args)
    monkeypatch.setattr(train, "evaluate", looked)
    assert "best.safetensors cannot be written (No such file or directory)" in refused(capsys, train.main, *arguments(pictures, out))


def test_a_system_without_locks(finished, tmp_path, monkeypatch):  # noqa: F811
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert train.main(["--resume", str(copy_of(finished, tmp_path / "run"))]) == 0


# Files that are damaged, missing, or of something else

def rewritten(path, change):
    """The bytes of a checkpoint whose tensors and metadata `change` has changed."""
    from safetensors import safe_open
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors, metadata = change(tensors, metadata)
    if metadata:
        metadata = metadata | {"crc32": checkpoint.checksum(tensors, metadata["minialex"], metadata["net"])}
    other = path.with_name("rewritten")
    save_file(tensors, other, metadata)
    data = other.read_bytes()
    other.unlink()
    return data


def flipped(data, place):
    data = bytearray(data)
    data[place] ^= 0x40
    return bytes(data)


DAMAGE = {
    "truncated": lambda path: path.read_bytes()[:len(path.read_bytes()) // 2],
    "last byte missing": lambda path: path.read_bytes()[:-1],
    "empty": lambda path: b"",
    "noise": lambda path: np.random.default_rng(0).bytes(10_000),
    "header": lambda path: flipped(path.read_bytes(), 40),
    "weights": lambda path: flipped(path.read_bytes(), -1_000_001),
    "of something else": lambda path: rewritten(path, lambda tensors, metadata: ({"x": np.zeros(3, np.float32)}, None)),
    "metadata": lambda path: rewritten(path, lambda tensors, metadata: (tensors, metadata | {"minialex": metadata["minialex"][:-9]})),
    "metadata of something else": lambda path: rewritten(path, lambda tensors, metadata: (tensors, metadata | {"minialex": "[1, 2]"})),
    "a tensor missing": lambda path: rewritten(path, lambda tensors, metadata: ({k: v for k, v in tensors.items() if k != "parameter fc8.bias"}, metadata)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(pictures, finished, tmp_path, capsys, damage):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "last.safetensors", DAMAGE[damage](finished / "last.safetensors"))
    before = contents(out)
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out, "--epochs", "3")
    assert contents(out) == before
    assert f"{out / 'last.safetensors'} " in refused(capsys, evaluate.main, out, "--data", pictures, "--checkpoint", "last", "--device", "cpu")
    assert command(predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu") == 0      # of the best one


def test_a_flipped_bit_anywhere_in_the_header_is_seen(cpu, tmp_path):
    """Its keys come in another order each time, so that any of them may be hit."""
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, network(mini(), cpu, 4), {"epoch": 1})
    whole = path.read_bytes()
    for place in range(8, 8 + int.from_bytes(whole[:8], "little"), 3):
        path.write_bytes(flipped(whole, place))
        with pytest.raises(UserError, match="last.safetensors (is damaged|was not written by minialex)"):
            checkpoint.read(path)


def test_a_folder_in_the_place_of_a_checkpoint(finished, tmp_path, capsys):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    (out / "last.safetensors").unlink()
    (out / "last.safetensors").mkdir()
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out)


def test_the_best_checkpoint_in_the_place_of_the_last(finished, tmp_path, capsys):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "last.safetensors", (finished / "best.safetensors").read_bytes())
    assert "last.safetensors" in refused(capsys, train.main, "--resume", out)


def test_a_run_that_was_killed_before_it_saved_begins_anew(finished, tmp_path, capsys, plain_report):  # noqa: F811
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    assert command(evaluate.main, out, "--data", "x") == 2
    capsys.readouterr()
    assert train.main(["--resume", str(out)]) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    assert_same_run(out, finished)


def test_a_best_checkpoint_of_a_run_that_was_killed_is_not_taken_for_that_of_a_new_run(pictures, finished, tmp_path, monkeypatch):  # noqa: F811
    """A kill between the first best checkpoint and the first last one leaves a folder in which a new run may begin."""
    out, step = tmp_path / "run", train.Run.step
    out.mkdir()
    for name in "config.json", "best.safetensors":
        os.link(finished / name, out / name)

    def stepped(run, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        step(run, batch)
    monkeypatch.setattr(train.Run, "step", stepped)
    assert train.main(arguments(pictures, out, "--seed", "1")) == 143
    assert not (out / "best.safetensors").exists() and load(out / "last.safetensors")[2]["step"] == 1
    assert command(evaluate.main, out, "--data", pictures, "--device", "cpu") == 0


def test_a_run_whose_checkpoint_was_lost_does_not_begin_anew(pictures, finished, tmp_path, capsys):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    (out / "last.safetensors").unlink()
    before = contents(out)
    assert f"{out / 'last.safetensors'} is missing" in refused(capsys, train.main, "--resume", out)
    assert f"{out} holds a run already" in refused(capsys, train.main, *arguments(pictures, out))
    assert contents(out) == before


def without(*keys):
    def change(config):
        inner = config
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return json.dumps(config).encode()
    return change


CONFIGS = {
    "empty": lambda config: b"", "half": lambda config: json.dumps(config).encode()[:200], "no text": lambda config: b"\xff\xfe\x00{",
    "a list": lambda config: b"[]", "null": lambda config: b"null",
    **{f"no {key}": without(key) for key in ("net", "size", "input", "classes", "threads", "options", "machine", "data")},
    "no label_smoothing": without("options", "label_smoothing"), "no data option": without("options", "data"), "no side": without("input", "side"),
    "classes of another kind": lambda config: json.dumps(config | {"classes": 3}).encode(),
    "an input of a later version": lambda config: json.dumps(config | {"input": config["input"] | {"gamma": 2}}).encode(),
    "an unknown net": lambda config: json.dumps(config | {"net": "resnet", "options": config["options"] | {"net": "resnet"}}).encode(),
    "another size of input": lambda config: json.dumps(config | {"input": config["input"] | {"size": 71}}).encode(),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_damaged_config(pictures, finished, tmp_path, capsys, change):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    replaced(out / "config.json", CONFIGS[change](json.loads((finished / "config.json").read_text())))
    before = contents(out)
    told = [refused(capsys, train.main, "--resume", out)]
    if "option" not in change and "smoothing" not in change:
        told += [refused(capsys, evaluate.main, out, "--data", pictures, "--device", "cpu"),
                 refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu"), refused(capsys, report.main, out, "--device", "cpu")]
    assert all(str(out / "config.json") in sentence or "unknown net 'resnet'" in sentence for sentence in told), told
    assert contents(out) == before


@pytest.fixture(scope="module")
def foreign(pictures, tmp_path_factory):  # noqa: F811
    """{what: a checkpoint that is not the run's}"""
    folder, found = tmp_path_factory.mktemp("foreign"), {}
    two = shutil.copytree(pictures, folder / "two")
    for split in "train", "val":
        shutil.rmtree(two / split / "red")
    for what, options in (("net", arguments(pictures, folder / "net", "--net", "owt")), ("classes", arguments(two, folder / "classes")),
                          ("optimizer", arguments(pictures, folder / "optimizer", "--optimizer", "adam"))):
        run = train.Run(options)
        run.save()
        run.lock.release()
        found[what] = folder / what / "last.safetensors"
    return found


@pytest.mark.parametrize("what", ["net", "classes", "optimizer"])
def test_a_checkpoint_of_another_run(pictures, finished, foreign, tmp_path, capsys, what):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    for name in "last.safetensors", "best.safetensors":
        (out / name).unlink()
        os.link(foreign[what], out / name)
    before = contents(out)
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out, "--epochs", "3")
    if what != "optimizer":      # of which the weights fit
        assert f"{out / 'best.safetensors'} " in refused(capsys, evaluate.main, out, "--data", pictures, "--device", "cpu")
        assert f"{out / 'best.safetensors'} " in refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu")
        assert f"{out / 'best.safetensors'} " in refused(capsys, report.main, out, "--device", "cpu")
    assert contents(out) == before


def test_sgd_state_in_a_run_with_adam(pictures, finished, foreign, tmp_path, capsys):  # noqa: F811
    out = copy_of(foreign["optimizer"].parent, tmp_path / "run")
    replaced(out / "last.safetensors", (finished / "last.safetensors").read_bytes())
    assert f"{out / 'last.safetensors'} " in refused(capsys, train.main, "--resume", out)


def test_nets_whose_arrays_are_alike_are_told_apart(finished, tmp_path):  # noqa: F811
    """paper and caffenet have parameters of the same names and shapes."""
    from minialex import nets
    from minialex.device import open_device
    from minialex.errors import UserError
    from minialex.network import Network
    device = open_device("cpu")[0]
    paper, caffenet = (Network(nets.build(name, 3, 67, fewer=16), device, 4) for name in ("paper", "caffenet"))
    checkpoint.save(tmp_path / "x.safetensors", paper, {}, optimizer=False)
    for name, array in paper.parameters.items():
        assert caffenet.parameters[name].shape == array.shape
    with pytest.raises(UserError, match="x.safetensors is not of the run.*it is of net paper, not caffenet"):
        checkpoint.restore(tmp_path / "x.safetensors", caffenet)


@pytest.mark.parametrize("damage", ["missing", "noise", "shape"])
def test_a_damaged_mean_image(pictures, tmp_path, capsys, damage):  # noqa: F811
    out = tmp_path / "run"
    run = train.Run(arguments(pictures, out, "--augment", "mean=image"))
    run.save()
    run.lock.release()
    (out / "mean.npy").unlink()
    if damage == "noise":
        (out / "mean.npy").write_bytes(b"noise")
    if damage == "shape":
        np.save(out / "mean.npy", np.zeros((3, 3, 3), np.float32))
    assert str(out / "mean.npy") in refused(capsys, train.main, "--resume", out)
    assert str(out / "mean.npy") in refused(capsys, predict.main, out, pictures / "val/red/00.jpg", "--device", "cpu")


# Data that changes

@pytest.fixture
def own_pictures(pictures, tmp_path):  # noqa: F811
    return shutil.copytree(pictures, tmp_path / "pictures", copy_function=os.link)


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_images_that_change_between_runs(finished, own_pictures, tmp_path, capsys, plain_report, change):  # noqa: F811
    out, image = copy_of(finished, tmp_path / "run"), own_pictures / "train/red/03.jpg"
    {"added": lambda: os.link(image, image.with_name("30.jpg")), "removed": image.unlink, "renamed": lambda: image.rename(image.with_name("3.jpg"))}[change]()
    assert train.main(["--resume", str(out), "--data", str(own_pictures), "--epochs", "3"]) == 0
    assert "warning: the image files are not those that the run was started with" in capsys.readouterr().out
    assert len(timeless(out)) == 3


def test_most_images_removed_while_a_run_rests(own_pictures, tmp_path, capsys, monkeypatch, plain_report):
    out, step = tmp_path / "run", train.Run.step

    def stepped(run, batch):
        step(run, batch)
        if run.state["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(train.Run, "step", stepped)
        assert train.main(arguments(own_pictures, out)) == 143
    for image in own_pictures.glob("train/*/*[1-9].jpg"):
        image.unlink()
    assert train.main(["--resume", str(out)]) == 0
    assert "warning: the image files are not" in capsys.readouterr().out and len(timeless(out)) == 2


def test_a_class_that_is_added_is_refused(finished, own_pictures, tmp_path, capsys):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)
    for split in "train", "val":
        shutil.copytree(own_pictures / split / "red", own_pictures / split / "crimson")
    assert f"the classes of {own_pictures} are not those of the run in {out}" in refused(capsys, train.main, "--resume", out, "--data", own_pictures)
    assert contents(out) == before


def test_data_that_is_gone(finished, own_pictures, tmp_path, capsys):  # noqa: F811
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)
    shutil.rmtree(own_pictures)
    assert f"there is no folder {own_pictures}" in refused(capsys, train.main, "--resume", out, "--data", own_pictures)
    assert contents(out) == before


@pytest.mark.parametrize("which, cached, ends", [("train/red/0[0-3].jpg", True, True), ("train/red/*.jpg", True, True), ("train/*/*.jpg", True, True),
                                                 ("train/*/*.jpg", False, False), ("val/*/*.jpg", True, False)])
def test_images_that_are_deleted_during_an_epoch(own_pictures, tmp_path, capsys, monkeypatch, plain_report, which, cached, ends):
    out, step = tmp_path / "run", train.Run.step

    def stepped(run, batch):
        step(run, batch)
        if run.state["step"] == 1:
            run.save()
            for image in own_pictures.glob(which):
                image.unlink()
    monkeypatch.setattr(train.Run, "step", stepped)
    monkeypatch.setattr(train, "Loader", partial(Loader, cache_mb=1024 if cached else 0))
    options = arguments(own_pictures, out, "--batch", "4")
    if ends:
        assert train.main(options) == 0
        assert len(timeless(out)) == 2 and (which.count("*") < 2 or "skipped" in capsys.readouterr().out)
    else:
        assert "images can be read" in refused(capsys, train.main, *options)
        assert load(out / "last.safetensors")[2]["step"] >= 1


# Two runs, signals, pipes

def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(pictures, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, out, "--epochs", "400")], stdout=subprocess.PIPE, text=True)
    assert any(line.startswith("run ") for line in process.stdout)
    told = [refused(capsys, train.main, *arguments(pictures, out)), refused(capsys, train.main, "--resume", out)]
    assert all(f"another run is writing to {out} now" in sentence for sentence in told), told
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait() == 143 and f"stopped  at step {load(out / 'last.safetensors')[2]['step']}, saved" in rest
    assert json.loads((out / "config.json").read_text())["options"]["epochs"] == 400


def test_a_run_that_ended_while_another_came_up_is_not_overwritten(pictures, finished, tmp_path, capsys, monkeypatch):  # noqa: F811
    out, splits = tmp_path / "run", train.find_splits

    def slowly(*args):
        copy_of(finished, out)
        return splits(*args)
    monkeypatch.setattr(train, "find_splits", slowly)
    assert f"{out} holds a run already" in refused(capsys, train.main, *arguments(pictures, out))
    assert contents(out) == contents(finished)


def test_a_second_ctrl_c_ends_at_once(pictures, tmp_path, capsys, monkeypatch):  # noqa: F811
    def stepped(run, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    monkeypatch.setattr(train.Run, "step", stepped)
    assert command(train.main, *arguments(pictures, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "" and not (tmp_path / "run/last.safetensors").exists()


SIGNALLED = """
import os, signal, sys
from minialex import errors, train

def signalled(*a, **k):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    raise AssertionError("it goes on")
setattr(train, sys.argv[1], signalled)
errors.run_command(lambda: train.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("place, name, code", [("open_device", "SIGTERM", -15), ("measure", "SIGTERM", -15), ("measure", "SIGINT", 130)])
def test_a_signal_before_anything_was_saved(pictures, tmp_path, capsys, place, name, code):  # noqa: F811
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", SIGNALLED, place, name, *arguments(pictures, out, "--augment", "mean=image")], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and not done.stderr and not out.exists()
    assert f"{out} is not a run folder" in refused(capsys, train.main, "--resume", out)


def test_a_signal_in_the_first_step_saves(pictures, finished, tmp_path, capsys, monkeypatch, plain_report):  # noqa: F811
    out, step = tmp_path / "run", train.Run.step

    def stepped(run, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        step(run, batch)
    with monkeypatch.context() as patched:
        patched.setattr(train.Run, "step", stepped)
        assert train.main(arguments(pictures, out)) == 143
    assert f"stopped  at step 1, saved; continue with: python -m minialex.train --resume {out}" in capsys.readouterr().out
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_a_signal_while_kernels_are_compiled_leaves_a_cache_that_works(pictures, tmp_path):  # noqa: F811
    run = [sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run", "--epochs", "1")]
    process = subprocess.Popen(run, env=os.environ | {"MINIALEX_CACHE": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("compiling")
    while process.poll() is None and not list(tmp_path.glob("compiled/*.so")):      # the first of them
        time.sleep(0.01)
    process.terminate()
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGTERM and not (tmp_path / "run").exists()
    done = subprocess.run(run, env=os.environ | {"MINIALEX_CACHE": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "run/report.html").exists(), done.stderr


def test_a_closed_pipe_ends_a_run_without_a_traceback(pictures, tmp_path):  # noqa: F811
    process = subprocess.Popen([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run", "--epochs", "400")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("device")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


# Options and data that make no sense

@pytest.mark.parametrize("options, words", [
    (["--threads", "0"], "--threads 0: expected at least 1"),
    (["--batch", "0"], "--batch 0: expected at least 1"),
    (["--batch", "64", "--drop-last"], "--batch 64: the 37 images of {pictures}/train do not fill one"),
    (["--side", "60"], "--side 60: pictures must be decoded at no less than the input's 72 pixels"),
    (["--label-smoothing", "1"], "--label-smoothing 1.0: expected 0 up to below 1"),
    (["--lr", "nan"], "--lr nan: expected 0 or more"),
    (["--momentum", "1"], "--momentum 1.0"),
    (["--init", "2012-code"], "--init 2012-code is not for half: choose he or published"),
    (["--augment", "blur=3"], "--augment blur=3: the keys are"),
    (["--augment", "rotation=x"], "--augment rotation=x: expected a number"),
    (["--augment", "nonsense"], "--augment nonsense: the keys are"),
    (["--augment", "crop=left"], "--augment crop=left: expected random, resized or centre"),
    (["--schedule", "plateau:0"], "--schedule 'plateau:0': expected"),
    (["--schedule", "step"], "--schedule 'step': expected"),
    (["--schedule", "cosine,warmup:x"], "--schedule 'cosine,warmup:x': expected"),
    (["--data", "{data}/packed"], "{data}/packed/train is packed at 80 pixels as crop, but 82 pixels as crop are asked for"),
    (["--data", "{data}/packed", "--fit", "squash", "--side", "80"], "80 pixels as squash are asked for"),
    (["--data", "{data}/empty"], "{data}/empty does not hold the two splits"),
    (["--data", "{data}/neither"], "{data}/neither does not hold the two splits"),
    (["--data", "{data}/one"], "{data}/one/train has only one class, red"),
    (["--data", "{data}/hollow"], "class folder pink of {data}/hollow/train holds no images"),
    (["--data", "{data}/list"], "{data}/list/train.txt, line 2: expected the path of an image, a space and a label"),
    (["--data", "{data}/file"], "{data}/file is not a folder"),
    (["--train", "{pictures}/train"], "both a training and a validation folder"),
    (["--resume", "{finished}"], "--size cannot be given with --resume"),
    (["--out", "{finished}"], "{finished} holds a run already: continue it with --resume {finished}"),
])
def test_mistakes(pictures, finished, places, tmp_path, capsys, options, words):  # noqa: F811
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
def places(pictures, tmp_path_factory):  # noqa: F811
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
    return root


def test_a_packed_set_is_taken_at_its_own_size(places, tmp_path, plain_report):
    assert train.main([*arguments(places / "packed", tmp_path / "run", "--epochs", "1")]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["input"]["side"] == 80


def test_a_batch_larger_than_the_set_is_the_whole_set(pictures, tmp_path, plain_report):  # noqa: F811
    assert train.main(arguments(pictures, tmp_path / "run", "--batch", "64")) == 0
    assert [epoch["step"] for epoch in timeless(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("options", [["--recipe", "nonsense"], ["--net", "resnet"], ["--epochs", "many"], ["--out"]])
def test_what_argparse_refuses(capsys, options):
    assert command(train.main, *options) == 2
    told = capsys.readouterr().err
    assert "usage: python -m minialex.train" in told and "error: argument" in told
