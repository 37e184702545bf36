"""What one waits for, counted: which modules are imported and which kernels compiled. How long it takes, benchmarks/startup.py measures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from minialex.device.kernel import sources

ROOT = Path(__file__).resolve().parent.parent


def test_importing_minialex_imports_nothing_else():
    program = ("import sys; before = set(sys.modules); import minialex, minialex.data\n"
               "print({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "{'minialex'}\n", done.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(what the benchmark prints before its runs, the lines of a run that finds no kernels, those of a second, its last line, the compiled files)"""
    folder = tmp_path_factory.mktemp("startup")
    done = subprocess.run([sys.executable, ROOT / "benchmarks/startup.py", "--rounds", "1", "--folder", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    before, cold, warm = re.split(r"^.*kernels.*:\n", done.stdout, flags=re.M)
    *warm, last = warm.splitlines()
    return before.splitlines(), cold.splitlines(), warm, last, [path.name for path in (folder / "compiled").iterdir()]


def test_a_cold_cache_compiles_each_file_once_and_says_so_once(told):
    _, cold, warm, _, compiled = told
    names = sorted(["queue", *(path.name for path in sources().glob("*.cu"))])
    assert sorted(re.fullmatch(r"(.*)-[0-9a-f]{24}-[0-9a-f]{24}\.so", name)[1] for name in compiled) == names
    said = [line for line in cold if "compiling" in line]
    assert len(said) == 1 and f" compiling {len(names)} kernel files with " in said[0] and said[0].endswith(" (once)")
    assert not any("compiling" in line for line in warm)


def test_the_first_step_waits_for_no_import_that_it_can_do_without(told):
    for run in told[1:3]:
        assert "the first step, with " in run[-1]
        imported = set(run[-1].split(", with ")[1].split())
        assert {"minialex", "numpy"} <= imported and not imported & {"matplotlib", "cupy", "torch", "scipy", "keras", "sklearn", "pytest"}


def test_what_the_benchmark_prints(told):
    before, cold, warm, last, _ = told
    assert [line.split()[:3] for line in before] == [["import", name, "ratio"] for name in ("minialex", "minialex.network", "minialex.train")]
    said = re.fullmatch(r"first step  ratio \d+\.\d\d   (.*) s with compiled kernels to (.*) s with kernels to compile", last)
    assert [float(seconds) for seconds in said.groups()] == pytest.approx([float(run[-1].split()[0]) for run in (warm, cold)], abs=0.006)
