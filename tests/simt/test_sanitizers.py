"""The CUDA branch of every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, and faults that they catch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simt.device import why_not

from minialex.device.compiler import find_compiler

TESTS = Path(__file__).parents[1]
pytestmark = [pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}"), pytest.mark.slow]

PROGRAM = """
import sys
import numpy as np
from minialex.ops.relu import relu_in_place
from simt.device import SIMT
from simt.test_simt import FAULTS, fault
device = SIMT()
device.libraries[FAULTS] = device.builder.build("faults", device.text(FAULTS))
x, y, case = device.array(np.ones(32, np.float32)), device.empty(32), sys.argv[1]
if case == "right":
    device.launch(relu_in_place, 1, x, 32)
elif case == "kernel":
    device.launch(relu_in_place, 1, x, 33)
elif case == "fault":
    device.launch(fault("past_the_end", "x", "y", "n"), 1, x, y, 32)
elif case == "overflow":
    device.only = slice(2**25, 2**25 + 4)
    device.launch(fault("int_index", "x", "channels"), 2**25 + 4, x, 96)
print("survived")
"""


def sanitized(*command):
    libraries = [subprocess.run([*find_compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip() for name in ("asan", "ubsan")]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip(f"the compiler brings no sanitizers (libasan.so: {libraries[0]})")
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=TESTS.parent,
                          env={**os.environ, "PYTHONPATH": str(TESTS), "SIMT_SANITIZE": "address,undefined", "LD_PRELOAD": " ".join(libraries),
                               "ASAN_OPTIONS": "detect_leaks=0"})


@pytest.mark.parametrize("case, told", [("right", None), ("kernel", "heap-buffer-overflow"), ("fault", "heap-buffer-overflow"),
                                        ("overflow", "runtime error: signed integer overflow")])
def test_faults_are_caught(case, told):
    done = sanitized("-c", PROGRAM, case)
    assert (done.returncode == 0 and done.stdout == "survived\n") if told is None else (done.returncode != 0 and told in done.stderr), done


def test_every_op_through_the_executor():
    done = sanitized("-m", "pytest", "-q", "-k", "simt", "tests/ops", "tests/simt/test_simt.py")
    assert done.returncode == 0 and " passed" in done.stdout.splitlines()[-1], done.stdout[-3000:] + done.stderr[-3000:]


def test_a_training_step_through_the_executor():
    done = sanitized("-m", "pytest", "-q", "-k", "simt", "tests/test_network.py")
    assert done.returncode == 0 and " passed" in done.stdout.splitlines()[-1], done.stdout[-3000:] + done.stderr[-3000:]
