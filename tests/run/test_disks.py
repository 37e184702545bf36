"""Disks that are full or cannot be written, folders that vanish, systems without locks."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from runs import arguments, assert_all_can_be_read, assert_same_run, contents, copy_of, left_behind, load, refused

from minialex import files, train
from minialex.run import folder, trainer


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
        monkeypatch.setattr(files, "open", opened, raising=False)

    def lifted():
        monkeypatch.setattr(files, "open", open, raising=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    until.lifted = lifted
    yield until
    lifted()


@pytest.mark.parametrize("name, times, step", [
    ("config.json", 1, None), ("best.safetensors", 1, None), ("last.safetensors", 1, None), ("last.safetensors", 2, 5), ("metrics.jsonl", 1, 5),
    ("metrics.jsonl", 2, 10)])
def test_a_full_disk_ends_a_run_and_loses_nothing(pictures, finished, tmp_path, capsys, limited, plain_report, name, times, step):
    out = tmp_path / "run"
    limited(name, times)
    assert f"{out / name} cannot be written (File too large)" in refused(capsys, train.main, *arguments(pictures, out))
    assert not left_behind(out)
    assert (load(out / "last.safetensors")[2]["step"] if (out / "last.safetensors").exists() else None) == step
    assert_all_can_be_read(out)
    limited.lifted()
    assert train.main(["--resume", str(out)] if name != "config.json" else arguments(pictures, out)) == 0
    assert_same_run(out, finished)


def test_a_disk_without_room_for_a_file(finished, tmp_path, capsys, monkeypatch):
    out = copy_of(finished, tmp_path / "run")
    before = contents(out)

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    assert "config.json cannot be written (No space left on device): free space" in refused(capsys, train.main, "--resume", out, "--epochs", 3)
    assert contents(out) == before


def test_standard_output_on_a_full_disk(pictures, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run")], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "standard output cannot be written (No space left on device)" in done.stderr, done.stderr


@pytest.mark.parametrize("out", ["/proc/minialex", "/proc/self/status/run", "{file}", "{file}/run"])
def test_a_run_folder_that_cannot_be_made(pictures, tmp_path, capsys, out):
    (tmp_path / "file").write_text("x")
    out = out.format(file=tmp_path / "file")
    told = refused(capsys, train.main, *arguments(pictures, out))
    assert f"the run folder {out} cannot be made" in told and "--out" in told and (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("how", ["permissions", "system"])
def test_a_run_folder_that_cannot_be_written(finished, tmp_path, capsys, monkeypatch, how):
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
        for module in files, folder:
            monkeypatch.setattr(module, "open", opened, raising=False)
    told = refused(capsys, train.main, "--resume", out)
    assert f"the run folder {out} cannot be written" in told and contents(out) == before
    out.chmod(0o755)


def test_a_run_folder_that_is_removed_meanwhile(pictures, tmp_path, capsys, monkeypatch):
    out, look = tmp_path / "run", trainer.validate

    def looked(*args):
        shutil.rmtree(out)
        return look(*args)
    monkeypatch.setattr(trainer, "validate", looked)
    assert "best.safetensors cannot be written (No such file or directory)" in refused(capsys, train.main, *arguments(pictures, out))


def test_a_system_without_locks(finished, tmp_path, monkeypatch):
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert train.main(["--resume", str(copy_of(finished, tmp_path / "run"))]) == 0
