"""The self-test: passes where all is right, and says what is wrong where something is, without stopping there."""

import re

import numpy as np
import pytest

from minialex import selftest
from minialex.command import run_command
from minialex.device import cuda
from minialex.errors import UserError
from minialex.ops import dense, relu, softmax
from minialex.optim import sgd

COLUMNS = [["kernel", "shape", "MB", "us", "GB/s", "copy GB/s", "of a copy"], ["layer", "product", "at once", "GFLOP/s"]]


def report(text):
    """(lines as they came, pasted lines, {first cell: cells} of both tables)"""
    before, rest = text.split(selftest.MARKS[0] + "\n")
    pasted, after = rest.split(selftest.MARKS[1])
    assert after == "\n" and before.splitlines()[-2] in pasted      # the verdict
    rows = [re.split(r"\s{2,}", line.strip()) for line in pasted.splitlines()]
    starts = [rows.index(columns) for columns in COLUMNS]
    return before.splitlines(), pasted.splitlines(), {row[0]: row for row in rows[starts[0]:]}


def whole(lines, pasted, table, device):
    """What a run without a failure prints."""
    done = [line.split(": ")[0][8:] for line in lines if line.startswith("ok ")]
    assert lines[-2] == f"selftest passed: {len(done)} checks on {device}" and not [line for line in lines if "FAILED" in line]
    assert {"conv2d", "softmax_cross_entropy", "add_parts", "loss, ranks and totals", "max-pool with bias and ReLU", "a step of the small paper", "training of half"} < set(done)
    assert pasted[0].startswith(f"device {device}: ") and "Python" in "".join(pasted[:4])
    for kernel, name in selftest.MEMORY_BOUND:
        cells = table[f"{kernel}, {name}"]
        assert len(cells) == len(COLUMNS[0]) and all(0 <= float(cell) < np.inf for cell in cells[2:])      # a slow rate is printed as zero
    products = {name: cells for name, cells in table.items() if len(cells) == len(COLUMNS[1])}
    assert list(products) == ["layer", *(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    assert all(0 <= float(cells[3]) < np.inf for name, cells in products.items() if name != "layer")


def test_the_command(capsys, cpu):
    assert selftest.main(["--device", "cpu", "--quick"]) == 0
    lines, pasted, table = report(capsys.readouterr().out)
    whole(lines, pasted, table, "cpu")
    assert table["im2col, conv1"][1:3] == ["4 of 67 x 67 x 3", "1.5"] and table["sgd, fc7"][1] == "512 x 512"


@pytest.mark.parametrize("name", ["paper", "caffenet", "owt"])
def test_any_net_on_any_device(capsys, device, name):
    assert selftest.selftest(device, "a test", name, quick=True) == 0
    lines = report(capsys.readouterr().out)[0]
    compared = any(line.startswith(f"ok      a step of {name}: 4 images at 67 px, distance from cpu") for line in lines)
    assert compared == (device.name != "cpu")


def test_over_a_stand_in_for_cupy(capsys, gpu, gpu_in_processes):
    assert selftest.main(["--device", "cuda", "--quick", "--batch", "3"]) == 0
    lines, pasted, table = report(capsys.readouterr().out)
    whole(lines, pasted, table, "cuda")
    assert pasted[1] == "CuPy stand-in, CUDA runtime 13.0, driver up to CUDA 13.1" and table["lrn, norm1"][1].startswith("3 of ")
    assert any(line.startswith("ok      a step of half: 4 images") for line in lines)


@pytest.mark.parametrize("fault, told", [
    ("address", "CUDARuntimeError: cudaErrorIllegalAddress: an illegal memory access was encountered (1 bytes at 0x0 are not memory of the device)"),
    ("death", "the process of these checks was ended by SIGSEGV"), ("hang", "the process of these checks took more than 4 s (--limit)")])
def test_a_fault_takes_its_own_process_down_and_no_other(capsys, gpu, gpu_in_processes, monkeypatch, fault, told):
    """On a GPU an illegal address stays: every later call of the process fails."""
    groups = selftest.checks(selftest.open_device("cuda")[0], "half", quick=True)[0]
    if fault != "address":      # that the other groups run is seen once
        groups = {"kernels": groups["kernels"]}
        monkeypatch.setattr(selftest, "checks", lambda *asked: (groups, [[], []]))
    monkeypatch.setenv("STAND_IN_FAULT", f"adam:{fault}")
    assert selftest.main(["--device", "cuda", "--quick", "--limit", "4" if fault == "hang" else "300"]) == 1
    before, _, pasted = capsys.readouterr().out.partition(selftest.MARKS[0])
    kernels, passed = list(groups["kernels"]), [line.split(": ")[0][8:] for line in before.splitlines() if line.startswith("ok ")]
    at = next(name for name in kernels if name not in passed) if fault == "hang" else "adam"      # a busy machine may not get as far
    after = kernels[kernels.index(at) + 1:]
    assert passed == [name for group in groups.values() for name in group if name not in (at, *after)] and len(after) > 4
    for part in (before, pasted):
        assert f"\nFAILED  {at}: {told}\n" in part and f"\nnot run {'; '.join(after)}: {at} took their process down\n" in part
        assert f"\nselftest FAILED: 1 of {sum(map(len, groups.values()))} checks: {at}; more were not run\n" in part


def one_more(rows, x, count):
    x[...] = np.where(x > 0, x + 1, 0)


def other_sign(rows, w, v, g, *more):
    sgd_reference(rows, w, v, -g, *more)


def lost(rows, x, label, weight, loss, *more):
    cross_entropy(rows, x, label, weight, loss, *more)
    loss[...] = np.nan


sgd_reference, cross_entropy = sgd.reference, softmax.cross_entropy_rows.reference


@pytest.mark.parametrize("kernel, wrong, failing, told", [
    (relu.relu_in_place, one_more, ["relu"], r"forward: worst at y\[\d, \d+\]: kernel \S+, reference \S+ \(relative error"),
    (sgd, other_sign, ["sgd", "a step of the small paper"], r"forward: worst at sgd result 0 \[\d+\]: kernel \S+, reference"),
    (softmax.cross_entropy_rows, lost, ["softmax_cross_entropy", "loss, ranks and totals", "a step of the small paper"],
     r"worst at \S+\[\d\]: \S+ \S+, \S+ nan"),
], ids=lambda v: getattr(v, "__name__", getattr(v, "name", "")))
def test_a_wrong_kernel_is_named_and_the_others_go_on(capsys, monkeypatch, cpu, kernel, wrong, failing, told):
    count = sum(map(len, selftest.checks(cpu, "half", quick=True)[0].values()))
    monkeypatch.setattr(kernel, "reference", wrong)
    assert selftest.main(["--device", "cpu", "--quick"]) == 1
    lines, pasted, _ = report(capsys.readouterr().out)
    assert lines[-2] == f"selftest FAILED: {len(failing)} of {count} checks: {'; '.join(failing)}"
    assert sum(line.startswith("ok ") for line in lines) == count - len(failing)
    for part in (lines, pasted):
        assert [line.split(":")[0] for line in part if line.startswith("FAILED ")] == [f"FAILED  {name}" for name in failing]
        assert re.search(told, "\n".join(part)) and any(line.startswith("run again: python -") for line in part)


def test_an_exception_is_a_failed_check_with_its_first_lines_and_its_place(capsys, monkeypatch, cpu):
    def refuses(self, device, at):
        raise RuntimeError("\n".join(f"error {i}" for i in range(20)))

    monkeypatch.setattr(dense.Dense, "forward", refuses)
    assert selftest.main(["--device", "cpu", "--quick"]) == 1
    lines, pasted, _ = report(capsys.readouterr().out)
    failing = ["dense", "a step of the small paper", "training of half"]
    assert lines[-2].startswith("selftest FAILED: 3 of ") and lines[-2].endswith(f" checks: {'; '.join(failing)}")
    at = pasted.index("FAILED  dense: RuntimeError: error 0")
    assert pasted[at + 1:at + 8] == [f"error {i}" for i in range(1, 8)]
    assert re.match(r"at .*test_selftest.py:\d+$", pasted[at + 8])
    assert any(line.startswith("ok      product of fc8") for line in lines)


def test_mistakes(capsys, monkeypatch):
    monkeypatch.setattr(cuda, "why_not", lambda number: "the driver finds no GPU")
    with pytest.raises(SystemExit) as left:
        run_command(lambda: selftest.main(["--device", "cuda", "--quick"]))
    assert left.value.code == 2 and capsys.readouterr() == ("", "error: --device cuda: the driver finds no GPU\n")
    for arguments, text in ((["--batch", "0"], "--batch 0: expected"), (["--net", "vgg"], "unknown net 'vgg'")):
        with pytest.raises(UserError, match=text):
            selftest.main(arguments)
