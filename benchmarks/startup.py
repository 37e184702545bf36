"""How long one waits: for the imports beside numpy's, and for the first step of training with kernels to compile and with compiled ones.

python benchmarks/startup.py [--rounds 7] [--folder DIR]

Each import and each run has a process of its own. Imports alternate with numpy's, less what Python alone takes; ratios are
medians over rounds. The time to the first step begins with the process; its lines say where it goes. It is the quickest of
the rounds with compiled kernels, since other programs on the cores can only make a run slower. DIR is for the pictures and
the kernels (default: a temporary folder): if it has some already, no start is cold.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from input_pipeline import write_pictures

from minialex.command import run_command
from minialex.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MODULES = "minialex", "minialex.network", "minialex.train"

# `python -m minialex.train` that says when it begins its first step and what has been imported by then, and ends there.
TO_THE_FIRST_STEP = """
import os, runpy, sys
from minialex.network import Network

def first_step(*arguments):
    print("the first step, with", *sorted({name.partition(".")[0] for name in sys.modules if name[0] != "_"} - sys.stdlib_module_names), flush=True)
    os._exit(0)
Network.train_step = first_step
runpy.run_module("minialex.train", run_name="__main__")
"""


def importing(program):
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    return time.perf_counter() - began


def import_line(module, rounds):
    times = []
    for _ in range(rounds):
        alone, ours, numpys = (importing(program) for program in ("pass", f"import {module}", "import numpy"))
        times.append((max(0.0, ours - alone), max(1e-6, numpys - alone)))
    ratios, (ours, numpys) = sorted(ours / numpys for ours, numpys in times), (statistics.median(column) for column in zip(*times))
    return (f"import {module:17} ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   "
            f"{1e3 * ours:.0f} ms to numpy's {1e3 * numpys:.0f} ms")


def run_to_the_first_step(folder, out):
    """[(seconds since the process was started, line), ...]"""
    command = [sys.executable, "-c", TO_THE_FIRST_STEP, "--data", str(folder / "pictures"), "--device", "cpu", "--out", str(out)]
    began, lines = time.perf_counter(), []
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "MINIALEX_CACHE": str(folder)}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line.rstrip()))
    if process.returncode:
        raise UserError(f"a run did not come to its first step: {lines[-1][1] if lines else 'it says nothing'}")
    return lines


def tell(title, lines):
    print("\n".join([title, *(f"{seconds:8.3f} s  {line}" for seconds, line in lines)]), flush=True)


def measure(folder, rounds):
    for split, count in ("train", 96), ("val", 20):      # a batch and a half of the default 64
        (folder / "pictures" / split).mkdir(parents=True, exist_ok=True)
        write_pictures(folder / "pictures" / split, count)
    for module in MODULES:
        print(import_line(module, rounds), flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        cold = run_to_the_first_step(folder, Path(runs) / "cold")
        tell("kernels to compile:", cold)
        warm = min((run_to_the_first_step(folder, Path(runs) / str(i)) for i in range(rounds)), key=lambda lines: lines[-1][0])
        tell(f"compiled kernels, the quickest of {rounds}:", warm)
    quick, slow = warm[-1][0], cold[-1][0]
    print(f"first step  ratio {quick / slow:.2f}   {quick:.2f} s with compiled kernels to {slow:.2f} s with kernels to compile")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", metavar="DIR")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        raise UserError("--rounds: expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(args.folder or folder).resolve(), args.rounds)
    return 0


if __name__ == "__main__":
    run_command(main)
