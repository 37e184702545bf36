"""Every kernel compiles for GPUs as CuPy will compile it, without a driver, and spills no register."""

import sys
from pathlib import Path

import pytest

from minialex.device.kernel import declarations, sources

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import nvrtc  # noqa: E402

FILES = sorted(sources().glob("*.cu"))
QUICK = (80, 90, 120)


@pytest.fixture(scope="module")
def library():
    found = nvrtc.find_nvrtc()
    if not found:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    return found


@pytest.mark.parametrize("architecture", [a if a in QUICK else pytest.param(a, marks=pytest.mark.slow) for a in nvrtc.ARCHITECTURES])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_kernel_compiles_and_spills_nothing(library, file, architecture):
    kernels = nvrtc.compile_file(library, file, architecture)
    assert set(kernels) == set(declarations(file))
    for name, about in kernels.items():
        assert about["stack"] == about["spill_stores"] == about["spill_loads"] == 0, (name, about)
        assert about["registers"] <= 64 and about["shared"] <= 48 << 10, (name, about)


def test_an_error_shows_the_compilers_words(library, tmp_path):
    (tmp_path / "broken.cu").write_text("KERNEL broken(long long rows) { nonsense; }")
    with pytest.raises(RuntimeError, match="(?s)broken.cu for sm_80.*error"):
        nvrtc.compile_file(library, tmp_path / "broken.cu", 80)
