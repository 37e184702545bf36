"""The devices that the suite runs on: cpu, the CUDA branch executed thread by thread, and cuda where there is a GPU."""

import sys
from collections import Counter

import pytest

from minialex.device import cuda
from odd_files import FILES
from simt.device import SIMT, why_not


def pytest_report_header(config):
    return f"cuda: {cuda.why_not() or 'a working GPU'}"


def pytest_terminal_summary(terminalreporter):
    """What was skipped, a line for each reason: pytest's own -rs has one for each place, over a hundred without a GPU."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    if reasons and not terminalreporter.hasopt("skipped"):
        terminalreporter.section("skipped")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"SKIPPED [{count}] {reason}")


@pytest.fixture(scope="session", params=["cpu", "simt", "cuda"])
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
