"""Every kernel compiles for GPUs as CuPy will compile it, without a driver, and spills no register."""

import sys
from pathlib import Path

import pytest

from minialex.device.cuda import OPTIONS
from minialex.device.kernel import declarations, source_text, sources

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


@pytest.mark.parametrize("architecture", QUICK)
def test_cupys_own_compile_function_gives_the_same_code(library, architecture, monkeypatch):
    """With the options that CuPy adds to those of device/cuda.py; only the architecture, which it asks the driver for, is given."""
    pytest.importorskip("cupy", reason="CuPy is not installed (pip install cupy-cuda13x): NVRTC compiles with the options that it is known to add")
    from cupy._core import core
    from cupy.cuda import compiler
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch=None: (f"-arch=sm_{architecture}", "cubin"))
    for file in FILES:
        text = source_text(file)
        options = core.assemble_cupy_compiler_options(OPTIONS) + ("-ftz=true",)
        cubin, _ = compiler.compile_using_nvrtc(text, options, None, "kern.cu")
        assert cubin[:4] == b"\x7fELF" and all(name.encode() in cubin for name in declarations(file))


def test_an_error_shows_the_compilers_words(library, tmp_path):
    (tmp_path / "broken.cu").write_text("KERNEL broken(long long rows) { nonsense; }")
    with pytest.raises(RuntimeError, match="(?s)broken.cu for sm_80.*error"):
        nvrtc.compile_file(library, tmp_path / "broken.cu", 80)
