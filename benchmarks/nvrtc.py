"""Compiles kernels with NVRTC as CuPy does, without a driver, and reads what ptxas and cuobjdump say of each kernel."""

import ctypes
import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

from minialex.device.kernel import source_text

# A RawModule's option of device/cuda.py, and what CuPy 14 adds to it (cupy/cuda/compiler.py: _compile_with_cache_cuda, _compile).
CUPY_OPTIONS = ["-std=c++17", "-ftz=true", "--device-as-default-execution-space"]
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]


def find_nvrtc():
    """NVRTC of the nvidia-cuda-nvrtc wheel (CuPy's [ctk] extra brings it); None where it is not installed."""
    found = in_wheels("*/lib/libnvrtc.so.*")
    return ctypes.CDLL(str(found[0])) if found else None


def in_wheels(pattern):
    spec = importlib.util.find_spec("nvidia")
    return [file for place in (spec.submodule_search_locations if spec else []) for file in Path(place).glob(pattern)]


def compile_file(nvrtc, file, architecture):
    """{kernel: {"registers", "stack", "spill_stores", "spill_loads", "shared"}} of a .cu file for sm_`architecture`."""
    return read_log(compile_cubin(nvrtc, file, architecture)[1])


def compile_cubin(nvrtc, file, architecture):
    """-> (the machine code of a .cu file for sm_`architecture`, ptxas's words)"""
    cubin, _, log = compile_text(nvrtc, source_text(file), Path(file).name, architecture)
    return cubin, log


def compile_text(nvrtc, text, name, architecture):
    """-> (machine code, PTX, ptxas's words)"""
    program = ctypes.c_void_p()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
    options = [option.encode() for option in (f"-arch=sm_{architecture}", *CUPY_OPTIONS, "--ptxas-options=-v")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def result(what):
        size = ctypes.c_size_t()
        check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        found = ctypes.create_string_buffer(size.value)
        check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, found))
        return found
    log = result("ProgramLog").value.decode()
    if failed:
        raise RuntimeError(f"{name} for sm_{architecture}:\n{log}")
    cubin, ptx = result("CUBIN").raw, result("PTX").value.decode()
    assert cubin, "NVRTC gave no cubin"
    check(nvrtc, nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return cubin, ptx, log


def disassemble(cubin):
    """{kernel: [(address, guard, instruction such as LDG.E.128, operands)]}; None without the wheels nvidia-cuda-cuobjdump and -nvdisasm."""
    found = in_wheels("*/bin/cuobjdump")
    if not found or not in_wheels("*/bin/nvdisasm"):
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(found[0]), "-sass", file.name], capture_output=True, text=True, check=True,
                              env={**os.environ, "PATH": f"{found[0].parent}{os.pathsep}{os.environ.get('PATH', '')}"}).stdout
    return {name: read_listing(body) for name, body in re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", text, re.S)}


def read_listing(text):
    return [(int(at, 16), guard, name, operands.strip()) for at, guard, name, operands in
            re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(@!?U?P\w+ )?([\w.]+)([^;]*);", text, re.M)]


def inner_loops(code):
    """[[instruction, ...] of each loop that has no loop in it]: what lies between a branch and the earlier place that it goes to."""
    loops = []
    for at, _, name, operands in code:
        if name.startswith("BRA") and int(operands.split("0x")[-1], 16) < at:
            loops.append((int(operands.split("0x")[-1], 16), at))
    inner = {(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)}
    return [[name for at, _, name, _ in code if a <= at <= b] for a, b in sorted(inner)]


def read_log(log):
    found = {}
    for name, body in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", log, re.S):
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", body).groups())
        shared = re.search(r"(\d+) bytes smem", body)
        found[name] = {"registers": int(re.search(r"Used (\d+) registers", body)[1]), "stack": stack, "spill_stores": stores,
                       "spill_loads": loads, "shared": int(shared[1]) if shared else 0}
    return found


def check(nvrtc, code):
    if code:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(nvrtc.nvrtcGetErrorString(code).decode())
