"""The devices that the suite runs on: cpu, the CUDA branch executed thread by thread, and cuda where there is a GPU."""

import os
import sys
from pathlib import Path

import pytest

from minialex.device import cuda
from simt.device import SIMT, why_not


def pytest_report_header(config):
    return f"cuda: {cuda.why_not() or 'a working GPU'}"


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
def shared():
    """Real photographs and broken files that are not part of the project."""
    folder = Path(os.environ.get("MINIALEX_SHARED", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "monkeys").is_dir():
        pytest.skip(f"no shared image data in {folder} (set MINIALEX_SHARED)")
    return folder
