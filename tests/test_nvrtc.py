"""Every kernel compiles for GPUs as CuPy will compile it, without a driver, spills no register, and issues few instructions."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from simt.device import SIMT, why_not

from minialex import functional as F
from minialex.device.base import Device
from minialex.device.cuda import OPTIONS
from minialex.device.kernel import declarations, source_text, sources
from minialex.ops.lrn import lrn, lrn_backward
from minialex.ops.pool import MaxPool, max_pool, max_pool_backward
from minialex.ops.winograd import FORMS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import nvrtc  # noqa: E402
import ptx  # noqa: E402
from kernel_report import CHIPS, Plan, programs, tile_operations  # noqa: E402

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


@pytest.mark.parametrize("architecture", [QUICK[0], *(pytest.param(other, marks=pytest.mark.slow) for other in QUICK[1:])])
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


def test_shared_memory_that_is_read_by_fours_is_aligned(library):
    """The executor's compiler aligns arrays by itself; a GPU's does what it is told."""
    for file in FILES:
        found = re.findall(r"\.shared \.align (\d+)", nvrtc.compile_text(library, source_text(file), file.name, 80)[1])
        assert set(found) <= {"16"} and bool(found) == ("ROW_SCRATCH" in file.read_text()), file.name


# Of the loops that have no loop in them and read or write four floats at once: the most instructions for each four floats that they write, or for each
# tap of four channels. im2col copies lines, runs of groups and staged windows, and clears what hangs over.
LOOPS = {"im2col": {("LDG", "STG"): (8, 20), ("LDS", "STG"): (14, 14), ("STG",): (6, 6)}, "col2im": {("LDG",): (9, 9)},
         "max_pool": {("LDG",): (31, 31)}, "max_pool_backward": {("LDG",): (27, 27)}}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("file", ["im2col.cu", "pool.cu", "lrn.cu"])
def test_inner_loops_are_short_and_know_where_they_read(library, file, architecture):
    """The least and the most instructions of such loops; and no access is one that the machine must first find to be global or shared."""
    listings = nvrtc.disassemble(nvrtc.compile_cubin(library, sources() / file, architecture)[0])
    if not listings:
        pytest.skip("cuobjdump is not installed: no instruction is counted (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    for kernel, code in listings.items():
        assert not [name for _, _, name, _ in code if name.split(".")[0] in ("LD", "ST", "LDL", "STL")]
        lengths = {}
        for loop in nvrtc.inner_loops(code):
            fours = Counter(name.split(".")[0] for name in loop if name.endswith((".128", ".128.CONSTANT")))
            kinds = tuple(kind for kind in ("LDG", "LDS", "STG") if fours[kind] or kind == "LDS" and "LDS" in loop)
            if fours and kinds in LOOPS.get(kernel, {}):
                lengths.setdefault(kinds, []).append(len(loop) / fours[kinds[-1]])
        for kinds, (least, most) in LOOPS.get(kernel, {}).items():
            assert min(lengths[kinds]) <= least and max(lengths[kinds]) <= most, (kernel, kinds, lengths)


def test_loops_are_found_in_a_listing():
    code = nvrtc.read_listing("""
        /*0000*/                   MOV R1, c[0x0][0x28] ;                 /* 0x00000a0000017a02 */
        /*0010*/                   ISETP.GE.AND P0, PT, R3, R2, PT ;
        /*0020*/               @P0 BRA 0x80 ;
        /*0030*/                   LDG.E.128 R4, [R8.64] ;
        /*0040*/              @!P1 IADD3 R3, R3, 0x80, RZ ;
        /*0050*/                   STG.E.128 [R10.64], R4 ;
        /*0060*/               @P2 BRA 0x30 ;
        /*0070*/                   BRA 0x10 ;
        /*0080*/                   EXIT ;
    """)
    assert nvrtc.inner_loops(code) == [["LDG.E.128", "IADD3", "STG.E.128", "BRA"]] and len(code) == 9


COPY = """
.visible .entry copy(.param .u64 copy_param_0, .param .u64 copy_param_1, .param .u64 copy_param_2, .param .u32 copy_param_3)
{
    .reg .pred %p<3>;
    .reg .b32 %r<9>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd1, [copy_param_1];
    ld.param.b64 %rd2, [copy_param_2];
    ld.param.b32 %r1, [copy_param_3];
    mov.u32 %r2, %tid.x;
    and.b32 %r3, %r2, 31;
    mov.u32 %r4, %ctaid.x;
    shl.b32 %r5, %r4, 2;
    shr.u32 %r2, %r2, 5;
    add.s32 %r5, %r5, %r2;
    mad.lo.s32 %r6, %r5, %r1, %r3;
$L__BB0_1:
    setp.ge.s32 %p1, %r3, %r1;
    @%p1 bra $L__BB0_2;
    mul.wide.s32 %rd3, %r6, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.nc.f32 %r7, [%rd4];
    add.s64 %rd5, %rd2, %rd3;
    st.global.f32 [%rd5], %r7;
    add.s32 %r3, %r3, 32;
    add.s32 %r6, %r6, 32;
    bra.uni $L__BB0_1;
$L__BB0_2:
    ret;
}
"""


@pytest.mark.parametrize("width, turns", [(40, 2), (64, 2), (3, 1), (0, 0), (65, 3)])
def test_a_warp_executes_as_many_instructions_as_are_counted_by_hand(width, turns):
    """Seven before the loop (parameters are read where they are used), ten a turn, and two and the return at its end."""
    x = np.arange(9 * width, dtype=np.float32)
    y = np.zeros_like(x)
    for row in range(9):
        assert ptx.Warp(ptx.kernels(COPY)["copy"], [np.int64(9), x, y, np.int32(width)], row).run() == 7 + 10 * turns + 2 + 1
    np.testing.assert_array_equal(x, y)


def test_an_access_of_ptx_that_is_not_aligned_is_an_error():
    x, y = np.zeros(41, np.float32), np.zeros(40, np.float32)
    with pytest.raises(ValueError, match="4 bytes at an address that is not a multiple of that"):
        ptx.Warp(ptx.kernels(COPY)["copy"], [np.int64(1), x.view(np.uint8)[1:], y, np.int32(40)], 0).run()


# Kernel: of an image of 55 x 55 pixels of 96 channels and one of 27 x 27 of 256, the instructions that a warp executes in the mean; before four floats
# went to a thread they were 991 and 2486, 396 and 884, 372 and 737, 763 and 1431.
EXECUTED = {"max_pool": (445, 790), "max_pool_backward": (200, 320), "lrn": (210, 305), "lrn_backward": (345, 490)}


def test_a_row_takes_few_instructions(library):
    for size, channels, bounds in ((55, 96, 0), (27, 256, 1)):
        device, layer = Plan(CHIPS[-1]), MaxPool(3, 2)
        shape, window = (size, size, channels), (size, size, channels, *layer.window.arguments(size, size))
        x, y, winner = device.zeros((1, *shape)), device.zeros((1, *layer.output(shape))), device.zeros((1, *layer.output(shape)), np.uint8)
        norm = channels, 5, 1e-4, 0.75, 2.0
        for kernel, arguments in ((max_pool, (x, y, winner, x[0, 0, 0], *window, 1, 1)), (max_pool_backward, (y, winner, x, *window)), (lrn, (x, x.copy(), *norm)),
                                  (lrn_backward, (x, x, x.copy(), *norm))):
            rows = y.size // channels if kernel is max_pool else size * size
            values = kernel.bind((rows, *arguments), np.ndarray, "cuda")
            assert np.mean([ptx.Warp(programs()[kernel.name], values, int(row)).run() for row in np.linspace(0, rows - 1, 12)]) <= EXECUTED[kernel.name][bounds], kernel.name


class Interpreted(SIMT):
    """Runs what NVRTC makes of the kernels."""

    name = "ptx"

    def launch(self, kernel, rows, *arguments):
        Device.submit(self, lambda: self.interpret(kernel, rows, arguments))

    def interpret(self, kernel, rows, arguments):
        values = kernel.bind((rows, *arguments), np.ndarray, self.name)
        for row in range(rows):
            ptx.Warp(programs()[kernel.name], values, row).run()


def drawn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


INTERPRETED = {
    **{f"lrn of {c}": lambda d, c=c: F.local_response_norm(drawn(3, c), 5, alpha=0.8, device=d) for c in (132, 33)},
    **{f"lrn_backward of {c}": lambda d, c=c: F.local_response_norm_backward(drawn(c, 3).T.copy(), drawn(3, c), 5, alpha=0.8, device=d) for c in (132, 33)},
    "lrn of 9, beta 0.6": lambda d: F.local_response_norm(drawn(3, 24), 9, beta=0.5, device=d),
    **{f"pool of {c}": lambda d, c=c: F.max_pool2d(drawn(1, 5, 7, c), 3, stride=2, pad=1, device=d) for c in (24, 33)},
    **{f"pool_backward of {c}": lambda d, c=c: F.max_pool2d_backward(drawn(1, 3, 4, c), drawn(1, 5, 7, c), 3, stride=2, pad=1, device=d) for c in (24, 33)},
    "im2col of 3": lambda d: F.im2col(drawn(1, 19, 21, 3), 11, stride=4, pad=(3, 1), device=d),
    **{f"im2col of {c}, {g}": lambda d, c=c, g=g: F.im2col(drawn(1, 4, 5, c), 3, pad=1, groups=g, device=d) for c, g in ((48, 1), (48, 2), (33, 1), (33, 3))},
    **{f"col2im of {c}, {g}": lambda d, c=c, g=g: F.col2im(drawn(g, 20, 9 * c // g), (1, 4, 5, c), 3, pad=1, groups=g, device=d)
       for c, g in ((48, 2), (33, 3))},
    "bias": lambda d: F.relu(drawn(5, 300), device=d),
    "softmax": lambda d: F.softmax(drawn(3, 77), device=d),
    "sgd": lambda d: F.sgd_update(drawn(515), drawn(515), drawn(515), lr=0.1, weight_decay=0.01, form="torch", device=d)[0],
}


@pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}")
@pytest.mark.parametrize("name", INTERPRETED)
def test_what_the_compiler_made_computes_what_the_cpu_branch_does(library, name):
    ours, other = INTERPRETED[name](Interpreted()), INTERPRETED[name]("cpu")
    np.testing.assert_allclose(ours, other, rtol=3e-6, atol=3e-6 * np.abs(other).max())
