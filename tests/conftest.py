"""The devices that the suite runs on: cpu, the CUDA branch executed thread by thread, and cuda where there is a GPU."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from minialex.device import cuda
from odd_files import FILES
from simt.device import SIMT, why_not

HERE, FAILED = Path(__file__).resolve().parent, pytest.StashKey()


def pytest_report_header(config):
    return f"cuda: {cuda.why_not() or 'a working GPU'}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """All skips for want of a GPU count as made here, so that -rs has one line for them and not one for each place; they have the marker."""
    report = (yield).get_result()
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    if report.skipped and isinstance(report.longrepr, tuple) and "no cuda here" in report.longrepr[2]:
        if item.get_closest_marker("gpu"):
            report.longrepr = __file__, None, report.longrepr[2]
        else:
            report.outcome, report.longrepr = "failed", "it needs a GPU and has no marker `gpu`"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    """After an illegal address CUDA refuses all further work of a process: xdist gets another worker for the other tests, or the session ends here."""
    yield
    if not item.stash.get(FAILED, False) or not item.get_closest_marker("gpu") or "cupy" not in sys.modules:
        return
    try:
        sys.modules["cupy"].cuda.get_current_stream().synchronize()
    except Exception:
        if os.environ.get("PYTEST_XDIST_WORKER"):
            os._exit(1)
        item.session.shouldfail = f"{item.nodeid} has left this process without its GPU"


@pytest.fixture(scope="session", params=["cpu", "simt", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A device to hold against the numpy references."""
    from minialex.ops.layer import device_of
    if request.param == "simt":
        if why_not():
            pytest.skip(f"no thread-by-thread execution here: {why_not()}")
        return SIMT("permuted")
    if request.param == "cuda" and cuda.why_not():
        pytest.skip(f"no cuda here: {cuda.why_not()}")
    return device_of(request.param)


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in in the place of CuPy (tests/simt/stand_in.py), and the device behind it."""
    if why_not():
        pytest.skip(f"no thread-by-thread execution here: {why_not()}")
    from minialex.ops import layer
    from simt import stand_in
    for name, module in stand_in.install().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(layer, "_devices", {})
    return stand_in.gpu


@pytest.fixture
def gpu_in_processes(monkeypatch):
    """The stand-in in the place of CuPy in the processes that a test starts."""
    if why_not():
        pytest.skip(f"no thread-by-thread execution here: {why_not()}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [HERE / "simt" / "as_cupy", HERE, HERE.parent])))


@pytest.fixture(scope="session")
def cpu():
    from minialex.ops.layer import device_of
    return device_of("cpu")


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """A folder of odd_files.FILES."""
    folder = tmp_path_factory.mktemp("set") / "odd"
    folder.mkdir()
    for name, (_, data) in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three classes told apart by colour, 12 + 4 pictures each; one training file is damaged, one is no image."""
    from runs import draw_classes
    root = tmp_path_factory.mktemp("pictures")
    draw_classes(root, np.random.default_rng(5), 12, 4)
    whole = (root / "train/red/00.jpg").read_bytes()
    (root / "train/red/damaged.jpg").write_bytes(whole[:len(whole) // 2])
    (root / "train/blue/labels.csv").write_text("not,an,image\n")
    return root


@pytest.fixture
def own_pictures(pictures, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(pictures, tmp_path / "pictures", copy_function=os.link)


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """A run of two epochs on them, which nobody changes."""
    from runs import arguments

    from minialex import train
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert train.main(arguments(pictures, out)) == 0
    return out


@pytest.fixture
def plain_report(monkeypatch):
    """Reports without their pictures, whose drawing takes longer than the training here."""
    from minialex.files import write_beside
    from minialex.run import page
    monkeypatch.setattr(page, "write", lambda folder, *a, **k: write_beside(folder / "report.html", "drawn elsewhere\n" * 100))
