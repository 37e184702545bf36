"""Every kernel compiles for GPUs as CuPy will compile it, without a driver, and spills no register."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from minialex.device.cuda import OPTIONS
from minialex.device.kernel import declarations, source_text, sources
from minialex.ops.winograd import FORMS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import nvrtc  # noqa: E402
from kernel_report import tile_operations  # noqa: E402

FILES = sorted(sources().glob("*.cu"))
QUICK = (80, 90, 120)
MOST = {"winograd.cu": 128}      # registers of a thread, where it isn't 64


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
        assert about["registers"] <= MOST.get(file.name, 64) and about["shared"] <= 48 << 10, (name, about)


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


@pytest.mark.parametrize("r, m", [(r, m) for r, sizes in FORMS.items() for m in sizes])
def test_winograds_kernels_compute_no_more_than_their_matrices_say(library, m, r):
    """In the PTX of a form by itself. What comes after the last matrix is there for each answer to what a kernel is asked; a thread runs one."""
    t, text = m + r - 1, source_text(sources() / "winograd.cu")
    stores = dict(winograd_output=m * m, winograd_filter_gradient=r * r)      # each with one addition more, of the bias or what was there
    lines = [line for line in text.splitlines() if "body(Form<" not in line or f"Form<{m}, {r}>" in line]
    _, ptx, _ = nvrtc.compile_text(library, "\n".join(lines), "winograd.cu", 80)
    found = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.S))
    for name, (before, after) in tile_operations(m, r).items():
        count = Counter(re.findall(r"^\s+(?:@!?%p\d+ )?(add|sub|mul|fma|st)\.[\w.]*f32\b", found[name], re.M))
        copies, rest = divmod(count["st"], stores.get(name, t * t))
        assert copies and not rest
        assert before < count["add"] + count["sub"] + count["mul"] + 2 * count["fma"] <= before + copies * (after + stores.get(name, 0)), name
