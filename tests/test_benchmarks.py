"""The benchmarks beside PyTorch, of scaling, of the input pipeline and of products, at their smallest: what they print, their JSON, and what they refuse.

That of the start-up is in test_startup.py."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minialex import nets
from minialex.errors import UserError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.fixture
def compare(monkeypatch):
    """compare_to_torch.py, with a rate of products that takes no measuring."""
    torch = pytest.importorskip("torch", reason="ours is compared with PyTorch: pip install torch==2.13.0")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare_to_torch
    monkeypatch.setattr(compare_to_torch, "product_rate", lambda device: 1e9)
    for name in ("QUIET", "TURN"):
        monkeypatch.setattr(compare_to_torch, name, 0)
    threads = torch.get_num_threads()
    yield compare_to_torch
    torch.set_num_threads(threads)


def test_compare_to_torch(compare, tmp_path, monkeypatch, capsys):
    asked = "--net half --size 67 --batch 1 2 --conv im2col winograd --rounds 1 --no-compile --memory-batch 0 --device cpu --threads 1 --json found.json --plot found.png"
    monkeypatch.chdir(tmp_path)
    assert compare.main(asked.split()) == 0
    found, lines = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out.splitlines()
    machine, batches = found["machine"], found["nets"]["half"]["batches"]
    assert machine["conv"] == ["im2col", "winograd"] and list(batches) == ["1", "2"] and (tmp_path / "found.png").stat().st_size > 0
    exported = ["onnxruntime"] * bool(machine["onnxruntime"])
    assert exported or any(line.startswith("onnxruntime takes no part: ") for line in lines)
    for batch, own in batches.items():
        assert list(own["equal"]) == ["im2col", "winograd", *exported] and own["algorithms"]["winograd"]["conv2"] == ["winograd", "winograd"]
        for what in ("train", "infer"):
            speed, ratio = own[what]["all"], own[what]["ratio_to"]
            assert list(speed) == ["im2col", "winograd", "contiguous", "channels-last", *exported * (what == "infer")]
            assert own[what]["ours"] == speed["winograd"] and own[what]["ratio"] == ratio[own[what]["best"]]
            assert all(ratio[side] == pytest.approx(speed["winograd"] / speed[side]) for side in speed)      # of one round
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("images/s, and the ratios of winograd")) + 1:]
    assert table[0].split()[:5] == ["net", "batch", "im2col", "winograd", "PyTorch"] and table[0].split()[-1] == "ceiling"
    assert [line.split()[:3] for line in table[1:]] == [["half", batch, what] for batch in batches for what in ("train", "infer")]
    for line, own in zip(table[1:], (own[what] for own in batches.values() for what in ("train", "infer"))):
        cells = line.split()[3:]
        assert cells[1] == f"{own['ours']:.1f}" and f"{own['ratio']:.2f}" in cells and cells[-1] == f"{own['ceiling']:.0%}"


@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorchs_side_from_pixels(compare, channels_last):
    """The bytes of the pictures, normalised, are what the other figure has on the device; and PyTorch's options are those of a GPU where it is one."""
    import torch
    net = nets.build("half", 10, 67, 8)
    theirs = compare.Theirs(torch, net, dict(net.draw("he", 0)), compare.drawn(net, 2), channels_last)
    given = theirs.from_pixels()
    assert torch.equal(given, theirs.x) and given.is_contiguous(memory_format=torch.channels_last) == channels_last
    losses = []
    for what in "train", "train from pixels":
        torch.manual_seed(0)
        theirs.step(what)
        losses.append(theirs.loss.item())
    assert losses[0] != losses[1] and theirs.given.__func__ is compare.Theirs.from_pixels      # the second one after an update
    assert compare.passes("cpu") == ("train", "infer") and compare.passes("cuda")[2:] == ("train from pixels", "infer from pixels")


def test_compare_to_torch_times_nothing_that_is_not_equal(compare, monkeypatch, capsys):
    """Other pictures are drawn where gradients are too far apart, and no others where logits are."""
    def check(*draws):
        left = iter([{"winograd": {"logits": logits, "gradients": gradients}} for logits, gradients in draws])
        monkeypatch.setattr(compare, "distances", lambda *arguments: (next(left), None))
        try:
            return compare.check_equal(None, nets.build("half"), None, 1, ["winograd"], False)[0]["winograd"]
        finally:
            assert not list(left) and capsys.readouterr().out.count("other side: other pictures") == len(draws) - 1

    assert check((1e-6, 0.02), (1e-6, 0.003))["gradients"] == 0.003
    with pytest.raises(UserError, match="^half, batch 1: too far apart are the gradients of winograd: nothing is timed$"):
        check((1e-6, 0.02), (1e-6, 0.03), (1e-6, np.inf))
    with pytest.raises(UserError, match="the logits of winograd, the gradients of winograd: nothing is timed$"):
        check((np.nan, 0.02))


@pytest.mark.slow
def test_scaling(tmp_path):
    pytest.importorskip("torch", reason="scaling is measured beside PyTorch: pip install torch==2.13.0")
    done = run("scaling.py", "--quick", "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"net", "torch", "device", "rounds", "axes"} and list(found["axes"]) == ["batch", "threads", "size"]
    small, *rows = found["axes"]["size"] + found["axes"]["batch"] + found["axes"]["threads"]
    assert set(small) == {"batch", "threads", "size", "error"} and small["size"] == 8 and "runs out of pixels" in small["error"]
    assert small["error"] in done.stdout and len(rows) == 3
    for row in rows:
        assert set(row) == {"batch", "threads", "size", "train", "infer"}
        for own in (row["train"], row["infer"]):
            assert min(own["ours"], own["torch"], own["ratio"]) > 0 and own["format"] in ("contiguous", "channels-last")
            for side in ("ours", "torch") if "memory" in own else ():
                used = own["memory"][side]
                assert used["step"] > 0 and used["imports"] > 0 and used["step"] == pytest.approx(used["peak"] - used["imports"])
            if "memory" in own:
                assert own["memory"]["ratio"] == pytest.approx(own["memory"]["ours"]["step"] / own["memory"]["torch"]["step"])
    names, lines = "ours torch ours torch ours torch ours torch train infer train MB infer MB", done.stdout.splitlines()
    for axis in found["axes"]:
        head = next(i for i, line in enumerate(lines) if line.split()[:1] == [axis])
        assert " ".join(lines[head].split()) == f"{axis} {names}"
        groups = "train images/s infer images/s train MB (peak) infer MB (peak) ours / torch"
        assert " ".join(lines[head - 1].split()) == groups
        row = found["axes"][axis][-1]
        told = lines[head + len(found["axes"][axis])].split()
        assert told[0] == str(row[axis]) and told[1] == f"{row['train']['ours']:.1f}" and told[3] in ("c", "l")
        if "memory" in row["infer"]:
            assert told[-1] == f"{row['infer']['memory']['ratio']:.2f}" and told[-3] == f"{row['infer']['ratio']:.2f}"


def test_input_pipeline(tmp_path):
    small = "--images", 20, "--batch", 8, "--size", 72, "--workers", 1, 2, "--rounds", 1
    done = run("input_pipeline.py", *small, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"net", "size", "batch", "images", "device", "rounds", "rows", "packed_to_memory", "verdict"} and found["images"] == 20
    assert [(row["what"], row["workers"]) for row in found["rows"]] == [
        (what, workers) for workers in (1, 2) for what in ("decode", "loader, cold", "loader, cached", "loader, packed")] + [
        ("crop", None), ("train, in memory", None), ("train, cold", 2), ("train, cached", 2), ("train, packed", 2)]
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("what"))
    assert lines[head].split() == ["what", "workers", "images/s", "of", "training", "waits"]
    for row, line in zip(found["rows"], lines[head + 1:]):
        assert row["images_per_s"] > 0 and row["of_training"] > 0
        assert line.startswith(row["what"]) and f"{row['images_per_s']:.1f}" in line.split()
        assert (row["waits"] is None) == (row["what"] not in ("train, cold", "train, cached", "train, packed")) and 0 <= (row["waits"] or 0) < 1
    assert found["verdict"] in lines[-2] and len(found["packed_to_memory"]) == 2 and min(found["packed_to_memory"]) > 0
    assert lines[-1].startswith(f"Packed: {sum(found['packed_to_memory']) / 2:.3f} of the rate in memory") and "packed in " in lines[head - 2]


def test_products():
    done = run("products.py", "--net", "half", "--batch", 4, "--rounds", 1, "--size", 67)
    if "oneDNN is not installed" in done.stderr:
        assert done.returncode == 2
        pytest.skip("the extra minialex[onednn] is not installed")
    assert done.returncode == 0, done.stderr
    head, equal, *rows = done.stdout.splitlines()
    assert head.startswith("oneDNN ") and "beside OpenBLAS " in head and equal.startswith("half: the same step, to ")
    assert [row.split()[:3] for row in rows] == [["half", what, "ratio"] for what in ("train", "infer")]
    for row in rows:
        ratio, ours, theirs = (float(row.split()[place]) for place in (3, -3, -1))
        assert ours - 0.05 <= (ratio + 0.005) * (theirs + 0.05) and (ratio - 0.005) * (theirs - 0.05) <= ours + 0.05      # as rounded


def test_what_they_refuse(tmp_path):
    done = run("input_pipeline.py", "--workers", 0)
    assert done.returncode == 2 and done.stderr == "error: --images, --batch, --rounds and --workers: expected at least 1\n"
    done = run("startup.py", "--rounds", 0)
    assert done.returncode == 2 and done.stderr == "error: --rounds: expected at least 1\n"
    done = run("input_pipeline.py", "--data", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    pytest.importorskip("torch", reason="scaling is measured beside PyTorch: pip install torch==2.13.0")
    done = run("scaling.py", "--batches", 0)
    assert done.returncode == 2 and done.stderr == "error: --batches, --threads, --sizes and --rounds: expected at least 1\n"


@pytest.mark.slow
def test_overfitting(own_pictures, tmp_path):
    """Four trainings that differ in what they draw anew and in dropout."""
    done = run("overfitting.py", "--data", own_pictures, "--size", "72", "--epochs", "2", "--json", tmp_path / "found.json", "--plot", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["dropout and augmentation", "augmentation alone", "dropout alone", "neither"] and all(len(epochs) == 2 for epochs in found.values())
    losses = [epochs[0]["train_loss"] for epochs in found.values()]
    assert len(set(losses)) == 4 and (tmp_path / "plot.png").stat().st_size > 10_000
    for name in found:
        assert name in done.stdout
